"""TRADES (Zhang et al. 2019, https://arxiv.org/abs/1901.08573, Algorithm 1).

    minimise over the model   mean_i CE(z(x_i), y_i) + beta * KL(p(x_i) || p(x'_i))
    with x'_i in B(x_i) that maximises KL(p(x_i) || p(x'_i)), p = softmax(z)

beta is 1/lambda of the paper. The inner maximum starts from Gaussian noise of deviation 0.001 and is crafted in eval
mode against a clean prediction that stays fixed. Nothing in the loss is detached: the divergence also moves p(x).

The clean images go through the network twice in train mode (order: clean, perturbed, clean) in the official code
(https://github.com/yaodongyu/TRADES). The second pass gives the same logits, and updates BatchNorm's statistics: here
it is left out, and its update made from the statistics that the first pass left (`repeat_update`).

Deviations: the divergence is taken between two log-softmaxes, where the official expression gives NaN gradients once
a clean probability underflows to 0 in float32; the clean prediction of the attack is computed once, not per step.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.attacks import craft, cross_entropy, divergence, gaussian_start
from bench.interfaces import Defense, Images, Labels, Objective, PerExample, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class Trades(Defense):
    """Cross-entropy on clean images, and the same prediction nearby."""

    paper: ClassVar[str] = "Zhang et al., ICML 2019, https://arxiv.org/abs/1901.08573, Algorithm 1"

    beta: float = hyperparameter(6.0, "weight of the divergence (1/lambda)", "official code")
    reuse_clean_logits: bool = hyperparameter(
        False, "one clean forward instead of two; BatchNorm then sees fewer clean batches", "our choice"
    )

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            with torch.no_grad():
                reference = view(images)
            start = gaussian_start(images, context)
            perturbed = craft(lambda view, x: divergence(reference, view(x)), view, start, images, context)
        before = running_statistics(model)
        logits = model(images)
        clean = running_statistics(model)
        perturbed_logits = model(perturbed)
        if not self.reuse_clean_logits:
            repeat_update(model, before, clean)
        return {
            "clean": cross_entropy(logits, labels).mean(),
            "robust": self.beta * divergence(logits, perturbed_logits).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(z(x'), y) + beta * KL(p(x) || p(x')), with p(x) fixed."""
        with torch.no_grad():
            reference = model(images)

        def objective(model: Any, perturbed: Images) -> PerExample:
            logits = model(perturbed)
            return cross_entropy(logits, labels) + self.beta * divergence(reference, logits)

        return objective


def batch_norms(model: nn.Module) -> list[Any]:
    """The BatchNorms whose running statistics a pass moves."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in norms if layer.training and layer.running_mean is not None]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Copies of running mean and variance, layer by layer."""
    return [statistic.clone() for layer in batch_norms(model) for statistic in (layer.running_mean, layer.running_var)]


def repeat_update(model: nn.Module, before: list[Tensor], after: list[Tensor]) -> None:
    """Move running statistics as the pass between `before` and `after` would once more.

    A pass with batch statistics s and momentum m makes r into (1 - m) r + m s, and so another one makes `now` into
    after + (1 - m) (now - before).
    """
    copies = iter(zip(before, after, strict=True))
    for layer in batch_norms(model):
        for now in (layer.running_mean, layer.running_var):
            first, second = next(copies)
            # .data, as BatchNorm itself: the backward pass keeps the statistics, and in train mode never reads them.
            now.data.copy_(second + (1 - layer.momentum) * (now - first))
        layer.num_batches_tracked.add_(1)
