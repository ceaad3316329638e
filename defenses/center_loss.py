"""Center loss (Wen et al. 2016, https://doi.org/10.1007/978-3-319-46478-7_31, eqs. 2-5 and Algorithm 1).

No adversarial training: clean images only. With f = features(x), a centre c_k per class, and n_k images of class k in
the batch:

    minimise over the model   mean_i CE(z(x_i), y_i) + weight / 2 * mean_i ||f_i - c_{y_i}||^2
    c_k <- c_k - rate * sum over i of class k of (c_k - f_i) / (1 + n_k)      after every step, f of before it

No gradient moves the centres, and no prediction reads them: a linear layer scores the features, and its rows are the
class centres that are measured. A classic of compact features, not made as a defense.

Deviations: the paper sums both terms over the batch, here both are means, as in the authors' code
(https://github.com/ydwen/caffe-face); `weight` balances the two alike. That code moves its centres by the optimiser;
here they move as the paper says. They start at 0.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bench.attacks import cross_entropy, full_precision
from bench.interfaces import (
    Backbone,
    BackboneFactory,
    Defense,
    Family,
    Features,
    Images,
    Labels,
    LinearClassifier,
    Objective,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
    without_autocast,
)


class CentredClassifier(LinearClassifier):
    """A linear classifier, and beside it a centre of each class's features."""

    centres: Tensor

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.register_buffer("centres", torch.zeros(num_classes, backbone.feature_dim))

    def distance(self, features: Features, labels: Labels) -> PerExample:
        """||f - c_y||^2, per sample; at least float32."""
        return (full_precision(features) - self.centres[labels]).square().sum(1)

    @torch.no_grad()
    def move_centres(self, features: Features, labels: Labels, rate: float) -> None:
        """Move each centre towards the features of its class."""
        members = functional.one_hot(labels, len(self.centres)).to(self.centres)
        with torch.autocast(features.device.type, enabled=False):
            counts, sums = members.sum(0)[:, None], members.T @ features.to(self.centres)
        self.centres.sub_(rate * (counts * self.centres - sums) / (1 + counts))


@dataclass(frozen=True)
class CenterLoss(Defense):
    """Cross-entropy on clean images, and features near the centre of their class."""

    paper: ClassVar[str] = "Wen et al., ECCV 2016, https://doi.org/10.1007/978-3-319-46478-7_31, Algorithm 1"
    family: ClassVar[Family] = "no adversarial training"
    undivided: ClassVar[str] = "its centres move by the images of every batch"

    weight: float = hyperparameter(0.003, "lambda: weight of the distance to the own centre")
    rate: float = hyperparameter(0.5, "alpha: how far centres move")

    def build(self, backbone: BackboneFactory, num_classes: int) -> CentredClassifier:
        return CentredClassifier(backbone(), num_classes)

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        return self._terms(model, model.features(images), labels)

    def update(
        self, model: Any, optimizer: torch.optim.Optimizer, images: Images, labels: Labels, context: TrainingContext
    ) -> dict[str, Scalar]:
        features = model.features(images)
        terms = self._terms(model, features, labels)
        optimizer.zero_grad(set_to_none=True)
        with without_autocast(images):
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.move_centres(features, labels, self.rate)
        return terms

    def _terms(self, model: Any, features: Features, labels: Labels) -> dict[str, Scalar]:
        return {
            "clean": cross_entropy(model.score(features), labels).mean(),
            "compactness": self.weight / 2 * model.distance(features, labels).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(z(x), y) + weight / 2 * ||f - c_y||^2."""

        def objective(model: Any, x: Images) -> PerExample:
            features = model.features(x)
            return cross_entropy(model.score(features), labels) + self.weight / 2 * model.distance(features, labels)

        return objective
