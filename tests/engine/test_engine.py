"""The engine trusts no attack: cheats are caught, outcomes do not depend on batches, nothing is left changed."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine import run as engine
from bench.engine.observed import allowed
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import Attack, IterativeAttack, Problem, ThreatModel
from bench.system import randomness
from bench.trust.attack_comparisons import outcome_findings


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above 0.5, with a margin of 10 logits per unit of brightness."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        score = self.gain * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], dim=1)


def grey(*levels):
    pixels = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Split(pixels, (pixels[:, 0, 0, 0] > 127).long())


def suite_of(*cells, epsilon="0.1"):
    cells = tuple(AttackCell(label=name, attack=name, epsilon=epsilon) for name in cells)
    return Suite("test", 1, "", cells, {})


def run(attack, split, monkeypatch, epsilon="0.1", model=None, **options):
    monkeypatch.setattr(engine, "make_attack", lambda name, given: attack)
    outcome = engine.run_suite(Target(model or Threshold(), split), suite_of("planted", epsilon=epsilon), **options)
    return outcome, outcome.attacks["planted"]


def fired(outcome):
    return [finding["name"] for finding in outcome.findings if finding["severity"] != "passed"]


@dataclass(frozen=True)
class Darken(Attack):
    """Moves every pixel down by `by`, whatever the threat model says."""

    paper: ClassVar[str] = "none"
    by: float = 0.1

    def perturb(self, problem: Problem):
        return problem.images - self.by


@dataclass(frozen=True)
class WanderAndReturn(Attack):
    """Shows the model a darker image on the way, and returns the clean one."""

    paper: ClassVar[str] = "none"
    by: float = 0.1

    def perturb(self, problem: Problem):
        problem.model(problem.images - self.by)
        return problem.images


def test_an_attack_inside_the_ball_is_judged_by_the_harness(monkeypatch):
    # 140/255 - 0.1 = 0.449 falls below 0.5; 250/255 - 0.1 = 0.88 does not.
    _, record = run(Darken(), grey(140, 250), monkeypatch)
    assert record.prediction.tolist() == record.final_prediction.tolist() == [0, 1]
    assert record.distance == pytest.approx([0.1, 0.1], abs=1e-6)


def test_an_attack_that_leaves_the_ball_is_projected(monkeypatch):
    outcome, record = run(Darken(by=0.9), grey(250), monkeypatch)
    assert record.prediction.tolist() == [1]
    assert record.distance == pytest.approx([0.1], abs=1e-6)
    assert fired(outcome) == ["attack-outside-ball"]
    assert outcome.findings[0]["value"] == 1


@dataclass(frozen=True)
class Nearest(Darken):
    """Looks for the nearest adversarial image, wherever that is."""

    minimum_norm: ClassVar[bool] = True


@dataclass(frozen=True)
class StepsToTheNearest(IterativeAttack):
    paper: ClassVar[str] = "none"
    minimum_norm: ClassVar[bool] = True
    by: float = 0.1

    def begin(self, problem, restart):
        return {"images": problem.images}

    def step(self, problem, state):
        problem.model(state["images"])
        return {"images": state["images"] - self.by}


@pytest.mark.parametrize("attack", [Nearest, StepsToTheNearest])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("by", "checks"), [(0.9, []), (0.99, ["attack-outside-ball"])])
def test_a_search_for_the_nearest_image_may_end_beyond_the_radius_and_not_beyond_the_box(
    attack, norm, by, checks, monkeypatch
):
    """240/255 = 0.94: 0.9 darker is far outside the ball and inside [0, 1], as all of l1's 3.6 are; 0.99 is not."""
    monkeypatch.setattr(engine, "make_attack", lambda name, given: attack(by=by))
    suite = Suite("test", 1, "", (AttackCell("planted", "planted", norm, "0.1"),), {})
    outcome = engine.run_suite(Target(Threshold(), grey(240)), suite)
    assert fired(outcome) == checks
    record = outcome.attacks["planted"]
    assert record.prediction.tolist() == [1]
    assert record.distance == pytest.approx([0.1], abs=1e-6)


