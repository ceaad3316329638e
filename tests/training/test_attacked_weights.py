"""Crafting attacks the weights that are trained, or the run stops before anything is saved."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from bench.interfaces import LinearClassifier
from bench.models.checkpoints import load_checkpoint
from bench.training.attacked_weights import require_trained_weights
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests.support.refusals import refusal
from tests.support.trainings import Plain, plug_in

IMAGES = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


class ObviousAverage(nn.Module):
    """A frozen copy that follows the network, and answers in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.shadow = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, images):
        return (self.net if self.training else self.shadow)(images)


class LibraryAverage(ObviousAverage):
    """torch's own class, whose weights want gradients."""

    def __init__(self):
        super().__init__()
        self.shadow = AveragedModel(self.net)


class AverageInADictionary(ObviousAverage):
    """Shadow weights as plain tensors, found nowhere in the state."""

    def __init__(self):
        super().__init__()
        self.average = {name: tensor.detach().clone() for name, tensor in self.net.named_parameters()}

    def forward(self, images):
        return self.net(images) if self.training else functional_call(self.net, self.average, images)


class AverageOfTheHead(ObviousAverage):
    """A live body under an averaged last layer."""

    def forward(self, images):
        return (self.net if self.training else self.shadow)[-1](self.net[:-1](images))


class ExchangedInPlace(nn.Module):
    """Weights are exchanged when the mode changes."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.other = [parameter.detach() + 0.5 for parameter in self.net.parameters()]

    def train(self, mode=True):
        if mode != self.training:
            for number, parameter in enumerate(self.net.parameters()):
                self.other[number], parameter.data = parameter.data, self.other[number]
        return super().train(mode)

    def forward(self, images):
        return self.net(images)


class BoundMethod(ObviousAverage):
    """Its forward pass is bound to one object, and so is a copy's."""

    def __init__(self):
        super().__init__()
        self.forward = lambda images: ObviousAverage.forward(self, images)


class ReturnsAClosure(nn.Module):
    """What answers in eval mode is out of sight."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.answer = [copy.deepcopy(self.net).eval()].__getitem__

    def forward(self, images):
        return self.net(images) if self.training else self.answer(0)(images)


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (ObviousAverage, "shadow.0.weight and 5 more"),
        (LibraryAverage, "shadow.module.0.weight and 5 more"),
        (AverageInADictionary, "average['0.weight'] and 5 more"),
        (AverageOfTheHead, "shadow.4.weight and 1 more"),
        (ExchangedInPlace, "other[0] and 5 more"),
        (BoundMethod, "other weights"),
        (ReturnsAClosure, "other weights"),
    ],
)
def test_weights_that_are_not_trained_are_not_attacked(make, instead):
    model = make()
    trained = "net.4.weight and 1 more" if make is AverageOfTheHead else "net.0.weight and 5 more"
    parameters = [p for p in model.parameters() if p.requires_grad]
    told = (f"would not attack the trained {trained}: in eval mode {make.__name__} computes with {instead} instead",)
    refusal(lambda: require_trained_weights(model, IMAGES, parameters), *told, "as context.crafting(model.net) does")
    # The way out.
    require_trained_weights(model.net, IMAGES, list(model.parameters()))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, images):
        return self.net(images)


class FrozenParts(Network):
    """Constants, a frozen layer and dropout, in both modes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 4, 4), 0.5))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.dropout = nn.Dropout()

    def forward(self, images):
        return self.frozen(self.dropout(self.net(images - self.mean)))


class HeadForAnotherLoss(FrozenParts):
    """A projection that no logit depends on, of the shape of a frozen layer."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(3, 3)


class BranchInTrainingOnly(FrozenParts):
    """What is trained besides what is attacked, with nothing in its place."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(1, 3, 4)

    def forward(self, images):
        return super().forward(images) + (self.branch(images).flatten(1) if self.training else 0)


class FoldsInEvalMode(Network):
    """Detached in eval mode, and computed from the live weights."""

    def forward(self, images):
        live = {name: tensor.detach() for name, tensor in self.net.named_parameters()}
        return self.net(images) if self.training else functional_call(self.net, live, images)


