"""Snow, frost and fog."""

import numpy as np
from jaxtyping import Float
from scipy import fft

from bench.data.corruptions.blur import smeared, zoomed
from bench.data.corruptions.draws import Batch, Draws, Layers, drawn

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Rec. 601 weights of red, green and blue."""


def luma(images: Batch) -> Float[np.ndarray, "count height width 1"]:
    """Brightness as one channel; images of one channel are returned as they are."""
    return images if images.shape[3] == 1 else (images @ LUMA)[..., None]


def snow(
    images: Batch,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Batch:
    """Whitens, then adds flakes: noise above a threshold, smeared downwards, and once more turned by 180 degrees."""
    shape = images.shape[1:3]
    flakes = drawn(draws, lambda generator: generator.normal(mean, deviation, shape))[..., None]
    flakes = zoomed(flakes, np.array([zoom]))
    flakes = np.floor(np.where(flakes < threshold, 0, flakes).clip(0, 1) * 255) / np.float32(255)
    flakes = smeared(flakes, radius, sigma, drawn(draws, lambda generator: generator.uniform(-135, -45)))
    whitened = share * images + (1 - share) * np.maximum(images, 1.5 * luma(images) + 0.5)
    return whitened + flakes + flakes[:, ::-1, ::-1]


ICE = np.array(
    [
        (78, 149, 166, 43, -2.42),
        (201, 205, 214, 18, -1.85),
        (96, 120, 140, 38, -2.27),
        (128, 150, 168, 32, -2.13),
        (165, 182, 198, 25, -1.98),
    ],
    dtype=np.float32,
)
"""Mean red, green and blue and standard deviation, in levels 0..255; slope of the noise's log-log power spectrum.

Ridges flatten the spectrum: the textures' own slopes are -2.1, -1.3, -1.9, -1.7 and -1.5.
"""


def procedural_frost(images: Batch, draws: Draws, image_share: float, frost_share: float) -> Batch:
    """Adds a drawn texture of ice where the published script adds a crop of one of five photographs.

    Deviation: the photographs' origin is not stated, so they are not distributed here. The textures are ridges of noise
    with mean colours, contrasts and power spectra in the range of those photographs'.
    """
    kinds = ICE[[generator.integers(len(ICE)) for generator in draws]]
    texture = ridges(draws, images.shape[1:3], kinds[:, 4])
    ice = kinds[:, None, None, :3] + kinds[:, None, None, 3:4] * texture[..., None]
    return image_share * images + frost_share * (ice / 255).clip(0, 1)


def ridges(draws: Draws, shape: tuple[int, ...], slopes: np.ndarray) -> Layers:
    """Sharp crests of coloured noise, of mean 0 and standard deviation 1 in each image."""
    # Noise from a Fourier transform is periodic: a quarter of the period has no seams.
    height, width = 2 * shape[0], 2 * shape[1]
    white = drawn(draws, lambda generator: generator.standard_normal((height, width), dtype=np.float32))
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)).astype(np.float32)
    frequency[0, 0] = np.inf
    coloured = fft.irfft2(fft.rfft2(white) * frequency ** (slopes[:, None, None] / 2), s=(height, width))
    crests = -np.abs(_standardised(coloured)[:, : shape[0], : shape[1]])
    return _standardised(crests)


def _standardised(layers: Layers) -> Layers:
    axes = (1, 2)
    return (layers - layers.mean(axes, keepdims=True)) / layers.std(axes, keepdims=True)


def fog(images: Batch, draws: Draws, amount: float, decay: float) -> Batch:
    """Adds `amount` of a plasma fractal and scales the sum back to the image's range."""
    height, width = images.shape[1:3]
    brightest = images.max((1, 2, 3), keepdims=True)
    plasma = plasma_fractal(draws, 1 << (max(height, width) - 1).bit_length(), decay)[:, :height, :width, None]
    return (images + amount * plasma) * (brightest / (brightest + amount))


def plasma_fractal(draws: Draws, side: int, decay: float) -> Layers:
    """Height maps in [0, 1] from the diamond-square algorithm on a torus (Fournier et al. 1982).

    A point is the mean of its four neighbours plus wibble^2 U(-1, 1); wibble starts at 100 and shrinks by `decay`
    with each halving of the step. `side` is a power of two.
    """
    noise = drawn(draws, lambda generator: generator.uniform(-1, 1, (side, side)))
    heights = np.zeros_like(noise)
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        middles = (pairs + np.roll(pairs, -1, axis=2)) / 4 + wibble**2 * noise[:, half::step, half::step]
        heights[:, half::step, half::step] = middles
        for axis, rows, columns in ((1, 0, half), (2, half, 0)):
            along = corners + np.roll(corners, -1, axis=3 - axis)
            across = middles + np.roll(middles, 1, axis=axis)
            heights[:, rows::step, columns::step] = (along + across) / 4 + wibble**2 * noise[
                :, rows::step, columns::step
            ]
        step, wibble = half, wibble / decay
    heights -= heights.min((1, 2), keepdims=True)
    return heights / heights.max((1, 2), keepdims=True)
