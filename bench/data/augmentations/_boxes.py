"""Boxes at random places."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from bench.interfaces import Images


def boxes(
    images: Images,
    height: int | Int64[Tensor, "batch 1"],
    width: int | Int64[Tensor, "batch 1"],
    generator: torch.Generator,
) -> Bool[Tensor, "batch 1 rows columns"]:
    """Masks of a box each, around a pixel drawn uniformly, without what lies outside the image.

    A box has 2 * (height // 2) rows from the pixel's row minus height // 2 on, and columns likewise.
    """
    rows, columns = (
        _interval(len(images), size, length, generator)
        for size, length in zip(images.shape[2:], (height, width), strict=True)
    )
    return rows[:, None, :, None] & columns[:, None, None, :]


def _interval(
    count: int, size: int, length: int | Int64[Tensor, "batch 1"], generator: torch.Generator
) -> Bool[Tensor, "batch size"]:
    centre = torch.randint(size, (count, 1), generator=generator, device=generator.device)
    places = torch.arange(size, device=generator.device)
    return (centre - length // 2 <= places) & (places < centre + length // 2)
