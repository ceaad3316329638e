"""Feature scattering (Zhang & Wang 2019, https://arxiv.org/abs/1907.10764, Algorithm 1).

    minimise over the model   mean_i SCE(z(x'_i), y_i)
    SCE(z, y) = -(1 - smoothing) log p_y - smoothing / (M - 1) * sum over k != y of log p_k
    x' = one step of length eps, from a uniform start, that ascends the transport distance of the batch
    distance = sum_ij T_ij C_ij,   C_ij = 1 - cos(z(x_i), z(x'_j)),   T = Sinkhorn's plan between equal shares

Images are perturbed without labels, and together: the plan couples all images of a batch. The plan is that of the
authors' code (https://github.com/Haichao-Zhang/FeatureScatter): logits in place of features, entropic regularisation
0.01, 1e-6 in the logarithms, and an end once the row potentials move by less than 0.1 in all; its gradient is taken
through the iterations. Crafting in eval mode; one train-mode forward, of perturbed images.

Labels of weight 0.5 and one step that knows none leave a loss that is flat and rough around images: on CIFAR-10 60.6 %
were claimed, and AutoAttack leaves 36.6 % (https://robustbench.github.io, Zhang2019Defense).

Deviations: iterations after that end change nothing but are made, because to leave the loop the device would have to
wait; so they are 20 at most and not 100 (digits, batches of 64 to 256: the end is after 2 to 4). They scale rows and
columns of exp(-C / regularisation) in float64 in place of logarithms, which is the same. A start is clipped to [0, 1].
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.attacks import craft, full_precision, uniform_start
from bench.errors import BenchError
from bench.interfaces import (
    Defense,
    Family,
    Images,
    Labels,
    Logits,
    Objective,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)

Pairs = Float[Tensor, "batch batch"]

RESTS = 0.1
"""Row potentials that move by less, in all, are the last ones."""
GUARD = 1e-6
"""Added to sums before they divide, as in the authors' code; bounds how far one iteration moves a potential."""


@dataclass(frozen=True)
class FeatureScattering(Defense):
    """Smoothed cross-entropy on images that one step has moved far from all clean ones.

    Raises:
        BenchError: the smoothing is outside [0, 1), the regularisation is not above 0, or there is no iteration.
    """

    paper: ClassVar[str] = "Zhang & Wang, NeurIPS 2019, https://arxiv.org/abs/1907.10764, Algorithm 1"
    family: ClassVar[Family] = "single-step"
    undivided: ClassVar[str] = "its perturbation couples all images of a batch"

    smoothing: float = hyperparameter(0.5, "share of the label that the other classes get", "authors' code")
    regularisation: float = hyperparameter(0.01, "of the transport plan, in units of its cost", "authors' code")
    iterations: int = hyperparameter(20, "of Sinkhorn's algorithm, at most", "our choice; authors' code: 100")

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise BenchError(f"smoothing={self.smoothing} is not in [0, 1). The authors take 0.5.")
        if not self.regularisation > 0:
            raise BenchError(f"regularisation={self.regularisation} is not above 0. The authors take 0.01.")
        if self.iterations < 1:
            raise BenchError(f"iterations={self.iterations} is below 1. Give 20, or another count.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            with torch.no_grad():
                clean = view(images)

            def scattering(view: Any, x: Images) -> PerExample:
                cost = cosine_distances(clean, view(x))
                return (transport_plan(cost, self.regularisation, self.iterations) * cost).sum(1)

            one_step = dataclasses.replace(context, steps=1, step_size=context.threat.radius)
            # A flat start: bfloat16 would round the distances of nearby images away.
            perturbed = craft(scattering, view, uniform_start(images, context), images, one_step, flat_start=True)
        return {"scattered": smoothed_cross_entropy(model(perturbed), labels, self.smoothing).mean()}

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """The lead of the strongest rival: trained on flat targets, cross-entropy has little slope, but not this."""

        def lead(view: Any, x: Images) -> PerExample:
            logits = view(x)
            return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]

        return lead


def cosine_distances(logits: Logits, others: Logits) -> Pairs:
    """1 - cos of every row with every other row, at least 0."""
    rows, columns = full_precision(logits)[:, None], full_precision(others)[None]
    return (1 - functional.cosine_similarity(rows, columns, dim=2, eps=1e-6)).clamp_min(0)


def transport_plan(cost: Pairs, regularisation: float, iterations: int, rests: float = RESTS) -> Pairs:
    """Sinkhorn's plan, in float64: the cheapest of nearly equal row and column sums, but for its entropy."""
    kernel = (-cost.double() / regularisation).exp()
    share = 1 / len(cost)
    rows = columns = torch.ones_like(kernel[0])
    moving = rows.new_ones((), dtype=torch.bool)
    for _ in range(iterations):
        next_rows = share * rows / (rows * (kernel @ columns) + GUARD)
        next_columns = share * columns / (columns * (next_rows @ kernel) + GUARD)
        moved = regularisation * (next_rows / rows).detach().log().abs().sum()
        rows, columns = torch.where(moving, next_rows, rows), torch.where(moving, next_columns, columns)
        moving = moving & (moved >= rests)
    return rows[:, None] * kernel * columns


def smoothed_cross_entropy(logits: Logits, labels: Labels, smoothing: float) -> PerExample:
    """Cross-entropy with a target of 1 - smoothing for the label and equal shares of the rest, per sample."""
    log_p = full_precision(logits).log_softmax(1)
    own = log_p.gather(1, labels[:, None]).squeeze(1)
    return -(1 - smoothing) * own - smoothing / (logits.shape[1] - 1) * (log_p.sum(1) - own)
