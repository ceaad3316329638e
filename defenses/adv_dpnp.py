"""Adv-DPNP: deep positive and negative prototypes (https://arxiv.org/abs/2504.03782, eqs. 1-7 and Algorithm 1).

One learned prototype per class is both the centre of its class and that class's weight in the classifier. With
f = features(x), C = prototypes, x~ the perturbed image, sg[.] without gradient, and B the batch size:

    eq. 1   score_k(x)        = c_k . f / alpha                        (no bias; p = softmax of the scores)
    eq. 2   cross_entropy     = -log p_y
    eq. 3   positive(x, C)    = cross_entropy + lambda_dpp / 2 * alignment,   alignment = ||f - c_y||^2 / d
    eq. 4   nearest_rival(j)  = argmin over k != j of ||c_k - c_j||
    eq. 5   repulsion         = -1/M sum_j sum_i |c_ji - c_ni|^(1/2),   n = nearest_rival(j)
    eq. 6   divergence        = KL(p(x) || p(x~))
    eq. 7   minimise  lambda_dnp * repulsion
                      + 1/(2B) sum [ positive(x, C) + positive(x~, sg[C]) + lambda_dfa * divergence ]

Prototypes learn from clean images alone (figure 1), yet their update (line 21 of Algorithm 1) contains the divergence.
Both hold when every score of x~ reads sg[C]; then eq. 7 is one scalar with one backward pass. At the start of every
epoch, the first included, each prototype returns to radius alpha (line 4).

Deviations and ambiguities (the default, then what the options offer):

* Eq. 3 prints ||f - c_y||^2, a sum over the d feature dimensions; the default takes their mean, a mean-squared error.
  Only with the mean do the prototypes' angles agree with Table 4 on CIFAR-10 and on CIFAR-100: docs/readings.md.
  `alignment_reduction` "sum" is eq. 3 as printed.
* Eq. 5 has no finite slope where two coordinates meet: |u|^(1/2) becomes (u^2 + dnp_smoothing^2)^(1/4).
* Eq. 5 averages over classes; `dnp_reduction` "sum" is M times stronger.
* Line 21 differentiates eq. 5 at both ends, so a rival is pushed as well; `dnp_rival_grad` "fixed" moves one end.
* The divergence reaches C through p(x) only; `dfa_proto_grad` "both" takes line 21 literally, "none" figure 1. Its
  target p(x) is not detached (as in TRADES); see `dfa_target`.
* Line 21's 1/(2B) is read as eq. 7's: it halves the divergence too.
* The inner maximum starts uniformly and ascends cross-entropy in eval mode; the paper says "PGD". See `inner_loss`
  and `crafting_mode`.
* Clean and perturbed images pass in two train-mode forwards, in this order; see `joint_forward`.
* Features are not negative, as the stock backbone ends in a ReLU; see `feature_relu`.
* Prototypes start Gaussian and share the optimiser, weight decay included; see `prototype_init`,
  `proto_weight_decay`. Within an epoch their radius is free and momentum is never rescaled; see `renormalise`.
* Equally near rivals: the lowest class index. In the history, angles are measured between unit vectors.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from bench.attacks import craft, cross_entropy, divergence, full_precision, uniform_start
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


class PrototypeClassifier(Classifier):
    """A backbone scored by one prototype per class (eq. 1). `radius` stays constant while the prototypes move."""

    def __init__(self, backbone: Backbone, prototypes: Centres, radius: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.prototypes = nn.Parameter(prototypes)
        self.radius = radius

    def features(self, images: Images) -> Features:
        return self.backbone(images)

    def score(self, features: Features) -> Logits:
        return prototype_logits(features, self.prototypes, self.radius)

    def class_centres(self) -> Centres:
        return self.prototypes.detach()


@dataclass(frozen=True)
class AdvDPNP(Defense):
    """Prototypes that attract their class, repel their nearest rival, and answer clean and perturbed images alike.

    Raises:
        BenchError: `alpha` or `dnp_smoothing` is not above 0.
    """

    paper: ClassVar[str] = "Adv-DPNP, arXiv 2504.03782, https://arxiv.org/abs/2504.03782, eq. 7 and Algorithm 1"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"cifar100": {"lambda_dpp": 0.3, "lambda_dnp": 3.0, "lambda_dfa": 2.4}}
    )

    unrecorded: ClassVar[Mapping[str, Any]] = MappingProxyType({"alignment_reduction": "sum"})

    alpha: float = hyperparameter(40.0, "radius of the prototypes and divisor of the scores")
    lambda_dpp: float = hyperparameter(0.1, "weight of the distance to the class's own prototype")
    lambda_dnp: float = hyperparameter(0.1, "weight of the repulsion between nearest prototypes")
    lambda_dfa: float = hyperparameter(2.0, "weight of the divergence between clean and perturbed predictions")
    alignment_reduction: str = hyperparameter(
        "mean", "how the distance to the prototype is taken over dimensions", "reading of Table 4", ("mean", "sum")
    )
    dfa_proto_grad: str = hyperparameter(
        "clean", "side of the divergence that moves prototypes", "reading of figure 1", ("clean", "both", "none")
    )
    dfa_target: str = hyperparameter(
        "live", "whether the clean prediction learns from the divergence", "as in TRADES", ("live", "detached")
    )
    dnp_reduction: str = hyperparameter("mean", "how repulsion is taken over classes", "paper", ("mean", "sum"))
    dnp_rival_grad: str = hyperparameter(
        "live", "whether repulsion moves the rival as well", "reading of line 21", ("live", "fixed")
    )
    dnp_smoothing: float = hyperparameter(1e-3, "coordinate gap below which repulsion fades to 0", "choice")
    feature_relu: bool = hyperparameter(True, "whether features pass the backbone's last activation", "choice")
    prototype_init: str = hyperparameter(
        "gaussian",
        "direction of the first prototypes",
        "choice",
        ("gaussian", "linear", "orthogonal", "class-mean"),
    )
    proto_weight_decay: float | None = hyperparameter(None, "weight decay of prototypes; none: the shared one")
    renormalise: str = hyperparameter(
        "epoch",
        "when prototypes return to radius alpha: before each epoch, after it as well, or at every step",
        "paper",
        ("epoch", "epoch+evaluation", "step"),
    )
    inner_loss: str = hyperparameter("ce", "what perturbed images maximise", "choice", ("ce", "dpp", "composite"))
    crafting_mode: str = hyperparameter("eval", "BatchNorm mode while crafting", "choice", ("eval", "train"))
    joint_forward: bool = hyperparameter(False, "clean and perturbed images in one BatchNorm batch", "choice")

    def __post_init__(self) -> None:
        for name in ("alpha", "dnp_smoothing"):
            if not getattr(self, name) > 0:
                raise BenchError(
                    f"{name} {getattr(self, name)} is not above 0. Give a positive number, or leave it out."
                )

    def build(self, backbone: BackboneFactory, num_classes: int) -> PrototypeClassifier:
        extractor = backbone(final_activation=self.feature_relu)
        return PrototypeClassifier(
            extractor, initial_prototypes(self.prototype_init, extractor, num_classes), self.alpha
        )

    def losses(
        self, model: PrototypeClassifier, images: Images, labels: Labels, context: TrainingContext
    ) -> dict[str, Scalar]:
        with context.crafting(model) if self.crafting_mode == "eval" else nullcontext(model) as view:
            start = uniform_start(images, context)
            objective = self._inner_objective(view, images, labels)
            perturbed = craft(objective, view, start, images, context, flat_start=False)
        if self.joint_forward:
            clean_features, perturbed_features = model.features(torch.cat((images, perturbed))).chunk(2)
        else:
            clean_features, perturbed_features = model.features(images), model.features(perturbed)
        for name, features in (("feature_distance", clean_features), ("perturbed_distance", perturbed_features)):
            context.record(name, squared_distance(features, model.prototypes, labels).detach().sqrt().mean())
        return composite_terms(clean_features, perturbed_features, model.prototypes, labels, self)

    def update(
        self,
        model: PrototypeClassifier,
        optimizer: torch.optim.Optimizer,
        images: Images,
        labels: Labels,
        context: TrainingContext,
    ) -> dict[str, Scalar]:
        terms = super().update(model, optimizer, images, labels, context)
        if self.renormalise == "step":
            restore_radius(model.prototypes, self.alpha)
        return terms

    def parameter_groups(self, model: PrototypeClassifier) -> list[dict[str, Any]]:
        if self.proto_weight_decay is None:
            return super().parameter_groups(model)
        others = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
        return [{"params": others}, {"params": [model.prototypes], "weight_decay": self.proto_weight_decay}]

    def begin_epoch(self, model: PrototypeClassifier, context: TrainingContext) -> None:
        if self.prototype_init == "class-mean" and context.epoch == 0:
            start_at_class_means(model, context)
        restore_radius(model.prototypes, self.alpha)

    def end_epoch(self, model: PrototypeClassifier, context: TrainingContext) -> None:
        angles = nearest_angles(model.class_centres())
        # Before the radius is restored: what the history shows is the drift of one epoch.
        context.record("prototype_radius", torch.linalg.vector_norm(model.class_centres(), dim=1).mean())
        context.record("mean_separation", angles.mean())
        context.record("min_separation", angles.min())
        if self.renormalise == "epoch+evaluation":
            restore_radius(model.prototypes, self.alpha)

    def adaptive_objective(self, model: PrototypeClassifier, images: Images, labels: Labels) -> Objective:
        """Eq. 7 as a function of the perturbed image: (positive + lambda_dfa * divergence) / 2, per sample.

        The clean prediction p(x) is computed once, here. At x~ = x the divergence has no gradient: start elsewhere.
        """
        with torch.no_grad():
            reference = model(images)

        def objective(view: nn.Module, perturbed: Images) -> PerExample:
            positive, logits = self._positive(view, perturbed, labels)
            return (positive + self.lambda_dfa * divergence(reference, logits)) / 2

        return objective

    def alignment(self, features: Features, prototypes: Centres, labels: Labels) -> PerExample:
        """The squared distance of eq. 3 to the class's own prototype, as `alignment_reduction` takes it; per sample."""
        distance = squared_distance(features, prototypes, labels)
        return distance / features.shape[1] if self.alignment_reduction == "mean" else distance

    def _positive(self, view: Any, images: Images, labels: Labels) -> tuple[PerExample, Logits]:
        """Eq. 3 with fixed prototypes, and the scores it is made of."""
        features = view.features(images)
        logits = view.score(features)
        alignment = self.alignment(features, view.prototypes.detach(), labels)
        return cross_entropy(logits, labels) + self.lambda_dpp / 2 * alignment, logits

    def _inner_objective(self, view: Any, images: Images, labels: Labels) -> Objective:
        if self.inner_loss == "composite":
            return self.adaptive_objective(view, images, labels)
        if self.inner_loss == "dpp":
            return lambda view, perturbed: self._positive(view, perturbed, labels)[0]
        return lambda view, perturbed: cross_entropy(view(perturbed), labels)


