"""FGSM with GradAlign (Andriushchenko & Flammarion 2020, https://arxiv.org/abs/2007.02617, the regulariser).

    minimise over the model   mean_i CE(z(x'_i), y_i) + weight * mean_i (1 - cos(g(x_i), g(r_i)))
    g(x) = gradient of CE(z(x), y) at x,   x'_i = project(x_i + radius * sign(g(x_i))),   r_i uniform in B(x_i)

g(x), which also crafts x', is fixed, and g(r) is differentiated once more. One gradient crafts an image: the protocol's
number and length of steps are not used. In l2 and l1 the step is the steepest one. Official code:
https://github.com/tml-epfl/understanding-fast-adv-training; its weight grows with the radius, 0.2 is for 8/255.

Deviations: both gradients are of the model in eval mode, as for crafting by the other defenses here, where the
official code takes them in train mode and so shows BatchNorm x and r as well; g(r) sees the running statistics after x'
has moved them, since a later change would falsify its derivative. r is clipped to [0, 1]. An image without a gradient
counts as aligned, where the official mean leaves it out. On SVHN the official step grows in the first five epochs, here
never.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from bench.attacks import craft, cross_entropy, full_precision, input_gradient, uniform_start
from bench.interfaces import (
    Defense,
    Family,
    Images,
    Labels,
    PerExample,
    Scalar,
    TrainingContext,
    evaluation_mode,
    hyperparameter,
    without_autocast,
)

NEGLIGIBLE = 1e-20
"""A gradient without a larger entry has no direction: in float32 its squares vanish."""


@dataclass(frozen=True)
class GradientAlignment(Defense):
    """Cross-entropy on images of one step, and gradients that point the same way all over the ball."""

    paper: ClassVar[str] = (
        "Andriushchenko & Flammarion, NeurIPS 2020, https://arxiv.org/abs/2007.02617, the GradAlign regulariser"
    )
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"svhn": {"weight": 2.5}})
    family: ClassVar[Family] = "single-step"

    weight: float = hyperparameter(0.2, "weight of the misalignment (lambda)", "paper")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        once = replace(context, steps=1, step_size=context.threat.radius)
        with context.crafting(model) as view:
            gradient = input_gradient(lambda view, x: cross_entropy(view(x), labels), view, images)
            # The gradient is known: ascending the linear function that has it takes the step without another pass.
            perturbed = craft(lambda view, x: (gradient * x).flatten(1).sum(1), view, images, images, once)
        logits = model(perturbed)
        with context.rounding(half=False), evaluation_mode(model):
            nearby = live_gradient(model, uniform_start(images, context), labels)
        return {
            "adversarial": cross_entropy(logits, labels).mean(),
            "misalignment": self.weight * (1 - cosine(gradient, nearby)).mean(),
        }


def live_gradient(model: nn.Module, images: Images, labels: Labels) -> Images:
    """The gradient of the cross-entropy of each image, which can itself be differentiated."""
    leaf = images.detach().requires_grad_()
    # Not by `cross_entropy`, which label smoothing would change: the gradient that crafts is of hard labels.
    total = functional.nll_loss(full_precision(model(leaf)).log_softmax(1), labels, reduction="sum")
    with without_autocast(images):
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
    return gradient


def cosine(first: Images, second: Images) -> PerExample:
    """The cosine between the gradients of each image; 1, fixed, where one of them is negligible."""
    pairs = [gradient.flatten(1) for gradient in (first, second)]
    sizes = [gradient.detach().abs().amax(1, keepdim=True) for gradient in pairs]
    both = (sizes[0] > NEGLIGIBLE) & (sizes[1] > NEGLIGIBLE)
    # Of entries up to 1: squares of small ones would vanish.
    one, other = (
        torch.where(both, gradient / torch.where(both, size, 1.0), 1.0)
        for gradient, size in zip(pairs, sizes, strict=True)
    )
    return functional.cosine_similarity(one, other)
