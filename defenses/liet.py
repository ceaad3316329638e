"""LIET: label information elimination (Pan et al., ICCV 2025).

    minimise over the model   mean_i CE(z(x'_i), t_i) + w * mean_i JS(p(x0_i), p(x'_i)),   p = softmax(z)
    x'_i = x0_i + radius * sign(gradient of CE(z(x0_i), t'_i)),   x0_i = clip(x_i + sign * d_i)
    d_i = per pixel: noise with the probability r, else radius * sign(gradient of CE(z(grey), t_{y_i}) at grey)

grey has all pixels at 1/2: the sign of its gradient, in eval mode and every `every` batches of an epoch, is a mark that
tells the class of an image to a network that overfits. sign is +1 or -1, and r uniform in [`least`, `most`], for a
whole batch. Targets t give `smoothing` to the other classes in random shares, drawn anew for each loss. w grows evenly
to `weight` in the last epoch. Both passes of images are in train mode, x0 before x', and nothing is detached. One
gradient crafts an image: the protocol's number and length of steps are not used. Noise is uniform in `noise` radii: up
to 1, x' is projected onto the ball, and beyond, only clipped; the authors take 1, and 2 for radii above 8/255. In l2
and l1 steps and noise have these lengths. Authors' code: https://github.com/fzjcdt/FastAT_Benchmark, fast_at/liet.py.

Deviations: the average of weights in the authors' code is a setting of the protocol.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.attacks import craft, cross_entropy, full_precision, random_start
from bench.errors import BenchError
from bench.interfaces import (
    Defense,
    Family,
    Images,
    Labels,
    Logits,
    PerExample,
    Scalar,
    Stateful,
    TrainingContext,
    hyperparameter,
    without_autocast,
)


class Marks(nn.Module):
    """A perturbation of grey for each class. The first batch of an epoch makes them anew, so that none is saved."""

    of_class: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("of_class", torch.empty(0), persistent=False)


@dataclass(frozen=True)
class LabelInformationElimination(Defense):
    """Smoothed cross-entropy on images one step from a start that holds some label's mark or its opposite.

    Raises:
        BenchError: a share is outside [0, 1], noise is below 0, or marks are never made.
    """

    paper: ClassVar[str] = (
        "Pan et al., ICCV 2025, Mitigating Catastrophic Overfitting in Fast Adversarial Training via Label Information "
        "Elimination, as in the authors' code"
    )
    family: ClassVar[Family] = "single-step"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"cifar100": {"weight": 200.0, "smoothing": 0.8}}
    )
    undivided: ClassVar[str] = "its random targets are drawn for a batch as a whole"

    weight: float = hyperparameter(100.0, "weight of the divergence in the last epoch (lambda)", "authors' code")
    smoothing: float = hyperparameter(0.6, "share of the label that other classes get", "authors' code")
    least: float = hyperparameter(0.1, "least share of pixels with noise", "authors' code")
    most: float = hyperparameter(0.5, "largest share of pixels with noise", "authors' code")
    noise: float = hyperparameter(1.0, "size of the noise, in radii; 2 for radii above 8/255", "authors' code")
    every: int = hyperparameter(20, "batches after which marks are made anew", "authors' code")

    def __post_init__(self) -> None:
        for name in ("smoothing", "least", "most"):
            if not 0 <= getattr(self, name) <= 1:
                raise BenchError(f"{name}={getattr(self, name)} is not in [0, 1]. It is a share.")
        if not self.noise >= 0:
            raise BenchError(f"noise={self.noise} is below 0. It is a length in radii: the authors use 1.")
        if self.every < 1:
            raise BenchError(f"every={self.every} is below 1. The authors take 20 batches.")

    def state(self, model: Any, optimizer: torch.optim.Optimizer) -> Mapping[str, Stateful]:
        return {"marks": Marks()}

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        threat, marks = context.threat, context.state["marks"]
        assert isinstance(marks, Marks)
        classes = len(model.class_centres())

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=context.generator, device=images.device, dtype=images.dtype)

        def targets(labels: Labels) -> Tensor:
            return random_targets(labels, uniform(len(labels), classes), self.smoothing)

        once = replace(context, steps=1, step_size=threat.radius)
        if context.batch % self.every == 0:
            grey, each = images.new_full((classes, *images.shape[1:]), 0.5), targets(torch.arange(classes).to(labels))
            with context.crafting(model) as view:
                marks.of_class = (
                    craft(lambda view, x: cross_entropy(view(x), each), view, grey, grey, once, False) - grey
                )

        chances, grey = context.noise(torch.rand, images), torch.full_like(images, 0.5)
        noise = random_start(grey, threat.scaled(self.noise), context.noise(torch.rand, images)) - grey
        share, coin = uniform(2)
        mixed = torch.where(chances < self.least + share * (self.most - self.least), noise, marks.of_class[labels])
        start = (images + torch.where(coin < 0.5, -mixed, mixed)).clamp(0, 1).requires_grad_()
        first = model(start)
        with without_autocast(images):
            (gradient,) = torch.autograd.grad(cross_entropy(first, targets(labels)).sum(), start, retain_graph=True)
        # Ascending the linear function that has this gradient takes the step without another pass.
        reach = replace(once, threat=threat.scaled(1.0 if self.noise <= 1 else self.noise + 1))
        perturbed = craft(lambda _, x: (gradient * x).flatten(1).sum(1), model, start.detach(), images, reach, False)
        second = model(perturbed)
        weight = self.weight * (context.epoch + 1) / context.epochs
        return {
            "adversarial": cross_entropy(second, targets(labels)).mean(),
            "alike": weight * shared_divergence(first, second).mean(),
        }


def random_targets(labels: Labels, uniform: Tensor, smoothing: float) -> Tensor:
    """Distributions over classes: 1 - smoothing for the label, and the rest in the proportions of these numbers."""
    own = labels[:, None]
    others = uniform.scatter(1, own, 0.0)
    others = smoothing * others / others.sum(1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
    return others.scatter(1, own, 1 - smoothing)


def shared_divergence(logits: Logits, others: Logits) -> PerExample:
    """The Jensen-Shannon divergence of the softmaxes, per sample; at most log 2."""
    log_p, log_q = full_precision(logits).log_softmax(1), full_precision(others).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2
