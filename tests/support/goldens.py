"""Stored figures of other people's code, and the small models that they were computed with."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from bench.interfaces import Backbone, LinearClassifier, ThreatModel, TrainingContext
from tests import GOLDENS


def read(name, separator="/"):
    """Per case of `tests/goldens/NAME.npz`, its tensors and texts by name; a key is CASE, separator, name."""
    figures = {}
    with np.load(GOLDENS / f"{name}.npz") as file:
        for key, values in file.items():
            case, _, rest = key.partition(separator)
            text = values.dtype.kind == "U"
            figures.setdefault(case, {})[rest] = values.tolist() if text else torch.from_numpy(values)
    return figures


def part(figures, prefix):
    """The entries whose names begin with the prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}


def each_case(figures, prefix=""):
    """Parametrises `case` with the names that begin with the prefix; there is one."""
    names = [name for name in figures if name.startswith(prefix)]
    assert names, prefix
    return pytest.mark.parametrize("case", names)


def assert_close(actual, expected, tolerance=1e-9, absolute=None):
    """Fails unless each element is within the tolerance of what is expected: relative, and (or `absolute`) absolute."""
    actual = torch.as_tensor(actual).detach()
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance if absolute is None else absolute)


def leaf(figure, dtype):
    """A copy in another precision, that gradients reach."""
    return figure.detach().to(dtype, copy=True).requires_grad_()


class Precision(NamedTuple):
    """In what a defense computes, and how far it may be from the figures then."""

    dtype: torch.dtype
    bits: int
    tolerance: float
    absolute: float

    def close(self, actual, expected, least=0.0):
        """Fails unless each element is within the tolerances, or within `least` if that is more."""
        assert actual.dtype == self.dtype or not actual.is_floating_point()
        assert_close(actual, expected, max(self.tolerance, least), max(self.absolute, least))


def each_precision(double=1e-9, single=5e-5, absolute=None):
    """Parametrises `precision`, with these tolerances; `absolute` is that of float64, if it is another."""
    both = [Precision(torch.float64, 64, double, absolute or double), Precision(torch.float32, 32, single, single)]
    return pytest.mark.parametrize("precision", both, ids=["float64", "float32"])


def training_context(epsilon=8 / 255, step_size=2 / 255, steps=10, **rest):
    threat = ThreatModel("linf", str(Fraction(float(epsilon)).limit_denominator(1000)))
    return TrainingContext(threat, int(steps), float(step_size), torch.Generator().manual_seed(0), **rest)


def inject(monkeypatch, name, *noises):
    """`torch.NAME`, rand or randn, returns the noises, one per call."""
    remaining = iter(noises)

    def draw(shape, generator, device, dtype):
        noise = next(remaining)
        assert noise.shape == shape
        return noise.to(device=device, dtype=dtype)

    monkeypatch.setattr(torch, name, draw)


# ----------------------------------------------------------------------------------------------- small models


def attacked_network():
    """The network of `torchattacks.npz` in eval mode, its 64 images, and the labels that it gives them."""
    stored = read("torchattacks", "_")
    features = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(144, 10)).eval()
    model.load_state_dict(stored["weight"])
    return model, stored["images"][""], stored["labels"][""]


class Watched(Backbone):
    """Keeps the images of every pass in `seen`, with the mode: (training, images)."""

    def __init__(self, feature_dim):
        super().__init__()
        self.feature_dim = self.map_channels = feature_dim
        self.seen = []

    def feature_map(self, images):
        self.seen.append((self.training, images.detach().clone()))
        return self.features(images)[:, :, None, None]

    def features(self, images):
        return images.flatten(1)

    def embed(self, feature_map):
        return feature_map.flatten(1)

    def shown(self, training):
        """The images of the passes in one mode, stacked."""
        return torch.stack([images for mode, images in self.seen if mode == training])


class Pixels(Watched):
    """The features are the pixels; a linear layer after it starts at the identity. Keeps how it was asked for."""

    def __init__(self, feature_dim, **asked):
        super().__init__(feature_dim)
        self.asked = asked

    def initialise_linear(self, linear):
        nn.init.eye_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def pixels(feature_dim):
    """What a defense builds its model with."""
    return lambda **asked: Pixels(feature_dim, **asked)


