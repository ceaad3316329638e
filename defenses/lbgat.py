"""LBGAT: learnable boundary guided adversarial training (Cui et al. 2021, https://arxiv.org/abs/2011.11164).

A second network N learns from clean images beside the model M, and M's logits of perturbed images follow N's of clean
ones. With z of M and g of N:

    minimise over both   mean over i, k of (z_k(x'_i) - g_k(x_i))^2 + mean_i CE(g(x_i), y_i)
                         + beta * mean_i KL(p(x_i) || p(x'_i)),                  p = softmax(z)
    with x'_i in B(x_i) that maximises KL(p(x_i) || p(x'_i)): Gaussian start of deviation 0.001, eval mode

As in the authors' code (https://github.com/dvlab-research/LBGAT): nothing is detached, so N is drawn towards M as well;
train-mode forwards are M's perturbed, M's clean and N's clean; M's clean pass is made at beta = 0 too, for BatchNorm.
M sees labels through N alone. N is kept in the training state, with an SGD like the shared one and at its rate: a
checkpoint holds M only, and no prediction depends on N.

Deviations: N has M's network and begins as a copy of it; the authors pair a WideResNet with a ResNet-18 of its own
start.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, divergence, full_precision, gaussian_start
from bench.interfaces import Defense, Family, Images, Labels, Scalar, Stateful, TrainingContext, hyperparameter


@dataclass(frozen=True)
class BoundaryGuidedTraining(Defense):
    """The logits of perturbed images follow those that a network without perturbed images gives the clean ones."""

    paper: ClassVar[str] = "Cui et al., ICCV 2021, https://arxiv.org/abs/2011.11164"
    family: ClassVar[Family] = "distillation"
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"cifar100": {"beta": 6.0}})
    undivided: ClassVar[str] = "the second network's running statistics are those of a process's own images"

    beta: float = hyperparameter(0.0, "weight of the divergence (their alpha)", "authors' models")

    def state(self, model: Any, optimizer: torch.optim.Optimizer) -> Mapping[str, Stateful]:
        """The second network, in train mode, and its optimiser."""
        guide = copy.deepcopy(model).train()
        like: Any = type(optimizer)
        return {"guide": guide, "guide_optimizer": like(guide.parameters(), **optimizer.defaults)}

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        guide: Any = context.state["guide"]
        with context.crafting(model) as view:
            with torch.no_grad():
                reference = view(images)
            start = gaussian_start(images, context)
            perturbed = craft(lambda view, x: divergence(reference, view(x)), view, start, images, context)
        perturbed_logits, logits, guiding = model(perturbed), model(images), guide(images)
        return {
            "boundary": (full_precision(perturbed_logits) - full_precision(guiding)).square().mean(),
            "guide": cross_entropy(guiding, labels).mean(),
            "robust": self.beta * divergence(logits, perturbed_logits).mean(),
        }

    def update(
        self, model: Any, optimizer: torch.optim.Optimizer, images: Images, labels: Labels, context: TrainingContext
    ) -> dict[str, Scalar]:
        other: Any = context.state["guide_optimizer"]
        for group in other.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
        other.zero_grad(set_to_none=True)
        terms = super().update(model, optimizer, images, labels, context)
        other.step()
        return terms
