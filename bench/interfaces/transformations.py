"""Transformations of images whose parameters an adversary may choose, within a budget: flows, and changes of colour.

An attack under such a threat model returns parameters and no images. The harness cuts them to the budget and makes the
images itself, so that no attack can exceed it; from an image alone nobody could tell.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import product
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from bench.interfaces.tensors import Images, PerExample

LEVELS = 5
"""Points of the lattice of colours, per channel."""


class Transformation(ABC):
    """A family of functions of images, each given by parameters: one row of them per image, all zero for the identity.

    The budget limits the size of every single number.
    """

    @abstractmethod
    def shape(self, images: Images) -> tuple[int, ...]:
        """The shape of the parameters for these images."""

    @abstractmethod
    def apply(self, images: Images, parameters: Tensor) -> Images:
        """The transformed images, in [0, 1], differentiable in the parameters."""

    def limit(self, parameters: Tensor, radius: float) -> Tensor:
        """The nearest parameters within the budget; what is not finite is 0."""
        return parameters.nan_to_num(0.0, 0.0, 0.0).clamp(-radius, radius)

    def size(self, parameters: Tensor) -> PerExample:
        """The budget that parameters take, in float64."""
        return parameters.double().flatten(1).abs().amax(1)


class Flow(Transformation):
    """Every pixel takes the colour that is so many rows and columns away: as far as the budget says, in pixels.

    Between pixels the image is interpolated bilinearly; beyond its edge it goes on as at the edge (Xiao et al. 2018,
    https://arxiv.org/abs/1801.02612, eq. 1).
    """

    def shape(self, images: Images) -> tuple[int, ...]:
        return len(images), 2, *images.shape[2:]

    def apply(self, images: Images, parameters: Float[Tensor, "batch 2 height width"]) -> Images:
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device).view(-1, 1) + parameters[:, 0]
        columns = torch.arange(width, device=images.device) + parameters[:, 1]
        top, left = rows.detach().floor(), columns.detach().floor()
        flat, moved = images.flatten(2), torch.zeros_like(images)
        for down, right in product((0, 1), repeat=2):
            row, column = top + down, left + right
            weight = ((rows - top) if down else (1 - rows + top)) * (
                (columns - left) if right else (1 - columns + left)
            )
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            found = flat.gather(2, place.long().flatten(1)[:, None].expand(-1, flat.shape[1], -1))
            moved = moved + weight[:, None] * found.view_as(images)
        return moved.clamp(0.0, 1.0)


class Colour(Transformation):
    """Every pixel's colour becomes another one, the same wherever it is: no channel moves by more than the budget.

    The change is given on a lattice of colours and interpolated in between (Laidlaw & Feizi 2019,
    https://arxiv.org/abs/1906.00001, section 4.1). Deviation: the lattice is of RGB, or of the one channel there is.
    """

    def shape(self, images: Images) -> tuple[int, ...]:
        channels = images.shape[1]
        return len(images), channels, *[LEVELS] * channels

    def apply(self, images: Images, parameters: Float[Tensor, "batch channel *lattice"]) -> Images:
        flat, changes = images.flatten(2), parameters.flatten(2)
        place = flat * (LEVELS - 1)
        low = place.floor().clamp(0, LEVELS - 2)
        part = place - low
        for corner in product((0, 1), repeat=images.shape[1]):
            index = torch.zeros_like(low[:, 0], dtype=torch.int64)
            weight = torch.ones_like(index, dtype=images.dtype)
            for channel, above in enumerate(corner):
                index = index * LEVELS + low[:, channel].long() + above
                weight = weight * (part[:, channel] if above else 1 - part[:, channel])
            flat = flat + weight[:, None] * changes.gather(2, index[:, None].expand(-1, images.shape[1], -1))
        return flat.view_as(images).clamp(0.0, 1.0)


TRANSFORMATIONS: Mapping[str, Transformation] = MappingProxyType({"flow": Flow(), "colour": Colour()})
"""By the name that stands in the place of a norm."""
