"""Schedules are torch's, point by point; what would change nothing is refused."""

import pytest
import torch
from torch.optim import lr_scheduler

from bench.catalogue.recipes import protocol_for
from bench.errors import BenchError

EPOCHS, STEPS = 4, 5


def protocol(**given):
    settings = {"epochs": EPOCHS, "learning_rate": 0.4, "schedule_by": "step", **given}
    return protocol_for("cifar10", {}, 4, True, settings)


def of_torch(make, points, momentum=0.9):
    """Rates and momenta that torch's schedule has at each point."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4, momentum=momentum)
    schedule, found = make(optimizer), []
    for _ in range(points):
        (group,) = optimizer.param_groups
        found.append((group["lr"], group["momentum"]))
        optimizer.step()
        schedule.step()
    return found


def ours(asked, points, steps):
    return [(asked.learning_rate_at(step, steps), asked.momentum_at(step, steps)) for step in range(points)]


def cyclic(optimizer):
    """One cycle, up for 6 of 20 points and down for 14."""
    return lr_scheduler.CyclicLR(optimizer, 0.04, 0.4, 6, 14, cycle_momentum=False)


def warmed(optimizer):
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
    return lr_scheduler.ChainedScheduler([lr_scheduler.CosineAnnealingLR(optimizer, 20), rise])


CASES = {
    "cosine": ({"rate_end": 0.1}, lambda it: lr_scheduler.CosineAnnealingLR(it, 20, eta_min=0.04)),
    "linear": ({"rate_end": 0.1}, lambda it: lr_scheduler.LinearLR(it, 1.0, 0.1, 20)),
    "cyclic": ({"rate_start": 0.1, "rate_end": 0.1}, cyclic),
    "one-cycle": (
        {"rate_end": 4e-6, "momentum": 0.95, "momentum_peak": 0.85},
        lambda it: lr_scheduler.OneCycleLR(it, 0.4, total_steps=20),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_is_torchs_at_every_step(name):
    given, make = CASES[name]
    asked = protocol(schedule=name, **given)
    expected = of_torch(make, EPOCHS * STEPS)
    assert ours(asked, EPOCHS * STEPS, STEPS) == [pytest.approx(pair, rel=1e-9, abs=1e-15) for pair in expected]


def test_a_warm_up_is_torchs_linear_one_on_top_of_the_schedule():
    asked = protocol(schedule="cosine", warm_up=0.4)
    assert ours(asked, 20, STEPS) == [pytest.approx(pair, abs=1e-15) for pair in of_torch(warmed, 20)]
    assert protocol(warm_up=0.05).learning_rate_at(0, STEPS) == 0.4


def test_by_epoch_the_rate_stays_within_an_epoch_and_ends_at_torchs_last():
    asked = protocol(schedule="one-cycle", schedule_by="epoch", peak=0.5)
    expected = of_torch(lambda it: lr_scheduler.OneCycleLR(it, 0.4, 4, pct_start=0.5, final_div_factor=1e9), 4)
    rates = [[asked.learning_rate_at(step, STEPS) for step in range(5 * epoch, 5 * epoch + 5)] for epoch in range(4)]
    assert rates == [[pytest.approx(rate, abs=1e-9)] * 5 for rate, _ in expected]


@pytest.mark.parametrize("peak", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("schedule", ["one-cycle", "cyclic"])
def test_a_peak_at_either_end_and_a_single_step_have_rates(schedule, peak):
    asked = protocol(schedule=schedule, peak=peak)
    rates = [asked.learning_rate_at(step, STEPS) for step in range(20)]
    assert all(0 <= rate <= 0.4 for rate in rates)
    assert 0.0 <= protocol(schedule=schedule, peak=peak, epochs=1).learning_rate_at(0, 1) <= 0.4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peak": 0.2}, "--peak would change nothing with --schedule milestones: it goes with one-cycle, cyclic"),
        ({"schedule": "cosine", "decay": 0.5}, "--decay would change nothing with --schedule cosine"),
        ({"schedule": "linear", "momentum_peak": 0.8}, "--momentum-peak would change nothing with --schedule linear"),
        ({"schedule": "steps"}, "schedule='steps' is not one of milestones, cosine, linear, one-cycle, cyclic"),
        ({"warm_up": 2}, "warm_up=2.0 is out of range: it must be 0 to 1, a share"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov=True is out of range: it must be false with optimizer"),
        ({"optimizer": "adamw", "momentum": 1}, "momentum=1.0 is out of range: it must be below 1"),
        ({"optimizer": "adam"}, "optimizer='adam' is not one of sgd, adamw"),
    ],
)
def test_what_does_not_go_together_is_one_line(given, message):
    with pytest.raises(BenchError, match=message) as caught:
        protocol(**given)
    assert "\n" not in str(caught.value)
