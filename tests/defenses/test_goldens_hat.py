"""HAT against figures of the official implementation (https://github.com/imrahulr/hat, commit 3177a4f)."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.defenses.hat import HelperBasedTraining
from bench.defenses.trades import Trades
from tests.defenses.test_goldens_trades import (
    PRECISIONS,
    PrescribedLogits,
    Spy,
    cases,
    close,
    inject,
    prescribed,
    read,
    tiny_classifier,
    training_context,
)

GOLDEN = read("hat.npz")
LAYERS = {"l1.": "backbone.linear.", "bn.": "backbone.bn.", "l2.": "head."}


def of_case(case: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{case}/"): values for key, values in GOLDEN.items() if key.startswith(f"{case}/")}


def tensors(golden: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """The entries under a prefix, by the names of our model."""
    named = {}
    for key, values in golden.items():
        if key.startswith(prefix):
            layer, _, rest = key.removeprefix(prefix).partition(".")
            named[LAYERS[f"{layer}."] + rest] = torch.from_numpy(np.asarray(values))
    return named


def defense(golden: dict[str, np.ndarray]) -> HelperBasedTraining:
    return HelperBasedTraining(
        beta=float(golden["beta"]), gamma=float(golden["gamma"]), robust_term=str(golden["robust_term"])
    )


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", cases(GOLDEN, "m10", "/"))
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, dtype):
    golden = of_case(case)
    given = [golden[f"logits_{name}"] for name in ("clean", "adv", "helper")]
    model, leaves, images, context = prescribed(monkeypatch, given, dtype)
    inject(monkeypatch, "rand", torch.ones(images.shape))
    standard = PrescribedLogits(
        torch.full_like(leaves[0], torch.nan), torch.tensor(golden["logits_standard_model_on_adv"], dtype=dtype)
    )
    context.requirements["st"] = standard
    assert torch.equal(standard.logits[1].argmax(1), torch.from_numpy(golden["helper_labels"]))
    terms = defense(golden).losses(model, images, torch.from_numpy(golden["labels"]), context)
    sum(terms.values()).backward()

    close(terms["clean"], golden["loss_clean_ce"], dtype)
    close(terms["robust"], golden["beta"] * golden["loss_robust"], dtype)
    close(terms["helper"], golden["gamma"] * golden["loss_helper_ce"], dtype)
    close(sum(terms.values()), golden["loss_total"], dtype)
    for leaf, side in zip(leaves, ("clean", "adv", "helper"), strict=True):
        # The official gradient is NaN where a probability is exactly 0; the file holds the log-space value beside it.
        expected = golden.get(f"logspace_grad_logits_{side}", golden[f"grad_logits_{side}"])
        close(leaf.grad, expected, dtype)


def test_the_official_gradient_is_nan_where_a_probability_is_zero():
    broken = [key for key, values in GOLDEN.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]
    assert broken == ["m10_underflow/grad_logits_clean"]


@pytest.mark.parametrize("case", cases(GOLDEN, "e2e", "/"))
def test_a_training_step_equals_the_official_one(monkeypatch, case):
    golden = of_case(case)
    model = tiny_classifier(tensors(golden, "net."))
    standard = tiny_classifier(tensors(golden, "standard_net.")).eval()
    frozen = {name: value.clone() for name, value in standard.state_dict().items()}
    spy = Spy(model)
    noise = torch.from_numpy(golden["start_noise"])
    inject(monkeypatch, "randn", noise)
    inject(monkeypatch, "rand", (noise + 1) / 2)
    images, labels = torch.from_numpy(golden["x"]), torch.from_numpy(golden["labels"])
    context = training_context(golden["epsilon"], golden["step_size"], golden["steps"], requirements={"st": standard})
    hat = defense(golden)
    assert hat.helper_factor == golden["h"]
    terms = hat.losses(model, images, labels, context)
    sum(terms.values()).backward()

    close(torch.stack(spy.training), np.stack([golden["x"], golden["x_adv"], golden["x_helper"]]))
    close(sum(terms.values()), golden["loss_total"])
    expected = tensors(golden, "grad.")
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name].numpy())
    if golden["has_bn"]:
        close(model.backbone.bn.running_mean, golden["bn_running_mean_after"])
        close(model.backbone.bn.running_var, golden["bn_running_var_after"])
        assert model.backbone.bn.num_batches_tracked == golden["bn_batches_tracked_after"]
    assert all(torch.equal(value, frozen[name]) for name, value in standard.state_dict().items())
    assert all(parameter.grad is None for parameter in standard.parameters())


def test_without_the_helper_term_it_is_trades(monkeypatch):
    golden = of_case("e2e_m10_bn")
    noise = torch.from_numpy(golden["start_noise"])
    inject(monkeypatch, "randn", noise, noise)
    images, labels = torch.from_numpy(golden["x"]), torch.from_numpy(golden["labels"])
    state = tensors(golden, "net.")
    standard = tiny_classifier(tensors(golden, "standard_net.")).eval()
    context = training_context(golden["epsilon"], golden["step_size"], golden["steps"], requirements={"st": standard})
    ours = HelperBasedTraining(beta=6.0, gamma=0.0).losses(tiny_classifier(state), images, labels, context)
    trades = Trades(beta=6.0).losses(tiny_classifier(state), images, labels, context)
    assert ours["helper"] == 0
    assert ours["clean"] == trades["clean"]
    assert ours["robust"] == trades["robust"]


def test_the_adaptive_objective_by_hand():
    """p = (1/2, 1/2) and q = (3/4, 1/4): CE = log 4 for class 1, KL = log(4/3) / 2."""
    model = PrescribedLogits(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]).float())
    images, labels = torch.zeros(1, 1, 1, 1), torch.tensor([1])
    value = HelperBasedTraining().adaptive_objective(model, images, labels)(model, images + 0.001)
    assert value.item() == pytest.approx(np.log(4) + 2.5 * np.log(4 / 3) / 2, rel=1e-6)
    assert HelperBasedTraining(robust_term="ce").adaptive_objective(model, images, labels) is None


def test_helper_labels_are_float32_in_a_bfloat16_run():
    """Of a standard model whose second class leads by less than bfloat16 shows."""
    model, standard = (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2))
    with torch.no_grad():
        standard[1].weight.fill_(1.0)
        standard[1].bias.copy_(torch.tensor([1.0, 1.001]))
    logits = []
    standard.register_forward_hook(lambda module, given, output: logits.append(output))
    context = training_context(0.1, 0.1, 1, half=True, requirements={"st": standard.eval()})
    with context.rounding(half=True):
        HelperBasedTraining().losses(model, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.long), context)
        rounded = standard(torch.rand(8, 1, 2, 2))
    assert logits[0].dtype == torch.float32
    assert logits[0].argmax(1).tolist() == [1] * 8
    assert rounded.argmax(1).tolist() == [0] * 8
