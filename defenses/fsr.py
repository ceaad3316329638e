"""FSR: feature separation and recalibration (Kim et al., CVPR 2023, https://arxiv.org/abs/2303.13846).

On the last feature map f, with small convolutional networks S (separation) and R (recalibration):

    p = sigmoid(S(f)),   m = soft_mask(p, tau)                  Gumbel noise in training, none in evaluation
    robust = m f,   fragile = (1 - m) f,   recalibrated = fragile + (1 - m) R(fragile)
    z = head(embed(robust + recalibrated));   z_part = auxiliary(mean(part)), one layer for the three parts
    minimise   CE(z, y) + separation * [CE(z_robust, y) + CE(z_fragile, y')] + recalibration * CE(z_recalibrated, y)

y' is the strongest rival of y in z. Perturbed images only; the inner maximum ascends CE(z, y) without noise; nothing is
detached. Equations as in https://github.com/wkim97/FSR.

`mean` is the spatial mean, and `embed` the backbone's own way from map to features: the same in a ResNet or WideResNet,
where the authors defined the method. robust + recalibrated = f + (1 - m) R(fragile), so the plain features always reach
`head`, and a saturated mask can hide only the residual from an attacker. The share of m in (0.01, 0.99) and the size of
the residual are recorded. Class centres are the rows of `head`.

Deviations: the mask's noise follows the module's train mode, where the authors pass a switch that stays on by default;
S and R start as PyTorch's layers do, also on a WideResNet, whose authors draw them from N(0, 2 / (9 * channels out)).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attacks import craft, cross_entropy, uniform_start
from bench.errors import BenchError
from bench.interfaces import (
    Backbone,
    BackboneFactory,
    Centres,
    Classifier,
    Defense,
    FeatureMap,
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

Uniforms = Float[Tensor, "2 batch channels rows columns"]

GUARD = 1e-8
"""Keeps logarithms finite; part of the method, since it bounds the noise."""


class Parts(NamedTuple):
    """A feature map taken apart: the mask, what it keeps, what it drops, and that after recalibration."""

    mask: FeatureMap
    robust: FeatureMap
    fragile: FeatureMap
    recalibrated: FeatureMap


class Outputs(NamedTuple):
    """Logits of the whole and of the three parts."""

    final: Logits
    robust: Logits
    fragile: Logits
    recalibrated: Logits


class RecalibratedClassifier(Classifier):
    """A backbone whose last map is separated and recalibrated before the linear layer. Noisy in train mode only."""

    def __init__(self, backbone: Backbone, num_classes: int, tau: float, width: int = 64) -> None:
        super().__init__()
        self.backbone, self.tau = backbone, tau
        self.separation = _map_network(backbone.map_channels, width)
        self.recalibration = _map_network(backbone.map_channels, width)
        self.auxiliary = nn.Linear(backbone.map_channels, num_classes)
        self.head = nn.Linear(backbone.feature_dim, num_classes)
        backbone.initialise_linear(self.auxiliary)
        backbone.initialise_linear(self.head)

    def features(self, images: Images) -> Features:
        return self.recombine(self.separate(self.backbone.feature_map(images)))

    def score(self, features: Features) -> Logits:
        return self.head(features)

    def class_centres(self) -> Centres:
        return self.head.weight.detach()

    def separate(self, feature_map: FeatureMap, generator: torch.Generator | None = None) -> Parts:
        """The parts of a map; in train mode with noise from `generator` (None: the global one)."""
        scores = self.separation(feature_map)
        # In half precision p + GUARD is p, and the logarithms of the mask are infinite.
        probability = scores.to(torch.promote_types(scores.dtype, torch.float32)).sigmoid()
        uniforms = self.uniforms(probability, generator) if self.training else None
        mask = soft_mask(probability, self.tau, uniforms)
        fragile = (1 - mask) * feature_map
        return Parts(mask, mask * feature_map, fragile, fragile + (1 - mask) * self.recalibration(fragile))

    def uniforms(self, like: FeatureMap, generator: torch.Generator | None) -> Uniforms:
        """Independent numbers in [0, 1): one map for, and one against, keeping an element."""
        return torch.rand((2, *like.shape), generator=generator, device=like.device, dtype=like.dtype)

    def recombine(self, parts: Parts) -> Features:
        """Final features: of the robust and the recalibrated part together."""
        return self.backbone.embed(parts.robust + parts.recalibrated)

    def outputs(self, parts: Parts) -> Outputs:
        """All four logits that training uses."""
        means = [part.mean((2, 3)) for part in (parts.robust, parts.fragile, parts.recalibrated)]
        return Outputs(self.score(self.recombine(parts)), *map(self.auxiliary, means))


@dataclass(frozen=True)
class FeatureSeparationRecalibration(Defense):
    """Adversarial training that recalibrates the features a mask finds fragile."""

    paper: ClassVar[str] = "Kim et al., CVPR 2023, https://arxiv.org/abs/2303.13846"
    undivided: ClassVar[str] = "its mask draws noise for every batch as a whole"

    separation: float = hyperparameter(1.0, "weight of the losses on the robust and the fragile part")
    recalibration: float = hyperparameter(1.0, "weight of the loss on the recalibrated part")
    tau: float = hyperparameter(0.1, "temperature of the mask; towards 0 it becomes binary")

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise BenchError(
                f"hyperparameter tau={self.tau} is not above 0: give the published 0.1, or another number."
            )

    def build(self, backbone: BackboneFactory, num_classes: int) -> RecalibratedClassifier:
        return RecalibratedClassifier(backbone(), num_classes, self.tau)

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        feature_map = model.backbone.feature_map(perturbed)
        parts = model.separate(feature_map, context.generator)
        with torch.no_grad():
            residual = parts.recalibrated - parts.fragile
            undecided = (parts.mask > 0.01) & (parts.mask < 0.99)
            context.record("undecided_mask_share", undecided.float().mean())
            context.record("relative_residual", residual.norm() / feature_map.norm().clamp_min(GUARD))
        return self.terms(model.outputs(parts), labels)

    def terms(self, outputs: Outputs, labels: Labels) -> dict[str, Scalar]:
        """The weighted losses of the four logits."""
        rivals = strongest_rival(outputs.final, labels)
        return {
            "adversarial": cross_entropy(outputs.final, labels).mean(),
            "robust": self.separation * cross_entropy(outputs.robust, labels).mean(),
            "fragile": self.separation * cross_entropy(outputs.fragile, rivals).mean(),
            "recalibrated": self.recalibration * cross_entropy(outputs.recalibrated, labels).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """Cross-entropy of the whole, the robust and the recalibrated part: gradients past a saturated mask."""

        def joint_loss(model: Any, perturbed: Images) -> PerExample:
            outputs = model.outputs(model.separate(model.backbone.feature_map(perturbed)))
            logits = (outputs.final, outputs.robust, outputs.recalibrated)
            return torch.stack([cross_entropy(each, labels) for each in logits]).sum(0)

        return joint_loss


def soft_mask(probability: Tensor, tau: float, uniforms: Tensor | None) -> Tensor:
    """A relaxed Bernoulli(probability) draw per element, from two numbers in [0, 1) each; without them, no noise."""
    logit = (probability + GUARD).log() - (1 - probability + GUARD).log()
    if uniforms is not None:
        logit = logit + _gumbel(uniforms[0]) - _gumbel(uniforms[1])
    return (logit / (tau + GUARD)).sigmoid()


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-(uniform + GUARD).log() + GUARD).log()


def strongest_rival(logits: Logits, labels: Labels) -> Labels:
    """The class other than the label with the largest logit."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def _map_network(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, channels, 3, padding=1, bias=False),
    )
