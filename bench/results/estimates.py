"""Means and differences over test images and training seeds, with the error that both leave.

An interval is as wide as the root of the sum of squares of two half widths: that of the seeds alone, by Student's t,
and that of the images alone, by the normal distribution (Howe 1974, JASA 69, 789-794).
Student's part keeps it honest with two or three seeds, far out in the tail too, where corrections for many rows look.
It errs on the wide side: what no seed shares with another is in both parts. One seed has no part of its own, and the
interval then speaks of that one model.

Where few images differ, the normal distribution says too much. So four more images are counted with a mean, two right
and two wrong (Agresti and Coull 1998, https://doi.org/10.1080/00031305.1998.10480550), and two with a difference, one
that only the first has right and one that only the second has (Bonett and Price 2012,
https://doi.org/10.3102/1076998611411915). Both papers are of one outcome per image; means of several lie closer
together than these images assume, and their intervals are wider than they need be by at most that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

Seeds: TypeAlias = Bool[np.ndarray, "_seed sample"] | Float[np.ndarray, "_seed sample"]
"""Of each seed, per sample: right or not, or a share of several outcomes that are right."""
Numbers: TypeAlias = Float[np.ndarray, "..."]
Counts: TypeAlias = Int[np.ndarray, "..."]

LEVEL = 0.05
"""Intervals hold with 95 %, and two rows differ where p is below this."""
_SMALLEST = 1e-30
"""No p-value is told from a smaller one."""
_HALVINGS = 60


@dataclass(frozen=True)
class Estimate:
    """One number, or an array of them: an estimate of each, and the variances of its error."""

    value: Numbers
    samples: Numbers
    """Variance by the choice of samples."""
    seeds: Numbers
    """Variance by the choice of seeds; 0 for one seed, of which it is not known."""
    degrees: Numbers
    """Degrees of freedom of `seeds`; without meaning where that is 0."""

    def half_width(self, level: float | Numbers = LEVEL) -> Numbers:
        """Half the width of the interval that misses with probability `level`."""
        from scipy.special import ndtri, stdtrit

        samples, seeds = ndtri(level / 2) ** 2 * self.samples, stdtrit(self.degrees, level / 2) ** 2 * self.seeds
        return np.asarray(np.sqrt(samples + seeds))

    def interval(self, lowest: float, highest: float) -> tuple[Numbers, Numbers]:
        """Both ends of the 95 % interval, within what is possible."""
        half = self.half_width()
        low, high = (np.asarray(np.clip(end, lowest, highest)) for end in (self.value - half, self.value + half))
        return low, high

    def p_value(self) -> Numbers:
        """Of the test that the number is 0: the level whose interval ends there, found by halving its logarithm."""
        low, high = np.full_like(self.value, np.log(_SMALLEST)), np.zeros_like(self.value)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            within = np.abs(self.value) <= self.half_width(np.exp(middle))
            low, high = np.where(within, middle, low), np.where(within, high, middle)
        return np.asarray(np.exp(high))


def mean_estimate(values: Seeds) -> Estimate:
    """The mean of shares in [0, 1] over samples and seeds, as the module says."""
    means = np.concatenate([values.mean(axis=0), [0.0, 0.0, 1.0, 1.0]])
    return _estimate(means.mean(), means.var() / means.size, values)


def unbounded_estimate(values: Seeds) -> Estimate:
    """The mean of numbers of any size over samples and seeds, no image added; one sample has no error of its own."""
    means = values.mean(axis=0)
    return _estimate(means.mean(), means.var(ddof=1) / means.size if means.size > 1 else 0.0, values)


def differences(rows: Sequence[Seeds]) -> Estimate:
    """Mean differences of shares in [0, 1] on the same samples: at [i, j] that of row i less row j, and 0 at [i, i]."""
    means = np.stack([row.mean(axis=0) for row in rows])
    count = means.shape[1] + 2
    sums, squares = means.sum(axis=1), np.square(means).sum(axis=1)
    value = np.subtract.outer(sums, sums) / count
    samples = (np.add.outer(squares, squares) - 2 * means @ means.T + 2) / count - value**2
    variances, degrees = np.array([_over_seeds(row) for row in rows]).T
    seeds, squared = np.add.outer(variances, variances), variances**2 / degrees
    # Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28; of no variance, any degrees will do.
    welch = np.divide(seeds**2, np.add.outer(squared, squared), out=np.ones_like(seeds), where=seeds > 0)
    return Estimate(value, samples / count, seeds, welch)


def _estimate(value: float, samples: float, values: Seeds) -> Estimate:
    return Estimate(*map(np.asarray, (value, samples, *_over_seeds(values))))


def _over_seeds(values: Seeds) -> tuple[float, float]:
    """Variance of the mean over seeds by their choice, and its degrees of freedom."""
    count = len(values)
    return (float(values.mean(axis=1).var(ddof=1)) / count, count - 1.0) if count > 1 else (0.0, 1.0)
