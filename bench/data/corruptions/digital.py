"""Brightness, contrast, saturation, elastic transformation, pixelation and JPEG compression."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from bench.data.corruptions.blur import smoothed
from bench.data.corruptions.draws import Batch, Draws, Layers, drawn


def brightness(images: Batch, draws: Draws, added: float) -> Batch:
    """Adds to the value of HSV (largest channel), hue and saturation kept: all channels scale with it."""
    value = images.max(3, keepdims=True)
    raised = np.minimum(value + added, 1)
    return np.where(value > 0, images * (raised / np.where(value > 0, value, 1)), raised)


def saturate(images: Batch, draws: Draws, factor: float, added: float) -> Batch:
    """Scales the saturation of HSV and adds to it, hue and value kept: distances from the largest channel scale.

    Grey has no hue; it takes that of red, as HSV conversions have it.
    """
    value = images.max(3, keepdims=True)
    distance = value - images
    largest = distance.max(3, keepdims=True)
    grey = largest == 0
    saturation = largest / np.where(value > 0, value, 1)
    changed = (saturation * factor + added).clip(0, 1)
    away_from_red = np.array([0, 1, 1], dtype=np.float32)
    return value - value * changed * np.where(grey, away_from_red, distance / np.where(grey, 1, largest))


def contrast(images: Batch, draws: Draws, factor: float) -> Batch:
    """Scales the distance from the mean of each channel."""
    means = images.mean((1, 2), keepdims=True)
    return (images - means) * factor + means


def elastic_transform(images: Batch, draws: Draws, alpha: float, sigma: float, jitter: float) -> Batch:
    """A random affine map, then smooth random displacements of `alpha`; all three as shares of the shorter side."""
    height, width = images.shape[1:3]
    side = min(height, width)
    corners = drawn(draws, lambda generator: generator.uniform(-jitter * side, jitter * side, (3, 2)))
    moves = drawn(draws, lambda generator: generator.uniform(-1, 1, (2, height, width)))
    rows, columns = affine_sources(corners, height, width)
    moved = sampled(images, rows, columns, repeat_edge=False)
    down, across = (alpha * side * smoothed(moves[:, part], sigma * side, "reflect", truncate=3.0) for part in (0, 1))
    grid = np.ogrid[:height, :width]
    return sampled(moved, grid[0] + down, grid[1] + across, repeat_edge=True)


def affine_sources(shifts: np.ndarray, height: int, width: int) -> tuple[Layers, Layers]:
    """Where each pixel comes from when three points, a third of the side from the centre, shift (x, y)."""
    centre = np.array([width // 2, height // 2], dtype=np.float32)
    reach = min(height, width) // 3
    points = centre + reach * np.array([(1, 1), (1, -1), (-1, -1)], dtype=np.float32)
    moved = np.concatenate([points + shifts, np.ones((len(shifts), 3, 1))], axis=2)
    back = np.linalg.solve(moved, np.broadcast_to(points, shifts.shape))
    rows, columns = np.mgrid[:height, :width]
    sources = np.einsum("phw,npt->nthw", np.stack([columns, rows, np.ones_like(rows)]), back).astype(np.float32)
    return sources[:, 1], sources[:, 0]


def sampled(images: Batch, rows: Layers, columns: Layers, repeat_edge: bool) -> Batch:
    """Values between pixels, by bilinear interpolation; beyond the border the image is mirrored."""
    height, width = images.shape[1:3]
    which = np.arange(len(images))[:, None, None]
    top, left = np.floor(rows), np.floor(columns)
    result = np.zeros_like(images)
    for row, row_share in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, column_share in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            corner = images[which, mirrored(row, height, repeat_edge), mirrored(column, width, repeat_edge)]
            result += (row_share * column_share)[..., None].astype(np.float32) * corner
    return result


def mirrored(positions: np.ndarray, size: int, repeat_edge: bool) -> np.ndarray:
    """Positions folded into 0..size-1: ... 2 1 0 1 2 ..., or ... 1 0 0 1 ... where the edge is repeated."""
    period = 2 * (size - 1 + repeat_edge)
    wrapped = positions.astype(int) % period
    return np.minimum(wrapped, period - repeat_edge - wrapped)


def pixelate(images: Batch, draws: Draws, share: float) -> Batch:
    """Shrinks both sides to this share and enlarges again, by Pillow's box filter."""

    def shrunk(picture: Image.Image) -> Image.Image:
        small = picture.resize((int(picture.width * share), int(picture.height * share)), Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.BOX)

    return _as_pictures(images, shrunk)


def jpeg_compression(images: Batch, draws: Draws, quality: int) -> Batch:
    """Through Pillow's JPEG encoder and back."""

    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _as_pictures(images, compressed)


def _as_pictures(images: Batch, change: Callable[[Image.Image], Image.Image]) -> Batch:
    levels = np.rint(images * 255).astype(np.uint8)
    pictures = (Image.fromarray(level[..., 0] if level.shape[2] == 1 else level) for level in levels)
    changed = np.stack([np.asarray(change(picture), dtype=np.float32) for picture in pictures])
    return changed.reshape(images.shape) / np.float32(255)