def composite_terms(
    clean: Features, perturbed: Features, prototypes: Centres, labels: Labels, settings: AdvDPNP
) -> dict[str, Scalar]:
    """The weighted terms of eq. 7, whose sum has the gradients of lines 18 and 21 of Algorithm 1.

    Args:
        clean: features of the clean images.
        perturbed: features of the perturbed images, in the same order.
        prototypes: one row per class.
        labels: class indices.
        settings: weights and options.
    """
    fixed = prototypes.detach()
    clean_logits = prototype_logits(clean, prototypes, settings.alpha)
    perturbed_logits = prototype_logits(perturbed, fixed, settings.alpha)
    reference, other = clean_logits, perturbed_logits
    if settings.dfa_proto_grad == "none":
        reference = prototype_logits(clean, fixed, settings.alpha)
    elif settings.dfa_proto_grad == "both":
        other = prototype_logits(perturbed, prototypes, settings.alpha)
    if settings.dfa_target == "detached":
        reference = reference.detach()
    return {
        "clean": cross_entropy(clean_logits, labels).mean() / 2,
        "clean_alignment": settings.lambda_dpp / 4 * settings.alignment(clean, prototypes, labels).mean(),
        "perturbed": cross_entropy(perturbed_logits, labels).mean() / 2,
        "perturbed_alignment": settings.lambda_dpp / 4 * settings.alignment(perturbed, fixed, labels).mean(),
        "divergence": settings.lambda_dfa / 2 * divergence(reference, other).mean(),
        "repulsion": settings.lambda_dnp
        * repulsion(prototypes, settings.dnp_smoothing, settings.dnp_reduction, settings.dnp_rival_grad),
    }


