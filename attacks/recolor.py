"""ReColorAdv: images whose colours are exchanged (Laidlaw & Feizi 2019, https://arxiv.org/abs/1906.00001, section 4).

    maximise  margin(z(f(x))) - smoothness * sum of |differences of neighbouring changes|^2,  |f(c) - c| <= budget

One function f of colours for all pixels of an image, given on a lattice. The threat model is a colour change: no
channel of any pixel moves by more than the budget, of a range of 1. The harness holds it.

Deviations: in RGB, where the paper also has a space of perception; smoothness is a penalty, where the paper bounds
differences.
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
class ReColor(Attack):
    """Search for a change of colours, the same for all pixels of an image, that fools the model."""

    paper: ClassVar[str] = "Laidlaw & Feizi, NeurIPS 2019, https://arxiv.org/abs/1906.00001, section 4"
    transformation: ClassVar[str] = "colour"

    steps: int = hyperparameter(100, "ascent steps, each one gradient", "ours")
    step_size: str = hyperparameter("eps/10", "length of a step: 0.01, eps/10 or 2.5*eps/20", "ours")
    smoothness: float = hyperparameter(0.05, "weight of differences between neighbouring colours", "ours")

    def __post_init__(self) -> None:
        check_counts("recolor", steps=self.steps)
        if not self.smoothness >= 0:
            raise BenchError(f"smoothness {self.smoothness} of recolor is below 0. Give 0 or more, such as 0.05.")

    def passes(self) -> tuple[int, int]:
        return self.steps + 1, 0

    def perturb(self, problem: Problem) -> Tensor:
        """Changes on the lattice of colours, in the order of `problem.images`."""
        return ascend_parameters(
            problem, self.steps, self.step_size, lambda change: self.smoothness * roughness(change)
        )


def roughness(change: Tensor) -> Tensor:
    """Sum of the squared differences between neighbours of the lattice, along every channel."""
    steps = (change.diff(dim=axis).square().flatten(1).sum(1) for axis in range(2, change.ndim))
    return torch.stack([*steps]).sum(0)
