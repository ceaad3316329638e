"""Pictures of a model as arrays: `bench.evaluation.pictures` makes them, and `leaderboard/figures/` draws them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class FeatureCloud:
    """Features of one model on some test images."""

    model: str
    clean: Float[np.ndarray, "sample dim"]
    adversarial: Float[np.ndarray, "sample dim"]
    """Of the last iterate of an attack."""
    labels: Int[np.ndarray, " sample"]
    classes: tuple[str, ...]
    """Their names."""
    centres: Float[np.ndarray, "classes dim"] | None = None
    """Prototypes; None for a linear layer, whose weights are no points among the features."""


@dataclass(frozen=True)
class AdversarialExample:
    """An image before and after an attack, in [0, 1], and the model's answers to both."""

    clean: Float[np.ndarray, "channel row column"]
    adversarial: Float[np.ndarray, "channel row column"]
    true: str
    clean_prediction: str
    adversarial_prediction: str


@dataclass(frozen=True)
class NearestPair:
    """A test image and the extra training image nearest to it, in [0, 1], with their classes."""

    test: Float[np.ndarray, "channel row column"]
    extra: Float[np.ndarray, "channel row column"]
    test_class: str
    extra_class: str
    distance: float
    """l2, in the space in which it is the nearest."""
