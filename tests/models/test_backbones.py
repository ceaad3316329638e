"""Backbones beside RobustBench's and timm's networks, beside functional forms written out here, and by their sizes."""

import math
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.catalogue.names import built_in
from bench.errors import BenchError
from bench.interfaces import LinearClassifier
from bench.interop import robustbench as robustbench_package
from bench.models.backbones import make_backbone
from bench.models.backbones._preactivation import WideResNet

robustbench_package.install()  # robustbench imports autoattack, which PyPI has under another name
with warnings.catch_warnings():
    # robustbench imports pkg_resources, which warns of its end.
    warnings.simplefilter("ignore")
    import timm
    from robustbench.model_zoo.architectures import resnet, wide_resnet
    from robustbench.utils import rm_substr_from_state_dict

SMALL = [("resnet18", 3, (16, 16)), ("lenetpp", 1, (28, 28)), ("cnn-small", 3, (16, 16)), ("cnn-small-bn", 3, (16, 16))]
SMALL += [("cnn-small-bn-512", 3, (16, 16)), ("preactresnet18", 3, (16, 16))]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shaken(module, seed=0):
    """The module in eval mode, with BatchNorm statistics and scales that are not those of a fresh network."""
    source = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.2, 0.2),
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 1.5),
            ):
                values.data.uniform_(low, high, generator=source)
    return module.eval()


def rice2020():
    """The pre-activation ResNet-18 of the zoo's Rice2020Overfitting."""
    return resnet.PreActResNet(resnet.PreActBlock, [2, 2, 2, 2], bn_before_fc=True, out_shortcut=True)


@pytest.mark.parametrize("name", built_in("backbone"))
def test_every_name_makes_a_backbone(name):
    with torch.device("meta"):
        assert make_backbone(name, 3, (32, 32)).feature_dim > 0


@pytest.mark.parametrize(
    ("name", "count_with_head"),
    [
        ("wrn-28-10", 36_479_194),
        ("wrn-28-10-swish", 36_479_194),
        ("wrn-34-10-swish", 46_160_474),
    ],
)
def test_wide_resnets_are_as_large_as_published(name, count_with_head):
    with torch.device("meta"):
        assert parameters(LinearClassifier(make_backbone(name, 3, (32, 32)), 10)) == count_with_head


@pytest.mark.parametrize(
    ("name", "reference", "count", "count_with_head"),
    [
        ("resnet18", resnet.ResNet18, 11_168_832, 11_173_962),
        ("preactresnet18", rice2020, 11_167_040, 11_172_170),
        ("wrn-34-10", lambda: wide_resnet.WideResNet(depth=34), 46_154_064, 46_160_474),
    ],
)
def test_equals_the_robustbench_network(name, reference, count, count_with_head):
    """Same features from the same weights; RobustBench's counts are of the networks without the unused block."""
    torch.manual_seed(0)
    network = reference()
    assert parameters(network) == count_with_head
    setattr(network, "fc" if name == "wrn-34-10" else "linear", nn.Identity())
    backbone = shaken(make_backbone(name, 3, (32, 32)))
    assert parameters(backbone) == count
    assert parameters(LinearClassifier(backbone, 10)) == count_with_head
    ours, theirs = backbone.state_dict(), network.eval().state_dict()
    network.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), network(images))


class TinySwish(WideResNet):
    """Two blocks."""

    stem, stages, blocks_per_stage, own_activation = 2, ((4, 1), (6, 2)), 1, nn.SiLU


def test_swish_by_hand():
    torch.manual_seed(0)
    backbone = shaken(TinySwish(3, (8, 8), nn.ReLU, True))
    images = torch.rand(2, 3, 8, 8)

    def swish(norm, values):
        values = norm(values)
        return values / (1 + (-values).exp())

    with torch.no_grad():
        values = functional.conv2d(images, backbone.conv1.weight, padding=1)
        for block, stride in zip(backbone.blocks, (1, 2), strict=True):
            active = swish(block.bn1, values)
            hidden = functional.conv2d(active, block.conv1.weight, stride=stride, padding=1)
            hidden = functional.conv2d(swish(block.bn2, hidden), block.conv2.weight, padding=1)
            values = hidden + functional.conv2d(active, block.projection.weight, stride=stride)
        expected = swish(backbone.bn1, values)
        torch.testing.assert_close(backbone.feature_map(images), expected)
        torch.testing.assert_close(backbone(images), expected.sum((2, 3)) / 16)
    slopes = [layer for layer in TinySwish(3, (8, 8), nn.PReLU, True).modules() if isinstance(layer, nn.PReLU)]
    assert len(slopes) == 3


