"""A folded model computes the same function, keeps its methods, and finds what the model itself finds."""

import copy

import pytest
import torch
from torch import nn

from bench.catalogue.plugins import make_defense
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.run import run_suite, state_digest
from bench.engine.target import Target
from bench.models.checkpoints import build_model
from bench.models.folding import TOLERANCE, FoldedView, folded
from bench.system.devices import tensor_floats


def used(model, seed=0):
    """The model in eval mode with BatchNorm statistics and scales as training leaves them: not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(uniform(layer.running_mean, -0.3, 0.3))
                layer.running_var.copy_(uniform(layer.running_var, 0.3, 1.5))
                layer.weight.copy_(uniform(layer.weight, 0.7, 1.3))
                layer.bias.copy_(uniform(layer.bias, -0.2, 0.2))
    return model.eval()


def built(defense, backbone, side=8):
    torch.manual_seed(0)
    description = {"image_shape": (3, side, side), "num_classes": 10}
    return used(build_model(make_defense(defense, "cifar10", {}), backbone, description))


def images(count, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def norms(model):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def assert_close(found, expected, tolerance=1e-5):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("defense", "backbone", "count", "left"),
    [
        ("at", "resnet18", 6, 0),
        # BatchNorms that follow a sum stay: the first of every block but the first, and the last of all.
        ("at", "wrn-34-10", 1, 15),
        ("fsr", "resnet18", 6, 0),
        ("adv-dpnp", "resnet18", 6, 0),
    ],
)
def test_logits_and_features_are_the_models_own(defense, backbone, count, left):
    model, batch = built(defense, backbone), images(count)
    before = state_digest(model)
    fast = folded(model, batch)
    assert norms(fast) == left < norms(model)
    with torch.no_grad():
        assert_close(fast(batch), model(batch))
        assert_close(fast.features(batch), model.features(batch))
        assert_close(fast.score(model.features(batch)), model(batch))
        torch.testing.assert_close(fast.class_centres(), model.class_centres(), rtol=0, atol=0)
    assert state_digest(model) == before


@pytest.mark.parametrize("defense", ["fsr", "adv-dpnp"])
def test_adaptive_objectives_see_the_same_values_and_gradients(defense):
    model, batch = built(defense, "resnet18"), images(4)
    fast = folded(model, batch)
    labels = torch.arange(4)
    objective = make_defense(defense, "cifar10", {}).adaptive_objective(model, batch, labels)
    moved = (batch + 0.01).requires_grad_()
    values = [objective(view, moved) for view in (model, fast)]
    gradients = [torch.autograd.grad(value.sum(), moved)[0] for value in values]
    assert_close(values[1], values[0])
    assert_close(gradients[1], gradients[0], 1e-4)


@pytest.fixture
def tensor_floats_simulated(monkeypatch):
    """Where TF32 is allowed, convolutions round what they read to 10 bits of mantissa; lists if it was, by call."""
    original, seen = nn.Conv2d._conv_forward, []

    def rounded(values):
        return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def convolution(layer, inputs, weight, bias):
        seen.append(torch.backends.cudnn.allow_tf32)
        if seen[-1]:
            inputs, weight = rounded(inputs), rounded(weight)
        return original(layer, inputs, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", convolution)
    return seen


def test_a_model_is_folded_although_the_caller_rounds_to_tf32(tensor_floats_simulated):
    model, batch = built("at", "resnet18"), images(2)
    with tensor_floats(allowed=True), torch.no_grad():
        fast = folded(model, batch)
        assert fast is not None
        assert not any(tensor_floats_simulated)
        assert torch.backends.cudnn.allow_tf32
        moved = (fast(batch) - model(batch)).abs().max() / model(batch).abs().max()
        assert moved > TOLERANCE, "compared as the caller computes, it would have been refused"
        tensor_floats_simulated.clear()
        assert FoldedView(model, batch).pairs
        assert not any(tensor_floats_simulated)


def test_a_view_that_must_not_fold_says_so():
    for kind, refused in (("plain", False), ("read twice", True)):
        view = FoldedView(used(Shaped(kind)), images(4))
        assert (bool(view.pairs), view.refused) == (not refused, refused)


def test_without_batchnorm_there_is_nothing_to_fold():
    assert folded(built("at", "cnn-small"), images(4)) is None


class Shaped(nn.Module):
    """conv, something, BatchNorm, spatial mean."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, batch):
        hidden = self.conv(batch)
        if self.kind == "activated in place":
            hidden = hidden.relu_()
        elif self.kind == "convolved twice":
            hidden = self.conv(hidden.narrow(1, 0, 3))
        normed = self.norm(hidden)
        if self.kind == "read twice":
            normed = normed + hidden
        elif self.kind == "statistics read":
            normed = normed + self.norm.running_mean.mean()
        return normed.mean((2, 3))


def test_only_a_convolution_that_nothing_else_reads_is_folded():
    assert norms(folded(used(Shaped("plain")), images(4))) == 0
    for kind in ("activated in place", "convolved twice", "read twice", "statistics read"):
        assert folded(used(Shaped(kind)), images(4)) is None, kind


def test_modes_and_gradients_of_the_model_stay():
    model = built("at", "resnet18").train()
    model.backbone.bn1.eval()
    modes = [layer.training for layer in model.modules()]
    fast = folded(model, images(2))
    assert [layer.training for layer in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(layer.training for layer in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    # A layer that something is hooked to is not folded: nothing was left hooked.
    assert norms(folded(model, images(2))) == norms(fast)


class Double(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(batch.double())


@pytest.mark.parametrize("convention", ["any", "final"])
def test_pgd_on_a_folded_model_reaches_the_same_verdicts(convention):
    """In float64, where rounding decides about no image."""
    model = Double(built("at", "cnn-small-bn", side=8).double())
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (24, 3, 8, 8), generator=generator).to(torch.uint8)
    with torch.no_grad():
        # Otherwise an untrained model answers with one class, whatever the image.
        model.model.head.bias -= model(pixels.float() / 255).mean(0)
        labels = model(pixels.float() / 255).argmax(1)
    split = Split(pixels, labels)
    suite = Suite("test", 1, "", (AttackCell("PGD-20", "pgd", "linf", "0.02", {"steps": 20}),), {})
    slow, fast = (
        run_suite(Target(model, split, search_model=search), suite, convention=convention).attacks["PGD-20"]
        for search in (None, folded(copy.deepcopy(model), pixels[:4].float() / 255))
    )
    assert 0 < (slow.prediction != labels.numpy()).sum() < len(split)
    assert (slow.prediction == fast.prediction).all()
    assert convention == "any" or (slow.final_prediction == fast.final_prediction).all()
