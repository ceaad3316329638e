"""A small network without BatchNorm."""

import math

from torch import nn

from bench.interfaces import Backbone, FeatureMap, Features, Images, MakeActivation


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
