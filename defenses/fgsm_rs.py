"""FGSM-RS, "fast" adversarial training (Wong, Rice & Kolter 2020, https://arxiv.org/abs/2001.03994, Algorithm 3).

    minimise over the model   mean_i CE(z(x'_i), y_i)
    x'_i = project(x0_i + step * radius * sign(gradient of CE(z(x0_i), y_i))),   x0_i uniform in B(x_i)

One gradient crafts an image: the protocol's number and length of steps are not used. In l2 and l1 the step is the
steepest one of that length. Official code: https://github.com/locuslab/fast_adversarial.

Deviations: images are crafted in eval mode, as by the other defenses here, where the official code crafts in train mode
and so shows BatchNorm the starts as well; its cyclic rate and mixed precision are settings of the protocol, and its
stop at a sudden loss of robustness is left out. That loss, catastrophic overfitting, is a known failure of the method.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bench.attacks import craft, cross_entropy, uniform_start
from bench.errors import BenchError
from bench.interfaces import Defense, Family, Images, Labels, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class RandomStartTraining(Defense):
    """Cross-entropy on images that are one long step from a random start.

    Raises:
        BenchError: the step is not above 0.
    """

    paper: ClassVar[str] = "Wong, Rice & Kolter, ICLR 2020, https://arxiv.org/abs/2001.03994, Algorithm 3"
    family: ClassVar[Family] = "single-step"

    step: float = hyperparameter(1.25, "length of the step, in radii", "paper")

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise BenchError(f"step={self.step} is not above 0. It is a length in radii: the authors use 1.25.")

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        once = replace(context, steps=1, step_size=self.step * context.threat.radius)
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, once, flat_start=False
            )
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}
