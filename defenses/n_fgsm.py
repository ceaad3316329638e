"""N-FGSM (de Jorge et al. 2022, https://arxiv.org/abs/2202.01181): one step from strong noise, and no projection.

    minimise over the model   mean_i CE(z(x'_i), y_i)
    x'_i = clip(x0_i + step * radius * sign(gradient of CE(z(x0_i), y_i)))
    x0_i = clip(x_i + radius * U(-noise, noise))

clip is to [0, 1] alone: x' may be noise + step radii away from x. Such images are trained on and never evaluated. One
gradient crafts an image: the protocol's number and length of steps are not used. In l2 and l1 the noise has a random
direction and a length of `noise` radii, and the step is the steepest one. Official code:
https://github.com/pdejorge/N-FGSM, with noise 2 for most of its runs (SVHN at 12/255: 3).

Deviations: images are crafted in eval mode, as by the other defenses here, where the official code crafts in train mode
and so shows BatchNorm the starts as well; its cyclic rate is a setting of the protocol, and on SVHN its radius grows in
the first five epochs, here never.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from bench.attacks import craft, cross_entropy, random_start
from bench.errors import BenchError
from bench.interfaces import Defense, Family, Images, Labels, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class NoiseTraining(Defense):
    """Cross-entropy on images that are one step from noise wider than the ball.

    Raises:
        BenchError: the noise is below 0, or the step is not above 0.
    """

    paper: ClassVar[str] = "de Jorge et al., NeurIPS 2022, https://arxiv.org/abs/2202.01181, N-FGSM"
    family: ClassVar[Family] = "single-step"

    noise: float = hyperparameter(2.0, "half the width of the noise (k), in radii", "paper")
    step: float = hyperparameter(1.0, "length of the step, in radii", "paper")

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise BenchError(f"noise={self.noise} is below 0. It is a length in radii: the authors use 2.")
        if not self.step > 0:
            raise BenchError(f"step={self.step} is not above 0. It is a length in radii: the authors use 1.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        threat = context.threat
        # A ball that holds all that noise and step can reach: projecting onto it only clips to [0, 1].
        reach = threat.scaled(self.noise + self.step)
        once = replace(context, threat=reach, steps=1, step_size=self.step * threat.radius)
        with context.crafting(model) as view:
            start = random_start(images, threat.scaled(self.noise), context.noise(torch.rand, images))
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, once, flat_start=False
            )
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}
