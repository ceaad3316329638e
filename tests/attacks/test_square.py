"""Square Attack against closed forms and, number by number, against pyautoattack."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import _square
from bench.attacks._fab import nearest
from bench.attacks._square import Moves, bump, random_search, side
from bench.attacks._survivors import classify, restrict, rival
from bench.attacks.square import Square
from bench.interfaces import Draws, Problem, ThreatModel
from tests.attacks.test_apgd import NAMES, Linear, float64, network, problem_of, standing  # noqa: F401

RADIUS = {"linf": "1/60", "l2": "1/5", "l1": "1"}


class Replay(Moves):
    """Asks torch's generator for its numbers, in the order in which the published code asks."""

    def __init__(self, images):
        self.images = images

    def shared(self, query, count):
        return [torch.rand(1).item() for _ in range(count)]

    def colours(self, query):
        return torch.sign(torch.cat([torch.rand(1) for _ in range(self.images.shape[1])]) - 0.5).view(-1, 1, 1)

    def signs(self, query, rows):
        return torch.sign(2 * torch.rand(len(rows), self.images.shape[1], 1, 1) - 1)

    def stripes(self):
        return torch.sign(2 * torch.rand(len(self.images), self.images.shape[1], 1, self.images.shape[3]) - 1)

    def tile(self, number):
        return torch.rand(1).item(), self.signs(0, torch.arange(len(self.images)))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_those_of_the_published_code(norm, float64, monkeypatch):  # noqa: F811
    module = pytest.importorskip("pyautoattack.square")
    published, projection = module.SquareAttack, module.L1_projection
    # Under l1 the published code keeps a millionth of the radius in reserve.
    monkeypatch.setattr(module, "L1_projection", lambda x, y, radius: projection(x, y, radius / (1 - 1e-6)))
    problem = problem_of(network().double(), norm, epsilon=RADIUS[norm], dtype=torch.float64)
    with torch.random.fork_rng():
        attack = published(
            problem.model, norm=NAMES[norm], n_queries=120, eps=problem.threat.radius, resc_schedule=False
        )
        attack.init_hyperparam(problem.images)
        torch.manual_seed(3)
        _, other = attack.attack_single_run(problem.images, problem.labels)
        torch.manual_seed(3)
        found = random_search(problem, Replay(problem.images), 120)
    assert 0 < found.fooled.sum() < 24
    # Under l1 both scale the change of an almost empty window up to length 1, rounding errors included.
    torch.testing.assert_close(found.images, other, rtol=0, atol=1e-4 if norm == "l1" else 1e-9)
    assert torch.equal(found.fooled, ~standing(problem, other))


