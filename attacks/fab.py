"""FAB-T: the fast adaptive boundary attack, targeted (Croce & Hein 2020, https://arxiv.org/abs/1907.02044, section 2).

    x <- (1 - a) (x + 1.05 d(x)) + a (x_clean + 1.05 d(x_clean)),  d: to the linearised boundary, inside [0, 1]

Looks for the nearest adversarial image, once for each of the likeliest wrong classes (as in AutoAttack); one within
the radius counts.

Deviations: a sample stops at its first adversarial image within the radius, and with K - 1 < `targets` wrong classes
there are K - 1 targets; the verdicts are the same.
"""

from dataclasses import dataclass
from typing import ClassVar

from bench.attacks._fab import fab
from bench.attacks._survivors import check_counts, count_targets
from bench.interfaces import Attack, Images, Problem, hyperparameter


@dataclass(frozen=True)
class FAB(Attack):
    """Minimum-norm search along the decision boundaries to one wrong class after the other."""

    paper: ClassVar[str] = "Croce & Hein, ICML 2020, https://arxiv.org/abs/1907.02044, Algorithm 1"

    steps: int = hyperparameter(100, "steps per target, each one gradient and two forward passes")
    targets: int = hyperparameter(9, "likeliest wrong classes aimed at, K - 1 at most", "AutoAttack standard")
    restarts: int = hyperparameter(1, "searches per target; all but the first start at random", "AutoAttack standard")

    def __post_init__(self) -> None:
        check_counts("fab", steps=self.steps, targets=self.targets, restarts=self.restarts)

    def passes(self) -> tuple[int, int]:
        return self.steps * self.targets * self.restarts, self.steps * self.targets * self.restarts

    def perturb(self, problem: Problem) -> Images:
        """Perturbed images, in the order of `problem.images`; the clean one where none was found within the radius.

        Raises:
            BenchError: the model has fewer than 2 classes.
        """
        targets = count_targets(problem, self.targets, 2, "fab")
        return fab(problem, self.steps, targets, self.restarts, "fab")
