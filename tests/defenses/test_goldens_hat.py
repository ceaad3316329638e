"""HAT against figures of the official implementation (https://github.com/imrahulr/hat, commit 3177a4f)."""

import math

import pytest
import torch
from torch import nn

from bench.defenses.hat import HelperBasedTraining
from bench.defenses.trades import Trades
from tests.defenses.test_goldens_trades import not_finite
from tests.support.goldens import (
    PrescribedLogits,
    adaptive_value,
    assert_close,
    each_case,
    each_precision,
    inject,
    part,
    prescribed,
    read,
    tiny_classifier,
    training_context,
)

GOLDEN = read("hat")
LAYERS = {"l1": "backbone.fc1", "bn": "backbone.bn", "l2": "head"}


def named(golden, prefix):
    """The entries under a prefix, by the names of our model."""
    return {LAYERS[name[:2]] + name[2:]: value for name, value in part(golden, prefix).items()}


def defense(golden):
    return HelperBasedTraining(float(golden["beta"]), float(golden["gamma"]), robust_term=golden["robust_term"])


@each_precision()
@each_case(GOLDEN, "m10")
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, precision):
    golden, sides = GOLDEN[case], ("clean", "adv", "helper")
    model, images, context = prescribed(monkeypatch, [golden[f"logits_{side}"] for side in sides], precision.dtype)
    inject(monkeypatch, "rand", torch.ones(images.shape))
    on_perturbed = golden["logits_standard_model_on_adv"].to(precision.dtype)
    assert torch.equal(on_perturbed.argmax(1), golden["helper_labels"])
    context.requirements["st"] = PrescribedLogits(torch.full_like(on_perturbed, torch.nan), on_perturbed)
    terms = defense(golden).losses(model, images, golden["labels"], context)
    sum(terms.values()).backward()

    precision.close(terms["clean"], golden["loss_clean_ce"])
    precision.close(terms["robust"], golden["beta"] * golden["loss_robust"])
    precision.close(terms["helper"], golden["gamma"] * golden["loss_helper_ce"])
    precision.close(sum(terms.values()), golden["loss_total"])
    for leaf, side in zip(model.logits, sides, strict=True):
        # The official gradient is NaN where a probability is exactly 0; the file holds the log-space value beside it.
        precision.close(leaf.grad, golden.get(f"logspace_grad_logits_{side}", golden[f"grad_logits_{side}"]))


def test_the_official_gradient_is_nan_where_a_probability_is_zero():
    assert not_finite(GOLDEN) == [("m10_underflow", "grad_logits_clean")]


def end_to_end(monkeypatch, golden, hat):
    """Model, frozen standard model and loss terms of a stored batch."""
    model = tiny_classifier(named(golden, "net."))
    standard = tiny_classifier(named(golden, "standard_net.")).eval()
    inject(monkeypatch, "randn", golden["start_noise"])
    inject(monkeypatch, "rand", (golden["start_noise"] + 1) / 2)
    context = training_context(golden["epsilon"], golden["step_size"], golden["steps"], requirements={"st": standard})
    return model, standard, hat.losses(model, golden["x"], golden["labels"], context), context


@each_case(GOLDEN, "e2e")
def test_a_training_step_equals_the_official_one(monkeypatch, case):
    golden, hat = GOLDEN[case], defense(GOLDEN[case])
    assert hat.helper_factor == golden["h"]
    model, standard, terms, _ = end_to_end(monkeypatch, golden, hat)
    sum(terms.values()).backward()
    assert_close(model.backbone.shown(training=True), torch.stack([golden["x"], golden["x_adv"], golden["x_helper"]]))
    assert_close(sum(terms.values()), golden["loss_total"])
    expected = named(golden, "grad.")
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name])
    if golden["has_bn"]:
        assert_close(model.backbone.bn.running_mean, golden["bn_running_mean_after"])
        assert_close(model.backbone.bn.running_var, golden["bn_running_var_after"])
        assert model.backbone.bn.num_batches_tracked == golden["bn_batches_tracked_after"]
    frozen = named(golden, "standard_net.")
    assert all(torch.equal(value, frozen[name]) for name, value in standard.state_dict().items())
    assert all(parameter.grad is None for parameter in standard.parameters())


def test_without_the_helper_term_it_is_trades(monkeypatch):
    golden = GOLDEN["e2e_m10_bn"]
    _, _, ours, context = end_to_end(monkeypatch, golden, HelperBasedTraining(beta=6.0, gamma=0.0))
    inject(monkeypatch, "randn", golden["start_noise"])
    model = tiny_classifier(named(golden, "net."))
    trades = Trades(beta=6.0).losses(model, golden["x"], golden["labels"], context)
    assert ours == {**trades, "helper": 0}


def test_the_adaptive_objective_by_hand():
    """CE = log 4 for class 1, KL = log(4/3) / 2."""
    assert adaptive_value(HelperBasedTraining()) == pytest.approx(math.log(4) + 2.5 * math.log(4 / 3) / 2, rel=1e-6)
    assert adaptive_value(HelperBasedTraining(robust_term="ce")) is None


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
