"""MI-FGSM: ascent along an average of past gradients (Dong et al. 2018, https://arxiv.org/abs/1710.06081, eq. 6 and 7).

    g <- decay * g + gradient / ||gradient||_1,  x <- project(x + step_size * sign(g))

Under l2 and l1 the sign becomes that norm's own step along g. The step is blind to the scale of g: dividing by the mean
of |gradient| instead, as torchattacks does, takes the same path.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from bench.attacks import begin_ascent, check_search, cross_entropy
from bench.attacks._ascent import attack_gradient, attack_step
from bench.errors import BenchError
from bench.interfaces import IterativeAttack, Problem, State, hyperparameter


@dataclass(frozen=True)
class MIFGSM(IterativeAttack):
    """Projected ascent on cross-entropy with momentum."""

    paper: ClassVar[str] = "Dong et al., CVPR 2018, https://arxiv.org/abs/1710.06081, eq. 6 and 7"

    steps: int = hyperparameter(10, "ascent steps, each one gradient")
    step_size: str = hyperparameter("eps/10", "length of a step: 2/255, 0.01, eps/4 or 2.5*eps/20")
    decay: float = hyperparameter(1.0, "weight of the past: 0 forgets it, 1 adds all gradients up")
    random_start: bool = hyperparameter(False, "start at a random allowed image, not at the clean one")
    restarts: int = hyperparameter(
        1, "independent random starts; an image that one of them fools is kept", "convention"
    )

    def __post_init__(self) -> None:
        check_search(self.steps, self.step_size, self.random_start, self.restarts)
        if not self.decay >= 0:
            raise BenchError(f"decay {self.decay} of mi-fgsm is below 0. Give 0 or more, such as 1.")

    @property
    def ascends(self) -> Literal["cross-entropy"]:
        return "cross-entropy"

    def begin(self, problem: Problem, restart: int) -> State:
        state = begin_ascent(problem, restart, self.random_start)
        return state | {"momentum": torch.zeros_like(state["images"])}

    def step(self, problem: Problem, state: State) -> State:
        gradient = attack_gradient(problem, state["images"], cross_entropy)
        length = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        momentum = self.decay * state["momentum"] + gradient / length
        return {"images": attack_step(problem, state["images"], momentum, self.step_size), "momentum": momentum}
