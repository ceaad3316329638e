"""GAT: guided adversarial training (Sriramanan et al. 2020, https://arxiv.org/abs/2011.14969, the single-step defense).

    minimise over the model   mean_i CE(z(x_i), y_i) + w * |p(x_i) - p(x'_i)|^2,   p = softmax(z)
    x'_i = project(x0_i + radius * sign(gradient of CE(z(x0_i), y_i) + turn * w * |p(x_i) - p(x0_i)|^2)),
    x0_i = x_i + noise * radius * (+1 or -1 per pixel)

turn is 0 in the first step of an epoch, 1 in the second, and so on in turn; w is `weight`, and `factor` times that from
the share `raised` of the epochs on, where the official rate falls for the last time. As in the official code
(https://github.com/val-iisc/GAMA-GAT, CIFAR-10), p(x) that guides the attack is of a train-mode pass of its own and x0
is seen in eval mode. Train-mode forwards: clean, perturbed, clean. One gradient crafts an image: the protocol's number
and length of steps are not used. In l2 and l1 noise and step have these lengths.

Deviations: the official MNIST script always guides and has other values (weight 15, tripled three times, noise of a
whole radius), which are not offered as published ones; the values of CIFAR-10 serve all datasets.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, full_precision, random_start
from bench.errors import BenchError
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
class GuidedTraining(Defense):
    """Cross-entropy on clean images, and the same probabilities one guided step away.

    Raises:
        BenchError: the noise is below 0.
    """

    paper: ClassVar[str] = "Sriramanan et al., NeurIPS 2020, https://arxiv.org/abs/2011.14969, the single-step defense"
    family: ClassVar[Family] = "single-step"

    weight: float = hyperparameter(10.0, "weight of the squared distance, in attack and loss (lambda)", "official code")
    factor: float = hyperparameter(4.0, "by which the weight grows late in training", "official code")
    raised: float = hyperparameter(0.86, "share of the epochs after which the weight has grown", "official code")
    noise: float = hyperparameter(0.5, "size of the random start, in radii", "official code")

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise BenchError(f"noise={self.noise} is below 0. It is a length in radii: the authors use 0.5.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        weight = self.weight * (self.factor if context.epoch >= self.raised * context.epochs else 1.0)
        guidance = weight * (context.batch % 2)
        with torch.no_grad():
            reference = model(images)

        def objective(view: Any, x: Images) -> PerExample:
            logits = view(x)
            return cross_entropy(logits, labels) + guidance * squared_distance(reference, logits)

        signs = (context.noise(torch.rand, images) < 0.5).to(images)
        once = replace(context, steps=1, step_size=context.threat.radius)
        with context.crafting(model) as view:
            start = random_start(images, context.threat.scaled(self.noise), signs)
            perturbed = craft(objective, view, start, images, once, flat_start=False)
        perturbed_logits = model(perturbed)
        logits = model(images)
        return {
            "clean": cross_entropy(logits, labels).mean(),
            "robust": weight * squared_distance(logits, perturbed_logits).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(z(x'), y) + weight * |p(x) - p(x')|^2, with p(x) fixed."""
        with torch.no_grad():
            reference = model(images)

        def objective(model: Any, perturbed: Images) -> PerExample:
            logits = model(perturbed)
            return cross_entropy(logits, labels) + self.weight * squared_distance(reference, logits)

        return objective


def squared_distance(logits: Logits, perturbed_logits: Logits) -> PerExample:
    """|p - q|^2 between the probabilities of two logits, per sample; at most 2."""
    return (full_precision(logits).softmax(1) - full_precision(perturbed_logits).softmax(1)).square().sum(1)
