"""KD+SWA: learned smoothening (Chen et al. 2021, https://openreview.net/forum?id=qZzy5urZw9): two teachers.

    minimise over the model   mean_i ce * CE(z', y_i) + standard * H(s(x'_i), z') + robust * H(a(x'_i), z')
    z' = z(x'_i)
    H(t, z) = -T^2 sum_k softmax(t / T)_k log softmax(z / T)_k

s is the logits of a standardly trained model and a those of an adversarially trained one, both fixed and seen in eval
mode. The inner maximum is that of AT: a uniform start in the ball, cross-entropy. Official code:
https://github.com/VITA-Group/Alleviate-Robust-Overfitting. It averages the weights of the ends of epochs from epoch 55
of 200 on: a setting of the protocol here, `--average swa --average-from 0.275`.

Deviations: crafting in eval mode, where the official code crafts in train mode; the teachers are the benchmark's `st`
and `at` runs of the same seed, not those of the best epoch on held-out images.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, full_precision, uniform_start
from bench.errors import BenchError
from bench.interfaces import (
    Defense,
    Family,
    Images,
    Labels,
    Logits,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


@dataclass(frozen=True)
class LearnedSmoothening(Defense):
    """Cross-entropy on PGD images, and there the softened predictions of a standard and a robust teacher.

    Raises:
        BenchError: the temperature is not above 0.
    """

    paper: ClassVar[str] = "Chen et al., ICLR 2021, https://openreview.net/forum?id=qZzy5urZw9, KD and SWA"
    requires: ClassVar[tuple[str, ...]] = ("at", "st")
    family: ClassVar[Family] = "distillation"

    ce: float = hyperparameter(0.3, "weight of the cross-entropy with the labels", "official code")
    standard: float = hyperparameter(0.1, "weight of the standard teacher", "official code")
    robust: float = hyperparameter(0.6, "weight of the robust teacher", "official code")
    temperature: float = hyperparameter(2.0, "softens teachers and model alike", "official code")

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise BenchError(f"temperature={self.temperature} is not above 0. It divides logits: the authors use 2.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        with torch.no_grad(), context.rounding(half=False):
            teachers = {name: context.requirements[name](perturbed) for name in self.requires}
        logits = model(perturbed)
        return {
            "adversarial": self.ce * cross_entropy(logits, labels).mean(),
            "standard": self.standard * self.distance(teachers["st"], logits).mean(),
            "robust": self.robust * self.distance(teachers["at"], logits).mean(),
        }

    def distance(self, teacher: Logits, logits: Logits) -> PerExample:
        """The cross-entropy with a teacher's softened prediction, times the squared temperature, per sample."""
        target = (full_precision(teacher) / self.temperature).softmax(1)
        found = (full_precision(logits) / self.temperature).log_softmax(1)
        return -(self.temperature**2) * (target * found).sum(1)