@pytest.mark.parametrize(("name", "map_shape"), [("test_vit", (64, 1, 5)), ("test_efficientnet", (256, 1, 1))])
def test_timms_networks_without_their_classifier(name, map_shape):
    torch.manual_seed(0)
    backbone = make_backbone(f"timm:{name}", 3, (32, 32)).eval()
    ahead = torch.rand(1)
    torch.manual_seed(0)
    sized = {"img_size": (32, 32)} if "vit" in name else {}
    network = timm.create_model(name, num_classes=0, **sized).eval()
    assert torch.equal(ahead, torch.rand(1))
    assert [*backbone.state_dict()] == [f"network.{weight}" for weight in network.state_dict()]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        maps = backbone.feature_map(images)
        assert maps.shape[1:] == map_shape
        torch.testing.assert_close(backbone.embed(maps), network(images))
    assert (backbone.map_channels, backbone.feature_dim) == (map_shape[0], network(images).shape[1])


def test_timms_maps_with_channels_last_are_turned(monkeypatch):
    def tiny(name, num_classes, in_chans, img_size):
        options = {"window_size": 2, "patch_size": 4, "num_classes": num_classes, "in_chans": in_chans}
        return timm.models.SwinTransformer(img_size, embed_dim=8, depths=(1, 1), num_heads=(1, 2), **options)

    monkeypatch.setattr(timm, "create_model", tiny)
    backbone = make_backbone("timm:swin_tiny_patch4_window7_224", 1, (16, 16)).eval()
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        maps = backbone.feature_map(images)
        assert maps.shape == (2, 16, 2, 2)
        torch.testing.assert_close(backbone.embed(maps), maps.mean((2, 3)))
        torch.testing.assert_close(backbone(images), backbone.network(images))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("timm:resnet18x", {}, ("no network 'resnet18x'", "timm:resnet18", "timm.list_models()")),
        ("timm:hf-hub:someone/something", {}, ("no network 'hf-hub:someone/something'",)),
        ("timm:vit_tiny_patch16_224", {}, ("cannot be made for images of 3x8x8",)),
        ("timm:test_vit", {"activation": "prelu"}, ("keeps timm's activations", "resnet18")),
        ("timm:test_vit", {"final_activation": False}, ("keeps timm's activations", "resnet18")),
    ],
)
def test_what_timm_cannot_do_is_refused(name, options, words):
    with pytest.raises(BenchError) as caught:
        make_backbone(name, 3, (8, 8), **options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BenchError, match=r"timm:test_vit.* pip install 'advbench\[timm\]'"):
        make_backbone("timm:test_vit", 3, (32, 32))


def test_wide_resnet_initialisation():
    torch.manual_seed(0)
    classifier = LinearClassifier(make_backbone("wrn-34-10", 3, (32, 32)), 10)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            expected = math.sqrt(2 / (rows * columns * module.out_channels))
            count = module.weight.numel()
            assert abs(float(module.weight.detach().std()) / expected - 1) < 5 / math.sqrt(2 * count)
            assert abs(float(module.weight.detach().mean())) < 5 * expected / math.sqrt(count)
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all() and (module.bias == 0).all())
    assert bool((classifier.head.bias == 0).all())
    assert float(classifier.head.weight.detach().abs().max()) <= 1 / math.sqrt(640)


def test_resnet_initialisation_is_pytorchs():
    torch.manual_seed(0)
    classifier = LinearClassifier(make_backbone("resnet18", 3, (32, 32)), 10)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.99 * bound < float(module.weight.detach().abs().max()) <= bound
    assert bool((classifier.head.bias != 0).all())


