"""APGD-T: Auto-PGD on the targeted DLR loss (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, eq. 7).

    DLR(z, y, t) = -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)

Once for each of the likeliest wrong classes of the clean image, on the samples still standing.

Deviations: a sample stops at its first adversarial image, and with K - 1 < `targets` wrong classes there are K - 1
targets; the verdicts are the same.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.attacks._apgd import targeted_apgd
from bench.attacks._survivors import check_counts, count_targets
from bench.interfaces import Attack, Images, Problem, hyperparameter


@dataclass(frozen=True)
class APGDT(Attack):
    """Parameter-free projected gradient ascent towards one wrong class after the other."""

    paper: ClassVar[str] = "Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, eq. 7"

    steps: int = hyperparameter(100, "ascent steps per target, each one gradient")
    targets: int = hyperparameter(9, "likeliest wrong classes aimed at, K - 1 at most", "AutoAttack standard")
    restarts: int = hyperparameter(1, "independent random starts per target", "AutoAttack standard")

    def __post_init__(self) -> None:
        check_counts("apgd-t", steps=self.steps, targets=self.targets, restarts=self.restarts)

    @property
    def ascends(self) -> Literal["margin"]:
        return "margin"

    def passes(self) -> tuple[int, int]:
        return self.steps * self.targets * self.restarts, 2

    def perturb(self, problem: Problem) -> Images:
        """Perturbed images, in the order of `problem.images`.

        Raises:
            BenchError: the model has fewer than 4 classes.
        """
        targets = count_targets(problem, self.targets, 4, "apgd-t")
        return targeted_apgd(problem, self.steps, targets, self.restarts, "apgd-t")
