"""FAB against closed forms and, number by number, against pyautoattack."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks._fab import nearest, project
from bench.attacks._survivors import classify, rival
from bench.attacks.fab import FAB
from bench.errors import BenchError
from bench.interfaces import Draws, Problem, ThreatModel
from tests.attacks.test_apgd import NAMES, Linear, float64, network, problem_of, standing  # noqa: F401


def brute_force(points, normal, value, norm):
    """The shortest step, from all breakpoints of the piecewise linear equation, sorted; in float64."""
    steps = torch.zeros_like(points)
    for row, (x, w, v) in enumerate(zip(points, normal, value, strict=True)):
        direction = -torch.sign(w) * (1 if v >= 0 else -1)
        room = torch.where(direction > 0, 1 - x, x)
        weight, need = w.abs(), v.abs()
        if norm == "l1":
            size = torch.zeros_like(x)
            for pixel in weight.argsort(descending=True):
                if weight[pixel] > 0:
                    size[pixel] = torch.minimum(need / weight[pixel], room[pixel])
                    need = need - weight[pixel] * size[pixel]
        else:
            growth = weight if norm == "l2" else torch.ones_like(weight)
            breaks = (room / growth)[weight > 0].sort().values
            reached = torch.stack([(weight * torch.minimum(t * growth, room)).sum() for t in breaks])
            above = int((reached < need).sum())
            if above == len(breaks):
                size = room
            else:
                low = breaks[above - 1] if above else torch.zeros(())
                start = reached[above - 1] if above else torch.zeros(())
                part = (need - start) / (reached[above] - start)
                size = torch.minimum((low + part * (breaks[above] - low)) * growth, room)
        steps[row] = direction * size
    return steps


def planes(count, pixels, reach, seed=0):
    """Points with many pixels on the faces of the box, normals with zeros, values up to out of reach."""
    torch.manual_seed(seed)
    points = (1.6 * torch.rand(count, pixels) - 0.3).clamp(0, 1)
    normal = torch.randn(count, pixels) * (torch.arange(pixels) % 5 > 0)
    return points, normal, reach * normal.abs().sum(1) * (2 * torch.rand(count) - 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("reach", [0.02, 0.3, 1.0])
def test_projection_is_the_sorted_solution(norm, reach):
    points, normal, value = (part.double() for part in planes(40, 30, reach))
    torch.testing.assert_close(
        project(points, normal, value, norm), brute_force(points, normal, value, norm), rtol=0, atol=1e-10
    )


def test_projection_without_a_gradient_stays():
    points, value = torch.rand(3, 8), torch.tensor([1.0, 0.0, -1.0])
    for norm in NAMES:
        assert not project(points, torch.zeros(3, 8), value, norm).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_minimal_distance(norm):
    torch.manual_seed(0)
    weight, images = torch.randn(48), 0.5 + 0.1 * (2 * torch.rand(5, 3, 4, 4) - 1)
    model = Linear(weight, float(0.1 - (images.flatten(1) @ weight).min()))
    labels = torch.ones(5, dtype=torch.int64)
    problem = Problem(model, images, labels, ThreatModel(norm, "0"), Draws(0, "test", np.arange(5)))
    _, distance = nearest(problem, labels - 1, images, 100)
    dual = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[norm]
    exact = model(images)[:, 1] / dual
    assert exact.max() < 0.4  # the box does not bind
    assert ((distance / exact - 1).abs() < 0.01).all()
    assert (distance >= exact * (1 - 1e-5)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nearest_images_are_those_of_the_published_code(norm, float64):  # noqa: F811
    published = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    problem = problem_of(network().double(), norm, epsilon="0", dtype=torch.float64)
    with torch.random.fork_rng():
        attack = published(problem.model, norm=NAMES[norm], n_iter=20, eps=1.0, targeted=True, device="cpu")
        for rank in range(3):
            attack.target_class = rank + 2
            other = attack.attack_single_run(problem.images, problem.labels, is_targeted=True)
            targets = rival(classify(problem.model, problem.images), problem.labels, rank)
            images, distance = nearest(problem, targets, problem.images, 20)
            torch.testing.assert_close(images, other, rtol=0, atol=1e-8)
            found = distance.isfinite()
            assert found.any()
            apart = problem.threat.distance(images, problem.images)
            torch.testing.assert_close(distance[found], apart[found], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_same_robust_set(norm):
    published = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    problem = problem_of(network(), norm, count=16)
    settings = {"norm": NAMES[norm], "eps": problem.threat.radius, "n_target_classes": 4, "n_iter": 30}
    with torch.random.fork_rng():
        attack = published(problem.model, targeted=True, **settings)
        other = standing(problem, attack.perturb(problem.images, problem.labels))
    mine = standing(problem, FAB(steps=30).perturb(problem))
    assert 0 < mine.sum() < 16
    assert torch.equal(mine, other)


def test_survivors_do_not_notice_that_others_leave():
    problem = problem_of(network())
    targets = rival(classify(problem.model, problem.images), problem.labels, 0)
    images, distance = nearest(problem, targets, problem.images, 40)
    whole, shortest = nearest(replace(problem, threat=ThreatModel("linf", "0")), targets, problem.images, 40)
    left = distance > problem.threat.radius
    assert left.any() and not left.all()
    assert torch.equal(images[left], whole[left])
    assert torch.equal(distance <= problem.threat.radius, shortest <= problem.threat.radius)


def test_what_is_not_found_within_the_radius_stays_clean():
    problem = problem_of(network())
    images = FAB(steps=20, targets=2).perturb(problem)
    kept = standing(problem, images)
    assert kept.any() and not kept.all()
    assert torch.equal(images[kept], problem.images[kept])


def test_few_classes():
    asked = []

    class TwoClasses(nn.Module):
        def forward(self, images):
            asked.append(len(images))
            return network(2)(images)

    problem = problem_of(TwoClasses(), count=6)
    asked.clear()
    FAB(steps=1).perturb(problem)
    assert len(asked) == 1 + 1 + 2  # classes, clean, and one step (two passes) for the one wrong class
    with pytest.raises(BenchError, match=r"fab needs 2 .*K=1"):
        FAB().perturb(problem_of(network(1), count=6))
