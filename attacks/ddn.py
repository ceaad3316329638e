"""DDN: direction and norm apart (Rony et al. 2019, https://arxiv.org/abs/1811.09600, Algorithm 1).

    d <- d + a g / ||g||_2,   e <- (1 - c) e where x + d was adversarial, else (1 + c) e,   d <- clip(e d / ||d||_2)

g is the gradient of cross-entropy; a falls from 1 to 0.01 along half a cosine. The search is for the smallest
perturbation in l2, whatever the radius: the harness projects what it finds. An objective of the problem's own is not
used.

Deviations: images are not rounded to 256 levels, and a zero gradient gives no direction where the authors' code draws
one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.attacks._ascent import usable
from bench.attacks._minimum_norm import Nearest, annealed, farthest, unit
from bench.attacks._objectives import cross_entropy
from bench.attacks._survivors import check_counts, column, lengths, logits_of
from bench.errors import BenchError
from bench.interfaces import Attack, Images, Problem, fooled, hyperparameter


@dataclass(frozen=True)
class DDN(Attack):
    """The decoupled direction and norm attack: the nearest adversarial image in l2."""

    paper: ClassVar[str] = "Rony et al., CVPR 2019, https://arxiv.org/abs/1811.09600, Algorithm 1"
    minimum_norm: ClassVar[bool] = True

    steps: int = hyperparameter(100, "steps, each one gradient")
    first_norm: float = hyperparameter(1.0, "l2 length of the perturbation after the first step, up to `change`")
    change: float = hyperparameter(0.05, "share by which that length shrinks or grows in a step")

    def __post_init__(self) -> None:
        check_counts("ddn", steps=self.steps)
        if not self.first_norm > 0:
            raise BenchError(f"first_norm {self.first_norm} of ddn is not above 0. Give a length, such as 1.")
        if not 0 < self.change < 1:
            raise BenchError(f"change {self.change} of ddn is not between 0 and 1. Give a share, such as 0.05.")

    def passes(self) -> tuple[int, int]:
        return self.steps, 0

    def perturb(self, problem: Problem) -> Images:
        """The nearest adversarial images found, in the order of `problem.images`; the clean one where none was.

        Raises:
            BenchError: the norm is not l2.
        """
        if problem.threat.norm != "l2":
            raise BenchError(f"ddn works under l2, not under {problem.threat.norm}. Use fmn for a nearest image there.")
        images, labels = problem.images, problem.labels
        nearest, limit = Nearest.of_none(problem), farthest(problem)
        perturbed, norm = images.clone(), torch.full_like(limit, self.first_norm)
        for step in range(self.steps):
            with torch.enable_grad():
                leaf = perturbed.detach().requires_grad_()
                logits = logits_of(problem.model, leaf)
                (slope,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), leaf)
            adversarial = fooled(perturbed, logits.detach(), labels)
            nearest.note(perturbed, lengths(perturbed - images, "l2"), adversarial)
            direction = unit(perturbed - images + annealed(1.0, 0.01, step, self.steps) * unit(usable(slope)))
            norm = torch.minimum(norm * torch.where(adversarial, 1 - self.change, 1 + self.change), limit)
            perturbed = (images + column(norm) * direction).clamp(0.0, 1.0)
        return nearest.images
