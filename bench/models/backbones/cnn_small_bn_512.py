"""A small network with BatchNorm and as many features as ResNet-18 has."""

from torch import nn

from bench.interfaces import FeatureMap, Features, MakeActivation
from bench.models.backbones.cnn_small_bn import SmallBatchNormNet


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
