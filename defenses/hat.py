"""HAT (Rade & Moosavi-Dezfooli 2022, https://openreview.net/forum?id=Azh9QBQ4tR7, the helper-based training loss).

    minimise over the model   mean_i CE(z(x_i), y_i) + beta * KL(p(x_i) || p(x'_i)) + gamma * CE(z(h_i), s(x'_i))
    h_i = x_i + helper_factor * (x'_i - x_i),   s = argmax of a standard model

x' maximises the divergence as in TRADES: Gaussian start of deviation 0.001, eval mode, clean prediction fixed. The
helper image h lies further along the same direction, outside the ball and, not clipped, possibly outside [0, 1]; its
label is the class that a standardly trained model gives to x'. Train-mode forwards: clean, perturbed, helper.

As in the official code (https://github.com/imrahulr/hat): helper labels are hard, the first class on ties, taken on x'
and not on h; the divergence is differentiated in both arguments. `robust_term="ce"` is its variant with CE(z(x'), y)
and PGD images of the cross-entropy with a uniform start.

Deviations: the divergence is taken between two log-softmaxes (the official expression gives NaN gradients once a clean
probability underflows to 0). The standard model is the benchmark's `st` run of the same seed, not one that was selected
on test accuracy. The official values for CIFAR-10 serve all datasets; the repository gives no others.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bench.attacks import craft, cross_entropy, divergence, gaussian_start, uniform_start
from bench.interfaces import Defense, Images, Labels, Objective, PerExample, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class HelperBasedTraining(Defense):
    """TRADES, and helper images beyond the ball that keep the margin from growing more than it must."""

    paper: ClassVar[str] = "Rade & Moosavi-Dezfooli, ICLR 2022, https://openreview.net/forum?id=Azh9QBQ4tR7"
    requires: ClassVar[tuple[str, ...]] = ("st",)

    beta: float = hyperparameter(2.5, "weight of the robust term", "official code")
    gamma: float = hyperparameter(0.5, "weight of the helper term", "official code")
    helper_factor: float = hyperparameter(2.0, "length of the helper perturbation, in perturbations", "official code")
    robust_term: str = hyperparameter(
        "kl", "divergence from the clean prediction, or cross-entropy", "official code", choices=("kl", "ce")
    )

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            perturbed = self._perturb(view, images, labels, context)
        with torch.no_grad(), context.rounding(half=False):
            helper_labels = context.requirements["st"](perturbed).argmax(1)
        logits = model(images)
        perturbed_logits = model(perturbed)
        helper_logits = model(images + self.helper_factor * (perturbed - images))
        divergent = self.robust_term == "kl"
        robust = divergence(logits, perturbed_logits) if divergent else cross_entropy(perturbed_logits, labels)
        return {
            "clean": cross_entropy(logits, labels).mean(),
            "robust": self.beta * robust.mean(),
            "helper": self.gamma * cross_entropy(helper_logits, helper_labels).mean(),
        }

    def _perturb(self, view: nn.Module, images: Images, labels: Labels, context: TrainingContext) -> Images:
        if self.robust_term == "ce":
            start = uniform_start(images, context)
            return craft(lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False)
        with torch.no_grad():
            reference = view(images)
        start = gaussian_start(images, context)
        return craft(lambda view, x: divergence(reference, view(x)), view, start, images, context)

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective | None:
        """CE(z(x'), y) + beta * KL(p(x) || p(x')), with p(x) fixed; for the `ce` variant nothing new."""
        if self.robust_term == "ce":
            return None
        with torch.no_grad():
            reference = model(images)

        def objective(model: Any, perturbed: Images) -> PerExample:
            logits = model(perturbed)
            return cross_entropy(logits, labels) + self.beta * divergence(reference, logits)

        return objective
