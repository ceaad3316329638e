"""APGD against closed forms and, number by number, against pyautoattack."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks._apgd import checkpoints, climb, dlr, search_ball, targeted_dlr, untargeted_cross_entropy
from bench.attacks._survivors import random_point, redirect, rival
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_dlr import APGDDLR
from bench.attacks.apgd_t import APGDT
from bench.errors import BenchError
from bench.interfaces import Draws, Problem, ThreatModel

RADIUS = {"linf": "1/125", "l2": "2/25", "l1": "1/3"}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def network(classes=5, seed=0):
    """A small convolutional network that uses all its classes; half of the images fall within `RADIUS`."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8 * 9, classes)).requires_grad_(False).eval()
    for layer in (model[0], model[2], model[5]):
        layer.weight.mul_(3)
    model[5].bias -= model(torch.rand(256, 3, 8, 8)).mean(0)
    return model


def problem_of(model, norm="linf", count=24, epsilon=None, dtype=torch.float32):
    """Random images, labelled by the model itself."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    with torch.no_grad():
        labels = model(images).argmax(1)
    threat = ThreatModel(norm, epsilon or RADIUS[norm])
    return Problem(model, images, labels, threat, Draws(0, "test", np.arange(count)))


def standing(problem, images):
    """Which samples are still classified correctly, and that all are inside the threat model."""
    assert (problem.threat.distance(images, problem.images) <= problem.threat.radius + 1e-6).all()
    assert ((images >= 0) & (images <= 1)).all()
    with torch.no_grad():
        return problem.model(images).argmax(1) == problem.labels


class Replay(Draws):
    """Asks torch's generator for its numbers, in the order in which the published code asks."""

    def uniform(self, like, key=0):
        return torch.rand(like.shape)

    def normal(self, like, key=0):
        return torch.randn(like.shape)


@pytest.fixture
def float64(monkeypatch):
    """Everything in float64, the published code's casts to float32 included."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def reference():
    """pyautoattack's modules, without the random state they leave behind."""
    with torch.random.fork_rng():
        yield pytest.importorskip("pyautoattack.autopgd_base")


# ---------------------------------------------------------------------------------------------- by hand


def test_losses_by_hand():
    logits, labels = torch.tensor([[3.0, 1.0, 0.0, -1.0]]), torch.tensor([0])
    assert dlr(logits, labels, labels).item() == pytest.approx(-(3 - 1) / (3 - 0))
    assert dlr(logits, torch.tensor([1]), labels).item() == pytest.approx((3 - 1) / (3 - 0))
    assert targeted_dlr(logits, labels, torch.tensor([2])).item() == pytest.approx(-(3 - 0) / (3 - (0 - 1) / 2))
    assert untargeted_cross_entropy(torch.zeros(1, 4), labels, labels).item() == pytest.approx(math.log(4))


def test_rivals_are_ranked_without_the_label():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [3.0, 1.0, 0.0, -1.0]])
    labels = torch.tensor([0, 1])
    assert [rival(logits, labels, rank).tolist() for rank in range(3)] == [[1, 0], [2, 2], [3, 3]]


def test_checkpoints_of_the_paper():
    # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06): section 3.1 for 100 steps.
    assert list(checkpoints(100, "linf")) == [21, 40, 56, 69, 79, 86, 92, 98]
    assert list(checkpoints(100, "linf").values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(30, "l1").items())[:2] == [(0, 1), (1, 1)]


# ------------------------------------------------------------------------------------------ closed forms


