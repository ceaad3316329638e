"""Models: backbones, classifiers whose features can be measured, and the modes they are in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from bench.interfaces.tensors import Centres, FeatureMap, Features, Images, Logits

MakeActivation: TypeAlias = Callable[[], nn.Module]
"""Makes one activation of a network, such as `nn.ReLU`."""


class Backbone(nn.Module, ABC):
    """Maps images to one feature vector each, by way of a feature map that a defense may work on.

    One is made as `Class(in_channels, image_size, make_activation, final_activation)`, for images of (height, width)
    `image_size`. Without `final_activation` its last activation before the feature vector is left out.
    """

    smallest: ClassVar[int] = 1
    """Smallest side of an image that it takes, in pixels."""
    feature_dim: int
    map_channels: int

    @abstractmethod
    def feature_map(self, images: Images) -> FeatureMap:
        """The last map before pooling."""

    def embed(self, feature_map: FeatureMap) -> Features:
        """The feature vector of a map. Default: its spatial mean."""
        return feature_map.mean((2, 3))

    def forward(self, images: Images) -> Features:
        return self.embed(self.feature_map(images))

    def initialise_linear(self, linear: nn.Linear) -> None:
        """Initialise a linear layer on the features as this backbone's authors do. Default: as PyTorch does."""


@runtime_checkable
class BackboneFactory(Protocol):
    """Makes the backbone that the run asks for."""

    def __call__(self, activation: Literal["relu", "prelu"] = "relu", final_activation: bool = True) -> Backbone:
        """`prelu` learns one slope per block; without `final_activation` the features may be negative."""


class Classifier(nn.Module, ABC):
    """A model whose features and class centres can be measured. `forward` returns logits."""

    @abstractmethod
    def features(self, images: Images) -> Features:
        """The features that `score` reads."""

    @abstractmethod
    def score(self, features: Features) -> Logits:
        """Logits of features."""

    @abstractmethod
    def class_centres(self) -> Centres:
        """One vector per class in feature space: prototypes, or the classifier's weight rows."""

    def forward(self, images: Images) -> Logits:
        return self.score(self.features(images))


class LinearClassifier(Classifier):
    """A backbone and one linear layer with bias, which rounds no logit: in half precision it keeps its own."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.feature_dim, num_classes)
        backbone.initialise_linear(self.head)

    def features(self, images: Images) -> Features:
        return self.backbone(images)

    def score(self, features: Features) -> Logits:
        # What follows is a loss in float32. The product is a small one.
        with without_autocast(features):
            return self.head(features.to(self.head.weight.dtype))

    def class_centres(self) -> Centres:
        return self.head.weight.detach()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; every submodule's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def without_autocast(values: Tensor) -> AbstractContextManager[Any]:
    """For what shall not be rounded on the device of these values.

    Backward passes are such: under autocast they round even what the forward pass computed in float32.
    """
    return torch.autocast(values.device.type, enabled=False)
