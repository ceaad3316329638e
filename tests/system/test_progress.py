"""What a person is told during a run."""

import itertools

import torch

from bench.system import progress
from bench.system.progress import TrainingProgress


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