@dataclass(frozen=True)
class FarThenNear(Darken):
    """Shows the model an image at a distance of 0.09, then returns one that is nearer."""

    minimum_norm: ClassVar[bool] = True

    def perturb(self, problem):
        problem.model(problem.images - 0.09)
        return problem.images - self.by


@pytest.mark.parametrize(("by", "distance"), [(0.04, 0.04), (0.001, 0.09)])
def test_of_a_search_for_the_nearest_image_the_one_it_returns_counts_if_it_fools(by, distance, monkeypatch):
    # 130/255 is 0.0098 above the threshold: 0.001 does not fool, and the image on the way does.
    _, record = run(FarThenNear(by=by), grey(130), monkeypatch)
    assert record.prediction.tolist() == [0]
    assert record.distance == pytest.approx([distance], abs=1e-6)


def test_an_attack_is_not_believed_that_it_succeeded(monkeypatch):
    class Boastful(Darken):
        def perturb(self, problem):
            problem.notes["stage"] = torch.ones_like(problem.labels)
            return super().perturb(problem)

    outcome, record = run(Boastful(), grey(140, 250), monkeypatch)
    assert record.prediction.tolist() == [0, 1]
    assert [(found["name"], found["value"]) for found in outcome.findings if found["severity"] == "warning"] == [
        ("unconfirmed-success", 1)
    ]


def test_what_an_attack_noticed_is_in_the_findings_once(monkeypatch):
    class Talkative(Darken):
        def perturb(self, problem):
            problem.warnings.append("looks odd")
            return super().perturb(problem)

    outcome, _ = run(Talkative(), grey(140, 141, 250), monkeypatch)
    assert [(found["name"], found["message"]) for found in outcome.findings if found["severity"] == "warning"] == [
        ("attack-warning", "planted: looks odd")
    ]


def test_an_image_found_on_the_way_counts_under_any_and_not_under_final(monkeypatch):
    _, record = run(WanderAndReturn(), grey(140, 250), monkeypatch)
    assert record.prediction.tolist() == [0, 1]
    assert record.final_prediction.tolist() == [1, 1]
    assert record.distance == pytest.approx([0.1, 0.0], abs=1e-6)


def test_an_image_found_outside_the_ball_never_counts(monkeypatch):
    _, record = run(WanderAndReturn(by=0.2), grey(140), monkeypatch)
    assert record.prediction.tolist() == [1]


def test_misclassified_samples_are_not_attacked(monkeypatch):
    @dataclass(frozen=True)
    class Counting(Darken):
        def perturb(self, problem):
            assert len(problem.images) == 1
            return super().perturb(problem)

    split = grey(140, 250)
    split = Split(split.pixels, torch.tensor([1, 0]))
    outcome, record = run(Counting(), split, monkeypatch)
    assert outcome.clean_prediction.tolist() == [1, 1]
    assert record.prediction.tolist() == [0, 1]
    assert record.distance[1] == 0


def test_a_wrong_shape_is_an_error_that_names_the_attack(monkeypatch):
    class Short(Darken):
        def perturb(self, problem):
            return problem.images[:1]

    with pytest.raises(BenchError, match=r"'planted' .*\(1, 1, 2, 2\).*\(2, 1, 2, 2\)"):
        run(Short(), grey(140, 250), monkeypatch)


def test_images_that_are_not_finite_fall_back_to_the_clean_ones(monkeypatch):
    class Broken(Darken):
        def perturb(self, problem):
            return problem.images * float("nan")

    _, record = run(Broken(), grey(140), monkeypatch)
    assert record.final_prediction.tolist() == [1]


def test_an_attack_cannot_change_the_images_it_is_judged_against(monkeypatch):
    class Overwrite(Darken):
        def perturb(self, problem):
            problem.images.zero_()
            problem.labels.zero_()
            return problem.images

    _, record = run(Overwrite(), grey(250), monkeypatch)
    assert record.prediction.tolist() == [1]
    assert record.distance == pytest.approx([0.1], abs=1e-6)