def prototype_logits(features: Features, prototypes: Centres, radius: float) -> Logits:
    """Eq. 1 before the softmax: inner products with the prototypes, divided by `radius`; at least float32."""
    # Autocast would round the product to half precision, and the losses read it.
    with torch.autocast(features.device.type, enabled=False):
        return full_precision(features) @ full_precision(prototypes).T / radius


def squared_distance(features: Features, prototypes: Centres, labels: Labels) -> PerExample:
    """||f - c_y||^2 per sample, summed over dimensions; at least float32."""
    return (full_precision(features) - full_precision(prototypes)[labels]).square().sum(1)


def nearest_rival(prototypes: Centres) -> Int64[Tensor, " classes"]:
    """Eq. 4: for each class the index of the other prototype nearest to its own; the lowest if several are."""
    points = full_precision(prototypes.detach())
    # The matrix-product shortcut cancels: between near rivals it orders distances at random.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).argmin(1)


def repulsion(prototypes: Centres, smoothing: float, reduction: str = "mean", rival_gradient: str = "live") -> Scalar:
    """Eq. 5, at most 0: minus the power 1/2 of the l_(1/2) distance to the rival, smoothed at 0.

    Args:
        prototypes: one row per class, at least two.
        smoothing: e in (u^2 + e^2)^(1/4), which replaces |u|^(1/2).
        reduction: "mean" or "sum" over classes.
        rival_gradient: "live", or "fixed" to treat each rival as a constant.
    """
    points = full_precision(prototypes)
    rivals = points[nearest_rival(points)]
    gap = points - (rivals.detach() if rival_gradient == "fixed" else rivals)
    per_class = (gap.square() + smoothing**2).pow(0.25).sum(1)
    return -(per_class.sum() if reduction == "sum" else per_class.mean())


