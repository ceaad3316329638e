"""AT-HE: PGD adversarial training with hypersphere embedding (Pang et al. 2020, https://arxiv.org/abs/2002.08619).

    cos_k(x) = <f(x) / |f(x)|, w_k / |w_k|>,   z(x) = scale * cos(x)
    minimise over the model   mean_i CE(scale * (cos(x'_i) - margin * one(y_i)), y_i)
    where x'_i maximises      CE(z(x'_i), y_i)   over B(x_i), from x_i + 0.001 N(0, 1), in eval mode

The margin is subtracted from the true cosine, inside the scale, and in the outer loss only. Weight rows are put
back on the unit sphere after every optimiser step, outside autograd: no derivative passes the normalisation.

variant=trades trains TRADES on the same head, with beta:
    CE(scale * (cos(x) - margin * one(y)), y) + beta * KL(softmax z(x) || softmax z(x')), where x' maximises the KL.

Deviations: the model's logits are scale * cos; the authors' scripts (https://github.com/ShawnXYang/AT_HE) attack the
unscaled cosines with cross-entropy at test time, which overstates robustness. Their per-sample sum of exponentials
is the cross-entropy above. `features` are on the unit sphere, where the class centres are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from bench.attacks import craft, cross_entropy, divergence, full_precision, gaussian_start
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
    Scalar,
    TrainingContext,
    hyperparameter,
)


class CosineClassifier(Classifier):
    """Scaled cosines between a backbone's features and weight rows of length 1, without bias."""

    def __init__(self, backbone: Backbone, num_classes: int, scale: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.feature_dim, num_classes, bias=False)
        self.scale = scale
        self.renormalise()

    def renormalise(self) -> None:
        """Put the weight rows back on the unit sphere, outside autograd; momentum stays as it is."""
        with torch.no_grad():
            self.head.weight.copy_(functional.normalize(self.head.weight))

    def features(self, images: Images) -> Features:
        return functional.normalize(self.backbone(images), eps=1e-12)

    def score(self, features: Features) -> Logits:
        return self.scale * self.head(features)

    def class_centres(self) -> Centres:
        return self.head.weight.detach()


@dataclass(frozen=True)
class HypersphereEmbedding(Defense):
    """Cross-entropy with a cosine margin on PGD images.

    Raises:
        BenchError: the scale is not above 0.
    """

    paper: ClassVar[str] = "Pang et al., NeurIPS 2020, https://arxiv.org/abs/2002.08619, margin cross-entropy L^m_CE"

    scale: float = hyperparameter(15.0, "factor s on the cosines", "authors' code")
    margin: float = hyperparameter(0.2, "subtracted from the true cosine in the outer loss", "authors' code")
    variant: Literal["at", "trades"] = hyperparameter("at", "training method that the head is combined with")
    beta: float = hyperparameter(6.0, "weight of the KL term, for variant=trades", "authors' code")

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise BenchError(f"scale={self.scale} is not above 0. It multiplies cosines: the authors use 15 or 10.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> CosineClassifier:
        return CosineClassifier(backbone(), num_classes, self.scale)

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            objective = self._inner_objective(view, images, labels)
            flat = self.variant == "trades"
            perturbed = craft(objective, view, gaussian_start(images, context), images, context, flat_start=flat)
        offset = self.scale * self.margin
        if self.variant == "at":
            return {"adversarial": cross_entropy(with_margin(model(perturbed), labels, offset), labels).mean()}
        clean = model(images)
        return {
            "clean": cross_entropy(with_margin(clean, labels, offset), labels).mean(),
            "robust": self.beta * divergence(clean, model(perturbed)).mean(),
        }

    def _inner_objective(self, view: nn.Module, images: Images, labels: Labels) -> Objective:
        if self.variant == "at":
            return lambda model, x: cross_entropy(model(x), labels)
        with torch.no_grad():
            reference = view(images)
        return lambda model, x: divergence(reference, model(x))

    def update(
        self, model: Any, optimizer: torch.optim.Optimizer, images: Images, labels: Labels, context: TrainingContext
    ) -> dict[str, Scalar]:
        terms = super().update(model, optimizer, images, labels, context)
        model.renormalise()
        return terms

    def begin_epoch(self, model: Any, context: TrainingContext) -> None:
        model.renormalise()


def with_margin(logits: Logits, labels: Labels, offset: float) -> Logits:
    """Logits with the true one lowered by `offset` (scale * margin, in units of the logits)."""
    logits = full_precision(logits)
    return logits - offset * functional.one_hot(labels, logits.shape[1]).to(logits)
