"""Drops of water or mud on the lens."""

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

from bench.data.corruptions.blur import smoothed
from bench.data.corruptions.draws import Batch, Draws, Layers, drawn

_WATER = np.array([175, 238, 238], dtype=np.float32) / 255
_MUD = np.array([63, 42, 20], dtype=np.float32) / 255
_LIGHTING = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def spatter(
    images: Batch,
    draws: Draws,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Batch:
    """Where smoothed noise exceeds a threshold, adds water lit from one side, or covers with mud.

    `strength` is that of the light, or the standard deviation of mud's edge in pixels. Deviation: distances to the
    drops' edges are exact, where OpenCV's are chamfer distances.
    """
    shape = images.shape[1:3]
    liquid = smoothed(drawn(draws, lambda generator: generator.normal(mean, deviation, shape)), sigma)
    liquid = np.where(liquid < threshold, np.float32(0), liquid)
    if mud:
        cover = smoothed((liquid > threshold).astype(np.float32), strength)
        cover = np.where(cover < 0.8, np.float32(0), cover)[..., None]
        return images * (1 - cover) + cover * _MUD
    drops = np.floor(liquid.clip(0, 1) * 255).astype(np.uint8)
    light = drops * np.stack([_lit(edges) for edges in canny_edges(drops)])
    brightest = light.max((1, 2), keepdims=True)
    light = np.divide(light, brightest, out=np.zeros_like(light), where=brightest > 0)
    return images + strength * light[..., None] * _WATER


def _lit(edges: Bool[np.ndarray, "height width"]) -> Layers | np.ndarray:
    """Light on the drops: the equalised distance from their edges, embossed."""
    if not edges.any():
        return np.zeros(edges.shape, dtype=np.float32)
    distance = ndimage.distance_transform_edt(~edges).clip(0, 20)
    levels = np.floor(ndimage.uniform_filter(distance, 3, mode="mirror") + 1e-6).astype(np.uint8)
    lit = ndimage.correlate(equalised(levels).astype(int), _LIGHTING, mode="mirror").clip(0, 255)
    return np.rint(ndimage.uniform_filter(lit.astype(float), 3, mode="mirror")).astype(np.float32)


def equalised(levels: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Levels spread over 0..255 so that their cumulative histogram is a line; the lowest becomes 0.

    One level alone stays as it is.
    """
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = int(levels.min())
    others = levels.size - counts[lowest]
    if not others:
        return levels
    ranks = np.cumsum(counts) - counts[lowest]
    return np.rint(ranks.clip(0) * (255 / others)).astype(np.uint8)[levels]


def canny_edges(
    layers: UInt8[np.ndarray, "count height width"], low: int = 50, high: int = 150
) -> Bool[np.ndarray, "count height width"]:
    """Canny's detector (1986, https://doi.org/10.1109/TPAMI.1986.4767851) as OpenCV has it: norm |dx| + |dy|."""
    values = layers.astype(int)
    down, right = (_sobel(values, axis) for axis in (1, 2))
    ridge = _ridge(down, right)
    strength = np.abs(down) + np.abs(right)
    weak = ridge & (strength > low)
    within_one_image = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
    pieces, count = ndimage.label(weak, within_one_image)
    kept = np.zeros(count + 1, dtype=bool)
    kept[pieces[weak & (strength > high)]] = True
    return kept[pieces] & weak


def _sobel(values: Int[np.ndarray, "count height width"], axis: int) -> Int[np.ndarray, "count height width"]:
    slope = ndimage.correlate1d(values, [-1, 0, 1], axis=axis, mode="nearest")
    return ndimage.correlate1d(slope, [1, 2, 1], axis=3 - axis, mode="nearest")


def _ridge(
    down: Int[np.ndarray, "count height width"], right: Int[np.ndarray, "count height width"]
) -> Bool[np.ndarray, "count height width"]:
    """Pixels whose gradient is larger than that of both neighbours along it, in one of four directions."""
    strength = np.abs(down) + np.abs(right)
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    height, width = strength.shape[1:]

    def crest(row: int, column: int) -> np.ndarray:
        before, after = (
            padded[:, 1 + sign * row : 1 + sign * row + height, 1 + sign * column : 1 + sign * column + width]
            for sign in (-1, 1)
        )
        return (strength > before) & ((strength > after) if row and column else (strength >= after))

    tangent = np.tan(np.pi / 8)
    level, upright = np.abs(down) < tangent * np.abs(right), np.abs(right) < tangent * np.abs(down)
    diagonal = np.where(down * right >= 0, crest(1, 1), crest(1, -1))
    return np.where(level, crest(0, 1), np.where(upright, crest(1, 0), diagonal))
