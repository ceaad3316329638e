"""Gradients and logits that are NaN or infinite, planted in linear models: attacks find what the closed form says.

A linear model is broken at radius r iff its smallest gap between logits, divided by the dual norm of the difference of
the two weight rows, is below r. Images are chosen such that none is close to the radius, and the box never binds.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import _fab, _square, autoattack, cross_entropy, margin
from bench.attacks._apgd import Climb, dlr, measure, targeted_dlr
from bench.attacks._ascent import ascent_step, craft, usable
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.cw import CW
from bench.attacks.deepfool import DeepFool, linearised, shortest_step
from bench.attacks.fab import FAB
from bench.attacks.fgsm import FGSM
from bench.attacks.mi_fgsm import MIFGSM
from bench.attacks.pgd import PGD
from bench.attacks.square import Square
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.observed import ModelView
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import NO_CLASS, Attack, Draws, Problem, ThreatModel, TrainingContext, classes, fooled
from bench.interop import autoattack as autoattack_package
from bench.trust.attack_comparisons import outcome_findings
from bench.trust.probes import probe

CLASSES, SIDE, COUNT = 4, 6, 20
GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(CLASSES, SIDE * SIDE))
PIXELS = GENERATOR.integers(80, 176, (2000, 1, SIDE, SIDE)).astype(np.uint8)
FLAT = PIXELS.reshape(2000, -1) / 255
HOLE = 0.5
"""Where the first pixel is brighter than this, some models answer NaN."""
BUDGET = APGDCE(steps=8), APGDT(steps=6, targets=3), FAB(steps=6, targets=3), Square(queries=250)
"""AutoAttack's four parts, with few steps."""
RADII = {"linf": 0.0121, "l2": 0.0598, "l1": 0.1536}


def bias(live):
    """All classes of the `live` ones are as likely, the others are out of reach."""
    return -(FLAT.mean(0) @ WEIGHT.T) - 30 * (np.arange(CLASSES) >= live)


class Spoiled(torch.autograd.Function):
    """The images; in the backward pass, `value` where `mask` says so."""

    @staticmethod
    def forward(ctx, images, mask, value):
        ctx.save_for_backward(mask)
        ctx.value = value
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.saved_tensors[0], ctx.value, gradient), None, None


class Planted(nn.Module):
    """A linear model whose gradient is `value` on images whose first pixel is darker than `cut`, in that pixel or all.

    Its logits are NaN where that pixel is brighter than `hole`. Of its classes, `live` are within reach.
    """

    def __init__(self, value=0.0, cut=0.0, everywhere=False, hole=1.0, live=CLASSES):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(WEIGHT, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias(live), dtype=torch.float32))
        self.value, self.cut, self.everywhere, self.hole = value, cut, everywhere, hole

    def forward(self, images):
        first = images[:, :, :1, :1]
        where = torch.zeros_like(images, dtype=torch.bool)
        where[:, :, : SIDE if self.everywhere else 1, : SIDE if self.everywhere else 1] = True
        logits = Spoiled.apply(images, where & (first < self.cut), self.value).flatten(1) @ self.weight.T + self.bias
        return torch.where(first.flatten(1) > self.hole, torch.nan, logits)


MOST = float(np.quantile(FLAT[:, 0], 23 / 30))
FAULTS = {
    "none": {},
    "NaN in a pixel of 23 of 30": {"value": torch.nan, "cut": MOST},
    "infinite in a pixel": {"value": -torch.inf, "cut": MOST},
    "NaN everywhere": {"value": torch.nan, "cut": 0.5, "everywhere": True},
    "infinite everywhere": {"value": torch.inf, "cut": 0.5, "everywhere": True},
    "NaN logits": {"hole": HOLE},
}


def needed(norm, hole, logits):
    """The smallest radius that breaks each image with the first pixel at most `hole`."""
    found = np.full(logits.shape, np.inf)
    for row, label in enumerate(logits.argmax(1)):
        for rival in set(range(CLASSES)) - {label}:
            slope, gap = np.abs(WEIGHT[rival] - WEIGHT[label]), logits[row, label] - logits[row, rival]
            first, others = slope[0], slope[1:]
            # By how much the first pixel may move along the slope.
            room = hole - FLAT[row, 0] if WEIGHT[rival, 0] > WEIGHT[label, 0] else np.inf
            if norm == "linf":
                radius = gap / slope.sum()
                radius = radius if radius <= room else (gap - room * first) / others.sum()
            elif norm == "l2":
                radius = gap / np.linalg.norm(slope)
                if gap * first / (slope @ slope) > room:
                    radius = np.hypot(room, (gap - room * first) / np.linalg.norm(others))
            else:
                share = min(gap / first, room) if first > others.max() else 0.0
                radius = share + (gap - share * first) / others.max()
            found[row, rival] = radius
    return found.min(1)


