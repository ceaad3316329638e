"""ST: plain training on clean images. The ceiling of clean accuracy and the floor of robustness.

minimise over the model   mean_i CE(z(x_i), y_i)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.attacks import cross_entropy
from bench.interfaces import Defense, Images, Labels, Scalar, TrainingContext


@dataclass(frozen=True)
class StandardTraining(Defense):
    """Cross-entropy on clean images; no defense."""

    paper: ClassVar[str] = "empirical risk minimisation with cross-entropy"

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        return {"clean": cross_entropy(model(images), labels).mean()}
