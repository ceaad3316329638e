"""Names of tensors and of functions of them, as every signature uses them."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float, Int64
from torch import Tensor, nn

Images: TypeAlias = Float[Tensor, "batch channel height width"]
"""Pixels in [0, 1], also those that an attack changed."""
Labels: TypeAlias = Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]
"""Class indices; in a training whose augmentation mixes labels, a distribution over classes each."""
Indices: TypeAlias = Int64[Tensor, " batch"]
"""Places of images in their training set, from 0."""
Logits: TypeAlias = Float[Tensor, "batch classes"]
"""The answers of a model, before any softmax."""
Features: TypeAlias = Float[Tensor, "batch dim"]
"""The input of a model's last layer, of each image."""
FeatureMap: TypeAlias = Float[Tensor, "batch channels rows columns"]
"""The output of a layer that keeps places."""
Centres: TypeAlias = Float[Tensor, "classes dim"]
"""A point of the feature space for each class."""
PerExample: TypeAlias = Float[Tensor, " batch"]
"""A number for each image."""
Scalar: TypeAlias = Float[Tensor, ""]
"""One number, such as a loss."""

Objective: TypeAlias = Callable[[nn.Module, Images], PerExample]
"""A loss to ascend: model and perturbed images in, one value per image out (larger is worse for the model)."""
ObjectiveFactory: TypeAlias = Callable[[nn.Module, Images, Labels], Objective | None]
"""Makes what is to be ascended on some clean images with their labels; None: nothing but the attack's own loss."""
Step: TypeAlias = Callable[[Images], Images]
"""One step of an ascent: perturbed images in, perturbed further out."""
