"""MART against figures of the official implementation (https://github.com/YisenWang/MART, commit 2d83e17)."""

import numpy as np
import pytest
import torch

from bench.defenses.mart import Mart
from tests.defenses.test_goldens_trades import (
    PRECISIONS,
    SUFFIX,
    PrescribedLogits,
    Spy,
    cases,
    close,
    inject,
    prescribed,
    read,
    same_gradients_and_buffers,
    tiny_classifier,
    tiny_state,
    training_context,
)

GOLDEN = read("mart.npz")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", cases(GOLDEN, "case", "_"))
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, dtype):
    golden = {key.removeprefix(f"{case}_"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}_")}
    model, leaves, images, context = prescribed(monkeypatch, [golden["logits_clean"], golden["logits_adv"]], dtype)
    terms = Mart(beta=float(golden["beta"])).losses(model, images, torch.from_numpy(golden["y"]), context)
    (terms["boosted"] + terms["robust"]).backward()
    suffix = SUFFIX[dtype]
    close(terms["boosted"], golden[f"loss_beta0_{suffix}"], dtype)
    close(terms["boosted"] + terms["robust"], golden[f"loss_{suffix}"], dtype)
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
    terms = Mart(beta=float(golden["beta"])).losses(model, images, labels, context)
    (terms["boosted"] + terms["robust"]).backward()

    close(terms["boosted"] + terms["robust"], golden["loss"])
    seen = {"clean": images, "adv": torch.from_numpy(golden["x_adv"])}
    close(torch.stack(spy.training), torch.stack([seen[str(name)] for name in golden["train_forward_order"]]).numpy())
    close(torch.stack(spy.crafting), golden["traj"][:-1])
    same_gradients_and_buffers(model, golden)


def test_half_precision_logits_are_computed_in_float32(monkeypatch):
    """One confidently right sample: in bfloat16 itself, 1.0001 - 0 would be 1 and the boost exactly 0."""
    logits = np.array([[40.0, 0.0, 0.0]])
    model, _, images, context = prescribed(monkeypatch, [logits, logits], torch.bfloat16)
    terms = Mart().losses(model, images, torch.tensor([0]), context)
    assert terms["boosted"].dtype == torch.float32
    assert terms["boosted"].item() == pytest.approx(-np.log(1.0001), rel=1e-2)


def test_the_adaptive_objective_by_hand():
    """q = (3/4, 1/4), class 1: CE = log 4, and the rival's probability is 3/4."""
    model = PrescribedLogits(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]).float())
    images = torch.zeros(1, 1, 1, 1)
    value = Mart().adaptive_objective(model, images, torch.tensor([1]))(model, images + 0.001)
    assert value.item() == pytest.approx(np.log(4) - np.log(1.0001 - 0.75), rel=1e-6)
