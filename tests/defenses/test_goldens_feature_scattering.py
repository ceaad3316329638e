"""Feature scattering against figures of the authors' code, and its plan against a linear program."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from bench.defenses.feature_scattering import (
    FeatureScattering,
    cosine_distances,
    smoothed_cross_entropy,
    transport_plan,
)
from tests.support.goldens import (
    assert_close,
    each_case,
    inject,
    leaf,
    read,
    same_gradients_and_buffers,
    tiny_classifier,
    tiny_state,
    training_context,
)

GOLDEN = read("feature_scattering")


@each_case(GOLDEN, "plan")
def test_plan_cost_and_gradient_are_the_authors(case):
    stored = GOLDEN[case]
    perturbed = leaf(stored["perturbed"], torch.float64)
    cost = cosine_distances(stored["clean"], perturbed)
    assert_close(cost, stored["distances"])
    assert stored["iterations"] < 20
    plan = transport_plan(cost, 0.01, 20)
    assert_close(plan, stored["plan"], 1e-9, 1e-15)
    (plan * cost).sum().backward()
    assert_close((plan * cost).sum(), stored["cost"])
    assert_close(perturbed.grad, stored["grad_perturbed"], 1e-8)


@each_case(GOLDEN, "step")
def test_a_training_step_is_the_authors(case, monkeypatch):
    stored = GOLDEN[case]
    inject(monkeypatch, "rand", (stored["noise"] + 1) / 2)
    model = tiny_classifier(tiny_state(stored))
    model.backbone.mean = model.backbone.deviation = 0.5  # their pixels are in [-1, 1]
    defense = FeatureScattering()
    # Of the context one radius counts, not the protocol's steps.
    terms = defense.losses(model, stored["x"], stored["y"], training_context(stored["eps"], 0.5, 7))
    terms["scattered"].backward()
    assert_close(model.backbone.shown(training=True)[0], stored["x_adv"], 0, 1e-12)
    assert len(model.backbone.shown(training=False)) == 2
    assert_close(terms["scattered"], stored["loss"])
    same_gradients_and_buffers(model, stored)


def test_smoothed_cross_entropy_is_the_authors():
    stored = GOLDEN["smoothed"]
    logits = leaf(stored["logits"], torch.float64)
    loss = smoothed_cross_entropy(logits, stored["y"], float(stored["smoothing"])).mean()
    loss.backward()
    assert_close(loss, stored["loss"])
    assert_close(logits.grad, stored["grad"])


@pytest.mark.parametrize("regularisation", [0.1, 0.02, 0.005])
def test_the_plan_is_nearly_the_linear_programs(regularisation):
    """It is optimal but for its entropy, for the sums that it has: between 0 and regularisation * log n above."""
    count = 5
    cost = torch.rand(count, count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sums = [np.kron(np.eye(count), np.ones(count)), np.kron(np.ones(count), np.eye(count))]
    plan = transport_plan(cost, regularisation, 100, rests=0.0)
    its_own = torch.cat([plan.sum(1), plan.sum(0)])
    exact = linprog(cost.numpy().ravel(), A_eq=np.vstack(sums), b_eq=its_own.numpy()).fun
    above = float((plan * cost).sum()) - exact
    assert -1e-9 < above < regularisation * math.log(count)
    # Columns come last, and the guard keeps a millionth from them; rows follow.
    assert_close(its_own[count:], torch.full((count,), 0.2), 0, 2e-6)
    assert_close(its_own[:count], torch.full((count,), 0.2), 0, 5e-3)


def test_distant_points_do_not_leave_float():
    """Cosine -1 everywhere: exp(-2 / 0.01) is 1e-87, and 0 in float32."""
    points = torch.ones(3, 2)
    plan = transport_plan(cosine_distances(points, -points), 0.01, 20)
    assert_close(plan, torch.full((3, 3), 1 / 9), 1e-5)


def test_the_adaptive_objective_is_the_lead_of_the_strongest_rival():
    logits, images = torch.tensor([[1.0, 4.0, 2.0], [3.0, -1.0, 0.0]]), torch.zeros(2, 1, 1, 1)
    objective = FeatureScattering().adaptive_objective(None, images, torch.tensor([0, 0]))
    assert objective(lambda images: logits, images).tolist() == [3.0, -3.0]