def chosen(norm, fault, live=CLASSES):
    """The images of a test with their labels, and who is robust by the closed form."""
    logits = FLAT @ WEIGHT.T + bias(live)
    hole = fault.get("hole", 1.0)
    radius, least = needed(norm, hole, logits), RADII[norm]
    # Where there is a hole, all images are close to it.
    right = (FLAT[:, 0] < hole) & ((hole == 1) | (FLAT[:, 0] > hole - 0.03))
    # What only random search finds must be found within few queries.
    easy = 0.2 if fault.get("everywhere") else 0.5 if hole < 1 else 0.8
    broken, robust = np.flatnonzero(right & (radius < easy * least)), np.flatnonzero(right & (radius > 1.1 * least))
    rows = np.sort(np.concatenate([broken[: COUNT - 3], robust[:3]]))
    assert len(rows) == COUNT
    return Split(torch.from_numpy(PIXELS[rows]), torch.from_numpy(logits.argmax(1)[rows])), radius[rows] > least


def cells(norm, *names):
    budgets = {"pgd": {"steps": 8}, "cw": {"steps": 8}, "apgd-dlr": {"steps": 8}, "deepfool": {"steps": 8}}
    budgets |= {"fmn": {"steps": 8}}
    parts = dict(zip(("apgd-ce", "apgd-t", "fab", "square"), BUDGET, strict=True))
    budgets |= {name: {key: value for key, value in vars(part).items()} for name, part in parts.items()}
    return tuple(AttackCell(name, name, norm, str(RADII[norm]), parameters=budgets.get(name, {})) for name in names)


def severities(findings):
    return {one["name"]: one["severity"] for one in findings if one["severity"] in ("warning", "error")}


GRADIENTS = ("fgsm", "pgd", "cw", "mi-fgsm", "deepfool", "fmn", "apgd-ce", "apgd-dlr", "apgd-t", "fab")


@pytest.mark.parametrize(
    ("norm", "fault"),
    [
        *(("linf", fault) for fault in FAULTS),
        *(("l2", fault) for fault in ("infinite in a pixel", "NaN everywhere", "NaN logits")),
        *(("l1", fault) for fault in ("NaN in a pixel of 23 of 30", "NaN logits")),
    ],
)
def test_autoattack_equals_the_closed_form_and_no_attack_goes_beyond_it(norm, fault, monkeypatch):
    monkeypatch.setattr(autoattack, "standard", lambda norm: BUDGET)
    options = FAULTS[fault]
    split, robust = chosen(norm, options)
    names = ("autoattack", *(name for name in GRADIENTS if (norm, name) != ("l1", "deepfool")))
    suite = Suite("test", 1, "", cells(norm, *names), {})
    outcome = run_suite(Target(Planted(**options), split), suite)
    standing = {name: record.prediction == outcome.label for name, record in outcome.attacks.items()}
    assert (outcome.clean_prediction == outcome.label).all()
    np.testing.assert_array_equal(standing["autoattack"], robust)
    for name, stands in standing.items():
        assert (stands >= robust).all(), f"{name} breaks what cannot be broken"
    stage = outcome.attacks["autoattack"].stage
    np.testing.assert_array_equal(stage == 0, robust)
    if options.get("everywhere"):
        blind = torch.from_numpy(~robust) & (split.pixels[:, 0, 0, 0] / 255 < 0.5)
        assert (stage[blind.numpy()] >= 1).all() and 4 in stage, "without any gradient, random search is left"
    findings = [*outcome.findings, *outcome_findings(outcome, SIDE * SIDE)]
    fired = severities(findings)
    gradients = [one["message"].split(": ")[1] for one in findings if one["name"] == "non-finite-gradients"]
    assert gradients == [", ".join(names) if "value" in options else "none"]
    assert ("non-finite-gradients" in fired) == ("value" in options)
    assert (fired.get("non-finite-logits") == "error") == ("hole" in options)
    assert not {"ensemble", "stage", "unconfirmed-success"} & set(fired)
    assert {one["name"] for one in findings} >= {"ensemble", "stage"}


