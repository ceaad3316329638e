"""Gaussian, defocus, glass, motion and zoom blur."""

import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage, sparse

from bench.data.corruptions.draws import Batch, Draws, Layers, drawn


def smoothed(images: Batch | Layers, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Batch | Layers:
    """Gaussian filter over height and width, cut off after `truncate` standard deviations; sigma 0 changes nothing."""
    for axis in (1, 2) if sigma else ():
        images = ndimage.gaussian_filter1d(images, sigma, axis, mode=mode, truncate=truncate)
    return images


def gaussian_blur(images: Batch, draws: Draws, sigma: float) -> Batch:
    """Gaussian filter, edges repeated."""
    return smoothed(images, sigma)


def disk(radius: float, alias_sigma: float) -> Float[np.ndarray, "side side"]:
    """A uniform disk, softened by a Gaussian of 3x3 pixels (5x5 for a radius above 8); sums to 1."""
    softening = 1 if radius <= 8 else 2
    reach = math.ceil(radius) + softening
    distances = np.arange(-reach, reach + 1) ** 2
    inside = (distances + distances[:, None] <= radius**2).astype(float)
    weights = np.exp(-(np.arange(-softening, softening + 1) ** 2) / (2 * alias_sigma**2))
    kernel = ndimage.correlate(inside, np.outer(weights, weights), mode="constant")
    return kernel / kernel.sum()


def defocus_blur(images: Batch, draws: Draws, radius: float, alias_sigma: float) -> Batch:
    """Filter with a disk; the border is mirrored without repeating the edge."""
    kernel = disk(radius, alias_sigma).astype(np.float32)
    reach = len(kernel) // 2
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    height, width = images.shape[1:3]
    taps = np.argwhere(kernel > 1e-7)
    return sum(kernel[row, column] * padded[:, row : row + height, column : column + width] for row, column in taps)


def glass_blur(images: Batch, draws: Draws, sigma: float, distance: float, rounds: int) -> Batch:
    """Blurs, lets every pixel inside a margin take a near pixel's place, and blurs again.

    The published loop means to swap pixels, but its swap of array views copies one way only. With distance 1 it reads
    no pixel that it has already written, so each round is one gather; larger images use the same gather.
    """
    reach = round(distance)
    pixels = np.floor(smoothed(images, sigma) * 255 + 1e-3) / np.float32(255)
    sizes = images.shape[1:3]
    which = np.arange(len(images))[:, None, None]
    grid = np.ogrid[: sizes[0], : sizes[1]]
    inside = np.logical_and(*(((reach < at) & (at <= size - reach)) for at, size in zip(grid, sizes, strict=True)))
    for _ in range(rounds):
        offsets = np.stack([generator.integers(-reach, reach, (2, *sizes)) for generator in draws]) * inside
        pixels = pixels[which, grid[0] + offsets[:, 0], grid[1] + offsets[:, 1]]
    return smoothed(pixels, sigma)


def motion_weights(radius: float, sigma: float) -> Float[np.ndarray, " taps"]:
    """One side of a Gaussian, exp(-i^2 / (2 sigma^2)) for i = 0..2 radius, normalised."""
    weights = np.exp(-(np.arange(2 * math.ceil(radius) + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def smeared(images: Batch, radius: float, sigma: float, degrees: Float[np.ndarray, " count"]) -> Batch:
    """Each image smeared along its own direction, edges repeated, and rounded to 255 levels.

    Tap i lies at the pixel nearest to i (cos, sin), ties downwards, and output is rounded: as ImageMagick's
    MotionBlurImage (https://github.com/ImageMagick/ImageMagick, MagickCore/effect.c) does it.
    """
    weights = motion_weights(radius, sigma).astype(np.float32)
    steps = np.arange(len(weights))
    height, width = images.shape[1:3]
    reach = len(weights)
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    result = np.zeros_like(images)
    for image, source, angle in zip(result, padded, np.deg2rad(degrees), strict=True):
        rows, columns = (np.ceil(steps * part(angle) - 0.5).astype(int) + reach for part in (np.sin, np.cos))
        for weight, row, column in zip(weights, rows, columns, strict=True):
            image += weight * source[row : row + height, column : column + width]
    return np.rint(result * 255) / np.float32(255)


def motion_blur(images: Batch, draws: Draws, radius: float, sigma: float) -> Batch:
    """A smear at an angle of -45 to 45 degrees."""
    return smeared(images, radius, sigma, drawn(draws, lambda generator: generator.uniform(-45, 45)))


def zoom_matrix(size: int, factor: float) -> sparse.csr_array:
    """Linear interpolation that magnifies the centre of a line of `size` pixels, ends of the crop on ends of the line.

    Shape (size, size); rows sum to 1.
    """
    crop = math.ceil(size / factor)
    stretched = round(crop * factor)
    kept = np.arange(size) + (stretched - size) // 2
    positions = (size - crop) // 2 + kept * ((crop - 1) / (stretched - 1))
    left = np.minimum(np.floor(positions).astype(int), size - 2)
    right_share = positions - left
    rows = np.tile(np.arange(size), 2)
    entries = np.concatenate([1 - right_share, right_share]), (rows, np.concatenate([left, left + 1]))
    return sparse.coo_array(entries, shape=(size, size)).tocsr()


def zoomed(images: Batch, factors: Float[np.ndarray, " zooms"]) -> Batch:
    """The mean over magnifications of the centre: one sparse matrix on the pixels of all images."""
    count, height, width, channels = images.shape
    sizes = (height, width)
    operator = sum(sparse.kron(*(zoom_matrix(size, factor) for size in sizes), format="csr") for factor in factors)
    columns = images.transpose(1, 2, 0, 3).reshape(height * width, count * channels)
    mixed = (operator / len(factors)).astype(np.float32) @ columns
    return mixed.reshape(height, width, count, channels).transpose(2, 0, 1, 3)


def zoom_blur(images: Batch, draws: Draws, end: float) -> Batch:
    """The mean of the image and of its magnifications 1, 1.01, ... below `end`.

    Rounding lets numpy.arange include the end 1.06, 1.11 and 1.21, in the published script as here.
    """
    return zoomed(images, np.concatenate([[1.0], np.arange(1, end, 0.01)]))
