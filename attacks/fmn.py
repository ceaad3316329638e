"""FMN: gradient steps inside a ball whose radius follows the boundary (Pintor et al. 2021, arXiv:2102.12827).

    d <- clip(project(d + a g / ||g||_2, e))
    e <- ||d|| + lead / ||g||_q        before the first adversarial image: to the linearised boundary
    e <- min((1 - c) e, nearest)       where x + d is adversarial, else (1 + c) e

g is the gradient of the best rival's logit less the label's, q dual to the norm; a and c fall along half a cosine
(Algorithm 1). The search is for the smallest perturbation, whatever the radius: the harness projects what it finds. An
objective of the problem's own is not used.

Deviation: where the estimate of the boundary lies no farther than the ball already reaches, e <- (1 + c) e instead.
As published, such a search comes to rest: exactly on a linear boundary, where the label still wins, or short of one
where the box has cut the last step.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.attacks._ascent import usable
from bench.attacks._minimum_norm import Nearest, annealed, farthest, unit
from bench.attacks._objectives import full_precision
from bench.attacks._survivors import check_counts, column, lengths, logits_of
from bench.errors import BenchError
from bench.interfaces import Attack, Images, Labels, PerExample, Problem, fooled, hyperparameter

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
LAST_CHANGE = 0.001
"""Share by which the ball changes at last."""


@dataclass(frozen=True)
class FMN(Attack):
    """The fast minimum-norm attack: the nearest adversarial image, by steps inside a ball that shrinks and grows."""

    paper: ClassVar[str] = "Pintor et al., NeurIPS 2021, https://arxiv.org/abs/2102.12827, Algorithm 1"
    minimum_norm: ClassVar[bool] = True

    steps: int = hyperparameter(100, "steps, each one gradient", "authors' code")
    first_step: float = hyperparameter(
        1.0, "l2 length of the first step; the last is a hundredth of it", "authors' code"
    )
    first_change: float = hyperparameter(0.05, "share by which the ball shrinks or grows at first; 0.001 at last")

    def __post_init__(self) -> None:
        check_counts("fmn", steps=self.steps)
        if not self.first_step > 0:
            raise BenchError(f"first_step {self.first_step} of fmn is not above 0. Give a length, such as 1.")
        if not LAST_CHANGE <= self.first_change < 1:
            raise BenchError(f"first_change {self.first_change} of fmn is not in 0.001..1. Give a share, such as 0.05.")

    def passes(self) -> tuple[int, int]:
        return self.steps, 0

    def perturb(self, problem: Problem) -> Images:
        """The nearest adversarial images found, in the order of `problem.images`; the clean one where none was."""
        images, labels, norm = problem.images, problem.labels, problem.threat.norm
        nearest, limit = Nearest.of_none(problem), farthest(problem)
        perturbed, radius = images.clone(), torch.zeros_like(limit)
        for step in range(self.steps):
            size = annealed(self.first_step, self.first_step / 100, step, self.steps)
            change = annealed(self.first_change, LAST_CHANGE, step, self.steps)
            lead, slope, adversarial = linearised(problem.model, perturbed, labels)
            length = lengths(perturbed - images, norm)
            nearest.note(perturbed, length, adversarial)
            boundary = length + lead.abs() / lengths(slope, DUAL[norm]).clamp_min(1e-12)
            growing = nearest.distance.isfinite() | (boundary <= radius)
            grown = torch.where(growing, radius * (1 + change), boundary)
            shrunk = torch.minimum(radius * (1 - change), nearest.distance)
            radius = torch.minimum(torch.where(adversarial, shrunk, grown), limit)
            moved = into_ball(perturbed - images + size * unit(slope), radius, norm)
            perturbed = (images + moved).clamp(0.0, 1.0)
        return nearest.images


def linearised(model: nn.Module, images: Images, labels: Labels) -> tuple[PerExample, Images, Tensor]:
    """The label's lead over its best rival, the gradient along which it falls, and which images are adversarial."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = full_precision(logits_of(model, leaf))
        rival = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        behind = rival - logits.gather(1, labels[:, None]).squeeze(1)
        (slope,) = torch.autograd.grad(behind.sum(), leaf)
    return usable(-behind.detach().to(images.dtype)), usable(slope), fooled(images, logits.detach(), labels)


def into_ball(differences: Images, radius: PerExample, norm: str) -> Images:
    """The nearest points, in l2, of balls around 0: one radius per sample."""
    limit = column(radius)
    if norm == "linf":
        return torch.maximum(torch.minimum(differences, limit), -limit)
    if norm == "l2":
        tiny = torch.finfo(differences.dtype).tiny
        return differences * (limit / column(lengths(differences, norm).clamp_min(tiny))).clamp_max(1.0)
    # Every entry shrinks by one threshold: the largest of (sum of the k largest - radius) / k, and at least 0.
    size = differences.abs()
    ordered = size.flatten(1).sort(dim=1, descending=True).values
    counts = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    threshold = ((ordered.cumsum(1) - radius[:, None]) / counts).amax(1).clamp_min(0.0)
    return differences.sign() * (size - column(threshold)).clamp_min(0.0)
