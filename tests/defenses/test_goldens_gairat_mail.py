"""GAIRAT and MAIL against figures of the authors' code (tests/goldens/NAME.md), and by hand."""

import math

import pytest
import torch

from bench.defenses.gairat import GeometryAwareTraining
from bench.defenses.mail import MarginReweighting
from tests.support.goldens import (
    adaptive_value,
    assert_close,
    each_case,
    inject,
    read,
    same_training_step,
    tiny_classifier,
    tiny_state,
    training_context,
)

GAIRAT, MAIL = read("gairat"), read("mail")


@each_case(GAIRAT)
def test_a_step_of_gairat_equals_the_official_one(monkeypatch, case):
    """Every image but the last is looked at twice: for the breaking step, and for its gradient."""
    golden = GAIRAT[case]
    defense = GeometryAwareTraining(shift=float(golden["shift"]))
    same_training_step(defense, golden, monkeypatch, looks=slice(1, None, 2))
    geometry = golden["kappa"] / golden["steps"]
    assert len(set(geometry.tolist())) > 3
    assert_close(defense.weights(geometry), golden["weights"])


def test_weights_of_gairat_by_hand():
    """tanh(a) + 1 is 2 e^a / (e^a + e^-a): images that break at once, halfway, and never, at shift 0."""
    tails = [2 / (1 + math.exp(-10)), 1.0, 2 / (1 + math.exp(10))]
    found = GeometryAwareTraining(shift=0.0).weights(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert_close(found, [tail / 1.0 for tail in tails])
    # Far beyond the rounding of 1 + tanh(-15), which is 0 in float32.
    lone = GeometryAwareTraining(shift=-10.0).weights(torch.tensor([1.0, 1.0]))
    assert_close(lone, [1.0, 1.0])


def test_gairat_weighs_no_image_before_its_epoch_and_looks_once_then(monkeypatch):
    """Of ten epochs, the first four: as in the authors' code, the weights begin one epoch before the half."""
    golden = GAIRAT["bn"]
    looks, losses = [], []
    for epoch in (3, 4):
        inject(monkeypatch, "rand", golden["noise"])
        model = tiny_classifier(tiny_state(golden))
        context = training_context(golden["eps"], golden["step"], golden["steps"], epoch=epoch, epochs=10)
        terms = GeometryAwareTraining().losses(model, golden["x"], golden["y"], context)
        looks.append(len(model.backbone.shown(training=False)))
        losses.append(terms["adversarial"].item())
    steps = int(golden["steps"])
    assert looks == [steps, 2 * steps + 1]
    assert losses[1] == pytest.approx(golden["loss"].item())
    assert losses[0] != pytest.approx(losses[1])


@each_case(MAIL)
def test_a_step_of_mail_equals_the_official_one(monkeypatch, case):
    golden = MAIL[case]
    epoch = 75 if golden["early"] else 76
    defense = MarginReweighting(base=golden["base"], bias=float(golden["bias"]), slope=float(golden["slope"]))
    # The clean prediction is computed once, and first.
    looks = slice(int(golden["base"] == "trades"), None)
    same_training_step(defense, golden, monkeypatch, draws="randn", looks=looks, epoch=epoch, epochs=120)


def test_weights_of_mail_by_hand():
    """p = (3/4, 1/4): margin -1/2 for class 0 and 1/2 for class 1; three classes alike: 0."""
    logits = torch.tensor([[3.0, 1.0, 1e-30], [3.0, 1.0, 1e-30], [1.0, 1.0, 1.0]], requires_grad=True).log()
    late = training_context(epoch=9, epochs=10)
    found = MarginReweighting(bias=0.25, slope=4.0).weights(logits, torch.tensor([0, 1, 2]), late)
    assert_close(found, [3 / (1 + math.exp(-4 * (margin + 0.25))) for margin in (-0.5, 0.5, 0.0)], 1e-6)
    assert not found.requires_grad


def test_there_are_no_adaptive_objectives():
    assert adaptive_value(GeometryAwareTraining()) is None
    assert adaptive_value(MarginReweighting()) is None
