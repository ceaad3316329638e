"""MART (Wang et al. 2020, https://openreview.net/forum?id=rklOg6EFwS, the overall objective).

    minimise over the model   mean_i BCE_i + beta * mean_i (1.0000001 - p_i[y_i]) * KL_i
    BCE_i = CE(z(x'_i), y_i) - log(1.0001 - max over k != y_i of q_i[k] + 1e-12)
    KL_i  = sum_k p_i[k] * (log p_i[k] - log(q_i[k] + 1e-12))

with p = softmax(z(x)), q = softmax(z(x')), and x' a PGD image of the cross-entropy, started from Gaussian noise of
deviation 0.001 and crafted in eval mode. Train-mode forwards: clean, then perturbed. Nothing is detached: gradients
flow through q, through p as target, and through the weight 1 - p[y].

The three constants are those of the official code (https://github.com/YisenWang/MART), not of the paper. 1e-12 caps
the divergence at 27.6 per class and lets its gradient fade where q saturates; a log-softmax would not.
beta is the paper's lambda, 5 there and in the ResNet-18 script; the official WideResNet script says 6.

Deviations: log p is a log-softmax, where the official expression gives NaN gradients once a clean probability
underflows to 0; the loss is computed in at least float32, because 1.0000001 rounds to 1 below it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.attacks import craft, cross_entropy, full_precision, gaussian_start
from bench.interfaces import (
    Defense,
    Images,
    Labels,
    Logits,
    Objective,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


@dataclass(frozen=True)
class Mart(Defense):
    """Boosted cross-entropy, and a divergence that weighs misclassified images more."""

    paper: ClassVar[str] = "Wang et al., ICLR 2020, https://openreview.net/forum?id=rklOg6EFwS, overall objective"

    beta: float = hyperparameter(5.0, "weight of the divergence (lambda); 6 in the official WideResNet script", "paper")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            start = gaussian_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        logits = model(images)
        perturbed_logits = model(perturbed)
        return {
            "boosted": boosted_cross_entropy(perturbed_logits, labels).mean(),
            "robust": self.beta * weighted_divergence(logits, perturbed_logits, labels).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """The boosted cross-entropy of the perturbed images."""
        return lambda model, perturbed: boosted_cross_entropy(model(perturbed), labels)


def boosted_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Cross-entropy plus the likelihood that the strongest rival is wrong, per sample; at most 9.21 above it."""
    probabilities = full_precision(logits).softmax(1)
    rival = probabilities.detach().scatter(1, labels[:, None], -1.0).argmax(1, keepdim=True)
    return cross_entropy(logits, labels) - (1.0001 - probabilities.gather(1, rival).squeeze(1) + 1e-12).log()


def weighted_divergence(logits: Logits, perturbed_logits: Logits, labels: Labels) -> PerExample:
    """(1.0000001 - p[y]) * KL(p || q + 1e-12), per sample."""
    log_p = full_precision(logits).log_softmax(1)
    p = log_p.exp()
    log_q = (full_precision(perturbed_logits).softmax(1) + 1e-12).log()
    weight = 1.0000001 - p.gather(1, labels[:, None]).squeeze(1)
    return weight * (p * (log_p - log_q)).sum(1)