def clear_cases(problem):
    """The samples whose nearest adversarial image is within a quarter of the radius, or outside it."""
    unbounded = replace(problem, threat=ThreatModel(problem.threat.norm, "0"))
    logits = classify(problem.model, problem.images)
    targets = [rival(logits, problem.labels, rank) for rank in range(4)]
    distance = torch.stack([nearest(unbounded, target, problem.images, 30)[1] for target in targets]).amin(0)
    close = distance < problem.threat.radius / 4
    return restrict(problem, (close | (distance > problem.threat.radius)).nonzero().flatten()), int(close.sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_same_robust_set_from_our_own_draws(norm):
    published = pytest.importorskip("pyautoattack.square").SquareAttack
    problem, close = clear_cases(problem_of(network(), norm, count=30, epsilon=RADIUS[norm]))
    with torch.random.fork_rng():
        attack = published(
            problem.model, norm=NAMES[norm], n_queries=400, eps=problem.threat.radius, resc_schedule=False
        )
        other = standing(problem, attack.perturb(problem.images, problem.labels))
    mine = standing(problem, Square(queries=400).perturb(problem))
    assert 0 < mine.sum() == len(mine) - close < len(mine)
    assert torch.equal(mine, other)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_proposal_is_allowed_and_only_better_ones_stay(norm, monkeypatch):
    problem = problem_of(network().double(), norm, epsilon=RADIUS[norm], count=8, dtype=torch.float64)
    shown, margins = [], []

    class Watch(nn.Module):
        def forward(self, images):
            shown.append(images.clone())
            return problem.model(images)

    propose = "paint" if norm == "linf" else "shift"
    step = getattr(_square, propose)

    def watched(part, run, moves, query):
        before = run.highest.clone()
        step(part, run, moves, query)
        margins.append((-before, -run.highest, run.done))

    monkeypatch.setattr(_square, propose, watched)
    moves = Moves(problem.draws, problem.images, 80, "key")
    found = random_search(replace(problem, model=Watch()), moves, 80)
    clean = {tuple(image.flatten().tolist()): image for image in problem.images}
    assert len(clean) == 8 and len(shown) > 40
    for images in shown:
        assert ((images >= 0) & (images <= 1)).all()
        apart = problem.threat.distance(images[:, None].expand(-1, 8, -1, -1, -1).flatten(0, 1),
                                        problem.images.repeat(len(images), 1, 1, 1)).view(-1, 8)  # fmt: skip
        assert (apart.amin(1) <= problem.threat.radius + 1e-6).all()
    assert all((after <= before).logical_or(fooled).all() for before, after, fooled in margins)
    assert any((after < before).any() for before, after, _ in margins)
    with torch.no_grad():
        logits = problem.model(found.images)
    true = logits.gather(1, problem.labels[:, None]).squeeze(1)
    margin = true - logits.scatter(1, problem.labels[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(-found.value, margin)


def test_linear_optimum_of_the_pixels_that_windows_reach():
    torch.manual_seed(0)
    weight, images = torch.randn(27), 0.5 + 0.1 * (2 * torch.rand(4, 3, 3, 3) - 1)
    labels = torch.ones(4, dtype=torch.int64)
    problem = Problem(
        Linear(weight, 100.0), images, labels, ThreatModel("linf", "1/20"), Draws(0, "test", np.arange(4))
    )
    # Windows leave the last row and column as the start left them, so the optimum is over the others.
    found = random_search(problem, Moves(problem.draws, images, 800, "key"), 800).images
    inner = weight.view(3, 3, 3)[:, :2, :2]
    change = (found - images)[:, :, :2, :2]
    torch.testing.assert_close((change * inner).sum((1, 2, 3)), -inner.abs().sum().expand(4) / 20)


def test_sides_of_the_paper():
    images = torch.empty(1, 3, 32, 32)
    # sqrt(0.8 / divisor) * 32 pixels, divisor 1, 2, 4, ... after queries 10, 50, 200, 500, 1000, 2000, 4000.
    expected = {0: 29, 10: 29, 11: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4, 4001: 3, 6001: 2, 8001: 1}
    assert {query: side(query, images, "linf") for query in expected} == expected
    assert [side(query, images, "l2") for query in (0, 11, 1001, 2001, 8001)] == [29, 21, 5, 5, 3]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_bumps_by_hand(norm):
    # 3 x 3: one row above (centre 1), two rows below (the ring of height 1 / 2^power around them).
    power, order = (2, 2) if norm == "l2" else (4, 1)
    ring = 2.0**-power
    above = torch.tensor([[ring, 1 + ring, ring]], dtype=torch.float64)
    below = torch.tensor([[ring, ring, ring], [ring, 1 + ring, ring]], dtype=torch.float64)
    shape = torch.cat([above / above.norm(p=order), -below / below.norm(p=order)])
    torch.testing.assert_close(bump(3, norm), shape / shape.norm(p=order))
    assert bump(1, norm).tolist() == [[-1.0]]


def test_signs_are_drawn_in_blocks_and_follow_their_samples():
    draws, images = Draws(0, "test", np.arange(6)), torch.rand(6, 3, 8, 8)
    moves, part = Moves(draws, images, 1200, "key"), torch.tensor([4, 1])
    for query in (0, 499, 500, 1199):
        signs = moves.signs(query, torch.arange(6))
        assert set(signs.flatten().tolist()) == {-1.0, 1.0}
        assert torch.equal(moves.signs(query, part), signs[part])
    assert moves.shared(7, 5) == Moves(draws, images[:2], 1200, "key").shared(7, 5)


def test_fooled_samples_leave_the_forward_passes():
    problem, rows = problem_of(network(), epsilon="1/2"), []
    counting = nn.Module()
    counting.forward = lambda images: rows.append(len(images)) or problem.model(images)
    assert not standing(problem, Square(queries=500).perturb(replace(problem, model=counting))).any()
    assert sum(rows) < 24 * 50
    assert min(rows) >= 4
