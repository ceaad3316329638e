"""NuAT: nuclear-norm adversarial training (Sriramanan et al. 2021, https://openreview.net/forum?id=kuK2VARZGnI).

    minimise over the model   mean_i CE(z(x_i), y_i) + w/B * |Z(X) - Z(X')|_*
    X' = project(X0 + radius * sign(gradient of sum_i CE(z(x0_i), y_i) + turn * w * |Z(X) - Z(X0)|_*)),
    x0_i = x_i + noise * radius * (+1 or -1 per pixel)

Z has a row of logits for each of the batch's B images, and |.|_* is the sum of the singular values. Of B changes of
length d that is sqrt(B) d if all point the same way, and at most sqrt(K) times that for K classes: the term falls with
the square root of the batch size (official: 64). turn is 0 in the first step of an epoch, 1 in the second, and so on in
turn; w grows evenly from 0 in the first epoch to `weight` after the share `ramp` of the epochs. As in the official code
(https://github.com/val-iisc/NuAT, NuAT_cifar10), Z(X) that guides the attack is of a train-mode pass of its own and X0
is seen in eval mode. Train-mode forwards: clean, perturbed, clean. One gradient crafts an image: the protocol's number
and length of steps are not used. In l2 and l1 noise and step have these lengths.

Deviations: the norm is divided by the images of the batch, where the official code divides that of the smaller last
batch by 64 too. Cyclic rate and weight average are settings of the protocol (its script with averages has weight 4 and
ramp 1); the two-step NuAT2 and the hybrid NuAT-H are left out.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, full_precision, random_start
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


@dataclass(frozen=True)
class NuclearNormTraining(Defense):
    """Cross-entropy on clean images, and logits whose changes one step away are small together.

    Raises:
        BenchError: the noise is below 0, or the ramp is not above 0.
    """

    paper: ClassVar[str] = "Sriramanan et al., NeurIPS 2021, https://openreview.net/forum?id=kuK2VARZGnI, NuAT"
    family: ClassVar[Family] = "single-step"
    undivided: ClassVar[str] = "its nuclear norm is of all logits of a batch"

    weight: float = hyperparameter(4.5, "weight of the nuclear norm, in attack and loss (lambda)", "official code")
    ramp: float = hyperparameter(0.9, "share of the epochs in which the weight grows from 0", "official code")
    noise: float = hyperparameter(0.5, "size of the random start, in radii", "official code")

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise BenchError(f"noise={self.noise} is below 0. It is a length in radii: the authors use 0.5.")
        if not self.ramp > 0:
            raise BenchError(f"ramp={self.ramp} is not above 0. It is a share of the epochs: the authors use 0.9.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        weight = self.weight * min(context.epoch / (self.ramp * context.epochs), 1.0)
        guidance = weight * (context.batch % 2)
        with torch.no_grad():
            reference = model(images)

        def objective(view: Any, x: Images) -> PerExample:
            logits = view(x)
            # Every image's share: the sum over the batch has the nuclear norm once.
            return cross_entropy(logits, labels) + guidance * nuclear_norm(reference, logits) / len(x)

        signs = (context.noise(torch.rand, images) < 0.5).to(images)
        once = replace(context, steps=1, step_size=context.threat.radius)
        with context.crafting(model) as view:
            start = random_start(images, context.threat.scaled(self.noise), signs)
            perturbed = craft(objective, view, start, images, once, flat_start=False)
        perturbed_logits = model(perturbed)
        logits = model(images)
        return {
            "clean": cross_entropy(logits, labels).mean(),
            "robust": weight / len(images) * nuclear_norm(logits, perturbed_logits),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(z(x'), y) + weight * |z(x) - z(x')|, the nuclear norm of one image alone, with z(x) fixed."""
        with torch.no_grad():
            reference = model(images)

        def objective(model: Any, perturbed: Images) -> PerExample:
            logits = model(perturbed)
            change = torch.linalg.vector_norm(full_precision(logits) - full_precision(reference), dim=1)
            return cross_entropy(logits, labels) + self.weight * change

        return objective


def nuclear_norm(logits: Logits, perturbed_logits: Logits) -> Scalar:
    """The sum of the singular values of the difference; not finite where an entry is not."""
    difference = full_precision(logits) - full_precision(perturbed_logits)
    # A decomposition raises where an entry is not finite, and a loss says so by itself.
    return torch.linalg.svdvals(difference.nan_to_num(0.0, 0.0, 0.0)).sum() + 0 * difference.sum()
