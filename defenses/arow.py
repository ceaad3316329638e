"""ARoW (Yang, Kong & Kim 2023, https://arxiv.org/abs/2206.03353): more regularisation on less robust samples.

    minimise over the model   mean_i CE(z(x_i), y_i) + weight * (1 - q_i[y_i]) * KL_i
    KL_i = sum_k p_i[k] * (log p_i[k] - log(q_i[k] + 1e-12)),   p = softmax(z(x)), q = softmax(z(x'))

x' maximises KL(p || softmax(z(x'))), from a uniform start in the ball, in eval mode against a clean prediction that
stays fixed; for `inner_loss` "ce" it maximises CE(z(x'), y). Train-mode forwards: clean, then perturbed. Nothing is
detached: gradients flow through p, q and the weight. `weight` is the official code's, twice the paper's lambda of 3.5.

Official code: https://github.com/dyoony/ARoW. It smooths labels by 0.2 and averages weights: settings of the protocol
here, `--label-smoothing 0.2 --average swa`.

Deviations: log p is a log-softmax, where the official expression gives NaN gradients once a clean probability
underflows to 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, divergence, full_precision, uniform_start
from bench.interfaces import (
    Defense,
    Family,
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
class AntiRobustWeighting(Defense):
    """Cross-entropy on clean images, and a divergence that weighs images more the less robust they are."""

    paper: ClassVar[str] = "Yang, Kong & Kim, ICML 2023, https://arxiv.org/abs/2206.03353, the ARoW algorithm"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"cifar100": {"inner_loss": "ce"}})
    family: ClassVar[Family] = "multi-step"

    weight: float = hyperparameter(7.0, "weight of the divergence (2 lambda)", "official code")
    inner_loss: str = hyperparameter("kl", "what perturbed images maximise", "official code", choices=("kl", "ce"))

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            with torch.no_grad():
                reference = view(images)

            def objective(view: Any, x: Images) -> PerExample:
                logits = view(x)
                return divergence(reference, logits) if self.inner_loss == "kl" else cross_entropy(logits, labels)

            perturbed = craft(objective, view, uniform_start(images, context), images, context)
        logits = model(images)
        perturbed_logits = model(perturbed)
        return {
            "clean": cross_entropy(logits, labels).mean(),
            "robust": self.weight * weighted_divergence(logits, perturbed_logits, labels).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(z(x'), y) + weight * (1 - q[y]) * KL(p || q + 1e-12), with p fixed."""
        with torch.no_grad():
            reference = model(images)

        def objective(model: Any, perturbed: Images) -> PerExample:
            logits = model(perturbed)
            return cross_entropy(logits, labels) + self.weight * weighted_divergence(reference, logits, labels)

        return objective


def weighted_divergence(logits: Logits, perturbed_logits: Logits, labels: Labels) -> PerExample:
    """(1 - q[y]) * KL(p || q + 1e-12), per sample."""
    log_p = full_precision(logits).log_softmax(1)
    q = full_precision(perturbed_logits).softmax(1)
    return (1 - q.gather(1, labels[:, None]).squeeze(1)) * (log_p.exp() * (log_p - (q + 1e-12).log())).sum(1)
