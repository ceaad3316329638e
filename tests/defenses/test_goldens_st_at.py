"""Standard and adversarial training against stored figures: cross-entropy, and PGD of "Bag of Tricks for AT"."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.defenses.at import AdversarialTraining
from bench.defenses.st import StandardTraining
from bench.interfaces import ThreatModel, TrainingContext
from tests import GOLDENS

FOLDER = GOLDENS
with np.load(FOLDER / "st.npz") as stored:
    ST = dict(stored)
with np.load(FOLDER / "at.npz") as stored:
    AT = dict(stored)
PRECISIONS = [
    pytest.param(torch.float64, "f64", 1e-9, id="float64"),
    pytest.param(torch.float32, "f32", 5e-5, id="float32"),
]
ATTACKS = (0, 1, 3, 4)  # 2 crafts in train mode, which this benchmark does not
PIXELS = 12


def cases(arrays):
    return [key.removesuffix("_y") for key in arrays if key.startswith("case") and key.endswith("_y")]


def assert_close(actual, expected, tolerance):
    actual = actual.detach().double().numpy()
    assert actual.shape == np.shape(expected)
    assert (np.abs(actual - expected) <= tolerance * (1 + np.abs(expected))).all()


def context_of(epsilon="8/255", steps=0, step_size=0.0):
    return TrainingContext(ThreatModel("linf", epsilon), steps, step_size, torch.Generator().manual_seed(0))


class Stored(nn.Module):
    """Answers the given logits, whatever the images are."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def loss_of(defense, logits, labels, dtype):
    model = Stored(torch.from_numpy(logits).to(dtype))
    images = torch.full((len(labels), 1, 2, 2), 0.5, dtype=dtype)
    (loss,) = defense.losses(model, images, torch.from_numpy(labels), context_of()).values()
    loss.backward()
    return loss, model.logits.grad


@pytest.mark.parametrize(("dtype", "precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", cases(ST))
def test_standard_training_loss(case, dtype, precision, tolerance):
    loss, gradient = loss_of(StandardTraining(), ST[f"{case}_logits_clean"], ST[f"{case}_y"], dtype)
    assert_close(loss, ST[f"{case}_loss_{precision}"], tolerance)
    assert_close(gradient, ST[f"{case}_grad_logits_clean_{precision}"], tolerance)


@pytest.mark.parametrize(("dtype", "precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", cases(AT))
def test_adversarial_training_loss(case, dtype, precision, tolerance):
    loss, gradient = loss_of(AdversarialTraining(), AT[f"{case}_logits_adv"], AT[f"{case}_y"], dtype)
    assert_close(loss, AT[f"{case}_loss_{precision}"], tolerance)
    assert_close(gradient, AT[f"{case}_grad_logits_adv_{precision}"], tolerance)


@pytest.mark.parametrize("defense", [StandardTraining(), AdversarialTraining()])
def test_loss_and_gradient_equal_the_equations(defense):
    generator = np.random.default_rng(5)
    logits, labels = 3 * generator.standard_normal((9, 7)), generator.integers(0, 7, 9)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss, gradient = loss_of(defense, logits, labels, torch.float64)
    assert_close(loss, -np.log(p[np.arange(9), labels]).mean(), 1e-12)
    assert_close(gradient, (p - np.eye(7)[labels]) / 9, 1e-12)


class TinyNetwork(nn.Module):
    """12 pixels, 16 hidden units (BatchNorm where the figures have one), tanh, classes. Keeps what it was shown."""

    def __init__(self, arrays):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(PIXELS, 16), nn.Linear(16, len(arrays["param_b2"]))
        self.bn = nn.BatchNorm1d(16) if "param_bn_weight" in arrays else None
        self.double()
        names = {"W1": "fc1.weight", "b1": "fc1.bias", "W2": "fc2.weight", "b2": "fc2.bias"}
        state = self.state_dict()
        for key, values in arrays.items():
            if key.startswith("param_"):
                name = key.removeprefix("param_")
                state[names.get(name, name.replace("bn_", "bn."))].copy_(torch.from_numpy(values))
        self.mean = torch.from_numpy(arrays.get("input_mean", np.zeros(3))).view(-1, 1, 1)
        self.deviation = torch.from_numpy(arrays.get("input_std", np.ones(3))).view(-1, 1, 1)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        hidden = self.fc1(((images - self.mean) / self.deviation).flatten(1))
        return self.fc2(torch.tanh(hidden if self.bn is None else self.bn(hidden)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_adversarial_training_batch(attack, monkeypatch):
    prefix = f"attack{attack}_"
    golden = {key.removeprefix(prefix): values for key, values in AT.items() if key.startswith(prefix)}
    uniform = (golden["noise_uniform_pm_eps"] / golden["eps"] + 1) / 2
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.from_numpy(uniform))
    network = TinyNetwork(golden)
    context = context_of(str(float(golden["eps"])), int(golden["steps"]), float(golden["step"]))
    images, labels = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    (loss,) = AdversarialTraining().losses(network, images, labels, context).values()
    loss.backward()
    # Ten gradients and the training forward: every point the network saw, then the loss and all it leaves behind.
    assert_close(torch.stack(network.seen), golden["traj"], 1e-9)
    assert_close(loss, golden["loss"], 1e-9)
    for name, parameter in network.named_parameters():
        assert_close(parameter.grad, golden[f"grad_{name.replace('.', '_')}"], 1e-9)
    buffers = dict(network.named_buffers())
    assert len(buffers) == (0 if network.bn is None else 3)
    for name, buffer in buffers.items():
        assert_close(buffer, golden[f"after_{name.replace('.', '_')}"], 1e-9)