def test_lenetpp_by_hand():
    torch.manual_seed(0)
    backbone = make_backbone("lenetpp", 1, (28, 28)).eval()
    convolutions = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        *((1, 32), (32, 32), (32, 64)),
        *((64, 64), (64, 128), (128, 128)),
    ]
    images = torch.rand(5, 1, 28, 28)
    values = images
    slope = torch.tensor([0.25])
    for number, layer in enumerate(convolutions):
        values = functional.prelu(functional.conv2d(values, layer.weight, layer.bias, padding=2), slope)
        values = functional.max_pool2d(values, 2) if number % 2 else values
    with torch.no_grad():
        assert torch.equal(backbone.feature_map(images), values)
        assert values.shape == (5, backbone.map_channels, 3, 3)
        linear = values.reshape(5, 1152) @ backbone.linear.weight.T + backbone.linear.bias
        torch.testing.assert_close(backbone(images), functional.prelu(linear, slope))
    assert backbone.feature_dim == 2


def test_lenetpp_initialisation_is_caffes():
    torch.manual_seed(0)
    classifier = LinearClassifier(make_backbone("lenetpp", 1, (28, 28)), 10)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / module.weight[0].numel())
            assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound
            assert bool((module.bias == 0).all())
        elif isinstance(module, nn.PReLU):
            assert module.weight.tolist() == [0.25]


def test_lenetpp_features_are_signed():
    torch.manual_seed(0)
    features = make_backbone("lenetpp", 1, (28, 28), activation="relu")(torch.rand(64, 1, 28, 28))
    assert bool((features < 0).any() and (features > 0).any())


@pytest.mark.parametrize(
    ("size", "strides", "map_shape"),
    [
        ((8, 8), (1, 2), (32, 4, 4)),
        ((16, 16), (1, 2, 2), (64, 4, 4)),
        ((28, 28), (2, 2, 2), (64, 4, 4)),
        ((32, 32), (2, 2, 2), (64, 4, 4)),
        ((5, 7), (1, 2), (32, 3, 4)),
        ((4, 4), (1,), (16, 4, 4)),
        ((1, 1), (1,), (16, 1, 1)),
    ],
)
def test_cnn_small_by_hand(size, strides, map_shape):
    torch.manual_seed(0)
    backbone = make_backbone("cnn-small", 2, size)
    convolutions = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    images = torch.rand(3, 2, *size)
    values = images
    for layer, stride in zip(convolutions, strides, strict=True):
        values = functional.conv2d(values, layer.weight, layer.bias, stride=stride, padding=1).relu()
    with torch.no_grad():
        assert torch.equal(backbone.feature_map(images), values)
        linear = values.reshape(3, -1) @ backbone.linear.weight.T + backbone.linear.bias
        torch.testing.assert_close(backbone(images), linear.relu())
    assert values.shape[1:] == map_shape
    assert (backbone.map_channels, backbone.feature_dim) == (map_shape[0], 128)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules())


def test_cnn_small_bn_by_hand():
    torch.manual_seed(0)
    backbone = shaken(make_backbone("cnn-small-bn", 3, (32, 32)))
    convolutions = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    values = images = torch.rand(3, 3, 32, 32)
    for layer, norm in zip(convolutions, norms, strict=True):
        values = functional.conv2d(values, layer.weight, stride=2, padding=1)
        values = norm(values).relu()
    with torch.no_grad():
        assert torch.equal(backbone.feature_map(images), values)
    assert (values.shape[1:], backbone.map_channels, backbone.feature_dim) == ((64, 4, 4), 64, 128)


def test_cnn_small_bn_512_by_hand():
    torch.manual_seed(0)
    backbone = shaken(make_backbone("cnn-small-bn-512", 3, (32, 32)))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        maps = backbone.feature_map(images)
        widened = torch.einsum("oc,bchw->bohw", backbone.linear.weight[:, :, 0, 0], maps)
        expected = backbone.bn1(widened).clamp(min=0).flatten(2).sum(2) / (4 * 4)
        torch.testing.assert_close(backbone.embed(maps), expected, rtol=1e-4, atol=1e-5)
    assert (maps.shape[1:], backbone.map_channels, backbone.feature_dim) == ((64, 4, 4), 64, 512)