@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(), CW(), MIFGSM(), DeepFool(), *BUDGET[:3], autoattack.APGDT(steps=8)],
    ids=lambda a: type(a).__name__,
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_attack_needs_no_harness_to_go_on_with_the_rest_of_a_gradient(attack, value):
    # One pixel of 36 is worth less than the distance to the radius; of two classes, all losses have the same slope.
    split, robust = chosen("linf", {}, live=2)
    model, images = Planted(value, MOST, live=2), split.images(slice(None))
    threat = ThreatModel("linf", str(RADII["linf"]))
    problem = Problem(model, images, split.labels, threat, Draws(0, "test", np.arange(COUNT)))
    perturbed = threat.project(attack.perturb(problem), images)
    assert perturbed.isfinite().all()
    np.testing.assert_array_equal(fooled(perturbed, model(perturbed), split.labels).numpy(), ~robust)


def test_who_is_fooled():
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[0.0, 1], [1, 0], [nan, 1], [0, nan], [-inf, 1], [0, inf], [0, 1], [0, 1]])
    images = torch.zeros(8, 1, 1, 2)
    images[6, 0, 0, 1], images[7, 0, 0, 0] = nan, inf
    labels = torch.zeros(8, dtype=torch.int64)
    assert fooled(images, logits, labels).tolist() == [True, *[False] * 7]
    assert classes(logits).tolist() == [1, 0, *[NO_CLASS] * 4, 1, 1]


def test_what_is_usable_of_a_gradient():
    gradient = torch.randn(3, 1, 5, 5) * torch.tensor([1e-30, 1, 1e14]).view(-1, 1, 1, 1)
    assert torch.equal(usable(gradient), gradient)
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.0, -1e30])
    assert usable(odd).tolist() == pytest.approx([0, 0, 0, 3, -1e15])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_whose_length_overflows_still_gives_a_whole_step(norm):
    class Huge(nn.Module):
        def forward(self, images):
            return torch.stack([-images.flatten(1).sum(1), images.flatten(1).sum(1)], 1) * 1e30

    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.ones(2, dtype=torch.int64)
    problem = Problem(Huge(), images, labels, ThreatModel(norm, "0.4"), Draws(0, "test", np.arange(2)))
    moved = ascent_step(problem, {"images": images}, margin, "0.1")["images"]
    assert problem.threat.distance(moved, images).tolist() == pytest.approx([0.1, 0.1])
    assert (moved < images).any() and (moved <= images).all()


# ------------------------------------------------------------------------------------------ inside the attacks


@pytest.mark.parametrize("loss", [dlr, targeted_dlr, lambda logits, labels, targets: cross_entropy(logits, labels)])
def test_a_loss_of_logits_that_are_not_finite_is_the_lowest(loss):
    logits = torch.tensor([[0.0, 1, 2, 3], [torch.nan, 1, 2, 3], [torch.inf, 1, 2, 3], [0, 1, -torch.inf, 3]])

    class Fixed(nn.Module):
        def forward(self, images):
            return logits + 0 * images.flatten(1).sum(1, keepdim=True)

    images, labels = torch.rand(4, 1, 2, 2), torch.full((4,), 3)
    problem = Problem(Fixed(), images, labels, ThreatModel(), Draws(0, "test", np.arange(4)))
    flat, whole = torch.zeros(4), torch.zeros_like(images)
    rows = torch.arange(4)
    run = Climb(
        rows=rows, done=rows < 0, best=images, highest=flat, clean=images, labels=labels, targets=labels - 1,
        images=images, previous=images, gradient=whole, value=flat, best_gradient=whole, step=flat, rises=rows,
        earlier=flat, reduced=rows, support=rows,
    )  # fmt: skip
    value, gradient, broken = measure(problem, loss, run)
    assert value[0].isfinite() and value[1:].tolist() == [-torch.inf] * 3
    assert gradient.isfinite().all() and not broken.any()


def test_square_leaves_a_start_that_has_no_margin():
    images, labels = torch.full((2, 1, SIDE, SIDE), 0.4), torch.zeros(2, dtype=torch.int64)
    images[1, 0, 0, 0] = 0.6
    model = Planted(hole=HOLE)
    problem = Problem(model, images, labels, ThreatModel(), Draws(0, "test", np.arange(2)))
    margins, broken = _square.judge(problem, images, labels)
    assert margins[0].isfinite() and margins[1] == torch.inf
    assert not broken[1]


