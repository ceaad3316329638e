"""A small network with BatchNorm."""

from torch import nn

from bench.models.backbones._layers import conv3x3
from bench.models.backbones.cnn_small import SmallConvNet


class SmallBatchNormNet(SmallConvNet):
    """The same with BN after every convolution: trains at the protocol's rate on colour photographs."""

    @staticmethod
    def _convolution(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        return [conv3x3(in_channels, channels, stride), nn.BatchNorm2d(channels)]
