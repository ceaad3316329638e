"""MAIL: margin-based instance reweighting (Wang et al. 2021, https://arxiv.org/abs/2106.07904, MAIL-TRADES, MAIL-AT).

    base trades:   minimise over the model   mean_i CE(z(x_i), y_i) + beta * mean_i w_i * KL(p(x_i) || p(x'_i))
    base at:       minimise over the model   mean_i w_i * CE(z(x'_i), y_i)
    w_i = 3 sigmoid(slope * (m_i + bias)),   m_i = max over k != y_i of p_k(x'_i) - p_{y_i}(x'_i),   p = softmax(z)

w is fixed, and of the train-mode pass that is trained on. All weights are 1 during the share `burn_in` of the epochs.
x' maximises KL(p(x) || p(x')), for base "at" CE(z(x'), y): from Gaussian noise of deviation 0.001, in eval mode.
Train-mode forwards: clean (base "trades" alone), then perturbed. `bias` and `slope` of base "trades" are 0 and 2, of
base "at" -0.5 and 10. Constants and factor 3 are those of the official code, https://github.com/QizhouWang/MAIL, where
the paper normalises weights over the batch.

Deviations: the reweighted MART of the official code is left out; its rates, decay and epochs are settings of the
protocol; the clean prediction of the attack is computed once, not per step.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, divergence, full_precision, gaussian_start
from bench.errors import BenchError
from bench.interfaces import (
    Defense,
    Family,
    Images,
    Labels,
    Logits,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


@dataclass(frozen=True)
class MarginReweighting(Defense):
    """TRADES, or PGD adversarial training, that weighs an image more the smaller its margin of probability.

    Raises:
        BenchError: the share of epochs without weights is outside [0, 1].
    """

    paper: ClassVar[str] = "Wang et al., NeurIPS 2021, https://arxiv.org/abs/2106.07904, MAIL-TRADES and MAIL-AT"
    family: ClassVar[Family] = "multi-step"

    base: str = hyperparameter("trades", "what is reweighted", "official code", choices=("trades", "at"))
    beta: float = hyperparameter(5.0, "weight of the divergence, for base trades", "official code")
    bias: float = hyperparameter(0.0, "added to the margin; -0.5 for base at", "official code")
    slope: float = hyperparameter(2.0, "steepness of the weights; 10 for base at", "official code")
    burn_in: float = hyperparameter(0.633, "share of the epochs that weigh all images alike", "official code")

    def __post_init__(self) -> None:
        if not 0 <= self.burn_in <= 1:
            raise BenchError(f"burn_in={self.burn_in} is not in [0, 1]. The authors take 76 of 120 epochs.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        plain = self.base == "at"
        with context.crafting(model) as view:
            with torch.no_grad():
                reference = None if plain else view(images)

            def objective(view: Any, x: Images) -> PerExample:
                return cross_entropy(view(x), labels) if reference is None else divergence(reference, view(x))

            start = gaussian_start(images, context)
            perturbed = craft(objective, view, start, images, context, flat_start=not plain)
        logits = None if plain else model(images)
        perturbed_logits = model(perturbed)
        weights = self.weights(perturbed_logits, labels, context)
        if logits is None:
            return {"adversarial": (weights * cross_entropy(perturbed_logits, labels)).mean()}
        return {
            "clean": cross_entropy(logits, labels).mean(),
            "robust": self.beta * (weights * divergence(logits, perturbed_logits)).mean(),
        }

    def weights(self, logits: Logits, labels: Labels, context: TrainingContext) -> PerExample:
        """3 sigmoid(slope * (margin + bias)) of the lead of the strongest rival's probability; 1 at first."""
        p = full_precision(logits.detach()).softmax(1)
        if context.epoch < self.burn_in * context.epochs:
            return torch.ones_like(p[:, 0])
        own = labels[:, None]
        margin = p.scatter(1, own, -1.0).amax(1) - p.gather(1, own).squeeze(1)
        return 3 * (self.slope * (margin + self.bias)).sigmoid()
