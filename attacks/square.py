"""Square Attack (Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049, Algorithms 1-3).

    keep x' = proposal(x) where z_y(x') - max_{j != y} z_j(x') is smaller than before

A proposal changes one square window, the same for all samples; windows shrink as queries are spent. No gradients.

Under linf a proposal paints the window with the two faces of the ball; under l2 and l1 (Croce & Hein 2021,
https://arxiv.org/abs/2103.01208) it moves the perturbation of one window into a bump in another. The schedule of
window sizes is that of AutoAttack: written for 10,000 queries, not rescaled to fewer.
"""

from dataclasses import dataclass
from typing import ClassVar

from bench.attacks._square import square
from bench.attacks._survivors import check_counts
from bench.interfaces import Attack, Images, Problem, hyperparameter


@dataclass(frozen=True)
class Square(Attack):
    """Random search that sees logits only."""

    paper: ClassVar[str] = "Andriushchenko et al., ECCV 2020, https://arxiv.org/abs/1912.00049, Algorithm 1"
    blind_stages: ClassVar[frozenset[int]] = frozenset({1})

    queries: int = hyperparameter(5000, "proposals, each one forward pass", "AutoAttack standard")
    restarts: int = hyperparameter(1, "independent searches, of the images still standing", "AutoAttack standard")

    def __post_init__(self) -> None:
        check_counts("square", queries=self.queries, restarts=self.restarts)

    def passes(self) -> tuple[int, int]:
        return 0, self.queries * self.restarts

    def perturb(self, problem: Problem) -> Images:
        return square(problem, self.queries, self.restarts, "square")