class Linear(nn.Module):
    """Logits (0, w . x + b, 0, ...): class 1 wins where the function is positive."""

    def __init__(self, weight, bias, classes=2):
        super().__init__()
        self.weight, self.bias, self.classes = weight, bias, classes

    def forward(self, images):
        value = (images.flatten(1) @ self.weight + self.bias)[:, None]
        low = torch.full_like(value, -50.0).expand(-1, self.classes - 2)
        return torch.cat([torch.zeros_like(value), value, low], 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_optimum(norm):
    torch.manual_seed(0)
    # Around mid-grey the box never binds.
    weight, images = torch.randn(48), 0.5 + 0.1 * (2 * torch.rand(6, 3, 4, 4) - 1)
    radius = {"linf": "1/20", "l2": "1/5", "l1": "1/10"}[norm]
    threat = ThreatModel(norm, radius)
    model = Linear(weight, 100.0)
    problem = Problem(model, images, torch.ones(6, dtype=torch.int64), threat, Draws(0, "test", np.arange(6)))
    found = search_ball(problem, lambda z, y, t: -z[:, 1], problem.labels, 100, "key")
    gain = ((problem.images - found.images).flatten(1) @ weight) / threat.radius
    dual = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[norm]
    assert not found.fooled.any()
    assert (gain <= dual * (1 + 1e-5)).all()
    if norm == "l1":  # two changed pixels of 48 make a next step along two: at worst the radius is split among them
        assert (gain >= weight.abs().topk(2).values.mean() * (1 - 1e-5)).all()
    else:
        assert (gain >= dual * 0.99).all()


# ------------------------------------------------------------------- against the published implementation


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_trajectories_are_those_of_the_published_code(norm, loss, float64, reference):
    problem = problem_of(network().double(), norm, dtype=torch.float64)
    problem = replace(problem, draws=Replay(0, "test", np.arange(24)))
    seen = {"ours": [], "theirs": []}

    class Recorder(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, images):
            seen[self.name].append(images.detach().clone())
            return problem.model(images)

    attack = reference.APGDAttack(Recorder("theirs"), norm=NAMES[norm], eps=problem.threat.radius, loss=loss)
    attack.init_hyperparam(problem.images)
    torch.manual_seed(3)
    highest, correct, value, _ = attack.attack_single_run(problem.images, problem.labels)
    torch.manual_seed(3)
    objective = untargeted_cross_entropy if loss == "ce" else dlr
    start = random_point(problem, problem.threat.radius, "start")
    patient = climb(replace(problem, model=Recorder("ours")), objective, problem.labels, 100, start, patient=True)
    assert len(seen["ours"]) == len(seen["theirs"]) == 101
    # Lengths are kept from 0 in another way: 1e-12, which hundred steps enlarge.
    for mine, other in zip(seen["ours"], seen["theirs"], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)
    torch.testing.assert_close(patient.images, highest, rtol=0, atol=1e-7)
    torch.testing.assert_close(patient.value, value, rtol=0, atol=1e-7)
    quick = climb(problem, objective, problem.labels, 100, start)
    assert 0 < quick.fooled.sum() < 24
    assert torch.equal(quick.fooled, ~correct.bool())
    torch.testing.assert_close(quick.images[~quick.fooled], highest[~quick.fooled], rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_same_robust_set_from_the_same_draws(norm, targeted, reference):
    problem = replace(problem_of(network(), norm, count=12), draws=Replay(0, "test", np.arange(12)))
    settings = {"norm": NAMES[norm], "eps": problem.threat.radius, "seed": 5, "use_largereps": norm == "l1"}
    settings["n_iter"] = steps = 30
    if targeted:
        published = reference.APGDAttack_targeted(problem.model, n_target_classes=4, **settings)
    else:
        published = reference.APGDAttack(problem.model, **settings)
    other = standing(problem, problem.threat.project(published.perturb(problem.images, problem.labels), problem.images))
    torch.manual_seed(5)
    mine = standing(problem, (APGDT if targeted else APGDCE)(steps=steps).perturb(problem))
    assert 0 < mine.sum() < 12
    assert torch.equal(mine, other)


# ------------------------------------------------------------------------------- what dropping must not do


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_survivors_do_not_notice_that_others_leave(norm):
    problem = problem_of(network(), norm)
    start = random_point(problem, problem.threat.radius, "start")
    quick = climb(problem, untargeted_cross_entropy, problem.labels, 60, start)
    patient = climb(problem, untargeted_cross_entropy, problem.labels, 60, start, patient=True)
    assert quick.fooled.any() and not quick.fooled.all()
    left = ~quick.fooled
    assert torch.equal(quick.images[left], patient.images[left])
    assert torch.equal(quick.value[left], patient.value[left])


def test_fooled_samples_leave_the_forward_passes():
    problem, rows = problem_of(network(), epsilon="1/2"), []
    counting = nn.Module()
    counting.forward = lambda images: rows.append(len(images)) or problem.model(images)
    assert not standing(problem, APGDCE().perturb(replace(problem, model=counting))).any()
    assert sum(rows) < 24 * 12  # 100 steps without leaving would take 24 * 102
    assert min(rows) >= 4


def test_first_adversarial_image_is_kept():
    model = Linear(torch.ones(48), -24.0)
    images = torch.full((4, 3, 4, 4), 0.51)
    problem = Problem(model, images, torch.ones(4, dtype=torch.int64), ThreatModel(), Draws(0, "t", np.arange(4)))
    found = climb(problem, untargeted_cross_entropy, problem.labels, 100, images)
    # The first step of twice the radius is cut at the radius, where the sum is 48 * (0.51 - 8 / 255) < 24.
    torch.testing.assert_close(found.images, images - 8 / 255)
    assert found.fooled.all()


# ------------------------------------------------------------------------------------------ the attack's edges


def test_objective_replaces_the_loss_of_apgd_ce_only():
    problem = problem_of(network(), count=12)
    asked = []

    def objective(model, images):
        asked.append(len(images))
        return untargeted_cross_entropy(model(images), problem.labels, problem.labels)

    adaptive = replace(problem, objective=objective)
    assert torch.equal(APGDCE(steps=8).perturb(adaptive), APGDCE(steps=8).perturb(problem))
    assert set(asked) == {12}  # an objective knows the labels of its whole batch
    asked.clear()
    APGDDLR(steps=2).perturb(adaptive)
    APGDT(steps=2).perturb(adaptive)
    assert not asked


def test_zero_radius_and_wrong_samples_stay_clean():
    problem = problem_of(network(), epsilon="0")
    assert torch.equal(APGDCE(steps=3).perturb(problem), problem.images)
    wrong = replace(problem_of(network()), labels=(problem.labels + 1) % 5)
    assert torch.equal(APGDCE(steps=3).perturb(wrong), wrong.images)


def test_more_restarts_break_no_fewer():
    problem = problem_of(network(), count=40)
    once = standing(problem, APGDCE(steps=5).perturb(problem))
    twice = standing(problem, APGDCE(steps=5, restarts=3).perturb(problem))
    assert (twice <= once).all()


def test_few_classes():
    three = problem_of(network(3), count=6)
    assert APGDDLR(steps=2).perturb(three).shape == three.images.shape
    with pytest.raises(BenchError, match=r"apgd-t needs 4 .*K=3"):
        APGDT().perturb(three)
    with pytest.raises(BenchError, match=r"apgd-dlr needs 3 .*K=2"):
        APGDDLR().perturb(problem_of(network(2), count=6))
    assert APGDCE(steps=2).perturb(problem_of(network(2), count=6)).shape == (6, 3, 8, 8)


def test_draws_of_a_part_are_those_of_the_whole():
    draws, like = Draws(0, "test", np.arange(5)), torch.empty(5, 3)
    part = redirect(draws, draws.indices[[4, 1]])
    assert torch.equal(part.uniform(like[:2], "key"), draws.uniform(like, "key")[[4, 1]])
