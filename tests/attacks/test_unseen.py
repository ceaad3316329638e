"""Transformations: flows and colour changes whose result is known, budgets that the harness holds, and both attacks."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.attacks import recolor, stadv
from bench.catalogue import plugins
from bench.catalogue.suites import AttackCell, Suite, load_suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.face import evaluate
from bench.interfaces import TRANSFORMATIONS, Attack, ThreatModel
from bench.results.metrics import columns

FLOW, COLOUR = TRANSFORMATIONS["flow"], TRANSFORMATIONS["colour"]


@pytest.fixture
def images():
    return torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def flow(images, down, across):
    return torch.tensor([down, across]).view(1, 2, 1, 1).expand(FLOW.shape(images))


@pytest.mark.parametrize(("down", "across"), [(0, 0), (1, 0), (0, -2), (-3, 1)])
def test_a_flow_of_whole_pixels_is_a_roll_and_repeats_the_edge(images, down, across):
    moved = FLOW.apply(images, flow(images, float(down), float(across)))
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
    assert torch.equal(moved, padded.roll((-down, -across), (2, 3))[:, :, 3:-3, 3:-3])


def test_a_flow_of_half_a_pixel_is_the_mean_of_neighbours_and_has_their_difference_as_slope(images):
    parameters = flow(images, 0.0, 0.5).clone().requires_grad_()
    moved = FLOW.apply(images, parameters)
    torch.testing.assert_close(moved[..., :-1], (images[..., :-1] + images[..., 1:]) / 2)
    at_rest = torch.zeros(FLOW.shape(images), requires_grad=True)
    (slope,) = torch.autograd.grad(FLOW.apply(images, at_rest).sum(), at_rest)
    torch.testing.assert_close(slope[:, 1, :, :-1], (images[..., 1:] - images[..., :-1]).sum(1))


def test_a_change_of_colour_is_that_of_the_lattice_and_the_mean_in_between(images):
    shift = 0.02 * torch.ones(COLOUR.shape(images))
    torch.testing.assert_close(COLOUR.apply(images, shift), (images + 0.02).clamp(0, 1))
    # One point of the lattice is moved, red by 0.1: its colour moves so far, one half way to the next point half.
    parameters = torch.zeros(1, 3, 5, 5, 5)
    parameters[0, 0, 1, 2, 3] = 0.1
    colours = torch.tensor([[0.25, 0.5, 0.75], [0.25, 0.5, 0.875], [0.25, 0.5, 1.0], [0.5, 0.5, 0.75]])
    changed = COLOUR.apply(colours.T.view(1, 3, 2, 2), parameters) - colours.T.view(1, 3, 2, 2)
    torch.testing.assert_close(changed[0].flatten(1).T[:, 0], torch.tensor([0.1, 0.05, 0.0, 0.0]))
    assert (changed[0, 1:] == 0).all()
    assert COLOUR.shape(torch.zeros(7, 1, 2, 2)) == (7, 1, 5)


def test_no_channel_moves_by_more_than_the_largest_parameter(images):
    parameters = COLOUR.limit(torch.randn(COLOUR.shape(images), generator=torch.Generator().manual_seed(1)), 0.06)
    assert (COLOUR.apply(images, parameters) - images).abs().max() <= 0.06 + 1e-6
    assert COLOUR.size(parameters).tolist() == pytest.approx([0.06, 0.06])
    assert FLOW.limit(torch.tensor([torch.nan, 5.0, -5.0]), 1.0).tolist() == [0, 1, -1]


# -------------------------------------------------------------------------------------------- under the harness


class Column(nn.Module):
    """Class 1 if the left half of an image is brighter than the right one, by more than a threshold."""

    def forward(self, images):
        lead = images[..., :4].mean((1, 2, 3)) - images[..., 4:].mean((1, 2, 3)) - 0.1
        return torch.stack([torch.zeros_like(lead), 20 * lead], 1)


def bars():
    """A bright column at the inner edge of the left half, and one further away from the right half."""
    pixels = torch.zeros(2, 1, 4, 8, dtype=torch.uint8)
    pixels[0, :, :, 3], pixels[1, :, :, 1] = 255, 255
    return Split(pixels, torch.ones(2, dtype=torch.int64))


def outcome(attack, norm, epsilon, split, **parameters):
    cell = AttackCell("one", attack, norm, epsilon, parameters)
    return run_suite(Target(Column(), split), Suite("s", 1, "", (cell,), {}))


def test_a_flow_breaks_what_a_pixel_can_reach_and_the_distance_says_how_far():
    # The column carries 1/4 of the left half's mean. Moved by d it keeps 1 - d of that, and the right half, where it is
    # next to the column, takes d: the lead falls below 0.1 for d above 0.3, and further away above 0.6.
    found = {
        radius: outcome("stadv", "flow", radius, bars(), steps=20).attacks["one"] for radius in ("0.25", "0.5", "1")
    }
    assert [one.prediction.tolist() for one in found.values()] == [[1, 1], [0, 1], [0, 0]]
    assert 0.3 < found["0.5"].distance[0] <= 0.5 and 0.6 < found["1"].distance[1] <= 1.0


def test_a_change_of_colour_breaks_what_its_budget_reaches():
    # White can become 1 - budget and black budget; the lead is (white - black) / 4: below 0.1 for a budget above 0.3.
    assert outcome("recolor", "colour", "0.32", bars(), steps=20).attacks["one"].prediction.tolist() == [0, 0]
    assert outcome("recolor", "colour", "0.28", bars(), steps=20).attacks["one"].prediction.tolist() == [1, 1]


def test_smooth_flows_have_no_roughness_and_a_step_has_its_length():
    assert stadv.roughness(torch.full((1, 2, 4, 4), 0.7)).item() == pytest.approx(0.0, abs=1e-6)
    edge = torch.zeros(1, 2, 4, 4)
    edge[:, :, 2:] = 1.0
    assert stadv.roughness(edge).item() == pytest.approx(4 * 2**0.5, abs=0.01)
    change = torch.zeros(1, 1, 5)
    change[0, 0, 3:] = 0.5
    assert recolor.roughness(change).item() == pytest.approx(0.25)


@dataclass(frozen=True)
class Cheating(Attack):
    """Returns flows far beyond the budget, some of them not finite."""

    paper: ClassVar[str] = "none"
    transformation: ClassVar[str] = "flow"

    def perturb(self, problem):
        flows = torch.full(problem.threat.transformation.shape(problem.images), 3.0)
        flows[1] = torch.nan
        return flows


def test_the_harness_holds_the_budget_and_believes_no_image(monkeypatch):
    monkeypatch.setitem(plugins.added, ("attack", "cheating"), Cheating)
    found = outcome("cheating", "flow", "0.25", bars())
    assert found.attacks["one"].prediction.tolist() == [1, 1]
    assert found.attacks["one"].distance.tolist() == [0.25, 0.0]
    (outside,) = [one for one in found.findings if one["name"] == "attack-outside-ball"]
    assert (outside["severity"], outside["value"]) == ("warning", 2)


@pytest.mark.parametrize(
    ("attack", "norm", "message"),
    [
        ("stadv", "linf", "one: stadv attacks under norm flow, not linf"),
        ("recolor", "flow", "one: recolor attacks under norm colour, not flow"),
        ("pgd", "flow", "one: pgd attacks under norm linf or l2 or l1, not flow"),
    ],
)
def test_attacks_under_another_threat_are_refused(attack, norm, message):
    with pytest.raises(BenchError, match=message):
        outcome(attack, norm, "0.1", bars())
    with pytest.raises(BenchError, match="unknown norm 'tv'"):
        ThreatModel("tv", "1")
    with pytest.raises(BenchError, match="flow is no norm: nothing can be projected"):
        ThreatModel("flow", "1").project(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_the_suite_is_evaluated_and_says_its_budgets(tmp_path):
    split = bars()
    data = (split.pixels, split.labels)
    options = {"epsilon": "0.05", "quiet": True, "probes": 0}
    result = evaluate(Column(), data, "unseen", out=tmp_path / "r.h5", **options)
    assert [(one.norm, one.epsilon) for one in result.attacks.values()] == [
        ("linf", "0.05"), ("flow", "1"), ("colour", "0.06"),
    ]  # fmt: skip
    shown = columns(result)
    assert shown["Unseen"].tolist() == [False, False] and shown["Worst case (linf)"].tolist() == [True, True]
    assert {one["severity"] for one in result.findings if one["name"] == "budget"} == {"passed"}
    with pytest.raises(BenchError, match="StAdv, ReColor: images that a transformation makes prove no budget"):
        evaluate(Column(), data, "unseen", out=tmp_path / "k.h5", save_adversarials=True, **options)
    np.testing.assert_allclose(result.attacks["ReColor"].distance, 0.06, atol=1e-6)
    assert load_suite("unseen").worst_of == {"Unseen": ("StAdv", "ReColor")}
