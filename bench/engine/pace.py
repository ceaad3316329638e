"""How many images are attacked before their outcomes are kept: as many as take about twenty seconds.

A stop waits for them, and a kill loses them. No outcome depends on it: draws belong to samples.
"""

import math
from dataclasses import dataclass

SECONDS = 20.0
_LEAST = 8
_LEAST_SHARE = 8
"""On a GPU at least this part of a batch: fewer images take as long."""
_DONE = 4
"""Images that are broken leave: a search is guessed to be this part of what it is at most."""


@dataclass
class Pace:
    """The pace of one search on one model."""

    seconds: float | None
    """That an image takes, guessed and then measured; None: not known, or it must not matter."""
    least: int = _LEAST

    @classmethod
    def guessed(cls, seconds_per_pass: float | None, passes: int, batch_size: int, on_gpu: bool) -> "Pace":
        """The pace of a search of at most so many forward passes, of `seconds_per_pass` an image."""
        seconds = None if seconds_per_pass is None else seconds_per_pass * passes / _DONE
        return cls(seconds, max(_LEAST, batch_size // _LEAST_SHARE) if on_gpu else _LEAST)

    def images(self, waiting: int) -> int:
        """How many of the images that wait are taken next: all that take twice as long at most, else a power of two."""
        if self.seconds is None or waiting * self.seconds <= 2 * SECONDS:
            return waiting
        return min(waiting, max(self.least, 2 ** int(math.log2(max(1.0, SECONDS / self.seconds)))))

    def took(self, seconds: float, images: int) -> None:
        """So many images took so long."""
        self.seconds = seconds / images
