"""GAIRAT: geometry-aware instance-reweighted adversarial training (Zhang et al. 2021, https://arxiv.org/abs/2010.01736).

    minimise over the model   mean_i w_i * CE(z(x'_i), y_i)
    w_i = v_i / mean_j v_j,   v_i = (1 + tanh(shift + 5 (1 - 2 k_i / K))) / 2

x' is the protocol's PGD image of K steps, from a uniform start in the ball and in eval mode; k_i is the first step
after which the image is misclassified: 0 if the start is, K if none is before the last. All weights are 1 during the
share `burn_in` of the epochs. For k_i every image on the way is classified once more, in float32. Official code:
https://github.com/zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training (`shift` is its Lambda).

Weights that vanish for images far from the boundary leave their margins small; attacks that do not depend on the scale
of logits find many more of these than PGD on cross-entropy does (Hitaj et al. 2021, https://arxiv.org/abs/2103.01914).

Deviations: the official code counts the images on the way that are right, K of them, which is the same unless an image
that broke recovers, and halves an odd K with a remainder dropped (for K = 1 to 0); here the quotient is k_i / K.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, uniform_start
from bench.errors import BenchError
from bench.interfaces import (
    BreakingSteps,
    Defense,
    Family,
    Images,
    Labels,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


@dataclass(frozen=True)
class GeometryAwareTraining(Defense):
    """Cross-entropy on PGD images that weighs an image more the fewer steps it took to break it.

    Raises:
        BenchError: the share of epochs without weights is outside [0, 1].
    """

    paper: ClassVar[str] = "Zhang et al., ICLR 2021, https://arxiv.org/abs/2010.01736, tanh weights"
    family: ClassVar[Family] = "multi-step"
    undivided: ClassVar[str] = "its weights have a mean of 1 over the whole batch"

    shift: float = hyperparameter(
        -1.0, "added to the geometry; the larger, the more equal the weights", "official code"
    )
    burn_in: float = hyperparameter(0.5, "share of the epochs that weigh all images alike", "official code")

    def __post_init__(self) -> None:
        if not 0 <= self.burn_in <= 1:
            raise BenchError(f"burn_in={self.burn_in} is not in [0, 1]. The authors take 0.5.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        def ascended(context: TrainingContext) -> Images:
            return craft(lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False)

        with context.crafting(model) as view:
            start = uniform_start(images, context)
            if context.epoch + 1 < self.burn_in * context.epochs:
                perturbed, weights = ascended(context), torch.ones_like(images[:, 0, 0, 0])
            else:
                breaking = BreakingSteps(context, view, labels, start)
                perturbed = ascended(breaking.context)
                weights = self.weights(breaking.steps(perturbed).clamp(max=context.steps).to(images) / context.steps)
        return {"adversarial": (weights * cross_entropy(model(perturbed), labels)).mean()}

    def weights(self, geometry: PerExample) -> PerExample:
        """Weights with a mean of 1, of the shares of steps that images stood."""
        # (1 + tanh(a)) / 2, without cancellation.
        raw = (2 * (self.shift + 5 * (1 - 2 * geometry))).sigmoid()
        return raw / raw.mean()