@pytest.mark.parametrize(
    ("name", "slopes"), [("resnet18", 1 + 8), ("preactresnet18", 8 + 1), ("cnn-small", 3 + 1), ("cnn-small-bn", 3 + 1)]
)
def test_prelu_has_one_slope_per_block_and_is_relu_at_slope_0(name, slopes):
    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(0)
    relu = shaken(make_backbone(name, 3, (16, 16)))
    prelu = shaken(make_backbone(name, 3, (16, 16), activation="prelu"))
    activations = [layer for layer in prelu.modules() if isinstance(layer, nn.PReLU)]
    assert [layer.weight.tolist() for layer in activations] == slopes * [[0.25]]
    assert not any(isinstance(layer, nn.ReLU) for layer in prelu.modules())
    assert parameters(prelu) == parameters(relu) + slopes
    missing, unexpected = prelu.load_state_dict(relu.state_dict(), strict=False)
    assert (len(missing), unexpected) == (slopes, [])
    with torch.no_grad():
        assert not torch.allclose(prelu(images), relu(images))
        for layer in activations:
            layer.weight.zero_()
        assert torch.equal(prelu(images), relu(images))


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 16), ("preactresnet18", 16), ("cnn-small", 16), ("cnn-small-bn", 16), ("lenetpp", 28)],
)
def test_without_final_activation_only_the_last_one_is_gone(name, size):
    torch.manual_seed(0)
    full = shaken(make_backbone(name, 3, (size, size)))
    open_ended = shaken(make_backbone(name, 3, (size, size), final_activation=False))
    open_ended.load_state_dict(full.state_dict(), strict=name != "lenetpp")
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        bare, features = open_ended(images), full(images)
        assert bool((bare < 0).any())
        if name == "lenetpp":
            assert torch.equal(functional.prelu(bare, torch.tensor([0.25])), features)
        elif name.startswith("cnn-small"):
            assert torch.equal(bare.relu(), features)
        else:
            assert torch.equal(open_ended.feature_map(images).relu(), full.feature_map(images))


@pytest.mark.parametrize(("name", "channels", "size"), [*SMALL, ("resnet18", 1, (8, 8)), ("resnet18", 4, (9, 30))])
def test_shapes_reuse_and_memory_format(name, channels, size):
    torch.manual_seed(0)
    backbone = shaken(make_backbone(name, channels, size))
    images = torch.rand(2, channels, *size)
    original = images.clone()
    with torch.no_grad():
        maps = backbone.feature_map(images)
        kept = maps.clone()
        features = backbone.embed(maps)
        assert maps.shape[:2] == (2, backbone.map_channels)
        assert features.shape == (2, backbone.feature_dim)
        assert torch.equal(maps, kept) and torch.equal(images, original)
        assert torch.equal(backbone(images), features)
        backbone.to(memory_format=torch.channels_last)
        other = backbone(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(other, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "channels", "size"), [*SMALL, ("wrn-34-10", 3, (32, 32))])
def test_robustbench_strips_nothing_from_the_parameter_names(name, channels, size):
    weights = LinearClassifier(make_backbone(name, channels, size), 10).state_dict()
    stripped = rm_substr_from_state_dict(rm_substr_from_state_dict(weights, "module."), "model.")
    assert list(stripped) == list(weights)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("resnet-18", (32, 32), ("'resnet-18'", "'resnet18'", "preactresnet18, resnet18, timm:NAME")),
        ("resnet18", (32, 7), ("'resnet18'", "8x8", "32x7", "cnn-small, cnn-small-bn, cnn-small-bn-512")),
    ],
)
def test_errors_say_what_to_do(name, size, words):
    with pytest.raises(BenchError) as caught:
        make_backbone(name, 3, size)
    assert [word for word in words if word not in str(caught.value)] == []
