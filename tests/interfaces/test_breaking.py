"""The step at which an image broke is the one that a linear model says; the ascent is the same as without asking."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.attacks import craft, cross_entropy
from bench.interfaces import BreakingSteps, Defense, ThreatModel, TrainingContext
from bench.training.weight_perturbation import perturbed_update
from tests.support.refusals import refusal

STEPS, STEP_SIZE = 5, 0.05
MARGINS = torch.tensor([-0.1, 0.1, 0.5, 0.9, 1.1])
"""Of four pixels each: a step takes 4 * 0.05 = 0.2 off."""
EXPECTED = [0, 1, 3, 5, 6]
IMAGES, LABELS = 0.5 + (MARGINS / 4).view(5, 1, 1, 1).expand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)


class Sum(nn.Module):
    """Logits (s, -s) of the sum s of the pixels, less 2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4))

    def forward(self, images):
        margin = functional.linear(images.flatten(1) - 0.5, self.weight)
        return torch.cat([margin, -margin], 1)


def context_of(**options):
    return TrainingContext(ThreatModel("linf", "0.5"), STEPS, STEP_SIZE, torch.Generator(), **options)


def ascent(view, context, flat_start):
    return craft(lambda view, x: cross_entropy(view(x), LABELS), view, IMAGES, IMAGES, context, flat_start)


def replayed(step):
    """A step that writes to one place, as recorded ones do."""
    place = torch.empty_like(IMAGES)
    return lambda images: place.copy_(step(images)).clone()


@pytest.mark.parametrize("flat_start", [False, True])
@pytest.mark.parametrize("options", [{}, {"half": True}, {"repeated": replayed}], ids=["plain", "bf16", "recorded"])
def test_the_step_is_the_one_in_which_a_linear_model_changes_its_mind(flat_start, options):
    context = context_of(**options)
    with context.crafting(Sum()) as view:
        breaking = BreakingSteps(context, view, LABELS, IMAGES)
        perturbed = ascent(view, breaking.context, flat_start)
        plain = ascent(view, context, flat_start)
    steps = breaking.steps(perturbed)
    assert steps.tolist() == EXPECTED
    assert torch.equal(perturbed, plain)
    # GAIRAT's code counts the images before each step that are right.
    on_the_way = torch.stack([MARGINS - 0.2 * step for step in range(STEPS)])
    assert torch.equal(steps.clamp(max=STEPS), (on_the_way > 0).sum(0))


def test_of_soft_labels_the_largest_class_counts():
    soft = torch.tensor([0.7, 0.3]).expand(5, 2)
    context = context_of()
    breaking = BreakingSteps(context, Sum(), soft, IMAGES)
    assert breaking.steps(ascent(Sum(), breaking.context, False)).tolist() == EXPECTED


def test_another_ascent_is_not_taken_for_the_noted_one():
    context = context_of()
    breaking = BreakingSteps(context, Sum(), LABELS, IMAGES)
    perturbed = ascent(Sum(), context, False)
    refusal(lambda: breaking.steps(perturbed), "noted 1 of 5 steps", "give its start and its context")


class Weighs(Defense):
    """Notes steps, and trains on what was crafted."""

    paper = "none"

    def __init__(self):
        object.__setattr__(self, "found", [])

    def losses(self, model, images, labels, context):
        with context.crafting(model) as view:
            breaking = BreakingSteps(context, view, labels, images)
            perturbed = ascent(view, breaking.context, False)
        self.found.append(breaking.steps(perturbed).tolist())
        return {"loss": functional.cross_entropy(model(perturbed), labels)}


def test_weights_that_are_perturbed_are_not_those_that_break_images():
    """Losses are computed twice, the second time at other weights, on images that were crafted once."""
    model, defense = Sum(), Weighs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    perturbed_update(defense, model, optimizer, IMAGES, LABELS, context_of(), 3.0, lambda gradients: None)
    assert defense.found == [EXPECTED, EXPECTED]
