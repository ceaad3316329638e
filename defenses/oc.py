"""OC: fixed orthogonal classifier (Xu, Li & Yang 2021, https://arxiv.org/abs/2105.09109), adversarially trained.

    minimise over the backbone   leverage * SQ(f(x), y) + (1 - leverage) * SQ(f(x'), y)
    SQ(f, y) = mean over images and features of (f_j - w_yj)^2
    where x' maximises sum_j (f_j(x') - w_yj)^2 over B(x), from a uniform start, in eval mode

The class rows w_k are fixed, orthogonal, of length `scale`, with entries of one magnitude: half of each row but the
first is negative. Features must therefore be signed: for features >= 0 the all-plus row 0 gives the largest logit,
and class 0 is predicted for every image. Two train-mode forwards, clean first. Logits are W f.

Deviations: the authors' code (https://github.com/MTandHJ/roboc) takes powers of two as feature dimension only; here
the largest power-of-two block is repeated side by side (640 = 5 x 128), which keeps the rows orthogonal.
Its networks have a PReLU after every convolution and no BatchNorm on projection shortcuts; here the benchmark's
backbone has PReLU (activation=prelu), or merely no last activation (activation=final-signed).
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from bench.attacks import craft, cross_entropy, uniform_start
from bench.errors import BenchError
from bench.interfaces import (
    Backbone,
    BackboneFactory,
    Centres,
    Classifier,
    Defense,
    Features,
    Images,
    Labels,
    Logits,
    Objective,
    PerExample,
    Scalar,
    TrainingContext,
    hyperparameter,
)


class OrthogonalClassifier(Classifier):
    """A backbone and fixed class rows: a buffer, so neither gradients nor weight decay reach them."""

    weight: Tensor

    def __init__(self, backbone: Backbone, rows: Centres) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("weight", rows)

    def features(self, images: Images) -> Features:
        return self.backbone(images)

    def score(self, features: Features) -> Logits:
        return functional.linear(features, self.weight)

    def class_centres(self) -> Centres:
        return self.weight


@dataclass(frozen=True)
class OrthogonalClassifierTraining(Defense):
    """Squared distance to fixed orthogonal class rows, on clean and PGD images.

    Raises:
        BenchError: the scale is not above 0, or the leverage is outside [0, 1].
    """

    paper: ClassVar[str] = "Xu, Li & Yang 2021, https://arxiv.org/abs/2105.09109, square loss with worst-case term"
    published: ClassVar = MappingProxyType({"mnist": MappingProxyType({"leverage": 0.3})})

    scale: float = hyperparameter(10.0, "length of the class rows", "authors' code")
    leverage: float = hyperparameter(0.15, "weight of the clean term, in [0, 1]", "authors' code")
    activation: Literal["prelu", "final-signed"] = hyperparameter(
        "prelu", "how features become signed: PReLU throughout, or no last activation", "authors' code: prelu"
    )

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise BenchError(f"scale={self.scale} is not above 0. It is the length of the class rows: try 10.")
        if not 0 <= self.leverage <= 1:
            raise BenchError(f"leverage={self.leverage} is not in [0, 1]. It weights the clean term: try 0.15.")

    def build(self, backbone: BackboneFactory, num_classes: int) -> OrthogonalClassifier:
        network = backbone(activation="prelu") if self.activation == "prelu" else backbone(final_activation=False)
        return OrthogonalClassifier(network, orthogonal_rows(num_classes, network.feature_dim, self.scale))

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        targets = model.class_centres()[labels]

        def squared_distance(view: Any, x: Images) -> PerExample:
            return (view.features(x) - targets).square().sum(1)

        with context.crafting(model) as view:
            perturbed = craft(squared_distance, view, uniform_start(images, context), images, context, flat_start=False)
        return {
            "clean": self.leverage * square_loss(model.features(images), targets),
            "adversarial": (1 - self.leverage) * square_loss(model.features(perturbed), targets),
        }

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective | None:
        """Cross-entropy of logits / scale.

        At f = w_y the raw logits are scale^2 = 100 for the true class and 0 for the others: in float32 the gradient of
        their cross-entropy vanishes, and an attacker has nothing to ascend.
        """
        return lambda view, x: cross_entropy(view(x) / self.scale, labels)


def orthogonal_rows(num_classes: int, dimension: int, scale: float) -> Centres:
    """Orthogonal rows with entries +-scale/sqrt(dimension), doubled from H(1) = [1].

    H(2k) = [[H(k), H(k)], [-H(k), H(k)]]; entry (i, j) is negative iff i has a 1 where j has a 0 at an odd number
    of bits. Copies of the block stand side by side where the dimension is not a power of two.

    Raises:
        BenchError: no power of two divides the dimension and is at least the number of classes.
    """
    block = dimension & -dimension
    if block < num_classes:
        fitting = 1 << (num_classes - 1).bit_length()
        raise BenchError(
            f"features of dimension {dimension} cannot hold orthogonal rows for {num_classes} classes. "
            f"Choose a backbone whose feature dimension is a multiple of {fitting}."
        )
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < block:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([-signs, signs], 1)])
    rows = signs[:num_classes].repeat(1, dimension // block) * (scale / dimension**0.5)
    return rows.to(torch.get_default_dtype())


def square_loss(features: Features, targets: Features) -> Scalar:
    """Squared difference, averaged over images and features."""
    return (features - targets).square().mean()
