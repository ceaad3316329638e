"""Gaussian, shot, impulse and speckle noise, every colour channel for itself."""

import numpy as np

from bench.data.corruptions.draws import Batch, Draws, drawn


def gaussian_noise(images: Batch, draws: Draws, deviation: float) -> Batch:
    """Adds N(0, deviation)."""
    return images + deviation * _normal(images, draws)


def shot_noise(images: Batch, draws: Draws, photons: float) -> Batch:
    """Counts `photons` times a pixel's value, on average, as a Poisson process does."""
    rates = zip(draws, images * photons, strict=True)
    return np.stack([generator.poisson(rate) for generator, rate in rates]).astype(np.float32) / photons


def impulse_noise(images: Batch, draws: Draws, share: float) -> Batch:
    """Turns this share of all values into 0 or 1, either with probability one half."""
    chance = drawn(draws, lambda generator: generator.random(images.shape[1:], dtype=np.float32))
    return np.where(chance < share, np.where(chance < share / 2, 1, 0), images).astype(np.float32)


def speckle_noise(images: Batch, draws: Draws, deviation: float) -> Batch:
    """Multiplies by 1 + N(0, deviation)."""
    return images + images * deviation * _normal(images, draws)


def _normal(images: Batch, draws: Draws) -> Batch:
    return drawn(draws, lambda generator: generator.standard_normal(images.shape[1:], dtype=np.float32))
