"""PGD adversarial training whose radius grows from 0 to the protocol's, epoch by epoch, over the first two thirds.

    minimise over the model   max over x' in B(x, min(1, 1.5 t / T) * eps) of CE(z(x'), y)      in epoch t of T, from 0

For networks that adversarial training does not move: with the two features of LeNets++ and radius 0.3 on MNIST, `at`
was still at equal probabilities after 8,000 images (PGD-40, batch 16, rate 0.01), and after 20,000 with two steps.

    bench train --plugin examples/growing_radius.py --defense growing-radius --dataset mnist --backbone lenetpp
"""

from dataclasses import dataclass, replace
from typing import Any

from bench.defenses.at import AdversarialTraining
from bench.interfaces import Images, Labels, Scalar, ThreatModel, TrainingContext

GROWTH = 2 / 3
"""Share of the epochs after which the radius is the protocol's."""


@dataclass(frozen=True)
class GrowingRadius(AdversarialTraining):
    """Adversarial training with a radius that grows."""

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        share = min(1.0, context.epoch / context.epochs / GROWTH)
        threat = ThreatModel(context.threat.norm, f"{share * context.threat.radius:.9g}")
        grown = replace(context, threat=threat, step_size=share * context.step_size)
        return super().losses(model, images, labels, grown)
