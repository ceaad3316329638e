"""Committed boards are what their committed result files say."""

import pytest
from click.testing import CliRunner

from bench.cli import group
from bench.leaderboard.html import render_html
from bench.leaderboard.markdown import render
from bench.leaderboard.measured import table_of
from bench.leaderboard.records import leaderboard
from bench.models.checkpoints import load_checkpoint
from bench.results.file import read_result
from tests import ROOT

BOARDS = ROOT / "leaderboard" / "boards"
CHECKPOINTS = BOARDS.parent / "checkpoints"
PAPER = BOARDS / "paper.md"
TABLES = [f"table{number}" for number in range(1, 9)]


@pytest.mark.parametrize("board", sorted(set(BOARDS.glob("*.md")) - {PAPER}), ids=lambda path: path.stem)
def test_a_board_is_rebuilt_from_its_result_files(board):
    results = [read_result(path) for path in sorted((BOARDS / board.stem).glob("*.h5"))]
    assert results
    seeds = {result.run["seed"] for result in results}
    assert render(table_of(results, merge_seeds=len(seeds) > 1)) == board.read_text(encoding="utf-8")
    page = board.with_suffix(".html").read_text(encoding="utf-8")
    assert render_html(leaderboard(results, merge_seeds=len(seeds) > 1)) == page


def test_every_result_file_belongs_to_a_board():
    folders = {path.name for path in BOARDS.iterdir() if path.is_dir()} - {PAPER.stem}
    assert folders
    assert folders == {path.stem for path in BOARDS.glob("*.html")}
    assert folders == {path.stem for path in BOARDS.glob("*.md")} - {PAPER.stem}


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.glob("*/*/*/seed-*")), ids=lambda path: path.parent.name)
def test_a_checkpoint_is_the_one_of_its_row(folder):
    dataset, backbone, defense, seed = folder.relative_to(CHECKPOINTS).parts
    digest = load_checkpoint(folder).digest
    rows = [read_result(path).run for path in BOARDS.glob(f"{dataset}-*/{defense}-{seed}.h5")]
    assert rows
    assert all((row["backbone"], row["checkpoint_digest"]) == (backbone, digest) for row in rows)


def test_the_page_of_the_paper_is_rebuilt_from_what_was_run_so_far(tmp_path):
    arguments = [*TABLES, "--scale", "full", "--stored", "--runs", str(PAPER.with_suffix("")), "--out"]
    run = CliRunner().invoke(group, ["reproduce", *arguments, str(tmp_path / "paper.md")])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "paper.md").read_text(encoding="utf-8") == PAPER.read_text(encoding="utf-8")
