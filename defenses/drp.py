"""DRP: deep repulsive prototypes (Serban, Poll & Visser 2021, https://arxiv.org/abs/2105.12427).

No adversarial training: clean images only, towards class prototypes P_k in R^n that were spread apart beforehand.

    P from iid U(-1, 1), ascending   sum or mean over pairs i < j of max_c |P_ic - P_jc|   (SGD, 0.01, momentum 0.9)
    o(x) = linear(backbone(x)) in R^n
    loss=inf      minimise over the network   mean_i max_c |o_c(x_i) - P_yc + 1e-6|
    loss=cosine   minimise over the network   mean_i 1 - <o(x_i), P_y> / (|o(x_i)| |P_y|), prototypes of length 1
    z_k(x) = <o(x), P_k> / mean_j |P_j|^2

Follows the apparent first author's code (https://github.com/NullConvergence/repulsive_proto), whose prototype files
are lost: they are made here, from a seed of their own.

Deviations: scores are divided by the mean squared prototype length and not by |o|: raw ones reach thousands, where
cross-entropy saturates in float32 and an attack finds no gradient; the prediction is the same. That code takes its
cosines along the batch axis; here they are along the features. Its sum over pairs confuses classes on CIFAR-100, so
more than 10 classes take the mean. Optimiser and schedule are the run's (authors: 200 epochs, cyclic 0.001..0.006).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import BenchError
from bench.interfaces import (
    Backbone,
    BackboneFactory,
    Centres,
    Classifier,
    Defense,
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


class PrototypeRegressor(Classifier):
    """A backbone, a linear layer with n outputs (the features), and fixed prototypes as a buffer."""

    prototypes: Tensor

    def __init__(self, backbone: Backbone, prototypes: Centres) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = nn.Linear(backbone.feature_dim, prototypes.shape[1])
        backbone.initialise_linear(self.output)
        self.register_buffer("prototypes", prototypes)

    def features(self, images: Images) -> Features:
        return self.output(self.backbone(images))

    def score(self, features: Features) -> Logits:
        squared_length = self.prototypes.square().sum(1).mean()
        return functional.linear(features, self.prototypes / squared_length)

    def class_centres(self) -> Centres:
        return self.prototypes


@dataclass(frozen=True)
class RepulsivePrototypes(Defense):
    """Regression onto fixed, mutually repelled class prototypes.

    Raises:
        BenchError: the dimension is below 1, or the number of prototype steps is below 0.
    """

    paper: ClassVar[str] = "Serban, Poll & Visser 2021, https://arxiv.org/abs/2105.12427, prototype separation loss"

    loss: Literal["inf", "cosine"] = hyperparameter("inf", "distance of outputs to prototypes", "authors' code")
    dimension: int | None = hyperparameter(None, "prototype length; auto: max(100, 5 * classes)", "authors' code")
    reduction: Literal["auto", "sum", "mean"] = hyperparameter(
        "auto", "over pairs of prototypes; auto: sum up to 10 classes, else mean", "authors' code: sum"
    )
    prototype_steps: int | None = hyperparameter(
        None, "ascent steps of the prototypes; auto: 100 up to 10 classes, else 1000", "authors' code"
    )
    prototype_seed: int = hyperparameter(0, "seed of the prototypes' start", "ours")
    weight_decay: float | None = hyperparameter(None, "none: the run's; the authors use 5e-5", "ours")

    def __post_init__(self) -> None:
        if self.dimension is not None and self.dimension < 1:
            raise BenchError(f"dimension={self.dimension} is below 1. Give the length of a prototype, or none.")
        if self.prototype_steps is not None and self.prototype_steps < 0:
            raise BenchError(f"prototype_steps={self.prototype_steps} is below 0. Give a number of steps, or none.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> PrototypeRegressor:
        return PrototypeRegressor(backbone(), self.prototypes(num_classes))

    def prototypes(self, num_classes: int) -> Centres:
        """The prototypes: the same for the same hyperparameters, whatever the run's seed.

        Raises:
            BenchError: a prototype scores higher for another class than for its own.
        """
        few = num_classes <= 10
        dimension = self.dimension or max(100, 5 * num_classes)
        steps = (100 if few else 1000) if self.prototype_steps is None else self.prototype_steps
        reduction = ("sum" if few else "mean") if self.reduction == "auto" else self.reduction
        generator = torch.Generator().manual_seed(self.prototype_seed)
        start = 2 * torch.rand(num_classes, dimension, generator=generator, device="cpu") - 1
        spread = repel(start, steps, reduction)
        if self.loss == "cosine":
            spread = functional.normalize(spread)
        confused = (spread @ spread.T).argmax(1) != torch.arange(num_classes)
        if confused.any():
            raise BenchError(
                f"{int(confused.sum())} of {num_classes} prototypes (dimension={dimension}, reduction={reduction}, "
                f"prototype_steps={steps}, prototype_seed={self.prototype_seed}) score higher for another class than "
                "for their own. Choose reduction=mean, a larger dimension or another prototype_seed."
            )
        return spread

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        distance = largest_deviation if self.loss == "inf" else cosine_distance
        return {"clean": distance(model.features(images), model.class_centres()[labels])}

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        own = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return [{**group, **own} for group in super().parameter_groups(model)]

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective | None:
        """max_{k != y} z_k - z_y: the loss's own gradient is that of one output per image, and hops between them."""

        def lead(view: nn.Module, x: Images) -> PerExample:
            scores = view(x)
            true = scores.gather(1, labels[:, None])
            return scores.scatter(1, labels[:, None], -torch.inf).amax(1) - true.squeeze(1)

        return lead


def repel(start: Centres, steps: int, reduction: str) -> Centres:
    """Prototypes after `steps` ascent steps on the sum or mean of the largest coordinate distances of all pairs."""
    with torch.enable_grad():
        moved = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([moved], lr=0.01, momentum=0.9, maximize=True)
        for _ in range(steps):
            distances = torch.pdist(moved, p=torch.inf)
            separation = distances.sum() if reduction == "sum" else distances.mean()
            optimizer.zero_grad()
            separation.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return moved.detach()


def largest_deviation(outputs: Features, targets: Features) -> Scalar:
    """mean_i max_c |output_ic - target_ic + 1e-6|."""
    return (outputs - targets + 1e-6).abs().amax(1).mean()


def cosine_distance(outputs: Features, targets: Features) -> Scalar:
    """mean_i 1 - cos(output_i, target_i)."""
    return (1 - functional.cosine_similarity(outputs, targets, dim=1)).mean()