def test_a_projection_of_fab_onto_a_boundary_out_of_reach_is_finite():
    # 1 / 1e-40 overflows; the coordinate without a slope must stay.
    points, normal = torch.full((1, 2), 0.25), torch.tensor([[1e-30, 0.0]])
    for norm in ("linf", "l2", "l1"):
        step = _fab.project(points, normal, torch.tensor([-1.0]), norm)
        assert step.tolist() == [[0.75, 0.0]], norm


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_makes_no_step_of_unknown_length(norm):
    images, labels = torch.full((2, 1, SIDE, SIDE), 0.4), torch.zeros(2, dtype=torch.int64)
    images[1, 0, 0, 0] = 0.6
    gaps, slopes = linearised(Planted(hole=HOLE), images, labels, torch.tensor([[1, 2], [1, 2]]))
    assert gaps[0].abs().min() > 0 and gaps[1].tolist() == [0, 0]
    assert shortest_step(gaps, slopes, norm)[1].abs().max() <= 1e-4
    # A rival without a gradient is no nearest one.
    gaps, slopes = torch.tensor([[0.5, 0.75]]), torch.tensor([[0.0, 0], [0, 1]]).view(1, 2, 1, 1, 2)
    assert shortest_step(gaps, slopes, norm).flatten().tolist() == pytest.approx([0, 0.7501])


# ----------------------------------------------------------------------------------------------- the harness


@dataclass(frozen=True)
class Own(Attack):
    """One step along a gradient that it takes itself, as a plug-in may."""

    paper: ClassVar[str] = "none"

    def perturb(self, problem):
        leaf = problem.images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(problem.model(leaf), problem.labels).sum(), leaf)
        return problem.images + problem.threat.radius * gradient.sign()


def test_the_view_mends_the_gradients_of_any_attack_and_says_so(monkeypatch):
    monkeypatch.setattr("bench.engine.run.make_attack", lambda name, given: Own())
    split, robust = chosen("linf", {}, live=2)
    suite = Suite("test", 1, "", cells("linf", "own"), {})
    outcome = run_suite(Target(Planted(torch.nan, MOST, live=2), split), suite)
    np.testing.assert_array_equal(outcome.attacks["own"].prediction == outcome.label, robust)
    assert severities(outcome.findings) == {"non-finite-gradients": "warning"}


def test_a_view_changes_no_gradient_that_is_finite():
    model, images = Planted(), torch.rand(5, 1, SIDE, SIDE)
    gradients = []
    for shown in (model, view := ModelView(model)):
        leaf = images.clone().requires_grad_()
        gradients += torch.autograd.grad(shown(leaf).square().sum(), leaf)
    assert torch.equal(*gradients)
    assert not view.faults.gradients and not view.faults.logits


@pytest.mark.parametrize("fault", ["NaN in a pixel of 23 of 30", "infinite in a pixel"])
def test_the_published_autoattack_is_given_gradients_that_it_can_follow(fault, small_budget):
    autoattack_package.install()
    split, robust = chosen("linf", {}, live=2)
    cell = AttackCell("AA", "autoattack", "linf", str(RADII["linf"]), parameters={"implementation": "reference"})
    outcome = run_suite(Target(Planted(**FAULTS[fault], live=2), split), Suite("test", 1, "", (cell,), {}))
    np.testing.assert_array_equal(outcome.attacks["AA"].prediction == outcome.label, robust)


@pytest.mark.parametrize("convention", ["any", "final"])
def test_an_iterate_without_an_answer_leaves_what_was_known(convention):
    # Class 1 from 0.5 on, NaN above 0.52: from 0.45, the second and last step of 0.04 ends without an answer.
    class Cliff(nn.Module):
        def forward(self, images):
            x = images.flatten(1).mean(1)
            return torch.where((x > 0.52)[:, None], torch.nan, torch.stack([0.5 - x, x - 0.5], 1))

    split = Split(torch.tensor([115, 121, 5], dtype=torch.uint8).view(3, 1, 1, 1), torch.tensor([0, 0, 0]))
    steps = {"steps": 2, "step_size": "0.04", "random_start": False}
    cell = AttackCell("PGD", "pgd", "linf", "0.08", parameters=steps, measure_loss=convention == "final")
    outcome = run_suite(Target(Cliff(), split), Suite("test", 1, "", (cell,), {}), convention=convention)
    record = outcome.attacks["PGD"]
    # 0.451 -> 0.491 -> 0.531; 0.475 -> 0.515, which is class 1, -> stays there under any, goes on under final.
    assert record.prediction.tolist() == [0, 1, 0]
    if convention == "final":
        assert record.final_prediction.tolist() == [0, 0, 0]
    assert severities(outcome.findings).get("non-finite-logits") == "error"


