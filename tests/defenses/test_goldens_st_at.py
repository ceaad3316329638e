"""Standard and adversarial training against stored figures: cross-entropy, and PGD of "Bag of Tricks for AT"."""

import pytest
import torch
from torch import nn

from bench.defenses.at import AdversarialTraining
from bench.defenses.st import StandardTraining
from tests.support.goldens import (
    assert_close,
    each_case,
    each_precision,
    inject,
    read,
    same_gradients_and_buffers,
    tiny_classifier,
    tiny_state,
    training_context,
)

ST, AT = read("st", "_"), read("at", "_")


class Stored(nn.Module):
    """Answers the given logits, whatever the images are."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def loss_of(defense, logits, labels, dtype):
    model = Stored(logits.to(dtype))
    images = torch.full((len(labels), 1, 2, 2), 0.5, dtype=dtype)
    (loss,) = defense.losses(model, images, labels, training_context(steps=0)).values()
    loss.backward()
    return loss, model.logits.grad


@each_precision()
@each_case(ST, "case")
def test_standard_training_loss(case, precision):
    loss, gradient = loss_of(StandardTraining(), ST[case]["logits_clean"], ST[case]["y"], precision.dtype)
    precision.close(loss, ST[case][f"loss_f{precision.bits}"])
    precision.close(gradient, ST[case][f"grad_logits_clean_f{precision.bits}"])


@each_precision()
@each_case(AT, "case")
def test_adversarial_training_loss(case, precision):
    loss, gradient = loss_of(AdversarialTraining(), AT[case]["logits_adv"], AT[case]["y"], precision.dtype)
    precision.close(loss, AT[case][f"loss_f{precision.bits}"])
    precision.close(gradient, AT[case][f"grad_logits_adv_f{precision.bits}"])


# Attack 2 crafts in train mode, which this benchmark does not.
@pytest.mark.parametrize("case", ["attack0", "attack1", "attack3", "attack4"])
def test_adversarial_training_batch(case, monkeypatch):
    golden = AT[case]
    inject(monkeypatch, "rand", (golden["noise_uniform_pm_eps"] / golden["eps"] + 1) / 2)
    model = tiny_classifier(tiny_state(golden))
    if "input_mean" in golden:
        model.backbone.mean, model.backbone.deviation = (golden[f"input_{x}"].view(-1, 1, 1) for x in ("mean", "std"))
    context = training_context(golden["eps"], golden["step"], golden["steps"])
    (loss,) = AdversarialTraining().losses(model, golden["x"], golden["y"], context).values()
    loss.backward()
    # Ten gradients and the training forward: every point the network saw, then the loss and all it leaves behind.
    assert_close(torch.stack([images for _, images in model.backbone.seen]), golden["traj"])
    assert_close(loss, golden["loss"])
    same_gradients_and_buffers(model, golden)
