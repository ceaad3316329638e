"""CAS: channel-wise activation suppressing (Bai et al. 2021, https://arxiv.org/abs/2103.08307, AT+CAS).

    f(x) = the last feature map,   c(x) = A mean(f(x)) + a,   z_k(x) = head(embed(A[k] f(x)))
    minimise over the model   mean_i CE(z_{y_i}(x'_i), y_i) + weight * mean_i CE(c(x'_i), y_i)

A has a row of channel weights for each class, and A[k] f multiplies each channel by its weight. While training, k is
the label; otherwise, and for crafting, it is the class that c predicts. x' ascends the same loss, with that k, from a
uniform start in the ball and in eval mode. One train-mode forward, of perturbed images. Official code:
https://github.com/bymavis/CAS_ICLR2021, Standard_Adv_Training.

The choice of k has no gradient: an attack that follows gradients does not see what another k would do. And while
training, A[y] alone can tell the label: on digits the first term vanishes within epochs, whatever the image shows.

Deviations: one suppression, of the last feature map, where the authors suppress after each of the last two blocks of a
ResNet-18; AT is the only base. Class centres are the rows of the head.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bench.attacks import craft, cross_entropy, uniform_start
from bench.interfaces import (
    Backbone,
    BackboneFactory,
    Defense,
    Family,
    FeatureMap,
    Features,
    Images,
    Labels,
    LinearClassifier,
    Logits,
    Objective,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


class SuppressedClassifier(LinearClassifier):
    """A backbone whose last map is weighed, channel by channel, as the class asks that its channels predict."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.channels = nn.Linear(backbone.map_channels, num_classes)
        backbone.initialise_linear(self.channels)

    def features(self, images: Images) -> Features:
        feature_map = self.backbone.feature_map(images)
        return self.suppressed(feature_map, self.predicted(feature_map).argmax(1))

    def predicted(self, feature_map: FeatureMap) -> Logits:
        """Logits of the mean of each channel."""
        return self.channels(feature_map.mean((2, 3)))

    def suppressed(self, feature_map: FeatureMap, classes: Labels) -> Features:
        """The features of a map whose channels have the weights of these classes."""
        return self.backbone.embed(feature_map * self.channels.weight[classes][:, :, None, None])


@dataclass(frozen=True)
class ChannelSuppression(Defense):
    """Adversarial training of a network that weighs its channels by the class which they predict."""

    paper: ClassVar[str] = "Bai et al., ICLR 2021, https://arxiv.org/abs/2103.08307, AT+CAS"
    family: ClassVar[Family] = "multi-step"

    weight: float = hyperparameter(2.0, "weight of the channels' own loss (beta)", "official code")

    def build(self, backbone: BackboneFactory, num_classes: int) -> SuppressedClassifier:
        return SuppressedClassifier(backbone(), num_classes)

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        with context.crafting(model) as view:
            objective = self.adaptive_objective(model, images, labels)
            start = uniform_start(images, context)
            perturbed = craft(objective, view, start, images, context, flat_start=False)
        feature_map = model.backbone.feature_map(perturbed)
        logits = model.score(model.suppressed(feature_map, labels))
        return {
            "adversarial": cross_entropy(logits, labels).mean(),
            "channels": self.weight * cross_entropy(model.predicted(feature_map), labels).mean(),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective:
        """CE(z(x'), y) + weight * CE(c(x'), y)."""

        def objective(model: Any, perturbed: Images) -> PerExample:
            feature_map = model.backbone.feature_map(perturbed)
            predicted = model.predicted(feature_map)
            logits = model.score(model.suppressed(feature_map, predicted.argmax(1)))
            return cross_entropy(logits, labels) + self.weight * cross_entropy(predicted, labels)

        return objective