class Coarse(nn.Module):
    """Class 1 by a lead that bfloat16 rounds away: there, class 0 wins every image."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([1.0, 1.0 + 2**-10, -1, -1])[:, None].expand(4, 4))

    def forward(self, images):
        return self.layer(images.flatten(1)) - torch.tensor([0, 2**-9, 0, 0])


@pytest.mark.parametrize("name", ["autoattack", "apgd-t", "fab", "square", "deepfool", "fmn"])
def test_what_only_bfloat16_takes_for_a_success_is_attacked_in_float32(name, monkeypatch):
    monkeypatch.setattr(autoattack, "standard", lambda norm: BUDGET)
    # The lead is 2^-10 times the sum of four pixels, less 2: broken iff 4 * (level - radius) < 2.
    split = Split(
        torch.tensor([130, 135, 250], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2),
        torch.ones(3, dtype=torch.int64),
    )
    cell = AttackCell(name, name, "linf", "0.05", parameters=cells("linf", name)[0].parameters)
    outcome = run_suite(Target(Coarse(), split, half=True), Suite("test", 1, "", (cell,), {}))
    assert outcome.attacks[name].prediction.tolist() == [0, 0, 1]
    stage = outcome.attacks[name].stage
    assert stage is None or (stage > 0).tolist() == [True, True, False]


# ------------------------------------------------------------------------------------------------- the probes


class Alone(nn.Module):
    """Divides by a deviation over the batch that a single image does not have."""

    def forward(self, images):
        flat = images.flatten(1)
        centred = flat - flat.mean(0)
        return flat[:, :4] / (centred.square().sum(0).mean() / (len(images) - 1)).sqrt()


class Flickering(nn.Module):
    """NaN in every other pass, for one image."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        logits = images.flatten(1)[:, :4].clone()
        logits[0] += torch.nan if self.passes % 2 else 0
        return logits


@pytest.mark.parametrize(("model", "check"), [(Alone(), "batch-dependent"), (Flickering(), "not-deterministic")])
def test_logits_that_are_finite_only_sometimes_are_no_small_difference(model, check):
    split = Split(torch.from_numpy(PIXELS[:8]), torch.arange(8) % 4)
    assert severities(probe(Target(model, split), None, 8))[check] == "error"


def test_probes_see_gradients_as_they_are_and_no_success_in_an_image_without_an_answer():
    split, _ = chosen("linf", FAULTS["NaN everywhere"])
    dark = int((split.pixels[:, 0, 0, 0] / 255 < 0.5).sum())
    findings = probe(Target(Planted(**FAULTS["NaN everywhere"]), split), ThreatModel("linf", "0.0001"), COUNT)
    (found,) = [one for one in findings if one["name"] == "gradients-margin"]
    assert found["message"] == f"gradients of the margin vanish for 0 and are not finite for {dark} of {COUNT} images"

    class Cliff(nn.Module):
        """Half of all images in a ball have no answer."""

        def forward(self, images):
            flat = images.flatten(1)
            return torch.where(flat[:, :1] > 0.5, torch.nan, flat @ torch.ones(SIDE * SIDE, 4) + torch.arange(4))

    pixels = torch.full((8, 1, SIDE, SIDE), 127, dtype=torch.uint8)
    findings = probe(Target(Cliff(), Split(pixels, torch.full((8,), 3))), ThreatModel("linf", "0.1"), 8)
    (found,) = [one for one in findings if one["name"] == "random-search"]
    assert found["value"] == 0


# --------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_training_does_not_go_on_with_images_that_were_never_perturbed(norm):
    images, labels = torch.from_numpy(FLAT[:4]).float().view(4, 1, SIDE, SIDE), torch.arange(4)
    model = Planted(torch.nan, 1.0, everywhere=True)
    context = TrainingContext(ThreatModel(norm, "0.1"), steps=2, step_size=0.05, generator=torch.Generator())
    perturbed = craft(lambda view, x: cross_entropy(view(x), labels), model, images, images, context)
    assert cross_entropy(model(perturbed), labels).isnan().all(), "a loss that is not finite stops the run"
