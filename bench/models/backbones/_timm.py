"""Networks of timm (https://github.com/huggingface/pytorch-image-models), untrained, at the size of a dataset's images.

timm is imported only when one of its networks is asked for.
"""

from difflib import get_close_matches
from typing import Any

import torch

from bench.catalogue.names import TIMM
from bench.errors import BenchError
from bench.interfaces import Backbone, FeatureMap, Features, Images, evaluation_mode
from bench.system.environment import optional_package
from bench.system.randomness import untouched_randomness


class TimmBackbone(Backbone):
    """A network of timm without its classifier: its last features are the map, its pooled ones the feature vector.

    A transformer's tokens are a map of one row. Activations and initialisation are timm's.

    Raises:
        BenchError: timm is not installed, or has no network of this name.
    """

    def __init__(self, name: str, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.network = _network(name, in_channels, image_size)
        with torch.no_grad(), untouched_randomness(), evaluation_mode(self.network):
            last = self.network.forward_features(torch.zeros(2, in_channels, *image_size))
            self.feature_dim = self.network.forward_head(last, pre_logits=True).shape[1]
        self.tokens = last.ndim == 3
        self.channels_last = self.tokens or getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        self.map_channels = last.shape[-1 if self.channels_last else 1]

    def feature_map(self, images: Images) -> FeatureMap:
        features = self.network.forward_features(images)
        if self.tokens:
            features = features[:, None]
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def embed(self, feature_map: FeatureMap) -> Features:
        features = feature_map.permute(0, 2, 3, 1) if self.channels_last else feature_map
        return self.network.forward_head(features[:, 0] if self.tokens else features, pre_logits=True)


def timm_with(name: str, needed_by: str) -> Any:
    """The package timm, which has a network of this name.

    Raises:
        BenchError: it is not installed, or has none.
    """
    timm = optional_package("timm", "timm", needed_by)
    # Any other name timm would look up on a hub or in a folder.
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(f'{TIMM}{one}' for one in near)}?" if near else ""
        raise BenchError(f"timm has no network {name!r}.{hint} All of them: timm.list_models().")
    return timm


def _network(name: str, in_channels: int, image_size: tuple[int, int]) -> Any:
    timm = timm_with(name, f"backbone '{TIMM}{name}'")
    try:
        return timm.create_model(name, num_classes=0, in_chans=in_channels, img_size=image_size)
    except TypeError:  # convolutional networks take images of any size
        return timm.create_model(name, num_classes=0, in_chans=in_channels)
