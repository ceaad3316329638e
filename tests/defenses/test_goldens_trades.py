"""TRADES against figures of the official implementation (https://github.com/yaodongyu/TRADES, commit 6e8e11b)."""

import math

import pytest
import torch

from bench.defenses.trades import Trades
from tests.support.goldens import (
    adaptive_value,
    assert_close,
    each_case,
    each_precision,
    inject,
    prescribed,
    read,
    same_gradients_and_buffers,
    tiny_classifier,
    tiny_state,
    training_context,
)

GOLDEN = read("trades", "_")


def losses_and_gradients_equal(defense, first, golden, precision, monkeypatch):
    """Of TRADES and MART: the loss, its first term alone, and the gradients of clean and perturbed logits."""
    logits = [golden["logits_clean"], golden["logits_adv"]]
    model, images, context = prescribed(monkeypatch, logits, precision.dtype)
    terms = defense(beta=float(golden["beta"])).losses(model, images, golden["y"], context)
    (terms[first] + terms["robust"]).backward()
    precision.close(terms[first], golden[f"loss_beta0_f{precision.bits}"])
    precision.close(terms[first] + terms["robust"], golden[f"loss_f{precision.bits}"])
    for leaf, side in zip(model.logits, ("clean", "adv"), strict=True):
        official = golden[f"grad_logits_{side}_f{precision.bits}"]
        # Where a clean probability underflows, the official float32 gradient is NaN: float64 tells the value.
        precision.close(leaf.grad, official if official.isfinite().all() else golden[f"grad_logits_{side}_f64"])


def not_finite(figures):
    """Cases and names of the figures with a NaN or an infinity."""
    tensors = [(case, name, value) for case, named in figures.items() for name, value in named.items()]
    return [(case, name) for case, name, value in tensors if torch.is_tensor(value) and not value.isfinite().all()]


def training_step(defense, golden, monkeypatch):
    """Of TRADES and MART: the model after loss and gradients, which are compared, of one batch."""
    model = tiny_classifier(tiny_state(golden))
    inject(monkeypatch, "randn", golden["noise_std_normal"])
    context = training_context(golden["eps"], golden["step"], golden["steps"])
    terms = defense(beta=float(golden["beta"])).losses(model, golden["x"], golden["y"], context)
    sum(terms.values()).backward()
    assert_close(sum(terms.values()), golden["loss"])
    same_gradients_and_buffers(model, golden)
    return model


@each_precision()
@each_case(GOLDEN, "case")
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, precision):
    losses_and_gradients_equal(Trades, "clean", GOLDEN[case], precision, monkeypatch)


def test_the_official_gradient_is_nan_where_float32_underflows():
    """The reason for the fallback above: it hides nothing else."""
    assert not_finite(GOLDEN) == [("case9", "grad_logits_clean_f32")]


@each_case(GOLDEN, "attack")
def test_a_training_step_equals_the_official_one(monkeypatch, case):
    golden = GOLDEN[case]
    backbone = training_step(Trades, golden, monkeypatch).backbone
    seen = {"clean": golden["x"], "adv": golden["x_adv"]}
    first, second, third = golden["train_forward_order"]
    # The third pass is the first once more: not made, but its BatchNorm update is, as the buffers show.
    assert third == first
    assert_close(backbone.shown(training=True), torch.stack([seen[first], seen[second]]))
    assert_close(backbone.shown(training=False), torch.cat([golden["x"][None], golden["traj"][:-1]]))


def test_reusing_the_clean_logits_changes_batchnorm_only(monkeypatch):
    golden = GOLDEN["attack1"]
    inject(monkeypatch, "randn", golden["noise_std_normal"])
    model = tiny_classifier(tiny_state(golden))
    context = training_context(golden["eps"], golden["step"], golden["steps"])
    terms = Trades(reuse_clean_logits=True).losses(model, golden["x"], golden["y"], context)
    assert_close(sum(terms.values()), golden["loss"])
    assert model.backbone.bn.num_batches_tracked == 2


def test_the_adaptive_objective_by_hand():
    """CE = log 4 for class 1, KL = log(4/3) / 2."""
    assert adaptive_value(Trades(beta=6.0)) == pytest.approx(math.log(4) + 6 * math.log(4 / 3) / 2, rel=1e-6)
