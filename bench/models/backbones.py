"""Backbones by name: from images to features. A new one is a class here and a row in the table at the end."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from bench.catalogue.names import BACKBONES
from bench.errors import BenchError, unknown_name
from bench.interfaces import Backbone, FeatureMap, Features, Images

MakeActivation: TypeAlias = Callable[[], nn.Module]
NextMap: TypeAlias = Float[Tensor, "batch next_channels next_rows next_columns"]

_ACTIVATIONS: dict[str, MakeActivation] = {"relu": nn.ReLU, "prelu": nn.PReLU}


def make_backbone(
    name: str,
    in_channels: int,
    image_size: tuple[int, int],
    activation: Literal["relu", "prelu"] = "relu",
    final_activation: bool = True,
) -> Backbone:
    """A freshly initialised backbone for images of `in_channels` channels and (height, width) `image_size`.

    `prelu` replaces every ReLU by a PReLU with one learnable slope (initially 0.25), shared by the two activations of
    a residual block, as in the Orthogonal Classifier's networks (Xu et al. 2022, https://arxiv.org/abs/2105.09109).
    Without `final_activation` the last activation before the feature vector is dropped, and only that one.

    Raises:
        BenchError: there is no backbone of this name, or the images are too small for it.
    """
    if name not in _BACKBONES:
        raise unknown_name("backbone", name, _BACKBONES)
    make, smallest = _BACKBONES[name]
    if min(image_size) < smallest:
        fitting = [other for other in BACKBONES if _BACKBONES[other][1] <= min(image_size)]
        size = f"{image_size[0]}x{image_size[1]}"
        raise BenchError(
            f"backbone {name!r} needs images of at least {smallest}x{smallest}, these are {size}. "
            f"Choose from: {', '.join(fitting)}."
        )
    return make(in_channels, image_size, _ACTIVATIONS[activation], final_activation)


class _PostActivationBlock(nn.Module):
    """conv-BN-activation-conv-BN, plus the shortcut, then the activation (He et al. 2016, figure 2)."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.activation = make_activation()
        self.final_activation = final_activation

    def forward(self, inputs: FeatureMap) -> NextMap:
        hidden = self.activation(self.bn1(self.conv1(inputs)))
        total = self.bn2(self.conv2(hidden)) + self.shortcut(inputs)
        return self.activation(total) if self.final_activation else total


class ResNet18(Backbone):
    """ResNet-18 with a 3x3 stem of stride 1 (He et al. 2016, https://arxiv.org/abs/1512.03385, for 32x32 images).

    Four stages of two blocks, 64 to 512 channels, with convolution and BN on projection shortcuts; the features are
    the spatial mean. PyTorch's default initialisation. As TRADES, MART and the RobustBench zoo train it.
    """

    feature_dim = map_channels = 512

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.activation = make_activation()
        blocks = []
        inputs = 64
        for stage, channels in enumerate((64, 128, 256, 512)):
            stride = 1 if stage == 0 else 2
            last = final_activation or stage < 3
            blocks.append(_PostActivationBlock(inputs, channels, stride, make_activation, True))
            blocks.append(_PostActivationBlock(channels, channels, 1, make_activation, last))
            inputs = channels
        self.blocks = nn.Sequential(*blocks)

    def feature_map(self, images: Images) -> FeatureMap:
        return self.blocks(self.activation(self.bn1(self.conv1(images))))