class Tiny(Watched):
    """A linear layer, BatchNorm where the figures have one, tanh, and for some defenses another linear layer."""

    def __init__(self, state):
        width, inputs = state["backbone.fc1.weight"].shape
        second = state.get("backbone.fc2.weight")
        super().__init__(width if second is None else len(second))
        self.fc1 = nn.Linear(inputs, width)
        self.bn = nn.BatchNorm1d(width) if "backbone.bn.weight" in state else nn.Identity()
        self.fc2 = nn.Identity() if second is None else nn.Linear(width, len(second))
        self.mean, self.deviation = 0.0, 1.0

    def features(self, images):
        return self.fc2(torch.tanh(self.bn(self.fc1(((images - self.mean) / self.deviation).flatten(1)))))


def tiny_state(golden, second="head"):
    """The stored weights by the names of our model; its second layer is the head or `backbone.fc2`."""
    names = {"W1": "backbone.fc1.weight", "b1": "backbone.fc1.bias", "W2": f"{second}.weight", "b2": f"{second}.bias"}
    names |= {f"bn_{name}": f"backbone.bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    return {names[key]: value for key, value in part(golden, "param_").items() if key in names}


def loaded(model, state):
    """The model in float64 and train mode, with `state` in place of its own values."""
    # In float64 before loading, or the stored values are rounded.
    model.double().load_state_dict({**model.state_dict(), **state})
    return model.train()


def tiny_classifier(state):
    return loaded(LinearClassifier(Tiny(state), len(state["head.weight"])), state)


def same_gradients_and_buffers(module, golden):
    """Compares every parameter's gradient and every buffer; one without a figure is an error."""

    def stored(name):
        return name.removeprefix("backbone.").replace("head.", "fc2.").replace(".", "_")

    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, golden[f"grad_{stored(name)}"])
    for name, buffer in module.named_buffers():
        assert_close(buffer, golden[f"after_{stored(name)}"])


def same_training_step(defense, golden, monkeypatch, term=None, draws="rand", looks=slice(None), **context):
    """Fails unless a stored batch has the stored loss, term, gradients and buffers, and both modes saw its images.

    `looks` are those of our passes in eval mode that the authors' code makes as well; `draws` names torch's function
    that draws the noise.
    """
    inject(monkeypatch, draws, golden["noise"])
    model = tiny_classifier(tiny_state(golden))
    attack = {
        "epsilon": golden.get("eps", 8 / 255),
        "step_size": golden.get("step", 0),
        "steps": golden.get("steps", 1),
    }
    terms = defense.losses(model, golden["x"], golden["y"], training_context(**attack, **context))
    sum(terms.values()).backward()
    assert_close(model.backbone.shown(training=False)[looks], golden["crafted"])
    assert_close(model.backbone.shown(training=True), golden["trained"])
    assert_close(sum(terms.values()), golden["loss"])
    if term is not None:
        assert_close(terms[term], golden["term"])
    same_gradients_and_buffers(model, golden)


class PrescribedLogits(nn.Module):
    """Answers images 0, 0.001 and 0.002 with the first, second and third given logits."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits[round(float(images.flatten()[0]) / 0.001)]


def prescribed(monkeypatch, logits, dtype):
    """The model of these logits, which are leaves, images, and a context whose attack does nothing but add 0.001."""
    leaves = [leaf(values, dtype) for values in logits]
    images = torch.zeros(len(leaves[0]), 1, 1, 1, dtype=dtype)
    inject(monkeypatch, "randn", torch.ones(images.shape))
    return PrescribedLogits(*leaves), images, training_context(0.001, 0.001, 0)


def adaptive_value(defense):
    """The adaptive objective, if any, on one image of class 1: predictions (1/2, 1/2) clean, (3/4, 1/4) perturbed."""
    model = PrescribedLogits(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log())
    images = torch.zeros(1, 1, 1, 1)
    objective = defense.adaptive_objective(model, images, torch.tensor([1]))
    return objective and objective(model, images + 0.001).item()
