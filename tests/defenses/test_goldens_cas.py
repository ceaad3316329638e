"""CAS against figures of the authors' code (tests/goldens/cas.md), and by hand."""

import torch
from torch import nn

from bench.defenses.cas import ChannelSuppression, SuppressedClassifier
from tests.support.goldens import Watched, assert_close, inject, loaded, part, pixels, read, training_context

GOLDEN = read("cas")["resnet"]


class Block(Watched):
    """A convolution with BatchNorm, then a residual block that widens: the map that the authors suppress."""

    def __init__(self):
        super().__init__(5)
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        block = nn.Module()
        block.conv1, block.bn1 = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        block.conv2, block.bn2 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        block.shortcut = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5))
        self.layer4 = nn.ModuleList([block])

    def feature_map(self, images):
        self.seen.append((self.training, images.detach().clone()))
        early, block = self.bn1(self.conv1(images)).relu(), self.layer4[0]
        inside = block.bn2(block.conv2(block.bn1(block.conv1(early)).relu()))
        return (inside + block.shortcut(early)).relu()

    def embed(self, feature_map):
        return feature_map.mean((2, 3))


def ours(name):
    """Our name of one of the authors' parameters."""
    return name.replace("layer4.0.fc", "channels").replace("linear", "head")


def test_a_step_of_cas_equals_the_official_one(monkeypatch):
    state = {ours(name): value for name, value in part(GOLDEN, "param_").items()}
    owned = ("channels.", "head.")
    state = {name if name.startswith(owned) else f"backbone.{name}": value for name, value in state.items()}
    model = loaded(SuppressedClassifier(Block(), 3), state)
    assert_close(model.eval()(GOLDEN["x"]), GOLDEN["logits_before"])
    model.train().backbone.seen.clear()
    inject(monkeypatch, "rand", GOLDEN["noise"])
    context = training_context(GOLDEN["eps"], GOLDEN["step"], GOLDEN["steps"])
    terms = ChannelSuppression().losses(model, GOLDEN["x"], GOLDEN["y"], context)
    sum(terms.values()).backward()
    assert_close(model.backbone.shown(training=False), GOLDEN["crafted"])
    assert_close(model.backbone.shown(training=True), GOLDEN["trained"])
    assert_close(sum(terms.values()), GOLDEN["loss"])
    assert_close(terms["channels"], GOLDEN["term"])
    named = {name.removeprefix("backbone."): parameter for name, parameter in model.named_parameters()}
    gradients = {ours(name.replace("_", ".")): value for name, value in part(GOLDEN, "grad_").items()}
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        assert_close(named[name].grad, gradient)
    buffers = {name.removeprefix("backbone.").replace(".", "_"): buffer for name, buffer in model.named_buffers()}
    after = part(GOLDEN, "after_")
    assert buffers.keys() == after.keys()
    for name, buffer in buffers.items():
        assert_close(buffer, after[name])


def test_training_weighs_channels_by_the_label_and_all_else_by_what_they_predict():
    """Features (1/2, 1), channel weights (6, 8) of class 0 and (10, 14) of class 1: channels predict 11 and 19."""
    model = ChannelSuppression().build(pixels(2), 2)
    with torch.no_grad():
        model.channels.weight.copy_(torch.tensor([[6.0, 8.0], [10.0, 14.0]]))
    images = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1)
    assert model.features(images).tolist() == [[5.0, 14.0]]
    terms = ChannelSuppression(weight=3.0).losses(model, images, torch.tensor([0]), training_context(0.0))
    # Of logits (3, 8) the first: log(1 + e^5); of channels' logits (11, 19): 3 log(1 + e^8).
    expected = [torch.nn.functional.softplus(torch.tensor(value)).item() for value in (5.0, 8.0)]
    assert_close([term.item() for term in terms.values()], [expected[0], 3 * expected[1]], 1e-6)
    value = ChannelSuppression(weight=3.0).adaptive_objective(model, images, torch.tensor([0]))(model, images)
    # Of logits (5, 14), log(1 + e^9).
    assert_close(value, [torch.nn.functional.softplus(torch.tensor(9.0)).item() + 3 * expected[1]], 1e-6)
