"""What commands write: all or nothing, the same again after a kill, nothing left over, links followed if named."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.engine import run as engine
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.leaderboard.render.files import write_leaderboard
from bench.results.file import content_digest, read_result
from bench.system import files
from bench.system.blocks import PartStore
from bench.system.files import AlreadyThereError, followed, write_text, write_together, write_whole
from tests import ROOT
from tests.support.example_results import example
from tests.support.refusals import raising, refusal


def test_files_that_belong_together_are_all_on_disk_before_the_first_is_renamed(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    contents = {tmp_path / name: name.encode() for name in "abc"}
    seen = []

    def flush(path):
        seen.append(sorted(other.name for other in tmp_path.iterdir() if not other.name.startswith(".")))
        if len(seen) == fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", flush)
    for fails in (1, 2, 3):
        seen.clear()
        refusal(lambda: write_together(contents), f"cannot write '{tmp_path / 'abc'[fails - 1]}': No space left")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    fails = 0
    seen.clear()
    write_together(contents)
    assert seen == [["a"]] * 3
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in "abc"}


def test_files_that_are_there_already_are_no_obstacle_others_are(tmp_path):
    contents = {tmp_path / name: name.encode() for name in "abc"}
    write_together({tmp_path / "b": b"b"}, replace=False)
    before = (tmp_path / "b").stat().st_ino
    write_together(contents, replace=False)
    write_whole(tmp_path / "c", lambda temporary: temporary.write_text("c"), replace=False)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"a", "b", "c"}
    assert (tmp_path / "b").stat().st_ino == before
    with pytest.raises(AlreadyThereError, match="c exists: add --overwrite"):
        write_together({tmp_path / "d": b"d", tmp_path / "c": b"other"}, replace=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_file_that_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    for name in (".a.1f.tmp", ".b.1f.tmp", ".a.b.1f.tmp"):
        (tmp_path / name).touch()
    write_text(tmp_path / "a", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.b.1f.tmp", ".b.1f.tmp", "a"]


def test_a_link_that_a_person_names_is_followed_and_one_that_is_found_is_replaced(tmp_path):
    elsewhere, board = tmp_path / "elsewhere", tmp_path / "board.md"
    elsewhere.mkdir()
    board.symlink_to("elsewhere/target.md")
    for _ in range(2):  # to a file that is not there yet, and to one that is
        write_leaderboard([example()], board)
        assert board.is_symlink() and board.read_text().startswith("## ")
        assert [path.name for path in elsewhere.iterdir()] == ["target.md"]
    write_text(board, "of a folder that somebody made")
    assert not board.is_symlink() and (elsewhere / "target.md").read_text().startswith("## ")
    (tmp_path / "round").symlink_to("round")
    refusal(lambda: followed(tmp_path / "round"), "cannot write", "round")


@pytest.mark.parametrize("images", [True, False])
def test_an_evaluation_that_is_killed_as_it_clears_up_is_whole_and_the_same_command_says_so(
    digits_run, tmp_path, monkeypatch, images
):
    asked = EvaluationRequest(
        "quick", checkpoint=digits_run, limit=8, probes=0, out=tmp_path / "r.h5", save_adversarials=images
    )
    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "clear", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate(asked)
    (parts,) = tmp_path.glob(".r.h5.*.parts")
    whole = sorted(path.name for path in tmp_path.glob("r.*"))
    refusal(lambda: evaluate(replace(asked, probes=2)), "r.h5 exists: add --overwrite")
    (parts / "clean.npz").unlink()  # it had begun
    with monkeypatch.context() as patch:
        patch.setattr(engine.GroupRun, "run_block", None)
        result, _ = evaluate(asked)
    assert content_digest(result) == content_digest(read_result(tmp_path / "r.h5"))
    assert sorted(path.name for path in tmp_path.iterdir()) == whole
    parts.mkdir()  # all but the folder itself was gone
    refusal(lambda: evaluate(asked), "r.h5 exists: add --overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == whole


def test_a_sample_of_kills():
    """`python -m benchmarks.kills` kills every command at every point."""
    command = [sys.executable, "-m", "benchmarks.kills", "--points", "3", "--only", "eval"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "| eval | 3 | 0 | 0 |"
