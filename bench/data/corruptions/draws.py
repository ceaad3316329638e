"""Random numbers of a corruption, keyed by seed, corruption, severity and image: sharding and order cannot matter."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

Batch: TypeAlias = Float[np.ndarray, "count height width channel"]
"""Float32 images, 1.0 is white; a corruption may leave [0, 1]."""
Layers: TypeAlias = Float[np.ndarray, "count height width"]
"""One number per pixel of each image."""
Draws: TypeAlias = Sequence[np.random.Generator]
"""One generator per image."""


def keyed_draws(seed: int, corruption: str, severity: int, indices: Iterable[Any]) -> list[np.random.Generator]:
    """A counter-based generator (Philox, 128-bit key) for each image."""
    texts = (f"{seed}/{corruption}/{severity}/{index}" for index in indices)
    keys = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))) for key in keys]


def drawn(draws: Draws, draw: Callable[[np.random.Generator], Any]) -> np.ndarray:
    """Numbers that `draw` takes from each image's generator, stacked, as float32."""
    return np.stack([draw(generator) for generator in draws]).astype(np.float32)
