"""LeNets++, whose two features can be drawn."""

import math

from torch import nn

from bench.interfaces import Backbone, FeatureMap, Features, Images, MakeActivation


class LeNetPlusPlus(Backbone):
    """LeNets++ (Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", table 1).

    Pairs of 5x5 convolutions of 32, 64 and 128 channels, each followed by a PReLU (slope 0.25), 2x2 max-pooling
    after each pair, then a linear layer to two signed features and a PReLU. Weights start from
    U(+-sqrt(3 / fan_in)), Caffe's "xavier"; biases from 0. Always PReLU, whatever activation is asked for.

    Deviation: one slope per activation and pooled sizes rounded down, as in the PyTorch versions of this network
    (KaiyangZhou/pytorch-center-loss); Caffe learns a slope per channel and rounds up.
    """

    smallest = 8
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


def _caffe_xavier(layer: nn.Conv2d | nn.Linear) -> None:
    bound = math.sqrt(3 / layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
