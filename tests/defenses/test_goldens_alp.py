"""ALP against a plain float64 reference of its equations: the authors' code needs TensorFlow 1."""

import pytest
import torch

from bench.defenses.alp import AdversarialLogitPairing
from tests.support.goldens import (
    PrescribedLogits,
    assert_close,
    inject,
    read,
    tiny_classifier,
    tiny_state,
    training_context,
)

STORED = read("at", "_")["attack1"]
"""Of its figures only the network, the images and the noise of the start are used."""


def logits_of(images, mode):
    """The network of the figures, layer by layer."""
    hidden = images.flatten(1) @ STORED["param_W1"].T + STORED["param_b1"]
    mean, variance = STORED["param_bn_running_mean"], STORED["param_bn_running_var"]
    if mode == "train":
        mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
    hidden = (hidden - mean) / (variance + 1e-5).sqrt() * STORED["param_bn_weight"] + STORED["param_bn_bias"]
    return torch.tanh(hidden) @ STORED["param_W2"].T + STORED["param_b2"]


@pytest.mark.parametrize("target", ["least-likely", "none"])
def test_a_training_step_is_the_plain_reference(target, monkeypatch):
    x, y, eps, step = STORED["x"], STORED["y"], float(STORED["eps"]), float(STORED["step"])
    inject(monkeypatch, "rand", (STORED["noise_uniform_pm_eps"] / eps + 1) / 2)
    model = tiny_classifier(tiny_state(STORED))
    terms = AdversarialLogitPairing(weight=0.7, target=target).losses(model, x, y, training_context(eps, step, 3))

    rows = range(len(y))
    towards, sign = (logits_of(x, "eval").argmin(1), -1) if target == "least-likely" else (y, 1)
    perturbed = (x + STORED["noise_uniform_pm_eps"]).clamp(0, 1)
    for _ in range(3):
        leaf = perturbed.clone().requires_grad_()
        loss = -logits_of(leaf, "eval").log_softmax(1)[rows, towards].sum()
        perturbed = perturbed + sign * step * torch.autograd.grad(loss, leaf)[0].sign()
        perturbed = torch.min(torch.max(perturbed, x - eps), x + eps).clamp(0, 1)
    ((training, seen),) = [one for one in model.backbone.seen if one[0]]
    assert training
    assert_close(seen, torch.cat([x, perturbed]), 0, 1e-12)
    clean, other = logits_of(seen, "train").chunk(2)
    expected = {
        "clean": -clean.log_softmax(1)[rows, y].mean() / 2,
        "adversarial": -other.log_softmax(1)[rows, y].mean() / 2,
        "pairing": 0.7 * (clean - other).pow(2).sum() / clean.numel(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(terms[name], value)


def test_both_sides_of_the_pairing_learn():
    """Logits (0, 0) and (1, 3): (1 + 9) / 2 = 5; halves of CE log 2 and log(1 + e^2)."""
    clean, other = torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])
    joint = torch.cat([clean, other]).requires_grad_()
    model = PrescribedLogits(joint)
    terms = AdversarialLogitPairing(weight=0.5, target="none").losses(
        model, torch.zeros(1, 1, 1, 1), torch.tensor([0]), training_context(steps=0, epsilon=0.001)
    )
    assert [float(term.detach()) for term in terms.values()] == pytest.approx(
        [0.693147 / 2, 2.126928 / 2, 2.5], rel=1e-5
    )
    terms["pairing"].backward()
    # d/dz of weight / classes * (z - z')^2
    assert joint.grad.tolist() == [[-0.5, -1.5], [0.5, 1.5]]


def test_the_adaptive_objective_by_hand():
    """CE of (1, 3) for class 0 is log(1 + e^2); the mean square of the difference to (0, 0) is 5."""
    model = PrescribedLogits(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
    images = torch.zeros(1, 1, 1, 1)
    objective = AdversarialLogitPairing(weight=0.5).adaptive_objective(model, images, torch.tensor([0]))
    assert objective(model, images + 0.001).item() == pytest.approx(2.126928 + 2.5, rel=1e-5)