def test_a_changed_parameter_is_found_put_back_and_reported(monkeypatch):
    class Vandal(Darken):
        def perturb(self, problem):
            with torch.no_grad():
                problem.model.gain.fill_(-1.0)
            return problem.images

    model = Threshold()
    outcome, _ = run(Vandal(), grey(140), monkeypatch, model=model)
    assert model.gain.item() == 10.0
    assert fired(outcome) == ["model-changed"]


class Moody(Threshold):
    """Answers the other way round in training mode."""

    def forward(self, images):
        return super().forward(images) * (-1 if self.training else 1)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_model_left_in_training_mode_is_judged_in_its_own_and_reported(monkeypatch, steps):
    class Stirring(Darken):
        def perturb(self, problem):
            problem.model.train()
            return problem.images

    @dataclass(frozen=True)
    class StirringSteps(IterativeAttack):
        paper: ClassVar[str] = "none"
        steps: int = 1

        def begin(self, problem, restart):
            return {"images": problem.images}

        def step(self, problem, state):
            problem.model.train()
            problem.model(state["images"])
            return state

    attack = StirringSteps() if steps else Stirring()
    outcome, record = run(attack, grey(140, 90), monkeypatch, model=Moody())
    assert record.prediction.tolist() == [1, 0]
    (found,) = [one for one in outcome.findings if one["severity"] != "passed"]
    assert (found["name"], found["severity"]) == ("attack-warning", "warning")
    assert "mode (train or eval)" in found["message"]


class Standardising(Threshold):
    """0 / 0 on images of one grey."""

    def forward(self, images):
        flat = images.flatten(1)
        return super().forward(images) + 0 * (1 / flat.std(1, correction=0) * 0).unsqueeze(1)


def test_an_image_without_an_answer_is_wrong_clean_no_success_of_an_attack_and_reported(monkeypatch):
    class Flattening(Darken):
        def perturb(self, problem):
            return problem.images.mean((2, 3), keepdim=True).expand_as(problem.images)

    pixels = torch.tensor([[90, 110, 90, 110], [140, 160, 140, 160], [90, 90, 90, 90]], dtype=torch.uint8)
    split = Split(pixels.view(3, 1, 2, 2), torch.tensor([0, 1, 0]))
    outcome, record = run(Flattening(), split, monkeypatch, model=Standardising())
    assert outcome.clean_prediction.tolist() == [0, 1, -1]
    assert record.prediction.tolist() == record.final_prediction.tolist() == [0, 1, -1]
    assert record.distance.tolist() == [0, 0, 0]
    found = [one for one in (*outcome.findings, *outcome_findings(outcome, 4)) if one["name"] == "non-finite-logits"]
    assert [(one["severity"], one["message"]) for one in found] == [
        ("error", "attacks that met logits that are NaN or infinite: planted"),
        ("error", "1 of 3 clean images give logits that are NaN or infinite"),
        ("error", "logits that are NaN or infinite, counted as wrong: clean 1, planted 1 of 3 images"),
    ]


def test_randomness_is_left_as_it_was(monkeypatch):
    class Gambler(Darken):
        def perturb(self, problem):
            torch.manual_seed(1)
            np.random.seed(1)
            return problem.images

    def state():
        return torch.rand(1).item(), np.random.rand()

    torch.manual_seed(7), np.random.seed(7)
    expected = state()
    torch.manual_seed(7), np.random.seed(7)
    run(Gambler(), grey(140), monkeypatch)
    assert state() == expected
    # Apart from the run above, whose run-time type checks draw from Python's own generator.
    before = random.getstate()
    with randomness.untouched_randomness():
        random.seed(1)
    assert random.getstate() == before


def test_allowed_tolerates_rounding_and_nothing_more():
    threat = ThreatModel("linf", "8/255")
    clean = torch.linspace(0, 1, 256).view(-1, 1, 1, 1)
    assert allowed(threat.project(clean + 1, clean), clean, threat).all()
    assert allowed(threat.project(clean - 1, clean), clean, threat).all()
    over = (clean + 8 / 255 + 3e-6).clamp_max(1)
    assert not allowed(over, clean, threat)[:200].any()
