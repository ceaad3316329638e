"""Adversarial weight perturbation equals the authors' step, and crafts once, against the weights that stay."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.attacks import craft, cross_entropy, divergence, gaussian_start, uniform_start
from bench.catalogue.plugins import make_defense
from bench.interfaces import Defense, ThreatModel, TrainingContext, evaluation_mode
from bench.models.checkpoints import build_model
from bench.training.weight_perturbation import perturbed_update
from tests import GOLDENS

with np.load(GOLDENS / "awp.npz") as stored:
    AUTHORS = dict(stored)
"""Losses and the last state of three steps of the authors' AdvWeightPerturb, gamma 0.02, on `network`.

Of https://github.com/csdongxian/AWP, commit a7acf5d842fccf1bbb4b91644352ce157d370a26, AT_AWP/utils_awp.py, on which its
perturb, the step of SGD and its restore follow each other as in train_cifar10.py there, with a proxy's SGD of 0.01.
"""
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def wave(shape, phase):
    count = int(np.prod(shape))
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase).view(shape)


def network():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * wave(parameter.shape, number))
        model[1].weight.add_(1)
    return model


IMAGES, LABELS = 0.5 + 0.5 * wave((6, 1, 4, 4), 0.1), torch.arange(6) % 3


@dataclass(frozen=True)
class Plain(Defense):
    paper: ClassVar[str] = "none"

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        return {"clean": functional.cross_entropy(model(images), labels)}


@dataclass(frozen=True)
class Clips(Plain):
    """What it does to its weights after a step holds for those that stay."""

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        terms = super().update(model, optimizer, images, labels, context)
        with torch.no_grad():
            for weight in model.parameters():
                weight.clamp_(-0.125, 0.125)
        return terms


def context_of(steps=3, **options):
    return TrainingContext(ThreatModel("linf", "0.1"), steps, 0.04, torch.Generator().manual_seed(5), **options)


def alone(gradients):
    """One process has the whole batch."""


def test_three_steps_are_the_authors():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    model.train()
    for step in range(3):
        terms = perturbed_update(Plain(), model, optimizer, IMAGES, LABELS, context_of(), 0.02, alone)
        assert float(terms["clean"].detach()) == pytest.approx(AUTHORS[f"loss_{step}"], rel=1e-9)
    for name, found in model.state_dict().items():
        np.testing.assert_allclose(found.numpy(), AUTHORS[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_without_a_gradient_of_the_whole_batch_nothing_moves():
    models = [network(), network()]
    optimizers = [torch.optim.SGD(model.parameters(), **SGD) for model in models]
    Plain().update(models[0], optimizers[0], IMAGES, LABELS, context_of())

    def nowhere(gradients):
        for gradient in gradients:
            gradient.zero_()

    perturbed_update(Plain(), models[1], optimizers[1], IMAGES, LABELS, context_of(), 0.02, nowhere)
    for expected, found in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(found, expected)


def test_what_a_defense_does_after_its_step_is_done_to_the_weights_that_stay():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    perturbed_update(Clips(), model, optimizer, IMAGES, LABELS, context_of(), 0.5, alone)
    assert max(float(weight.detach().abs().max()) for weight in model.parameters()) == 0.125


def at(model, images, labels, perturbed):
    return cross_entropy(model(perturbed), labels).mean()


def trades(model, images, labels, perturbed):
    logits = model(images)
    return cross_entropy(logits, labels).mean() + 6.0 * divergence(logits, model(perturbed)).mean()


def crafted(name, model, images, labels, context):
    """The perturbed images that the published methods train on."""
    with evaluation_mode(model):
        if name == "at":
            start = uniform_start(images, context)
            return craft(lambda view, x: cross_entropy(view(x), labels), model, start, images, context, False)
        reference = model(images).detach()
        start = gaussian_start(images, context)
        return craft(lambda view, x: divergence(reference, view(x)), model, start, images, context)


@pytest.mark.parametrize(("name", "loss"), [("at", at), ("trades", trades)])
def test_images_are_crafted_once_against_the_weights_that_stay(name, loss):
    defense = make_defense(name, "digits", {"reuse_clean_logits": True} if name == "trades" else {})
    about = {"image_shape": [1, 8, 8], "num_classes": 3}
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model(defense, "cnn-small-bn", about).double().train())
    images = 0.5 + 0.5 * wave((6, 1, 8, 8), 0.3)
    # By hand: w + v from one gradient on the images, a step there, less v.
    by_hand, context = models[0], context_of()
    optimizer = torch.optim.SGD(by_hand.parameters(), **SGD)
    perturbed = crafted(name, by_hand, images, LABELS, context)
    statistics = {key: value.clone() for key, value in by_hand.named_buffers()}
    layers = [weight for key, weight in by_hand.named_parameters() if key.endswith("weight") and weight.dim() > 1]
    gradients = torch.autograd.grad(loss(by_hand, images, LABELS, perturbed), layers)
    for key, value in by_hand.named_buffers():
        value.copy_(statistics[key])
    shifts = [
        0.02 * weight.detach().norm() * slope / slope.norm() for weight, slope in zip(layers, gradients, strict=True)
    ]
    with torch.no_grad():
        for weight, shift in zip(layers, shifts, strict=True):
            weight.add_(shift)
    loss(by_hand, images, LABELS, perturbed).backward()
    optimizer.step()
    with torch.no_grad():
        for weight, shift in zip(layers, shifts, strict=True):
            weight.sub_(shift)

    steps, records = [], []

    def counting(step):
        return lambda images: steps.append(len(images)) or step(images)

    given = context_of(repeated=counting, record=lambda name, value: records.append(name))
    optimizer = torch.optim.SGD(models[1].parameters(), **SGD)
    perturbed_update(defense, models[1], optimizer, images, LABELS, given, 0.02, alone)
    for name_, expected in by_hand.state_dict().items():
        assert torch.allclose(models[1].state_dict()[name_], expected, rtol=1e-10, atol=1e-12), name_
    assert torch.equal(given.generator.get_state(), context.generator.get_state())
    assert len(steps) == (3 if name == "at" else 2)  # trades takes its first step apart
    assert len(records) == len(set(records))


def test_one_that_perturbs_weights_itself_is_refused(bench, blobs):
    given = ("train", "--defense", "ikl", "--dataset", blobs, "--backbone", "cnn-small", "--awp", "0.005")
    code, output = bench(*given, "--set", "awp=0.005")
    assert code == 2
    assert "ikl perturbs weights itself, by awp=0.005: give --awp 0, or --set awp=0." in output
