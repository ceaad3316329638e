"""APGD-CE: Auto-PGD on cross-entropy (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, Algorithm 1).

    z = project(x_k + s * direction),  x_{k+1} = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))

The step s starts at twice the radius and is halved, per sample, where progress stalls. Under l1: APGD with sparse
steps and a shrinking ball (Croce & Hein 2021, https://arxiv.org/abs/2103.01208).

Deviation: a sample stops at its first adversarial image; the verdicts are the same.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.attacks._apgd import apgd, untargeted_cross_entropy
from bench.attacks._survivors import check_counts
from bench.interfaces import Attack, Images, Problem, hyperparameter


@dataclass(frozen=True)
class APGDCE(Attack):
    """Parameter-free projected gradient ascent on cross-entropy, or on the problem's own objective."""

    paper: ClassVar[str] = "Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, Algorithm 1"

    steps: int = hyperparameter(100, "ascent steps, each one gradient")
    restarts: int = hyperparameter(1, "independent random starts, of the images still standing", "AutoAttack standard")

    def __post_init__(self) -> None:
        check_counts("apgd-ce", steps=self.steps, restarts=self.restarts)

    @property
    def ascends(self) -> Literal["cross-entropy"]:
        return "cross-entropy"

    def passes(self) -> tuple[int, int]:
        return self.steps * self.restarts, 2

    def perturb(self, problem: Problem) -> Images:
        return apgd(problem, untargeted_cross_entropy, self.steps, self.restarts, "apgd-ce")
