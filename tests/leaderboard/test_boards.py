"""Committed boards are what their committed result files say."""

from functools import cache

import pytest

from bench.leaderboard.render.files import board_text
from bench.models.checkpoints import load_checkpoint
from bench.results import file
from tests import ROOT
from tests.support.command import bench

BOARDS = ROOT / "leaderboard" / "boards"
CHECKPOINTS = BOARDS.parent / "checkpoints"
PAPER = BOARDS / "paper.md"
TABLES = [f"table{number}" for number in range(1, 9)]
read_result = cache(file.read_result)
"""Each file is read once: for its board, and for its checkpoint."""


@pytest.mark.parametrize("board", sorted(set(BOARDS.glob("*.md")) - {PAPER}), ids=lambda path: path.stem)
def test_a_board_is_rebuilt_from_its_result_files(board):
    results = [read_result(path) for path in sorted((BOARDS / board.stem).glob("*.h5"))]
    assert results
    merged = len({result.run["seed"] for result in results}) > 1
    for form in (".md", ".html"):
        assert board_text(results, form, merge_seeds=merged) == board.with_suffix(form).read_text(encoding="utf-8")


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
    arguments = (*TABLES, "--scale", "full", "--stored", "--runs", PAPER.with_suffix(""))
    code, output = bench("reproduce", *arguments, "--out", tmp_path / "paper.md")
    assert code == 0, output
    assert (tmp_path / "paper.md").read_text(encoding="utf-8") == PAPER.read_text(encoding="utf-8")
