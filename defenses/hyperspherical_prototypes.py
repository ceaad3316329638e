"""Hyperspherical prototype networks (Mettes et al. 2019, https://arxiv.org/abs/1901.10514).

No adversarial training: clean images only, towards class prototypes P_k on the unit sphere that were spread beforehand.

    P minimises   mean_k max over j != k of <P_k, P_j>
    f(x) = linear(backbone(x)) / its length,   minimise over the network   weight * mean_i (1 - <f(x_i), P_{y_i}>)^2
    z_k(x) = scale * <f(x), P_k>

Up to dimension + 1 classes have their optimum in closed form: a regular simplex, every cosine -1/(classes - 1). It is
taken directly, turned as a seed has it. More classes are spread by the descent of the authors' code
(https://github.com/psmmettes/hpn): rate 0.1, each prototype put back on the sphere after every step. Its momentum never
acts, because its optimiser is made anew at every step.

Deviations: that code descends for few classes as well, towards the same simplex. It sums the loss over batches of 128
at a rate of 0.01: `weight` gives a mean the same product of the two at the protocol's rate of 0.1. Its logits are bare
cosines, between which the cross-entropy of an attack hardly tells classes apart: `scale` multiplies them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.attacks import full_precision, margin
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
    Scalar,
    TrainingContext,
    hyperparameter,
)


class SphericalClassifier(Classifier):
    """A backbone and a linear layer onto the unit sphere, scored by scaled cosines with fixed prototypes."""

    prototypes: Tensor

    def __init__(self, backbone: Backbone, prototypes: Centres, scale: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = nn.Linear(backbone.feature_dim, prototypes.shape[1])
        backbone.initialise_linear(self.output)
        self.register_buffer("prototypes", prototypes)
        self.scale = scale

    def features(self, images: Images) -> Features:
        return functional.normalize(self.output(self.backbone(images)), eps=1e-9)

    def score(self, features: Features) -> Logits:
        return self.scale * functional.linear(features, self.prototypes)

    def class_centres(self) -> Centres:
        return self.prototypes


@dataclass(frozen=True)
class HypersphericalPrototypes(Defense):
    """Regression of directions onto fixed class prototypes that lie far apart on a sphere.

    Raises:
        BenchError: the dimension, the number of prototype steps or the scale is not above 0, or above a million.
    """

    paper: ClassVar[str] = "Mettes, van der Pol & Snoek, NeurIPS 2019, https://arxiv.org/abs/1901.10514"
    family: ClassVar[Family] = "no adversarial training"

    dimension: int = hyperparameter(100, "of prototypes and features", "authors' code")
    prototype_steps: int = hyperparameter(10000, "of descent, for more than dimension + 1 classes", "authors' code")
    prototype_seed: int = hyperparameter(0, "seed of the prototypes' start", "ours")
    weight: float = hyperparameter(12.8, "of the loss, a mean over the batch", "authors' code: 128 * 0.01 / 0.1")
    scale: float = hyperparameter(15.0, "factor on the cosines, for attacks", "ours")

    def __post_init__(self) -> None:
        for name, usual in (("dimension", 100), ("prototype_steps", 10000), ("scale", 15)):
            if not 0 < getattr(self, name) <= 10**6:
                raise BenchError(f"{name}={getattr(self, name)} is not in (0, 1000000]. Leave it out, for {usual}.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> SphericalClassifier:
        return SphericalClassifier(backbone(), self.prototypes(num_classes), self.scale)

    def prototypes(self, num_classes: int) -> Centres:
        """The prototypes: the same for the same hyperparameters, whatever the run's seed.

        Raises:
            BenchError: two of them nearly coincide, as they may in few dimensions.
        """
        generator = torch.Generator().manual_seed(self.prototype_seed)
        start = torch.randn(num_classes, self.dimension, generator=generator, device="cpu", dtype=torch.float64)
        found = simplex(start) if num_classes <= self.dimension + 1 else spread(start, self.prototype_steps)
        nearest = float((found @ found.T).fill_diagonal_(-1.0).max())
        if nearest > 0.99:
            raise BenchError(
                f"two of {num_classes} prototypes have a cosine of {nearest:.4f} (dimension={self.dimension}, "
                f"prototype_seed={self.prototype_seed}). Choose a larger dimension or another prototype_seed."
            )
        return found.to(torch.get_default_dtype())

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        cosines = (full_precision(model.features(images)) * model.class_centres()[labels]).sum(1)
        return {"clean": self.weight * (1 - cosines).square().mean()}

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """The lead of the strongest rival, less a constant that no cosines exceed."""
        return lambda view, x: margin(view(x), labels, 2 * self.scale)


def simplex(start: Centres) -> Centres:
    """The regular simplex nearest to the rows of `start`: its centred rows with all singular values alike."""
    left, _, right = torch.linalg.svd(start - start.mean(0), full_matrices=False)
    rank = len(start) - 1
    return functional.normalize(left[:, :rank] @ right[:rank])


def spread(start: Centres, steps: int, rate: float = 0.1) -> Centres:
    """The rows, of length 1, after `steps` descent steps on the mean of their largest cosines with another row."""
    points = functional.normalize(start)
    for _ in range(steps):
        rivals = (points @ points.T).fill_diagonal_(-1.0).argmax(1)
        # The cosine of a row and its rival has the one as its gradient at the other.
        gradient = points[rivals].index_add(0, rivals, points) / len(points)
        points = functional.normalize(points - rate * gradient)
    return points
