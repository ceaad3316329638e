"""PCL: prototype conformity loss (Mustafa et al. 2019, https://arxiv.org/abs/1904.00887, section 3).

Two feature layers f: the pooled features z, and a wide linear layer h = wide(z); logits = head(h). Each layer has two
tables of class centres: P attracts, Q repels. Over N rows, clean images first and then perturbed ones:

    minimise   CE + w (attraction_h + attraction_z) - v (repulsion_h + repulsion_z)
    attraction_f = mean_i ||f_i - P_f[y_i]||^2        repulsion_f = mean_i mean_{j != y_i} ||f_i - Q_f[j]||^2
    P <- P - attracting_rate * d attraction / dP      Q <- Q + repelling_rate * d repulsion / dQ

The centres are parameters, so that a checkpoint holds them, but plain SGD on the unweighted losses moves them.

Deviations: the equations are those of https://github.com/aamir-mustafa/pcl-adversarial-defense, which squares the
distances and keeps P and Q apart. Its attack is replaced by the protocol's PGD, as it normalises pixels at every step
and so does not attack; its clean pre-training by a warm-up on cross-entropy alone, in which P already tracks the class
means, and a linear ramp of w and v; and w = 1 by 0.1, its product of learning rate and w at a rate of 0.1. Only the
two layers of that code carry centres, not the paper's auxiliary branches.

Stability: attraction_h is least squares in `wide`, of curvature 2 w (||z||^2 + 1). SGD with momentum 0.9 diverges where
lr * w * (||z||^2 + 1), recorded as `stiffness`, stays above 1.9: then lower `attraction` or lengthen `warm_up`. It is
recorded and not enforced, since a check at every step would make the device wait.

Features are h, the layer that `score` reads; class centres are the rows of `head`, as for every other classifier.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bench.attacks import craft, cross_entropy, uniform_start
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
    without_autocast,
)


class ConformityClassifier(Classifier):
    """A backbone, two linear layers without a non-linearity between, and the centres of both feature layers."""

    def __init__(self, backbone: Backbone, num_classes: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.wide = nn.Linear(backbone.feature_dim, width)
        self.head = nn.Linear(width, num_classes)
        backbone.initialise_linear(self.wide)
        backbone.initialise_linear(self.head)
        sizes = {"pooled": backbone.feature_dim, "wide": width}
        self.attracting = nn.ParameterDict({name: torch.randn(num_classes, size) for name, size in sizes.items()})
        self.repelling = nn.ParameterDict({name: torch.randn(num_classes, size) for name, size in sizes.items()})

    def features(self, images: Images) -> Features:
        return self.wide(self.backbone(images))

    def score(self, features: Features) -> Logits:
        return self.head(features)

    def class_centres(self) -> Centres:
        return self.head.weight.detach()


@dataclass(frozen=True)
class PrototypeConformity(Defense):
    """Cross-entropy on clean and perturbed images, and compact classes in two feature layers."""

    paper: ClassVar[str] = (
        "Mustafa et al., ICCV 2019, https://arxiv.org/abs/1904.00887, in the form of the authors' code"
    )
    undivided: ClassVar[str] = "its centres take steps of their own on every batch"

    attraction: float = hyperparameter(0.1, "w: weight of the distance to the own centre", "port; official 1")
    repulsion: float = hyperparameter(1e-5, "v: weight of the distance to the other centres", "official code")
    attracting_rate: float = hyperparameter(0.5, "SGD rate of the attracting centres P", "official code")
    repelling_rate: float = hyperparameter(1e-5, "SGD rate of the repelling centres Q", "official code")
    warm_up: float = hyperparameter(10 / 110, "share of the epochs, from the first, on cross-entropy alone", "port")
    ramp: float = hyperparameter(10 / 110, "share of the epochs, after the warm-up, in which w and v grow", "port")
    width: int = hyperparameter(1024, "size of the wide feature layer", "official code")

    def __post_init__(self) -> None:
        for name in ("warm_up", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise BenchError(f"hyperparameter {name}={getattr(self, name)} is not a share: give 0 to 1.")
        if self.width < 1:
            raise BenchError(f"hyperparameter width={self.width} is below 1: give the official 1024, or another size.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> ConformityClassifier:
        return ConformityClassifier(backbone(), num_classes, self.width)

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        named = model.named_parameters()
        return [{"params": [value for name, value in named if not name.startswith(("attracting.", "repelling."))]}]

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        return self._weighted(_unweighted(model, *_clean_and_perturbed(model, images, labels, context)), context)

    def update(
        self, model: Any, optimizer: torch.optim.Optimizer, images: Images, labels: Labels, context: TrainingContext
    ) -> dict[str, Scalar]:
        pooled, both_labels = _clean_and_perturbed(model, images, labels, context)
        raw = _unweighted(model, pooled, both_labels)
        terms = self._weighted(raw, context)
        # Before the optimiser steps: the centres' gradients belong to the same weights as the network's.
        moves = [
            (model.attracting, raw["pooled_attraction"] + raw["wide_attraction"], -self.attracting_rate),
            (model.repelling, raw["pooled_repulsion"] + raw["wide_repulsion"], self.repelling_rate),
        ]
        optimizer.zero_grad(set_to_none=True)
        shared = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with without_autocast(images):
            gradients = [torch.autograd.grad(loss, list(t.values()), retain_graph=True) for t, loss, _ in moves]
            torch.stack(list(terms.values())).sum().backward(inputs=shared)  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for (tables, _, rate), gradient in zip(moves, gradients, strict=True):
                for table, slope in zip(tables.values(), gradient, strict=True):
                    table.add_(slope, alpha=rate)
        weight = self.attraction * self.share_of_weight(context.epoch, context.epochs)
        square = pooled.detach().float().square().sum(1).mean()
        context.record("pooled_square_norm", square)
        context.record("stiffness", optimizer.param_groups[0]["lr"] * weight * (square + 1))
        for name in ("pooled_attraction", "wide_attraction"):
            context.record(f"unweighted_{name}", raw[name].detach())
        return terms

    def share_of_weight(self, epoch: int, epochs: int) -> float:
        """The share of w and v in force: 0 in the warm-up, up to 1 in the last epoch of the ramp."""
        # The tolerance keeps 10/110 of 110 epochs at 10; rounding up gives the shortest run a whole epoch of warm-up.
        warm_up, ramp = (math.ceil(share * epochs - 1e-9) for share in (self.warm_up, self.ramp))
        return min(max((epoch + 1 - warm_up) / max(ramp, 1), 0.0), 1.0)

    def _weighted(self, raw: dict[str, Scalar], context: TrainingContext) -> dict[str, Scalar]:
        share = self.share_of_weight(context.epoch, context.epochs)
        weights = {"cross_entropy": 1.0, "attraction": share * self.attraction, "repulsion": -share * self.repulsion}
        return {name: weights[name.removeprefix("pooled_").removeprefix("wide_")] * raw[name] for name in raw}

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """How much nearer h is to a rival's centre than to its own: tight clusters saturate CE, but not this."""

        def prototype_margin(model: Any, perturbed: Images) -> PerExample:
            distances = squared_distances(model.features(perturbed), model.attracting["wide"])
            own = distances.gather(1, labels[:, None]).squeeze(1)
            return own - distances.scatter(1, labels[:, None], torch.inf).amin(1)

        return prototype_margin


