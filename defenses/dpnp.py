"""DPNP: deep positive and negative prototypes on clean images (https://arxiv.org/abs/2501.02477).

Adv-DPNP's predecessor: one learned prototype per class is its centre and its weight. With f = features(x) of dimension
d, C = prototypes of M classes, n(j) the prototype nearest to c_j, and B the batch size:

    score_k(x) = c_k . f / alpha                                  (no bias)
    minimise   lambda_dnp * repulsion + 1/B sum [ CE(score(x), y) + lambda_dpp / 2 * alignment ]
    alignment  = ||f - c_y||^2 / d,     repulsion = -1/M sum_j sum_i |c_ji - c_n(j)i|^(1/2)

At the start of every epoch each prototype returns to radius alpha. No image is perturbed: well separated classes alone
are no defense, and this row shows how much of Adv-DPNP is its geometry.

Deviations: equations, weights and readings are those of Adv-DPNP (https://arxiv.org/abs/2504.03782, eqs. 1-5) with
clean images in place of perturbed ones, and not checked against the predecessor, which publishes no code: alignment is
a mean over dimensions, |u|^(1/2) is smoothed to (u^2 + 1e-6)^(1/4), and the gradient of repulsion reaches both ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from bench.attacks import cross_entropy, full_precision
from bench.errors import BenchError
from bench.interfaces import (
    Backbone,
    BackboneFactory,
    Centres,
    Classifier,
    Defense,
    Family,
    Features,
    Images,
    Labels,
    Logits,
    Objective,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


class PrototypeClassifier(Classifier):
    """A backbone scored by inner products with one prototype per class, divided by a constant radius."""

    def __init__(self, backbone: Backbone, num_classes: int, radius: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.prototypes = nn.Parameter(torch.randn(num_classes, backbone.feature_dim))
        self.radius = radius

    def features(self, images: Images) -> Features:
        return self.backbone(images)

    def score(self, features: Features) -> Logits:
        # Autocast would round the product, and the losses read it.
        with torch.autocast(features.device.type, enabled=False):
            return full_precision(features) @ full_precision(self.prototypes).T / self.radius

    def class_centres(self) -> Centres:
        return self.prototypes.detach()


@dataclass(frozen=True)
class DeepPrototypes(Defense):
    """Prototypes that attract their class and repel their nearest rival, on clean images.

    Raises:
        BenchError: `alpha` is not above 0.
    """

    paper: ClassVar[str] = "Zarei-Sabzevar & Harati 2025, https://arxiv.org/abs/2501.02477"
    family: ClassVar[Family] = "no adversarial training"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"cifar100": {"lambda_dpp": 0.3, "lambda_dnp": 3.0}}
    )

    alpha: float = hyperparameter(40.0, "radius of the prototypes and divisor of the scores", "Adv-DPNP")
    lambda_dpp: float = hyperparameter(0.1, "weight of the distance to the class's own prototype", "Adv-DPNP")
    lambda_dnp: float = hyperparameter(0.1, "weight of the repulsion between nearest prototypes", "Adv-DPNP")

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise BenchError(f"alpha={self.alpha} is not above 0. It is a radius: Adv-DPNP takes 40.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> PrototypeClassifier:
        return PrototypeClassifier(backbone(), num_classes, self.alpha)

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        features = model.features(images)
        return {
            "clean": cross_entropy(model.score(features), labels).mean(),
            "alignment": self.lambda_dpp / 2 * alignment(features, model.prototypes, labels).mean(),
            "repulsion": self.lambda_dnp * repulsion(model.prototypes),
        }

    def begin_epoch(self, model: Any, context: TrainingContext) -> None:
        with torch.no_grad():
            model.prototypes.copy_(self.alpha * functional.normalize(model.prototypes))

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(score(x), y) + lambda_dpp / 2 * alignment, with fixed prototypes."""

        def objective(model: Any, x: Images) -> PerExample:
            features = model.features(x)
            distance = alignment(features, model.class_centres(), labels)
            return cross_entropy(model.score(features), labels) + self.lambda_dpp / 2 * distance

        return objective


def alignment(features: Features, prototypes: Centres, labels: Labels) -> PerExample:
    """Mean squared difference of a row and its own class's prototype, per sample; at least float32."""
    return (full_precision(features) - full_precision(prototypes)[labels]).square().mean(1)


def repulsion(prototypes: Centres) -> Scalar:
    """Minus the l_(1/2) distance, to the power 1/2, from a prototype to the nearest other one; mean over classes."""
    points = full_precision(prototypes)
    # The matrix-product shortcut cancels: between near rivals it orders distances at random.
    distances = torch.cdist(points.detach(), points.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    gap = points - points[distances.fill_diagonal_(torch.inf).argmin(1)]
    return -(gap.square() + 1e-6).pow(0.25).sum(1).mean()
