"""FGSM: one step as long as the radius (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572, section 4).

    x' = clip(x + epsilon * sign(gradient of CE(z(x), y)), 0, 1)

From the clean image, without a random start. Under l2 and l1 the sign becomes that norm's own step.
"""

from dataclasses import dataclass
from typing import ClassVar

from attacks import cross_entropy, search
from bench.interfaces import Attack, Images, Problem


@dataclass(frozen=True)
class FGSM(Attack):
    """One full-radius step on cross-entropy."""

    paper: ClassVar[str] = "Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572, section 4"

    def perturb(self, problem: Problem) -> Images:
        return search(problem, cross_entropy, steps=1, step_size="eps", from_noise=False)
