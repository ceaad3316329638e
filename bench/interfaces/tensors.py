"""Names of tensors and of functions of them, as every signature uses them."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float, Int64
from torch import Tensor, nn

Images: TypeAlias = Float[Tensor, "batch channel height width"]
Labels: TypeAlias = Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]
"""Class indices; in a training whose augmentation mixes labels, a distribution over classes each."""
Indices: TypeAlias = Int64[Tensor, " batch"]
Logits: TypeAlias = Float[Tensor, "batch classes"]
Features: TypeAlias = Float[Tensor, "batch dim"]
FeatureMap: TypeAlias = Float[Tensor, "batch channels rows columns"]
Centres: TypeAlias = Float[Tensor, "classes dim"]
PerExample: TypeAlias = Float[Tensor, " batch"]
Scalar: TypeAlias = Float[Tensor, ""]

Objective: TypeAlias = Callable[[nn.Module, Images], PerExample]
"""A loss to ascend: model and perturbed images in, one value per image out (larger is worse for the model)."""
ObjectiveFactory: TypeAlias = Callable[[nn.Module, Images, Labels], Objective | None]
"""Makes what is to be ascended on some clean images with their labels; None: nothing but the attack's own loss."""
Step: TypeAlias = Callable[[Images], Images]
"""One step of an ascent: perturbed images in, perturbed further out."""
