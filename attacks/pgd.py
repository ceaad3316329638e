"""PGD: projected gradient ascent on the loss (Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 2.1).

    x <- project(x + step_size * steepest direction of the loss at x)

The image of the last step is returned; the harness looks at those on the way by itself.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.attacks import ascent_step, begin_ascent, check_search, cross_entropy, margin
from bench.errors import BenchError
from bench.interfaces import IterativeAttack, Problem, State, hyperparameter


@dataclass(frozen=True)
class PGD(IterativeAttack):
    """Projected gradient ascent on cross-entropy or on the margin."""

    paper: ClassVar[str] = "Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083, section 2.1"

    steps: int = hyperparameter(20, "ascent steps, each one gradient")
    step_size: str = hyperparameter("eps/8", "length of a step: 2/255, 0.01, eps/4 or 2.5*eps/20", "convention")
    random_start: bool = hyperparameter(True, "start at a random allowed image, not at the clean one")
    restarts: int = hyperparameter(1, "independent random starts; an image that one of them fools is kept")
    loss: Literal["cross-entropy", "margin"] = hyperparameter(
        "cross-entropy", "what is ascended", choices=("cross-entropy", "margin")
    )

    def __post_init__(self) -> None:
        check_search(self.steps, self.step_size, self.random_start, self.restarts)
        if self.loss not in ("cross-entropy", "margin"):
            raise BenchError(f"unknown loss {self.loss!r} of pgd. Choose from: cross-entropy, margin.")

    @property
    def ascends(self) -> Literal["cross-entropy", "margin"]:
        return self.loss

    def begin(self, problem: Problem, restart: int) -> State:
        return begin_ascent(problem, restart, self.random_start)

    def step(self, problem: Problem, state: State) -> State:
        return ascent_step(problem, state, margin if self.loss == "margin" else cross_entropy, self.step_size)