def _clean_and_perturbed(
    model: Any, images: Images, labels: Labels, context: TrainingContext
) -> tuple[Float[Tensor, "both dim"], Int64[Tensor, " both"]]:
    """Pooled features and labels of clean and perturbed images, in one forward (BatchNorm sees them jointly)."""
    with context.crafting(model) as view:
        start = uniform_start(images, context)
        perturbed = craft(
            lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
        )
    return model.backbone(torch.cat([images, perturbed])), labels.repeat(2)


def _unweighted(model: Any, pooled: Features, labels: Labels) -> dict[str, Scalar]:
    wide = model.wide(pooled)
    return {
        "cross_entropy": cross_entropy(model.score(wide), labels).mean(),
        "pooled_attraction": attraction(pooled, model.attracting["pooled"], labels),
        "wide_attraction": attraction(wide, model.attracting["wide"], labels),
        "pooled_repulsion": repulsion(pooled, model.repelling["pooled"], labels),
        "wide_repulsion": repulsion(wide, model.repelling["wide"], labels),
    }


def attraction(features: Features, centres: Centres, labels: Labels) -> Scalar:
    """Mean squared distance of a row to its own class's centre."""
    return _clamped((features - centres[labels]).square().sum(1)).mean()


def repulsion(features: Features, centres: Centres, labels: Labels) -> Scalar:
    """Mean squared distance of a row to the centres of the other classes."""
    others = squared_distances(features, centres).scatter(1, labels[:, None], 0.0)
    return others.sum() / (len(features) * (len(centres) - 1))


def squared_distances(features: Features, centres: Centres) -> Logits:
    """||f_i - c_j||^2, from the differences: the expanded square loses the small distances of tight classes."""
    return _clamped((features[:, None] - centres).square().sum(2))


def _clamped(distances: Tensor) -> Tensor:
    return distances.clamp(1e-12, 1e12)
