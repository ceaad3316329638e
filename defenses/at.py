"""AT: PGD adversarial training (Madry et al. 2018, https://arxiv.org/abs/1706.06083, eq. 2.1).

    minimise over the model   mean_i max over x'_i in B(x_i) of CE(z(x'_i), y_i)

The inner maximum starts uniformly in the ball and is crafted in eval mode; only perturbed images are trained on.

Deviations: crafting in eval mode follows "Bag of Tricks for Adversarial Training" (Pang et al. 2021), whose settings
the benchmark's protocol uses; its two extra clean forwards per batch, for logging, are left out, so BatchNorm
statistics are those of perturbed images.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.attacks import craft, cross_entropy, uniform_start
from bench.interfaces import Defense, Images, Labels, Scalar, TrainingContext


@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Cross-entropy on PGD images."""

    paper: ClassVar[str] = "Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083, eq. 2.1"

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}
