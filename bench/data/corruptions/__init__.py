"""Common corruptions (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261), with the constants of CIFAR-10-C.

Nineteen corruptions at five severities, in numpy, scipy and Pillow. Operations and constants follow the authors' script
(https://github.com/hendrycks/robustness, make_cifar_c.py), from which CIFAR-10-C was made; random numbers are keyed,
which the script's are not, so generated sets are never the published files.

Deviations: frost is a procedural texture, not a photograph; interpolation is exact where OpenCV's is fixed-point.
Lengths in pixels are meant for sides of 32: they grow with the shorter side of larger images, and stay for smaller
ones, where a blur narrower than a pixel would do nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from bench.data.corruptions import blur, digital, noise, spatter, weather
from bench.data.corruptions.draws import Batch, keyed_draws
from bench.errors import BenchError, unknown_name

GENERATOR_VERSION = 1
"""Raised whenever an image could change."""
SEVERITIES = (1, 2, 3, 4, 5)
PROCEDURAL = ("frost",)
"""Drawn here where the original overlays photographs."""
_SIDE = 32
_SMALLEST = 8


class Pixels(float):
    """A length in pixels of an image with a side of 32, or the size of noise that is smoothed over such a length.

    Smoothing over g times the length divides the deviation of white noise by g.
    """


@dataclass(frozen=True)
class Corruption:
    """A function on images, with its constants by severity, 1 first."""

    function: Callable[..., Batch]
    constants: tuple[tuple[Any, ...], ...]
    coloured: bool = False
    """Works on three channels; grey images are given three equal ones and get the brightness back."""


P = Pixels
CORRUPTIONS = {
    "gaussian_noise": Corruption(noise.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": Corruption(noise.shot_noise, ((500.0,), (250.0,), (100.0,), (75.0,), (50.0,))),
    "impulse_noise": Corruption(noise.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": Corruption(
        blur.defocus_blur, ((P(0.3), P(0.4)), (P(0.4), P(0.5)), (P(0.5), P(0.6)), (P(1), P(0.2)), (P(1.5), P(0.1)))
    ),
    "glass_blur": Corruption(
        blur.glass_blur,
        ((P(0.05), P(1), 1), (P(0.25), P(1), 1), (P(0.4), P(1), 1), (P(0.25), P(1), 2), (P(0.4), P(1), 2)),
    ),
    "motion_blur": Corruption(
        blur.motion_blur, ((P(6), P(1)), (P(6), P(1.5)), (P(6), P(2)), (P(8), P(2)), (P(9), P(2.5)))
    ),
    "zoom_blur": Corruption(blur.zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.2, P(1), 0.6, P(8), P(3), 0.95),
            (0.1, 0.2, P(1), 0.5, P(10), P(4), 0.9),
            (0.15, 0.3, P(1.75), 0.55, P(10), P(4), 0.9),
            (0.25, 0.3, P(2.25), 0.6, P(12), P(6), 0.85),
            (0.3, 0.3, P(1.25), 0.65, P(14), P(12), 0.8),
        ),
    ),
    "frost": Corruption(
        weather.procedural_frost, ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), coloured=True
    ),
    "fog": Corruption(weather.fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": Corruption(digital.brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": Corruption(digital.contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        ((P(0.0), 0.0, 0.08), (P(0.05), 0.2, 0.07), (P(0.08), 0.06, 0.06), (P(0.1), 0.04, 0.05), (P(0.1), 0.03, 0.03)),
    ),
    "pixelate": Corruption(digital.pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": Corruption(digital.jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
    "speckle_noise": Corruption(noise.speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": Corruption(blur.gaussian_blur, ((P(0.4),), (P(0.6),), (P(0.7),), (P(0.8),), (P(1),))),
    "spatter": Corruption(
        spatter.spatter,
        (
            (0.62, P(0.1), P(0.7), 0.7, 0.5, False),
            (0.65, P(0.1), P(0.8), 0.7, 0.5, False),
            (0.65, P(0.3), P(1), 0.69, 0.5, False),
            (0.65, P(0.1), P(0.7), 0.69, P(0.6), True),
            (0.65, P(0.1), P(0.5), 0.68, P(0.6), True),
        ),
        coloured=True,
    ),
    "saturate": Corruption(
        digital.saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)), coloured=True
    ),
}
"""By name, in the order of `bench.catalogue.corruption_names`."""


def corrupt(
    images: UInt8[np.ndarray, "count height width channel"],
    name: str,
    severity: int,
    seed: int = 0,
    indices: Sequence[int] | Integer[np.ndarray, " count"] | None = None,
) -> UInt8[np.ndarray, "count height width channel"]:
    """The images under one corruption.

    Args:
        images: one or three channels, sides of at least 8, levels 0..255.
        name: one of `ALL_CORRUPTIONS`.
        severity: 1 (weak) to 5.
        seed: of the draws.
        indices: each image's number in its dataset, which keys its draws.  [default: 0, 1, ...]

    Raises:
        BenchError: the corruption or severity does not exist, or the images are too small or of other channels.
    """
    corruption = require_corruption(name, severity)
    height, width, channels = images.shape[1:]
    if min(height, width) < _SMALLEST or channels not in (1, 3):
        raise BenchError(
            f"images of {height}x{width}x{channels} cannot be corrupted: give sides of {_SMALLEST} or more and 1 or 3 "
            "channels."
        )
    if not len(images):
        return images.copy()
    draws = keyed_draws(seed, name, severity, range(len(images)) if indices is None else indices)
    growth = max(1.0, min(height, width) / _SIDE)
    given = corruption.constants[severity - 1]
    constants = [float(value * growth) if isinstance(value, Pixels) else value for value in given]
    pixels = images.astype(np.float32) / 255
    widened = channels == 1 and corruption.coloured
    changed = corruption.function(np.repeat(pixels, 3, axis=3) if widened else pixels, draws, *constants)
    return _levels(weather.luma(changed) if widened else changed)


def require_corruption(name: str, severity: int = 1) -> Corruption:
    """The corruption of this name; an unknown one is refused, and so is an unknown severity."""
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise BenchError(f"severity {severity} does not exist. Choose from 1, 2, 3, 4, 5.")
    return CORRUPTIONS[name]


def _levels(images: Batch) -> UInt8[np.ndarray, "count height width channel"]:
    """Clipped, and cut to whole levels as the published script does."""
    # Without the thousandth, rounding errors would take a level from values that did not change.
    return np.floor(images.clip(0, 1) * 255 + 1e-3).astype(np.uint8)
