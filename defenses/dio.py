"""DIO: diversity via orthogonality (Fang et al., Pattern Recognition 2024, https://arxiv.org/abs/2010.12190).

L bias-free linear heads W_l on the same features e, with logits z_l = W_l e; all terms on perturbed images only:

    minimise   mean_l CE(z_l, y) + alpha * sum_{l<k} <W_l, W_k>^2 + beta * sum_l margin_l
    margin_l = mean over rows i that head l has right of max(0, tau - r_li)        (0 where it has none right)
    r_li     = min over k != argmax z_li of (max_j z_lij - z_lik) / ||W_l[k]||

<., .> is the Frobenius product of whole heads; equations as in the authors' code, see
https://github.com/fanghenshaometeor/DIversity-via-Orthogonality. Each step of the inner maximum ascends the
cross-entropy of one head, drawn anew for the whole batch.

`score` is head 0, for attacks and predictions alike, so that evaluation is deterministic and the attacker sees the
classifier that is scored. The authors also score every head on images made against random ones, which overstates
robustness. `mean_logits` is the average of the heads, for a report beside it; class centres are the rows of head 0.

Deviations: the protocol's backbone, schedule and augmentation; heads are drawn from the run's generator. The published
tau depends on the backbone as well: the defaults are those for ResNet-18, of which the cifar100 pair comes from plain
training, and svhn, for which nothing is published, takes them over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

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
)

Heads = Float[Tensor, "heads classes dim"]
HeadLogits = Float[Tensor, "heads batch classes"]

TIED = 1000.0
"""The distance that stands for "no rival": the winner itself, or a class tied with it."""


class ManyHeadClassifier(Classifier):
    """A backbone and `heads` linear layers without bias, in one parameter. Predicts with head 0."""

    def __init__(self, backbone: Backbone, num_classes: int, heads: int) -> None:
        super().__init__()
        self.backbone = backbone
        layers = [nn.Linear(backbone.feature_dim, num_classes, bias=False) for _ in range(heads)]
        self.heads = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))

    def features(self, images: Images) -> Features:
        return self.backbone(images)

    def score(self, features: Features) -> Logits:
        return functional.linear(features, self.heads[0])

    def class_centres(self) -> Centres:
        return self.heads[0].detach()

    def score_with(self, head: Int64[Tensor, "1"], features: Features) -> Logits:
        """Logits of one head, by its index on the device (reading it on the host would make the device wait)."""
        return functional.linear(features, self.heads.index_select(0, head).squeeze(0))

    def all_logits(self, features: Features) -> HeadLogits:
        """Logits of every head."""
        return torch.einsum("bd,lcd->lbc", features.to(self.heads.dtype), self.heads)

    def mean_logits(self, features: Features) -> Logits:
        """The heads' average, which is the logits of the average head."""
        return functional.linear(features, self.heads.mean(0))


@dataclass(frozen=True)
class DiversityViaOrthogonality(Defense):
    """Adversarial training of many mutually orthogonal heads with large margins."""

    paper: ClassVar[str] = "Fang et al., Pattern Recognition 2024, https://arxiv.org/abs/2010.12190"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"cifar100": {"heads": 40, "tau": 0.01}})
    undivided: ClassVar[str] = "its margin is a mean over the images of a batch that a head has right"

    heads: int = hyperparameter(10, "L: number of heads (cifar100: 40)", "official code, ResNet-18")
    alpha: float = hyperparameter(0.1, "weight of the heads' squared products", "official code")
    beta: float = hyperparameter(0.1, "weight of the margins", "official code")
    tau: float = hyperparameter(
        0.2,
        "margin asked for (WRN-34-10: 0.5; cifar100: 0.01, WRN-34-10 0.1 with 10 heads)",
        "official code, ResNet-18",
    )

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise BenchError(f"hyperparameter heads={self.heads} is below 1: give the published 10, or another count.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> ManyHeadClassifier:
        return ManyHeadClassifier(backbone(), num_classes, self.heads)

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        def random_head_loss(view: Any, perturbed: Images) -> PerExample:
            head = torch.randint(self.heads, (1,), generator=context.generator, device=images.device)
            return cross_entropy(view.score_with(head, view.features(perturbed)), labels)

        with context.crafting(model) as view:
            perturbed = craft(random_head_loss, view, uniform_start(images, context), images, context, flat_start=False)
        features = model.features(perturbed)
        # In half precision the best two classes tie often, and a tie drops the hardest rows from the margin.
        with torch.autocast(images.device.type, enabled=False):
            logits = model.all_logits(features)
            return {
                "adversarial": cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits))).mean(),
                "orthogonality": self.alpha * orthogonality(model.heads),
                "margin": self.beta * margin_shortfall(logits, model.heads, labels, self.tau),
            }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """Mean cross-entropy over the heads: an attack on what they share."""

        def mean_head_loss(model: Any, perturbed: Images) -> PerExample:
            logits = model.all_logits(model.features(perturbed))
            return cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits))).view(logits.shape[:2]).mean(0)

        return mean_head_loss


def orthogonality(heads: Heads) -> Scalar:
    """Sum over pairs of heads of their squared Frobenius product; 0 for one head."""
    flat = heads.flatten(1)
    return (flat @ flat.T).triu(1).square().sum()


def margin_shortfall(logits: HeadLogits, heads: Heads, labels: Labels, tau: float) -> Scalar:
    """Sum over heads of the mean, over the rows a head has right, of max(0, tau - distance to the nearest rival).

    The divisor of a distance is the norm of the rival's own row.
    """
    best, predicted = logits.max(2, keepdim=True)
    distance = (best - logits) / torch.linalg.vector_norm(heads, dim=2)[:, None]
    nearest = distance.masked_fill(distance == 0, TIED).min(2).values
    right = predicted.squeeze(2) == labels
    shortfall = (tau - nearest).clamp_min(0.0) * right
    return (shortfall.sum(1) / right.sum(1).clamp_min(1)).sum()