def nearest_angles(prototypes: Centres) -> Float[Tensor, " classes"]:
    """Degrees between each prototype and the one nearest to it in angle (eqs. 11 and 12 take mean and minimum)."""
    unit = functional.normalize(full_precision(prototypes), dim=1)
    return (unit @ unit.T).fill_diagonal_(-1.0).amax(1).clamp(-1.0, 1.0).arccos().rad2deg()


@torch.no_grad()
def restore_radius(prototypes: Centres, radius: float) -> None:
    """Scale each row to length `radius`, in place: c <- radius * c / ||c|| (Algorithm 1, line 4)."""
    prototypes.copy_(radius * functional.normalize(prototypes, dim=1))


@torch.no_grad()
def start_at_class_means(model: PrototypeClassifier, context: TrainingContext) -> None:
    """Put each prototype where the features of its class's training images lie on average; without images, nowhere."""
    sums, counts = torch.zeros_like(model.prototypes), torch.zeros_like(model.prototypes[:, :1])
    view: Any
    with context.crafting(model) as view:
        for images, labels in context.training_set():
            sums.index_add_(0, labels, full_precision(view.features(images)))
            counts.index_add_(0, labels, torch.ones_like(counts[labels]))
    model.prototypes.copy_(torch.where(counts > 0, sums / counts, model.prototypes))


def initial_prototypes(kind: str, backbone: Backbone, num_classes: int) -> Centres:
    """First prototypes: "gaussian" rows, a "linear" layer's rows as the backbone starts one, or "orthogonal" rows.

    Of "class-mean", Gaussian ones, until the first epoch begins: features need images.
    """
    if kind == "linear":
        layer = nn.Linear(backbone.feature_dim, num_classes)
        backbone.initialise_linear(layer)
        return layer.weight.detach()
    rows = torch.empty(num_classes, backbone.feature_dim)
    return nn.init.orthogonal_(rows) if kind == "orthogonal" else nn.init.normal_(rows)
