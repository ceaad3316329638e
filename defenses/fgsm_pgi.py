"""FGSM-PGI: prior-guided initialisation (Jia et al. 2022, https://arxiv.org/abs/2207.08859, the variant FGSM-MEP).

    minimise over the model   mean_i CE(z(x'_i), y_i) + weight * mean over i, k of (z_k(x'_i) - z_k(x0_i))^2
    x0_i = x_i + d_i,   g_i = gradient of CE(z(x0_i), y_i),   x'_i = project(x0_i + radius * sign(g_i))
    then m_i <- decay * m_i + g_i / sum_j |g_j|_1,   d_i <- project(x0_i + radius * sign(m_i)) - x_i

d and m are kept for each training image, in float32: 1.2 GB for CIFAR-10. Every `reset` epochs d begins at +radius or
-radius per pixel, and m at 0. Both passes are in train mode, x0 before x', and nothing is detached: the pass of x0 that
crafts is also trained on. One gradient crafts an image: the protocol's number and length of steps are not used. In l2
and l1 step and first d have this length. As in the official code (https://github.com/jiaxiaojunQAQ/FGSM-PGI,
FGSM_MEP.py), d and m lie in the coordinates of the crop, whichever part of the image the next one shows; with `follow`
they are cropped and mirrored with the image. The official code smooths labels by 4/9, its factor 0.6, while crafting as
well: so does `--label-smoothing 0.444` here.

Deviations: a batch whose gradients are all 0 moves nothing, where the official code divides by 0.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, full_precision
from bench.errors import BenchError
from bench.interfaces import (
    Defense,
    Family,
    Images,
    Labels,
    Placement,
    Scalar,
    TrainingContext,
    hyperparameter,
    without_autocast,
)


@dataclass(frozen=True)
class PriorGuidedTraining(Defense):
    """Cross-entropy on images one step from where the last epochs' steps led, and the same logits before that step.

    Raises:
        BenchError: there is no epoch between two resets.
    """

    paper: ClassVar[str] = "Jia et al., ECCV 2022, https://arxiv.org/abs/2207.08859, FGSM-MEP"
    family: ClassVar[Family] = "single-step"

    weight: float = hyperparameter(10.0, "weight of the squared distance (lambda)", "official code")
    decay: float = hyperparameter(0.3, "share of the momentum that is kept (mu)", "official code")
    reset: int = hyperparameter(40, "epochs after which all perturbations begin anew", "official code")
    follow: bool = hyperparameter(False, "whether perturbations move with crops and flips", "official code: no")

    def __post_init__(self) -> None:
        if self.reset < 1:
            raise BenchError(f"reset={self.reset} is below 1. The authors take 40 epochs.")

    def tables(self, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        return {"perturbation": image_shape, "momentum": image_shape}

    @staticmethod
    def kept(context: TrainingContext) -> tuple[Any, Any]:
        """The tables of perturbations and of momenta."""
        return context.state["perturbation"], context.state["momentum"]

    def begin_epoch(self, model: Any, context: TrainingContext) -> None:
        if context.epoch % self.reset == 0:
            table, momenta = self.kept(context)
            one = torch.ones_like(table[:1])
            length = context.threat.distance(one, 0 * one).to(table)
            table.uniform_(-1, 1, generator=context.generator).sign_().mul_(context.threat.radius / length)
            momenta.zero_()

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        (perturbations, momenta), rows = self.kept(context), context.indices
        placement = context.placement if self.follow else Placement()
        start = (images + placement.place(perturbations[rows])).requires_grad_()
        first = model(start)
        with without_autocast(images):
            (gradient,) = torch.autograd.grad(cross_entropy(first, labels).sum(), start, retain_graph=True)
        size = gradient.abs().sum().clamp_min(torch.finfo(gradient.dtype).tiny)
        momentum = self.decay * placement.place(momenta[rows]) + gradient / size
        once = replace(context, steps=1, step_size=context.threat.radius)

        def moved(direction: Images) -> Images:
            # Ascending the linear function that has this gradient takes the step without another pass.
            return craft(lambda view, x: (direction * x).flatten(1).sum(1), model, start.detach(), images, once, False)

        perturbed = moved(gradient)
        perturbations[rows] = placement.put_back(moved(momentum) - images, onto=perturbations[rows])
        momenta[rows] = placement.put_back(momentum, onto=momenta[rows])
        second = model(perturbed)
        return {
            "adversarial": cross_entropy(second, labels).mean(),
            "prior": self.weight * (full_precision(second) - full_precision(first)).square().mean(),
        }