class _PreActivationBlock(nn.Module):
    """BN-activation-conv twice, plus the shortcut; a projection starts from the first activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, make_activation: MakeActivation) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None
        self.activation = make_activation()

    def forward(self, inputs: FeatureMap) -> NextMap:
        activated = self.activation(self.bn1(inputs))
        hidden = self.activation(self.bn2(self.conv1(activated)))
        shortcut = inputs if self.projection is None else self.projection(activated)
        return self.conv2(hidden) + shortcut


class WideResNet34x10(Backbone):
    """WideResNet-34-10 without dropout (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146).

    Three stages of five blocks, 160 to 640 channels, then BN, activation and spatial mean. Convolutions start from
    N(0, 2 / (k * k * out_channels)), linear biases from 0.

    Deviation: the adversarial training code that starts from TRADES' declares one more stage and never runs it; it
    is left out here.
    """

    feature_dim = map_channels = 640

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 16)
        blocks = []
        inputs = 16
        for channels, stride in ((160, 1), (320, 2), (640, 2)):
            blocks.append(_PreActivationBlock(inputs, channels, stride, make_activation))
            blocks.extend(_PreActivationBlock(channels, channels, 1, make_activation) for _ in range(4))
            inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.bn1 = nn.BatchNorm2d(640)
        self.activation = make_activation() if final_activation else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def feature_map(self, images: Images) -> FeatureMap:
        return self.activation(self.bn1(self.blocks(self.conv1(images))))

    def initialise_linear(self, linear: nn.Linear) -> None:
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


class LeNetPlusPlus(Backbone):
    """LeNets++ (Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", table 1).

    Pairs of 5x5 convolutions of 32, 64 and 128 channels, each followed by a PReLU (slope 0.25), 2x2 max-pooling
    after each pair, then a linear layer to two signed features and a PReLU. Weights start from
    U(+-sqrt(3 / fan_in)), Caffe's "xavier"; biases from 0. Always PReLU, whatever activation is asked for.

    Deviation: one slope per activation and pooled sizes rounded down, as in the PyTorch versions of this network
    (KaiyangZhou/pytorch-center-loss); Caffe learns a slope per channel and rounds up.
    """

    feature_dim = 2
    map_channels = 128

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for channels in (32, 64, 128):
            layers += [nn.Conv2d(inputs, channels, 5, padding=2), nn.PReLU()]
            layers += [nn.Conv2d(channels, channels, 5, padding=2), nn.PReLU(), nn.MaxPool2d(2)]
            inputs = channels
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(128 * (image_size[0] // 8) * (image_size[1] // 8), 2)
        self.activation = nn.PReLU() if final_activation else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _caffe_xavier(module)

    def feature_map(self, images: Images) -> FeatureMap:
        return self.layers(images)

    def embed(self, feature_map: FeatureMap) -> Features:
        return self.activation(self.linear(feature_map.flatten(1)))

    def initialise_linear(self, linear: nn.Linear) -> None:
        _caffe_xavier(linear)


class SmallConvNet(Backbone):
    """A few 3x3 convolutions without BN and 128 features, small enough to train on a processor.

    A stem of 16 channels (stride 2 where the smaller side exceeds 16), then stages of stride 2 that double the
    channels until the smaller side is at most 4, then a linear layer. PyTorch's default initialisation.
    """

    feature_dim = 128

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        height, width = image_size
        channels, stride = 16, 1 if min(image_size) <= 16 else 2
        layers = [*self._convolution(in_channels, channels, stride), make_activation()]
        height, width = math.ceil(height / stride), math.ceil(width / stride)
        while min(height, width) > 4:
            layers += [*self._convolution(channels, 2 * channels, 2), make_activation()]
            channels, height, width = 2 * channels, math.ceil(height / 2), math.ceil(width / 2)
        self.map_channels = channels
        self.layers = nn.Sequential(*layers)
        self.linear: nn.Module = nn.Linear(channels * height * width, self.feature_dim)
        self.activation = make_activation() if final_activation else nn.Identity()

    @staticmethod
    def _convolution(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, channels, 3, stride, padding=1)]

    def feature_map(self, images: Images) -> FeatureMap:
        return self.layers(images)

    def embed(self, feature_map: FeatureMap) -> Features:
        return self.activation(self.linear(feature_map.flatten(1)))


class SmallBatchNormNet(SmallConvNet):
    """The same with BN after every convolution: trains at the protocol's rate on colour photographs."""

    @staticmethod
    def _convolution(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        return [_conv3x3(in_channels, channels, stride), nn.BatchNorm2d(channels)]


class WideBatchNormNet(SmallBatchNormNet):
    """The same convolutions, then a 1x1 convolution to 512 channels with BN, whose spatial mean is the features.

    As many features as ResNet-18 has, taken the same way: some losses depend on the number of features.
    """

    feature_dim = 512

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        # This makes a linear layer that is replaced below: the numbers it draws belong to what a seed starts from.
        super().__init__(in_channels, image_size, make_activation, final_activation)
        self.linear = nn.Conv2d(self.map_channels, self.feature_dim, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.feature_dim)

    def embed(self, feature_map: FeatureMap) -> Features:
        return self.activation(self.bn1(self.linear(feature_map))).mean((2, 3))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def _caffe_xavier(layer: nn.Conv2d | nn.Linear) -> None:
    bound = math.sqrt(3 / layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


_BACKBONES: Mapping[str, tuple[Callable[[int, tuple[int, int], MakeActivation, bool], Backbone], int]] = {
    "cnn-small": (SmallConvNet, 1),
    "cnn-small-bn": (SmallBatchNormNet, 1),
    "cnn-small-bn-512": (WideBatchNormNet, 1),
    "lenetpp": (LeNetPlusPlus, 8),
    "resnet18": (ResNet18, 8),
    "wrn-34-10": (WideResNet34x10, 8),
}
"""The class, and the smallest side of an image that it takes, in pixels."""
