"""MI-FGSM against NumPy on a linear model, and against plain PGD."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks.mi_fgsm import MIFGSM
from bench.attacks.pgd import PGD
from tests.attacks.test_attacks import problem_of

CLASSES, PIXELS, COUNT = 4, 12, 6


class Linear(nn.Module):
    """Logits W x + b, in float64."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.weight, self.bias = rng.normal(size=(CLASSES, PIXELS)), rng.normal(size=CLASSES)

    def forward(self, images):
        return images.flatten(1) @ torch.from_numpy(self.weight).T + torch.from_numpy(self.bias)


def linear_problem(norm, epsilon):
    images = torch.rand(COUNT, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return problem_of(Linear(), images, torch.arange(COUNT) % CLASSES, norm, epsilon)


def path_by_hand(model, pixels, labels, norm, epsilon, step, decay, steps):
    """Equations 6 and 7 in NumPy, with the gradient of softmax cross-entropy: W^T (softmax - one-hot)."""
    path, x, g = [], pixels.copy(), np.zeros_like(pixels)
    for _ in range(steps):
        logits = x @ model.weight.T + model.bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        gradient = (odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) @ model.weight
        g = decay * g + gradient / np.abs(gradient).sum(1, keepdims=True)
        if norm == "linf":
            x = np.clip(x + step * np.sign(g), pixels - epsilon, pixels + epsilon)
        else:
            x = x + step * g / np.sqrt((g**2).sum(1, keepdims=True))
            length = np.sqrt(((x - pixels) ** 2).sum(1, keepdims=True))
            x = pixels + (x - pixels) * np.minimum(1, epsilon / length)
        x = np.clip(x, 0, 1)
        path.append(x)
    return path


@pytest.mark.parametrize("decay", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 0.6)])
def test_the_path_on_a_linear_model_is_that_of_the_equations(norm, epsilon, decay):
    problem = linear_problem(norm, repr(epsilon))
    pixels, labels = problem.images.flatten(1).numpy(), problem.labels.numpy()
    expected = path_by_hand(problem.model, pixels, labels, norm, epsilon, epsilon / 4, decay, 8)
    attack = MIFGSM(steps=8, step_size="eps/4", decay=decay)
    state = attack.begin(problem, 0)
    for images in expected:
        state = attack.step(problem, state)
        np.testing.assert_allclose(state["images"].flatten(1).numpy(), images, rtol=0, atol=1e-12)
    assert torch.equal(attack.perturb(problem), state["images"])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_a_past_it_is_projected_ascent(norm):
    problem = linear_problem(norm, "0.4")
    forgetful = MIFGSM(steps=6, step_size="eps/4", decay=0.0)
    plain = PGD(steps=6, step_size="eps/4", random_start=False)
    torch.testing.assert_close(forgetful.perturb(problem), plain.perturb(problem), rtol=0, atol=1e-12)


def test_momentum_carries_on_where_the_gradient_turns():
    # One pixel at 0.5; the objective's slope is 1 up to 0.55 and -3 above. Each gradient is normalised to +1 or -1, so
    # with decay 1 and steps of 0.04: x = .54, .58 (g = 2), .62 (g = 1), .62 (g = 0), .58 (g = -1), .54 (g = -2).
    def tent(model, images):
        pixel = images.flatten(1).sum(1)
        return torch.minimum(pixel - 0.55, -3 * (pixel - 0.55))

    images = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    problem = problem_of(nn.Identity(), images, torch.zeros(1, dtype=torch.long), "linf", "0.4", objective=tent)
    ends = [MIFGSM(steps=steps, step_size="0.04").perturb(problem).item() for steps in range(1, 7)]
    assert ends == pytest.approx([0.54, 0.58, 0.62, 0.62, 0.58, 0.54])


def test_a_zero_gradient_moves_nothing():
    problem = linear_problem("linf", "0.3")
    still = replace(problem, objective=lambda model, images: 0 * images.sum((1, 2, 3)))
    assert torch.equal(MIFGSM().perturb(still), problem.images)


def test_restarts_begin_at_their_own_draws_without_momentum():
    problem = linear_problem("linf", "0.2")
    attack = MIFGSM(random_start=True, restarts=2)
    for restart in range(2):
        state = attack.begin(problem, restart)
        noise = 0.2 * (2 * problem.draws.uniform(problem.images, key=restart) - 1)
        torch.testing.assert_close(state["images"], (problem.images + noise).clamp(0, 1), rtol=0, atol=1e-12)
        assert not state["momentum"].any()
