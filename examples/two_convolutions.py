"""A backbone of one's own: two convolutions.

bench train --backbone examples/two_convolutions.py --defense at --dataset digits
"""

from torch import nn

from bench.interfaces import Backbone, FeatureMap, Images, MakeActivation


class TwoConvolutions(Backbone):
    """Two convolutions of stride 2; the features are the spatial mean of the last map."""

    smallest = 4
    feature_dim = map_channels = 32

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.activation = make_activation()
        self.last_activation = make_activation() if final_activation else nn.Identity()

    def feature_map(self, images: Images) -> FeatureMap:
        return self.last_activation(self.second(self.activation(self.first(images))))
