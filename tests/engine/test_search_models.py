"""Attacks search on a faster model, or in coarser numbers; verdicts are the judge's, sample by sample."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import autoattack
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.fab import FAB
from bench.attacks.square import Square
from bench.catalogue.suites import AttackCell, Suite, load_suite
from bench.data.splits import Split
from bench.engine.run import run_suite, state_digest
from bench.engine.target import Target
from bench.models.folding import folded
from tests.engine.test_engine import Darken, Threshold, fired, grey

RADII = {"linf": "0.01", "l2": "0.06", "l1": "0.2"}
BUDGET = APGDCE(steps=6), APGDT(steps=5, targets=2), FAB(steps=5, targets=2), Square(queries=40)
SHORT = {"steps": 5, "queries": 40, "targets": 2, "candidates": 4}


class Convolutional(nn.Module):
    """Convolutions with BatchNorm, in float64, where rounding decides about no image."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2)]
            self.layers = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)).double()
            images = torch.rand(256, 3, 8, 8)
        with torch.no_grad():
            self(images)  # sets running statistics
            self.eval()
            self.layers[-1].weight.mul_(4)
            self.layers[-1].bias -= self(images).mean(0)

    def forward(self, images):
        return self.layers(images.double())


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(autoattack, "standard", lambda norm: BUDGET)


def of_images(model, count=20):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Split(pixels, model(pixels.float() / 255).argmax(1))


def full():
    """All attacks of the suite `full`, and the others there are, shortened."""
    cells = {(cell.attack, cell.norm): cell for cell in load_suite("full").cells}
    cells |= {(name, norm): AttackCell("", name, norm) for name, norm in (("deepfool", "l2"), ("apgd-dlr", "linf"))}
    few = []
    for (name, norm), cell in cells.items():
        given = {key: value for key, value in SHORT.items() if key in cell.parameters}
        if name not in ("autoattack", "apgd", "fgsm", "square"):
            given["steps"] = 5
        few.append(replace(cell, label=f"{name} {norm}", epsilon=RADII[norm], objective="default", parameters=given))
    return Suite("test", 1, "", tuple(few), {})


def test_every_attack_on_a_folded_model_reaches_the_verdicts_of_the_model(brief):
    model = Convolutional()
    split, suite = of_images(model), full()
    fast = folded(model, split.images(slice(0, 4)))
    assert fast is not None and not any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())
    one, other = (run_suite(Target(model, split, search_model=found), suite) for found in (None, fast))
    assert len(suite.cells) >= 8 and {"autoattack linf", "apgd l1"} <= one.attacks.keys()
    for label, record in one.attacks.items():
        np.testing.assert_array_equal(record.prediction, other.attacks[label].prediction, err_msg=label)
    assert 0 < (one.attacks["autoattack linf"].prediction != one.label).sum() < len(split)
    assert fired(one) == fired(other) == []


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images):
        self.calls += images.requires_grad
        return self.model(images)


def test_autoattack_takes_its_gradients_from_the_search_model_alone(brief):
    judge, fast = Counting(Convolutional()), Counting(Convolutional())
    target = Target(judge, of_images(judge), search_model=fast)
    target.cut  # noqa: B018  # asks the judge for one gradient
    before = judge.calls
    run_suite(target, Suite("test", 1, "", (AttackCell("AA", "autoattack", "linf", RADII["linf"]),), {}))
    assert fast.calls > 20 and judge.calls == before


class Lying(nn.Module):
    """Names another class than the model where the mean pixel is below `dark`."""

    def __init__(self, model, dark):
        super().__init__()
        self.model, self.dark = model, dark

    def forward(self, images):
        logits = self.model(images)
        return torch.where(images.flatten(1).mean(1, keepdim=True) < self.dark, logits.roll(1, 1), logits)


@pytest.mark.parametrize("name", ["autoattack", "square", "fab", "apgd-ce", "pgd"])
def test_what_the_judge_does_not_confirm_does_not_count_and_the_attack_goes_on(name, brief):
    """The search model takes about half of the images for wrong on the way: all of those are attacked again."""
    model = Convolutional()
    split = of_images(model)
    given = {"square": {"queries": 40}, "autoattack": {}}.get(name, {"steps": 5})
    suite = Suite("test", 1, "", (AttackCell("A", name, "linf", RADII["linf"], given),), {})
    middle = float(split.images(slice(None)).flatten(1).mean(1).median())
    plain, lied = (
        run_suite(Target(model, split, search_model=found), suite).attacks["A"]
        for found in (None, Lying(model, middle))
    )
    broken = plain.prediction != split.labels.numpy()
    assert 0 < broken.sum() < len(split)
    if name == "pgd":  # it searches on, along gradients that are another model's
        assert (lied.prediction != split.labels.numpy()).sum() > 0
        return
    # A sample that is dark was given up at its clean image at once, and its second search is the plain one.
    dark = (split.images(slice(None)).flatten(1).mean(1) < middle - 0.01).numpy()
    assert dark.sum() > 4
    np.testing.assert_array_equal(lied.prediction[dark], plain.prediction[dark])


class Coarse(nn.Module):
    """What TF32 does, simulated: where it is allowed, weights are rounded to 10 bits; and so are gradients."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, images):
        coarse = torch.backends.cudnn.allow_tf32
        self.seen.append(coarse)
        return self.model(Rounded.apply(images, self.seen)) if coarse else self.model(images)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, seen):
        ctx.seen = seen
        return ((images * 512).round() / 512).view_as(images)

    @staticmethod
    def backward(ctx, gradient):
        ctx.seen.append(torch.backends.cudnn.allow_tf32)
        return gradient, None


@pytest.mark.parametrize("name", ["pgd", "fab"])
def test_tf32_is_allowed_while_an_attack_computes_and_never_while_it_is_judged(name, monkeypatch):
    model = Coarse(Convolutional())
    split = of_images(model.model)
    suite = Suite("test", 1, "", (AttackCell("A", name, "linf", RADII["linf"], {"steps": 4}),), {})
    judged, judge = [], Target.judge

    def judging(target, images):
        before = len(model.seen)
        logits = judge(target, images)
        judged.extend(model.seen[before:])
        return logits

    monkeypatch.setattr(Target, "judge", judging)
    record = run_suite(Target(model, split, tf32=True), suite).attacks["A"]
    assert judged and not any(judged)
    searched = len(model.seen) - len(judged)
    assert searched > 4 and sum(model.seen) >= searched - 1  # but for the one look whether there are gradients
    exact = run_suite(Target(model, split), suite).attacks["A"]
    clear = np.flatnonzero(record.prediction != exact.prediction)
    assert len(clear) <= 1  # a search that rounds to 1/512 may miss what lies at the radius


def test_a_changed_search_model_is_found_put_back_and_reported(monkeypatch):
    class Vandal(Darken):
        def perturb(self, problem):
            with torch.no_grad():
                problem.model.gain.fill_(-1.0)
            problem.model.train()
            return problem.images

    searched = Threshold()
    before = state_digest(searched)
    monkeypatch.setattr("bench.engine.run.make_attack", lambda name, given: Vandal())
    suite = Suite("test", 1, "", (AttackCell("planted", "planted", epsilon="0.1"),), {})
    outcome = run_suite(Target(Threshold(), grey(140), search_model=searched), suite)
    assert state_digest(searched) == before and not searched.training
    assert "model-changed" in fired(outcome)
