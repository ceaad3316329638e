"""MART against figures of the official implementation (https://github.com/YisenWang/MART, commit 2d83e17)."""

import math

import pytest
import torch

from bench.defenses.mart import Mart
from tests.defenses.test_goldens_trades import losses_and_gradients_equal, not_finite, training_step
from tests.support.goldens import adaptive_value, assert_close, each_case, each_precision, prescribed, read

GOLDEN = read("mart", "_")


@each_precision()
@each_case(GOLDEN, "case")
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, precision):
    losses_and_gradients_equal(Mart, "boosted", GOLDEN[case], precision, monkeypatch)


def test_the_official_gradient_is_nan_where_float32_underflows():
    assert not_finite(GOLDEN) == [("case9", "grad_logits_clean_f32")]


@each_case(GOLDEN, "attack")
def test_a_training_step_equals_the_official_one(monkeypatch, case):
    golden = GOLDEN[case]
    backbone = training_step(Mart, golden, monkeypatch).backbone
    seen = {"clean": golden["x"], "adv": golden["x_adv"]}
    assert_close(backbone.shown(training=True), torch.stack([seen[name] for name in golden["train_forward_order"]]))
    assert_close(backbone.shown(training=False), golden["traj"][:-1])


def test_half_precision_logits_are_computed_in_float32(monkeypatch):
    """One confidently right sample: in bfloat16 itself, 1.0001 - 0 would be 1 and the boost exactly 0."""
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    model, images, context = prescribed(monkeypatch, [logits, logits], torch.bfloat16)
    terms = Mart().losses(model, images, torch.tensor([0]), context)
    assert terms["boosted"].dtype == torch.float32
    assert terms["boosted"].item() == pytest.approx(-math.log(1.0001), rel=1e-2)


def test_the_adaptive_objective_by_hand():
    """CE = log 4, and the rival's probability is 3/4."""
    assert adaptive_value(Mart()) == pytest.approx(math.log(4) - math.log(1.0001 - 0.75), rel=1e-6)
