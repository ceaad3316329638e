"""The history shows the rates that steps were taken with, whoever set them."""

from typing import Any

import pytest
import torch

from bench.leaderboard.figures.training_curves import training_curves
from bench.training.observed_rates import ObservedRates
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests.support.trainings import Plain, plug_in, rows


class SetsItsRate(Plain):
    """0.1, 0.2, 0.3 in the three steps of the first epoch; 0.25 throughout the second."""

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        (group,) = optimizer.param_groups
        group["lr"] = 0.25 if context.epoch else {0.5: 0.1, 0.1: 0.2, 0.2: 0.3}[group["lr"]]
        return super().update(model, optimizer, images, labels, context)


class ChangesMomentumInAHook(Plain):
    """Weight decay ends with the first epoch, and momentum is 0.5 from the second step on."""

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        for group in optimizer.param_groups:
            group["weight_decay"] *= context.epoch == 0
        terms = super().update(model, optimizer, images, labels, context)
        for group in optimizer.param_groups:
            group["momentum"] = 0.5
        return terms


class RateOnTheDevice(Plain):
    """A tensor that moves in place."""

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        (group,) = optimizer.param_groups
        if isinstance(group["lr"], float):
            group["lr"] = torch.tensor(0.125)
        terms = super().update(model, optimizer, images, labels, context)
        group["lr"].mul_(2)
        return terms


class TwoGroups(Plain):
    def parameter_groups(self, model: Any) -> Any:
        return [{"params": list(model.backbone.parameters())}, {"params": list(model.head.parameters()), "lr": 0.25}]


class StepsItsOwn(Plain):
    """The shared optimiser never steps; its own halves its rate at every step of a schedule."""

    def state(self, model: Any, optimizer: Any) -> Any:
        own = torch.optim.Adam(model.parameters(), lr=0.004)
        return {"own": own, "schedule": torch.optim.lr_scheduler.ExponentialLR(own, 0.5)}

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        terms = super().update(model, context.state["own"], images, labels, context)
        if context.epoch == 0:
            context.state["schedule"].step()
        return terms


def trained(kind, tmp_path, blobs, monkeypatch, **given):
    """History rows of two epochs of three steps, without the means of the loss."""
    plug_in(monkeypatch, "mine", kind)
    protocol = {"epochs": 2, "batch_size": 32, "learning_rate": 0.5, "flip": False} | (given or {"milestones": (9,)})
    request = TrainingRequest("mine", blobs, "cnn-small", protocol=protocol, runs=tmp_path, device="cpu")
    history = rows(train(request, quiet=True))
    return [{key: value for key, value in row.items() if key not in ("epoch", "clean")} for row in history]


def rate(value, lowest=None, highest=None, prefix=""):
    row = {f"{prefix}learning_rate": pytest.approx(value)}
    if lowest is not None:
        row |= {f"{prefix}learning_rate_lowest": lowest, f"{prefix}learning_rate_highest": highest}
    return row


def test_a_schedule_by_step_is_used_at_every_step_by_every_group(tmp_path, blobs, monkeypatch):
    cycle = {"schedule": "cyclic", "schedule_by": "step", "peak": 0.5, "rate_start": 0, "momentum_peak": 0.6}
    first, second = trained(TwoGroups, tmp_path, blobs, monkeypatch, **cycle)
    # Of the highest rate 0, 1/3, 2/3 are used, then 1, 2/3, 1/3; momentum is 0.9 where the rate is 0, 0.6 at the top.
    assert first == {
        **rate(0.5 / 3, 0.0, pytest.approx(1 / 3)),
        "momentum": pytest.approx(0.8),
        "momentum_lowest": pytest.approx(0.7),
        "momentum_highest": 0.9,
        "learning_rate_group_2": pytest.approx(0.25 / 3),
        "learning_rate_group_2_lowest": 0.0,
        "learning_rate_group_2_highest": pytest.approx(1 / 6),
    }
    assert second["learning_rate"] == pytest.approx(0.5 * 2 / 3)
    assert (second["momentum"], second["momentum_lowest"]) == (pytest.approx(0.7), 0.6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Plain, [{"learning_rate": 0.5}, {"learning_rate": 0.5}]),
        (SetsItsRate, [rate(0.2, 0.1, 0.3), rate(0.25)]),
        (
            ChangesMomentumInAHook,
            [
                rate(0.5) | {"momentum": pytest.approx(1.9 / 3), "momentum_lowest": 0.5, "momentum_highest": 0.9},
                rate(0.5) | {"momentum": 0.5, "weight_decay": 0.0},
            ],
        ),
        (RateOnTheDevice, [rate(0.875 / 3, 0.125, 0.5), rate(0.875 / 3, 0.125, 0.5)]),
        (TwoGroups, [{"learning_rate": 0.5, "learning_rate_group_2": 0.25}] * 2),
        (StepsItsOwn, [rate(0.007 / 3, 0.001, 0.004, "own_"), rate(0.0005, prefix="own_")]),
    ],
)
def test_the_history_shows_what_was_used(tmp_path, blobs, monkeypatch, kind, expected):
    assert trained(kind, tmp_path, blobs, monkeypatch) == expected


def test_what_a_defense_records_under_a_rates_name_does_not_hide_the_rate(tmp_path, blobs, monkeypatch):
    class Pretends(Plain):
        def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
            context.record("learning_rate", 7.0)
            return super().losses(model, images, labels, context)

    assert trained(Pretends, tmp_path, blobs, monkeypatch) == [{"learning_rate": 0.5}] * 2


def test_the_figure_shows_every_rate_on_a_logarithmic_axis():
    history = [
        {"epoch": 1, "learning_rate": 0.1, "learning_rate_lowest": 0.01, "own_learning_rate": 1e-3, "clean": 2.0},
        {"epoch": 2, "learning_rate": 0.01, "learning_rate_lowest": 0.001, "own_learning_rate": 1e-4, "clean": 1.0},
    ]
    scales = {axes.get_title(): axes.get_yscale() for axes in training_curves({"a": history}).axes}
    logarithmic = ("learning rate", "learning rate lowest", "own learning rate")
    assert scales == {**dict.fromkeys(logarithmic, "log"), "clean": "linear"}


def test_steps_of_others_are_noticed_while_they_exist_and_only_within():
    def optimizer(kind=torch.optim.SGD):
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.ones(1)
        return kind([weight], lr=0.5)

    shared, own, other = optimizer(), optimizer(), optimizer(torch.optim.Adam)
    steps = ObservedRates(shared, {"own": own})
    other.step()
    with steps.watched():
        shared.step(), own.step(), optimizer().step()
    assert (list(steps.strangers), steps.row()) == ([], {"learning_rate": 0.5, "own_learning_rate": 0.5})
    with steps.watched():
        other.step()
    assert (list(steps.strangers), steps.row()) == ([other], {})
