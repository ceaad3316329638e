"""DeepFool: steps to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599).

    l = argmin_k |f_k| / ||w_k||_q,  r <- r + |f_l| / ||w_l||_q^q * |w_l|^(q-1) * sign(w_l)
    x = clip(x_clean + (1 + overshoot) r, 0, 1)

f_k is the lead of class k over the label, w_k its gradient, q dual to the norm (Algorithm 2, extended to p-norms). The
search is for the smallest perturbation, whatever the radius: the harness projects what it finds. An objective of the
problem's own is not used.

Deviations: only the likeliest classes are candidates, gradients are taken at the overshot image and each step is
`SURPLUS` longer, all as in the authors' code; images stay in [0, 1].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attacks._ascent import usable
from bench.attacks._objectives import full_precision
from bench.attacks._survivors import check_counts, classify, column, count_targets, logits_of
from bench.errors import BenchError
from bench.interfaces import Attack, Images, Labels, Problem, classes, fooled, hyperparameter

Gaps = Float[Tensor, "batch rivals"]
Slopes = Float[Tensor, "batch rivals channel height width"]

SURPLUS = 1e-4
"""Length added to each step: without it a search may come to rest exactly on a boundary, where the label still wins."""


@dataclass(frozen=True)
class DeepFool(Attack):
    """The nearest image across a decision boundary, by repeated linearisation."""

    paper: ClassVar[str] = "Moosavi-Dezfooli et al., CVPR 2016, https://arxiv.org/abs/1511.04599, Algorithm 2"
    minimum_norm: ClassVar[bool] = True

    steps: int = hyperparameter(50, "linearisations at most, each with candidates - 1 gradients", "authors' code")
    overshoot: float = hyperparameter(0.02, "share by which the perturbation is stretched to cross the boundary")
    candidates: int = hyperparameter(10, "likeliest classes considered, the label's among them", "authors' code")

    def __post_init__(self) -> None:
        check_counts("deepfool", steps=self.steps)
        if self.candidates < 2:
            raise BenchError(f"candidates={self.candidates} of deepfool is below 2. Give 2 or more classes.")
        if not self.overshoot >= 0:
            raise BenchError(f"overshoot {self.overshoot} of deepfool is below 0. Give 0 or more, such as 0.02.")

    def perturb(self, problem: Problem) -> Images:
        """The first misclassified images on the way, in the order of `problem.images`; else the last ones.

        Raises:
            BenchError: the norm is l1, or the model has fewer than 2 classes.
        """
        if problem.threat.norm == "l1":
            raise BenchError("deepfool works under linf and l2, not under l1. Use fab for a nearest image there.")
        count = count_targets(problem, self.candidates - 1, 2, "deepfool")
        model, images, labels = problem.model, problem.images, problem.labels
        logits = classify(model, images)
        rivals = logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices
        perturbed, total = images.clone(), torch.zeros_like(images)
        rows = (classes(logits) == labels).nonzero().flatten()
        for _ in range(self.steps):
            if not len(rows):
                break
            gaps, slopes = linearised(model, perturbed[rows], labels[rows], rivals[rows])
            total[rows] += shortest_step(gaps, slopes, problem.threat.norm)
            perturbed[rows] = (images[rows] + (1 + self.overshoot) * total[rows]).clamp(0.0, 1.0)
            rows = rows[~fooled(perturbed[rows], classify(model, perturbed[rows]), labels[rows])]
        return perturbed


def linearised(model: nn.Module, images: Images, labels: Labels, rivals: Tensor) -> tuple[Gaps, Slopes]:
    """How far each rival's logit lies below the label's, and the gradient along which it catches up."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = full_precision(logits_of(model, leaf))
        leads = logits.gather(1, rivals) - logits.gather(1, labels[:, None])
        slopes = [torch.autograd.grad(lead.sum(), leaf, retain_graph=True)[0] for lead in leads.unbind(1)]
    return usable(-leads.detach().to(images.dtype)), usable(torch.stack(slopes, dim=1))


def shortest_step(gaps: Gaps, slopes: Slopes, norm: str) -> Images:
    """The step in `norm`, linf or l2, across the nearest of the linear boundaries; none along a zero gradient."""
    dual = torch.linalg.vector_norm(slopes.flatten(2), ord=1 if norm == "linf" else 2, dim=2).clamp_min(1e-12)
    distance, nearest = (gaps / dual).min(1)
    every = torch.arange(len(gaps), device=gaps.device)
    slope, size = slopes[every, nearest], dual[every, nearest]
    direction = slope.sign() if norm == "linf" else slope / column(size)
    return column(distance + SURPLUS) * direction
