"""APGD-DLR: Auto-PGD on the difference of logits ratio (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, eq. 6).

    DLR(z, y) = -(z_y - max_{j != y} z_j) / (z_(1) - z_(3))

The ratio does not change when logits are shifted or scaled, where cross-entropy loses its gradient.

Deviation: a sample stops at its first adversarial image; the verdicts are the same.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from bench.attacks._apgd import apgd, dlr
from bench.attacks._survivors import check_counts, count_targets
from bench.interfaces import Attack, Images, Problem, hyperparameter


@dataclass(frozen=True)
class APGDDLR(Attack):
    """Parameter-free projected gradient ascent on DLR."""

    paper: ClassVar[str] = "Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, eq. 6"

    steps: int = hyperparameter(100, "ascent steps, each one gradient")
    restarts: int = hyperparameter(1, "independent random starts, of the images still standing", "AutoAttack standard")

    def __post_init__(self) -> None:
        check_counts("apgd-dlr", steps=self.steps, restarts=self.restarts)

    @property
    def ascends(self) -> Literal["margin"]:
        return "margin"

    def passes(self) -> tuple[int, int]:
        return self.steps * self.restarts, 2

    def perturb(self, problem: Problem) -> Images:
        """Perturbed images, in the order of `problem.images`.

        Raises:
            BenchError: the model has fewer than 3 classes.
        """
        count_targets(problem, 1, 3, "apgd-dlr")
        return apgd(replace(problem, objective=None), dlr, self.steps, self.restarts, "apgd-dlr")
