"""What a person is told during a run."""

import io
import itertools
import re
import sys
from contextlib import closing

import pytest
import torch

from bench.system import progress
from bench.system.progress import EvaluationProgress, TrainingProgress


def run(monkeypatch, seconds_per_step, epochs=110, batches=391):
    """Five steps of a run, by a clock that jumps."""
    clock = itertools.count(step=seconds_per_step)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with TrainingProgress(False, None, epochs, batches, torch.device("cpu")) as shown:
        due = [shown.step(128) for _ in range(5)]
        for _ in filter(None, due):
            shown.show({"loss": torch.tensor(1.5)})
    return sum(due)


def test_a_run_that_takes_days_is_announced_once_and_goes_on(monkeypatch, capsys):
    assert run(monkeypatch, seconds_per_step=30) == 5
    text = capsys.readouterr().err
    assert text.count("warning: 110 epochs on this CPU will take about") == 1
    assert "--resume" in text


def test_a_short_run_is_not_announced(monkeypatch, capsys):
    run(monkeypatch, seconds_per_step=2, epochs=2, batches=10)
    assert "warning" not in capsys.readouterr().err


def test_losses_are_looked_at_about_once_a_second_only(monkeypatch):
    assert run(monkeypatch, seconds_per_step=0.1) < 5


def test_an_epoch_is_one_line_where_there_is_no_terminal(capsys):
    with TrainingProgress(False, None, 3, 10, torch.device("cpu")) as shown:
        shown.epoch_done({"epoch": 1, "learning_rate": 0.1, "clean": 2.25})
    assert capsys.readouterr().err.startswith("epoch 1/3  learning_rate 0.1  clean 2.25")


def test_a_short_text_takes_the_place_of_all_values_whose_names_begin_like_it(capsys):
    row = {"epoch": 1, "clean": 2.25, "watched_test_pgd_10": 50.0, "watched_outcomes": "fa5400"}
    with TrainingProgress(False, None, 3, 10, torch.device("cpu")) as shown:
        shown.epoch_done(row, {"watched": "test 50.0"})
    assert capsys.readouterr().err.startswith("epoch 1/3  clean 2.25  watched test 50.0  0 images/s")


@pytest.mark.parametrize(
    ("saved", "end"), [(None, "images/s"), (0, "images/s"), (1, "  saved up to epoch 1"), (2, "  saved")]
)
def test_an_epochs_line_says_what_is_on_disk(saved, end, capsys):
    with TrainingProgress(False, None, 3, 10, torch.device("cpu")) as shown:
        shown.epoch_done({"epoch": 2, "clean": 2.25}, saved=saved)
    assert capsys.readouterr().err.endswith(f"{end}\n")


def evaluated(progress):
    """What an evaluation of two groups of two blocks each, and its trust report, report."""
    progress.overall(0, 4, None, None)
    progress("FGSM", 0, 8, 8)
    progress.overall(1, 4, 9.0, 120.4)
    progress("FGSM", 4, 8, 3)
    progress.overall(2, 4, 9.0, 100.0)
    progress("FGSM", 8, 8, 5)
    progress.overall(2, 4, None, 100.0)
    progress("A\x1b", 0, 8, 8)
    progress.overall(4, 4, 9.0, 0.0)
    progress("A\x1b", 8, 8, 1)
    progress("trust report", 0, 64)
    progress("trust report", 64, 64)


def test_an_evaluation_is_a_line_a_stage_where_there_is_no_terminal(capsys):
    with closing(EvaluationProgress()) as progress:
        evaluated(progress)
        progress.overall(0, 1, None, None)  # another one
        progress("clean", 0, 8, 8)
    assert capsys.readouterr().err.splitlines() == [
        "FGSM: 5 of 8 stand  (2 of 4 blocks, at most 0:01:40 left)",
        "A: 1 of 8 stand  (4 of 4 blocks)",
        "trust report: 64 of 64 images  (4 of 4 blocks)",
    ]
    with closing(EvaluationProgress(quiet=True)) as progress:
        evaluated(progress)
    assert capsys.readouterr().err == ""


def test_a_piece_of_work_of_its_own_is_a_line_where_there_is_no_terminal(capsys):
    progress = EvaluationProgress()
    progress("corrupting", 0, 8)
    progress("corrupting", 8, 8)
    assert capsys.readouterr().err == "corrupting: 8 of 8 images\n"


def test_a_terminal_gets_one_bar_for_all_of_an_evaluation(monkeypatch):
    """With the share of all blocks, and of one more for the trust report, and the time left; nothing of it remains."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    with closing(EvaluationProgress()) as progress:
        evaluated(progress)
    shown = [text.strip() for text in terminal.getvalue().split("\r") if text.strip()]
    assert "\n" not in terminal.getvalue()
    found = [re.fullmatch(r"(.+?) \|.*\| *(\d+) %, (.*)", text).groups() for text in shown]
    assert list(dict.fromkeys(found)) == [
        ("FGSM: 0 of 8 images", "0", "0 of 4 blocks"),
        ("FGSM: 3 of 4 stand", "20", "1 of 4 blocks, at most 0:02:00 left"),
        ("FGSM: 5 of 8 stand", "40", "2 of 4 blocks, at most 0:01:40 left"),
        ("A: 0 of 8 images", "40", "2 of 4 blocks, at most 0:01:40 left"),
        ("A: 1 of 8 stand", "80", "4 of 4 blocks"),
        ("trust report: 0 of 64 images", "80", "4 of 4 blocks"),
        ("trust report: 64 of 64 images", "80", "4 of 4 blocks"),
    ]
