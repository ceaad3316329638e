"""RPAT: robust-perception adversarial training (Wang & Liu 2025, https://arxiv.org/abs/2508.02186), with PGD-AT.

    minimise over the model   mean_i CE(z(x'_i), y_i) + weight * MSE_i
    MSE_i = mean_k (z(m_i) - (share * z(x_i) + (1 - share) * z(x'_i)))_k^2,   m_i = share * x_i + (1 - share) * x'_i

Logits between an image and its perturbed version should lie between theirs. The inner maximum is that of AT: a uniform
start in the ball, cross-entropy, eval mode. Train-mode forwards: perturbed, mixed, clean. Nothing is detached. Official
code: https://github.com/FlaAI/RPAT, RPAT_Benchmarks.

Deviations: RPAT++, which adds the averaged model of ReBAT, and the combinations with TRADES, MART and Consistency-AT
are left out. The code's default weight serves all datasets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.attacks import craft, cross_entropy, full_precision, uniform_start
from bench.errors import BenchError
from bench.interfaces import Defense, Family, Images, Labels, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class RobustPerception(Defense):
    """Cross-entropy on PGD images, and logits that change evenly on the way to them.

    Raises:
        BenchError: the share is outside [0, 1].
    """

    paper: ClassVar[str] = "Wang & Liu, ICCV 2025, https://arxiv.org/abs/2508.02186, PGD-AT with robust perception"
    family: ClassVar[Family] = "multi-step"

    weight: float = hyperparameter(1.0, "weight of the squared error of the mixed image's logits", "official code")
    share: float = hyperparameter(0.5, "share of the clean image in the mixed one", "official code")

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise BenchError(f"share={self.share} is not in [0, 1]. It is the clean image's: the authors use 0.5.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        perturbed_logits = full_precision(model(perturbed))
        mixed_logits = full_precision(model(self.share * images + (1 - self.share) * perturbed))
        logits = full_precision(model(images))
        between = self.share * logits + (1 - self.share) * perturbed_logits
        return {
            "adversarial": cross_entropy(perturbed_logits, labels).mean(),
            "perception": self.weight * (mixed_logits - between).square().mean(),
        }
