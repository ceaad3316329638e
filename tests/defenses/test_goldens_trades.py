"""TRADES against figures of the official implementation (https://github.com/yaodongyu/TRADES, commit 6e8e11b)."""

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.defenses.trades import Trades
from bench.interfaces import Backbone, LinearClassifier, ThreatModel, TrainingContext
from tests import GOLDENS

TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 5e-5, "atol": 5e-5},
}
SUFFIX = {torch.float64: "f64", torch.float32: "f32"}
PRECISIONS = [pytest.param(dtype, id=suffix) for dtype, suffix in SUFFIX.items()]


class TinyBackbone(Backbone):
    """Flatten, linear, perhaps BatchNorm, tanh; the network the figures were made with."""

    def __init__(self, inputs: int, width: int, normalised: bool) -> None:
        super().__init__()
        self.feature_dim = self.map_channels = width
        self.linear = nn.Linear(inputs, width)
        self.bn = nn.BatchNorm1d(width) if normalised else nn.Identity()

    def feature_map(self, images: Tensor) -> Tensor:
        return torch.tanh(self.bn(self.linear(images.flatten(1))))[:, :, None, None]

    def embed(self, feature_map: Tensor) -> Tensor:
        return feature_map.flatten(1)


def tiny_backbone(state: Mapping[str, Tensor]) -> TinyBackbone:
    width, inputs = state["backbone.linear.weight"].shape
    return TinyBackbone(inputs, width, "backbone.bn.weight" in state)


def load(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model in float64 and train mode, with `state` in place of its own values."""
    model.double().load_state_dict({**model.state_dict(), **state})
    return model.train()


def tiny_classifier(state: Mapping[str, Tensor]) -> nn.Module:
    return load(LinearClassifier(tiny_backbone(state), len(state["head.weight"])), state)


class Spy:
    """Everything a model is asked, in order: images seen in eval mode while crafting, and in train mode."""

    def __init__(self, model: nn.Module) -> None:
        self.crafting: list[Tensor] = []
        self.training: list[Tensor] = []
        model.register_forward_pre_hook(self)

    def __call__(self, model: nn.Module, arguments: tuple[Tensor]) -> None:
        (self.training if model.training else self.crafting).append(arguments[0].detach().clone())


class PrescribedLogits(nn.Module):
    """Answers images 0, 0.001 and 0.002 with the first, second and third given logits."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[round(float(images.flatten()[0]) / 0.001)]


def training_context(epsilon: float, step_size: float, steps: int, **rest: object) -> TrainingContext:
    threat = ThreatModel("linf", str(Fraction(float(epsilon)).limit_denominator(1000)))
    return TrainingContext(threat, int(steps), float(step_size), torch.Generator(), **rest)


def inject(monkeypatch: pytest.MonkeyPatch, name: str, *noises: Tensor) -> None:
    """`torch.<name>` returns the noises, one per call."""
    remaining = iter(noises)

    def draw(shape: tuple[int, ...], generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        noise = next(remaining)
        assert noise.shape == shape
        return noise.to(device=device, dtype=dtype)

    monkeypatch.setattr(torch, name, draw)


def prescribed(
    monkeypatch: pytest.MonkeyPatch, logits: list[np.ndarray], dtype: torch.dtype
) -> tuple[PrescribedLogits, list[Tensor], Tensor, TrainingContext]:
    """A model, its logits as leaves, images and a context whose attack does nothing but add 0.001."""
    leaves = [torch.tensor(values, dtype=dtype, requires_grad=True) for values in logits]
    images = torch.zeros(len(leaves[0]), 1, 1, 1, dtype=dtype)
    inject(monkeypatch, "randn", torch.ones(images.shape))
    return PrescribedLogits(*leaves), leaves, images, training_context(0.001, 0.001, 0)


def close(actual: Tensor | float, expected: np.ndarray, dtype: torch.dtype = torch.float64) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual).detach(), torch.as_tensor(np.asarray(expected), dtype=dtype), **TOLERANCES[dtype]
    )


def cases(golden: Mapping[str, np.ndarray], prefix: str, separator: str) -> list:
    """The names in the file that begin with the prefix, as ids that tell file and case."""
    names = sorted({key.split(separator)[0] for key in golden if key.startswith(prefix)})
    return [pytest.param(name, id=f"{golden['file']}-{name}") for name in names]


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / name) as archive:
        return {**archive, "file": np.asarray(name)}


def tiny_state(golden: Mapping[str, np.ndarray], case: str) -> dict[str, Tensor]:
    layers = {"W1": "linear.weight", "b1": "linear.bias", "W2": "weight", "b2": "bias"}
    state = {}
    for key, values in golden.items():
        if key.startswith(f"{case}_param_"):
            short = key.removeprefix(f"{case}_param_")
            layer = layers.get(short, short.replace("bn_", "bn.", 1))
            state[("head." if short in ("W2", "b2") else "backbone.") + layer] = torch.from_numpy(values)
    return state


