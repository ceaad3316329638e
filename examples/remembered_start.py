"""PGD adversarial training that goes on from each image's perturbation of the last epoch (ATTA, Zheng et al. 2020).

    minimise over the model   mean_i CE(z(x'_i), y_i)
    x'_i = the protocol's ascent of CE(z(x'), y_i) in B(x_i), from x_i + d_i;   then d_i <- x'_i - x_i

d_i lies in the coordinates of the training image: it is cropped and mirrored with it, and put back after.

Deviations: d_i begins at 0, where the authors add noise of deviation 0.001, and has no pixels outside of the image.

    bench train --plugin examples/remembered_start.py --defense remembered-start --dataset digits --attack-steps 1
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.attacks import craft, cross_entropy
from bench.errors import BenchError
from bench.interfaces import Defense, Images, Labels, Scalar, TrainingContext, hyperparameter


@dataclass(frozen=True)
class RememberedStart(Defense):
    """Cross-entropy on images whose perturbations add up over epochs.

    Raises:
        BenchError: there is no epoch between two resets.
    """

    paper: ClassVar[str] = "Zheng et al., CVPR 2020, https://arxiv.org/abs/1912.11969, as in the official code"

    reset: int = hyperparameter(10, "epochs after which all perturbations begin anew", "official code")

    def __post_init__(self) -> None:
        if self.reset < 1:
            raise BenchError(f"reset={self.reset} is below 1. The authors take 10 epochs.")

    def tables(self, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        return {"perturbation": image_shape}

    def begin_epoch(self, model: Any, context: TrainingContext) -> None:
        if context.epoch % self.reset == 0:
            context.state["perturbation"].zero_()

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        table, rows, placement = context.state["perturbation"], context.indices, context.placement
        start = context.threat.project(images + placement.place(table[rows]), images)
        with context.crafting(model) as view:
            perturbed = craft(lambda view, x: cross_entropy(view(x), labels), view, start, images, context, False)
        table[rows] = placement.put_back(perturbed - images, onto=table[rows])
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}
