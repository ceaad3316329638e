"""Clean and adversarial cross-entropy, mixed (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572, section 6).

    minimise over the model   clean_share * CE(z(x), y) + (1 - clean_share) * max over x' in B(x) of CE(z(x'), y)

Deviations: the inner maximum is the protocol's projected gradient ascent, where the paper takes one signed step.

    bench train --plugin examples/clean_and_adversarial.py --defense clean-and-adversarial --dataset digits
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.attacks import craft, cross_entropy, uniform_start
from bench.errors import BenchError
from bench.interfaces import Defense, Images, Labels, PerExample, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class CleanAndAdversarial(Defense):
    """Cross-entropy on clean and on PGD images.

    Raises:
        BenchError: the share is outside [0, 1].
    """

    paper: ClassVar[str] = "Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572, section 6"

    clean_share: float = hyperparameter(0.5, "weight of the clean images, in [0, 1]")

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share <= 1:
            raise BenchError(f"clean_share={self.clean_share} is not in [0, 1]. The paper takes 0.5.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        def loss(view: Any, x: Images) -> PerExample:
            return cross_entropy(view(x), labels)

        with context.crafting(model) as view:
            perturbed = craft(loss, view, uniform_start(images, context), images, context)
        return {
            "clean": self.clean_share * loss(model, images).mean(),
            "adversarial": (1 - self.clean_share) * loss(model, perturbed).mean(),
        }
