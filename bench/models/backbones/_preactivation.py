"""Networks of pre-activation blocks (He et al. 2016, https://arxiv.org/abs/1603.05027)."""

import math
from typing import ClassVar

from torch import nn

from bench.interfaces import Backbone, FeatureMap, Images, MakeActivation
from bench.models.backbones._layers import NextMap, conv3x3


class PreActivationBlock(nn.Module):
    """BN-activation-conv twice, plus the shortcut; a projection starts from the first activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, make_activation: MakeActivation) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None
        self.activation = make_activation()

    def forward(self, inputs: FeatureMap) -> NextMap:
        activated = self.activation(self.bn1(inputs))
        hidden = self.activation(self.bn2(self.conv1(activated)))
        shortcut = inputs if self.projection is None else self.projection(activated)
        return self.conv2(hidden) + shortcut


class PreActivationNet(Backbone):
    """A 3x3 convolution, stages of pre-activation blocks, BN, activation and spatial mean."""

    smallest = 8
    stem: ClassVar[int]
    """Channels of the first convolution."""
    stages: ClassVar[tuple[tuple[int, int], ...]]
    """Channels of each stage, and the stride of its first block."""
    blocks_per_stage: ClassVar[int]

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, self.stem)
        blocks = []
        inputs = self.stem
        for channels, first_stride in self.stages:
            for stride in (first_stride, *(self.blocks_per_stage - 1) * (1,)):
                blocks.append(PreActivationBlock(inputs, channels, stride, make_activation))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation = make_activation() if final_activation else nn.Identity()
        self.feature_dim = self.map_channels = inputs

    def feature_map(self, images: Images) -> FeatureMap:
        return self.activation(self.bn1(self.blocks(self.conv1(images))))


class WideResNet(PreActivationNet):
    """Of width 10, without dropout (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146).

    Three stages of 160 to 640 channels. Convolutions start from N(0, 2 / (k * k * out_channels)), linear biases from 0.
    """

    stem = 16
    stages = ((160, 1), (320, 2), (640, 2))
    own_activation: ClassVar[type[nn.Module]] = nn.ReLU
    """Where a defense asks for PReLU, that takes its place."""

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        activation = self.own_activation if make_activation is nn.ReLU else make_activation
        super().__init__(in_channels, image_size, activation, final_activation)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def initialise_linear(self, linear: nn.Linear) -> None:
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
