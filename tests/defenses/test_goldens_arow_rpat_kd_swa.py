"""ARoW, RPAT and KD+SWA against figures of the authors' code (tests/goldens/NAME.md), and by hand."""

import math

import pytest
import torch
from torch import nn

from bench.attacks import divergence
from bench.defenses.arow import AntiRobustWeighting, weighted_divergence
from bench.defenses.kd_swa import LearnedSmoothening
from bench.defenses.rpat import RobustPerception
from bench.training.label_smoothing import smoothed_labels
from tests.support.goldens import (
    adaptive_value,
    each_case,
    part,
    read,
    same_training_step,
    tiny_classifier,
    tiny_state,
    training_context,
)

AROW, RPAT, KD_SWA = (read(name) for name in ("arow", "rpat", "kd_swa"))


@each_case(AROW)
def test_a_step_of_arow_equals_the_official_one(monkeypatch, case):
    golden = AROW[case]
    with smoothed_labels(float(golden["smoothing"]), training_context(), "ARoW") as context:
        defense = AntiRobustWeighting(inner_loss=golden["inner_loss"])
        same_training_step(defense, golden, monkeypatch, "robust", view=context.view, repeated=context.repeated)


def test_less_robust_images_weigh_more_in_arow():
    """p = (1/2, 1/2), q = (3/4, 1/4): the same divergence, times 1/4 for class 0 and 3/4 for class 1."""
    clean, perturbed = torch.zeros(2, 2), torch.tensor([[3.0, 1.0]]).log().repeat(2, 1)
    found = weighted_divergence(clean, perturbed, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]) * divergence(clean, perturbed))
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    weighted_divergence(certain, -certain.detach(), torch.tensor([0])).sum().backward()
    assert certain.grad.isfinite().all()


@each_case(RPAT)
def test_a_step_of_rpat_equals_the_official_one(monkeypatch, case):
    same_training_step(RobustPerception(), RPAT[case], monkeypatch, "perception")


def test_a_linear_model_has_robust_perception():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    terms = RobustPerception(1.0, 0.3).losses(model, images, torch.arange(5) % 3, training_context(0.1))
    assert abs(terms["perception"].item()) < 1e-25


@each_case(KD_SWA)
def test_a_step_of_kd_swa_equals_the_official_one(monkeypatch, case):
    golden = KD_SWA[case]
    teachers = {name: tiny_classifier(tiny_state(part(golden, f"{name}_"))).eval() for name in ("at", "st")}
    same_training_step(LearnedSmoothening(), golden, monkeypatch, "robust", requirements=teachers)
    assert all(parameter.grad is None for teacher in teachers.values() for parameter in teacher.parameters())
    # After the last step of crafting, once each.
    assert [len(teacher.backbone.seen) for teacher in teachers.values()] == [1, 1]


def test_the_distance_to_a_teacher_by_hand():
    """At temperature 4, logits (4 log 3, 0) are (3/4, 1/4); a model that knows nothing is log 2 away, times 16."""
    found = LearnedSmoothening(temperature=4.0).distance(torch.tensor([[4 * math.log(3), 0.0]]), torch.zeros(1, 2))
    assert found.item() == pytest.approx(16 * math.log(2), rel=1e-6)


def test_the_adaptive_objectives_by_hand():
    """CE = log 4 for class 1, q = 1/4 there, KL = log(4/3) / 2."""
    expected = math.log(4) + 7 * (3 / 4) * math.log(4 / 3) / 2
    assert adaptive_value(AntiRobustWeighting()) == pytest.approx(expected, rel=1e-6)
    assert adaptive_value(RobustPerception()) is None
    assert adaptive_value(LearnedSmoothening()) is None