GOLDEN = read("trades.npz")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", cases(GOLDEN, "case", "_"))
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, dtype):
    golden = {key.removeprefix(f"{case}_"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}_")}
    model, leaves, images, context = prescribed(monkeypatch, [golden["logits_clean"], golden["logits_adv"]], dtype)
    terms = Trades(beta=float(golden["beta"])).losses(model, images, torch.from_numpy(golden["y"]), context)
    (terms["clean"] + terms["robust"]).backward()
    suffix = SUFFIX[dtype]
    close(terms["clean"], golden[f"loss_beta0_{suffix}"], dtype)
    close(terms["clean"] + terms["robust"], golden[f"loss_{suffix}"], dtype)
    for leaf, side in zip(leaves, ("clean", "adv"), strict=True):
        official = golden[f"grad_logits_{side}_{suffix}"]
        # Where a clean probability underflows, the official float32 gradient is NaN: float64 tells the value.
        close(leaf.grad, official if np.isfinite(official).all() else golden[f"grad_logits_{side}_f64"], dtype)


def test_the_official_gradient_is_nan_where_float32_underflows():
    """The reason for the fallback above: it hides nothing else."""
    broken = [key for key, values in GOLDEN.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]
    assert broken == ["case9_grad_logits_clean_f32"]


@pytest.mark.parametrize("case", cases(GOLDEN, "attack", "_"))
def test_a_training_step_equals_the_official_one(monkeypatch, case):
    golden = {key.removeprefix(f"{case}_"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}_")}
    model = tiny_classifier(tiny_state(GOLDEN, case))
    spy = Spy(model)
    inject(monkeypatch, "randn", torch.from_numpy(golden["noise_std_normal"]))
    images, labels = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    context = training_context(golden["eps"], golden["step"], golden["steps"])
    terms = Trades(beta=float(golden["beta"])).losses(model, images, labels, context)
    (terms["clean"] + terms["robust"]).backward()

    close(terms["clean"] + terms["robust"], golden["loss"])
    seen = {"clean": images, "adv": torch.from_numpy(golden["x_adv"])}
    first, second, third = map(str, golden["train_forward_order"])
    # The third pass is the first once more: not made, but its BatchNorm update is, as the buffers below show.
    assert third == first
    close(torch.stack(spy.training), torch.stack([seen[first], seen[second]]).numpy())
    close(torch.stack(spy.crafting), np.concatenate([golden["x"][None], golden["traj"][:-1]]))
    same_gradients_and_buffers(model, golden)


def same_gradients_and_buffers(model: nn.Module, golden: Mapping[str, np.ndarray]) -> None:
    """Every parameter and every buffer of the model is compared; a missing golden is an error."""
    names: dict[str, Callable[[str], str]] = {
        "backbone.linear.": "fc1_{}".format,
        "backbone.bn.": "bn_{}".format,
        "head.": "fc2_{}".format,
    }

    def official(name: str) -> str:
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        return names[prefix](name.removeprefix(prefix))

    for name, parameter in model.named_parameters():
        close(parameter.grad, golden[f"grad_{official(name)}"])
    for name, buffer in model.named_buffers():
        close(buffer.double(), golden[f"after_{official(name)}"])


def test_reusing_the_clean_logits_changes_batchnorm_only(monkeypatch):
    state = tiny_state(GOLDEN, "attack1")
    noise = torch.from_numpy(GOLDEN["attack1_noise_std_normal"])
    inject(monkeypatch, "randn", noise, noise)
    images, labels = torch.from_numpy(GOLDEN["attack1_x"]), torch.from_numpy(GOLDEN["attack1_y"])
    context = training_context(GOLDEN["attack1_eps"], GOLDEN["attack1_step"], GOLDEN["attack1_steps"])
    model = tiny_classifier(state)
    terms = Trades(reuse_clean_logits=True).losses(model, images, labels, context)
    close(sum(terms.values()), GOLDEN["attack1_loss"])
    assert model.backbone.bn.num_batches_tracked == 2


def test_the_adaptive_objective_by_hand():
    """p = (1/2, 1/2) and q = (3/4, 1/4): CE = log 4 for class 1, KL = log(4/3) / 2."""
    model = PrescribedLogits(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]).float())
    images = torch.zeros(1, 1, 1, 1)
    value = Trades(beta=6.0).adaptive_objective(model, images, torch.tensor([1]))(model, images + 0.001)
    assert value.item() == pytest.approx(np.log(4) + 6 * np.log(4 / 3) / 2, rel=1e-6)
