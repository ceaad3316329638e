"""FGSM: one step as long as the radius (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572, section 4).

    x' = clip(x + epsilon * sign(gradient of CE(z(x), y)), 0, 1)

From the clean image, without a random start. Under l2 and l1 the sign becomes that norm's own step.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.attacks import ascent_step, begin_ascent, cross_entropy
from bench.interfaces import IterativeAttack, Problem, State


@dataclass(frozen=True)
class FGSM(IterativeAttack):
    """One full-radius step on cross-entropy."""

    paper: ClassVar[str] = "Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572, section 4"

    @property
    def ascends(self) -> Literal["cross-entropy"]:
        return "cross-entropy"

    def begin(self, problem: Problem, restart: int) -> State:
        return begin_ascent(problem, restart, from_noise=False)

    def step(self, problem: Problem, state: State) -> State:
        return ascent_step(problem, state, cross_entropy, "eps")
