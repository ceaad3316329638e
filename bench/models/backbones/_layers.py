"""Layers that several backbones have."""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

NextMap: TypeAlias = Float[Tensor, "batch next_channels next_rows next_columns"]


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size of a map at stride 1."""
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
