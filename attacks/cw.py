"""C&W inside a ball: projected gradient ascent on the margin (Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644).

    maximise over x' in B(x)   -max(z_y(x') - max_{j != y} z_j(x') + confidence, 0)

Deviation: the paper minimises the size of the perturbation plus this term (its f6). Papers on robustness mean by
"C&W" the term alone, ascended like PGD inside the threat model (https://github.com/wkim97/FSR does so, with
confidence 50, which no margin between logits of a trained classifier usually exceeds).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.attacks import ascent_step, begin_ascent, check_search, margin
from bench.errors import BenchError
from bench.interfaces import IterativeAttack, Labels, Logits, PerExample, Problem, State, hyperparameter


@dataclass(frozen=True)
class CW(IterativeAttack):
    """Projected gradient ascent on the margin, pushed on after the label is lost."""

    paper: ClassVar[str] = "Carlini & Wagner, S&P 2017, https://arxiv.org/abs/1608.04644, loss f6"

    steps: int = hyperparameter(30, "ascent steps, each one gradient", "convention")
    confidence: float = hyperparameter(50.0, "lead of a rival, in logits, beyond which an image rests", "convention")
    step_size: str = hyperparameter("eps/8", "length of a step: 2/255, 0.01, eps/4 or 2.5*eps/20", "convention")
    random_start: bool = hyperparameter(True, "start at a random allowed image, not at the clean one", "convention")
    restarts: int = hyperparameter(1, "independent random starts; an image that one of them fools is kept")

    def __post_init__(self) -> None:
        check_search(self.steps, self.step_size, self.random_start, self.restarts)
        if not self.confidence >= 0:
            raise BenchError(f"confidence {self.confidence} of cw is below 0. Give 0 or more logits, such as 50.")

    @property
    def ascends(self) -> Literal["margin"]:
        return "margin"

    def begin(self, problem: Problem, restart: int) -> State:
        return begin_ascent(problem, restart, self.random_start)

    def step(self, problem: Problem, state: State) -> State:
        def loss(logits: Logits, labels: Labels) -> PerExample:
            return margin(logits, labels, self.confidence)

        return ascent_step(problem, state, loss, self.step_size)
