"""StAdv: images whose pixels are moved, not changed (Xiao et al. 2018, https://arxiv.org/abs/1801.02612, section 3.2).

    maximise  margin(z(flow(x))) - smoothness * sum of sqrt(differences^2 of neighbouring displacements)   (eq. 3 and 4)

The threat model is a flow: no pixel takes its colour from further away than the budget, in pixels, down or across. The
harness holds it.

Deviations: the paper has no budget and searches with L-BFGS from the identity; here steps of one sign, from a random
flow, are cut to the budget.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.attacks._survivors import check_counts
from bench.attacks._transforming import ascend_parameters
from bench.errors import BenchError
from bench.interfaces import Attack, Problem, hyperparameter


@dataclass(frozen=True)
class StAdv(Attack):
    """Search for a smooth flow of pixels that fools the model."""

    paper: ClassVar[str] = "Xiao et al., ICLR 2018, https://arxiv.org/abs/1801.02612, section 3.2"
    transformation: ClassVar[str] = "flow"

    steps: int = hyperparameter(100, "ascent steps, each one gradient", "ours")
    step_size: str = hyperparameter("eps/10", "length of a step, in pixels: 0.1, eps/10 or 2.5*eps/20", "ours")
    smoothness: float = hyperparameter(0.05, "weight of the roughness of the flow")

    def __post_init__(self) -> None:
        check_counts("stadv", steps=self.steps)
        if not self.smoothness >= 0:
            raise BenchError(f"smoothness {self.smoothness} of stadv is below 0. Give 0 or more, such as 0.05.")

    def passes(self) -> tuple[int, int]:
        return self.steps + 1, 0

    def perturb(self, problem: Problem) -> Tensor:
        """Flows, in the order of `problem.images`."""
        return ascend_parameters(problem, self.steps, self.step_size, lambda flow: self.smoothness * roughness(flow))


def roughness(flow: Tensor) -> Tensor:
    """Sum over pixels of the length of both displacements' differences to the right and lower neighbour (eq. 4)."""
    down = (flow[:, :, 1:] - flow[:, :, :-1]).square().sum(1)
    across = (flow[:, :, :, 1:] - flow[:, :, :, :-1]).square().sum(1)
    # The root has no slope at 0, where every search begins.
    lengths = [((part + 1e-8).sqrt() - 1e-4).flatten(1).sum(1) for part in (down, across)]
    return torch.stack(lengths).sum(0)
