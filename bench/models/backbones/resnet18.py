"""ResNet-18 for small images."""

from torch import nn

from bench.interfaces import Backbone, FeatureMap, Images, MakeActivation
from bench.models.backbones._layers import NextMap, conv3x3


class _PostActivationBlock(nn.Module):
    """conv-BN-activation-conv-BN, plus the shortcut, then the activation (He et al. 2016, figure 2)."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
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

    smallest = 8
    feature_dim = map_channels = 512

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 64)
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