class PutsWeightsInABox(Network):
    """Its values change with the mode, and stay those that are trained."""

    def train(self, mode=True):
        with torch.no_grad():
            self.net[4].weight.clamp_(-0.05, 0.05)
        return super().train(mode)


class RemembersItsFeatures(HeadForAnotherLoss):
    """Keeps a tensor with a graph, which cannot be copied."""

    def forward(self, images):
        self.last = super().forward(images)
        return self.last


class TakesFeatures(nn.Linear):
    """No function of images."""


@pytest.mark.parametrize(
    "make",
    [
        *(Network, FrozenParts, HeadForAnotherLoss, BranchInTrainingOnly, FoldsInEvalMode, PutsWeightsInABox),
        RemembersItsFeatures,
        lambda: TakesFeatures(7, 3),
    ],
)
def test_what_is_sound_passes_and_stays_as_it_is(make):
    model = make()
    if isinstance(model, RemembersItsFeatures):
        model(IMAGES)
    model.eval().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    for images in (IMAGES, IMAGES[:1]):
        require_trained_weights(model, images, [p for p in model.parameters() if p.requires_grad])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("trained", [True, False])
def test_a_bias_that_batch_norm_takes_out_is_used_in_both_modes(trained):
    """In train mode another bias before BatchNorm changes outputs by rounding, or, one time in eight, by nothing."""
    for seed in range(40):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = BranchInTrainingOnly()
        model.net[0].bias.requires_grad_(trained)
        require_trained_weights(model, IMAGES, [p for p in model.parameters() if p.requires_grad])


class AveragedHead(LinearClassifier):
    """Scores by an average of its heads, unless it is trained."""

    def __init__(self, backbone, num_classes):
        super().__init__(backbone, num_classes)
        self.shadow = copy.deepcopy(self.head).requires_grad_(False)

    def score(self, features):
        return (self.head if self.training else self.shadow)(features)


class Averages(Plain):
    """Adversarial training of a model with averaged weights: `live` crafts against those that are trained."""

    live = False

    def build(self, backbone: Any, num_classes: int) -> Any:
        return AveragedHead(backbone(), num_classes)

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        live = nn.Sequential(model.backbone, model.head)
        with context.crafting(live if self.live else model) as view:
            perturbed = images.clone().requires_grad_()
            functional.cross_entropy(view(perturbed), labels).backward()
            perturbed = (images + context.step_size * perturbed.grad.sign()).clamp(0, 1)
        return {"adversarial": functional.cross_entropy(model(perturbed), labels)}

    def end_epoch(self, model: Any, context: Any) -> None:
        model.shadow.load_state_dict(model.head.state_dict())


class CraftsAgainstLiveWeights(Averages):
    live = True


class StartsLate(Averages):
    """Crafts in the second epoch only."""

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        if context.epoch:
            return super().losses(model, images, labels, context)
        return {"clean": functional.cross_entropy(model(images), labels)}


def asked(tmp_path, blobs, monkeypatch, kind):
    plug_in(monkeypatch, "mine", kind)
    protocol = {"epochs": 2, "batch_size": 48}
    return TrainingRequest("mine", blobs, "cnn-small", protocol=protocol, runs=tmp_path, device="cpu")


def test_a_run_stops_at_its_first_crafting_against_averaged_weights(tmp_path, blobs, monkeypatch):
    request = asked(tmp_path, blobs, monkeypatch, Averages)
    told = "would not attack the trained head.weight and 1 more: "
    refusal(lambda: train(request, quiet=True), told, " shadow.weight and 1")
    assert not list(request.run_folder.rglob("*.safetensors"))
    late = asked(tmp_path, blobs, monkeypatch, StartsLate)
    refusal(lambda: train(late, quiet=True), told)
    assert load_checkpoint(late.run_folder).config["epoch"] == 1


def test_a_run_that_crafts_against_the_trained_part_ends(tmp_path, blobs, monkeypatch):
    folder = train(asked(tmp_path, blobs, monkeypatch, CraftsAgainstLiveWeights), quiet=True)
    assert load_checkpoint(folder).config["epoch"] == 2
