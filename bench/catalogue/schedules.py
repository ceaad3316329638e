"""Schedules of the learning rate, by name: what share of the highest rate is used where in a training.

Points are steps, or epochs, counted from 0. Shares are those of PyTorch's schedulers: `cosine` of CosineAnnealingLR,
`linear` of LinearLR, `one-cycle` of OneCycleLR with two phases, whose last points are the highest and the lowest, and
`cyclic` of one cycle of CyclicLR, which is lowest one point after the last (Wong et al. 2020 begin and end it at 0).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

FALLING = ("cosine", "linear")
"""From the highest rate to the lowest."""
TURNING = ("one-cycle", "cyclic")
"""Rising to the highest rate, then falling."""

Between = Callable[[float, float, float], float]


def straight(start: float, end: float, share: float) -> float:
    """The value at this share of the way along a line."""
    return start + (end - start) * share


def cosine(start: float, end: float, share: float) -> float:
    """The value at this share of the way along half a wave, which is flat at both ends."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


_SHAPES: Mapping[str, Between] = {"cosine": cosine, "linear": straight, "one-cycle": cosine, "cyclic": straight}


@dataclass(frozen=True)
class Position:
    """A point of a training."""

    point: int
    points: int

    def falling(self, schedule: str, highest: float, lowest: float) -> float:
        """The value of one of `FALLING`."""
        return _SHAPES[schedule](highest, lowest, self.point / self.points)

    def turning(self, schedule: str, first: float, turn: float, last: float, peak: float) -> float:
        """The value of one of `TURNING`, which is at `turn` after the share `peak` of the training."""
        shape, before = _SHAPES[schedule], int(schedule == "one-cycle")
        top, end = peak * self.points - before, self.points - before
        if self.point <= top:
            return shape(first, turn, self.point / top if top else 1.0)
        return shape(turn, last, (self.point - top) / (end - top))

    def warm_up(self, share: float) -> float:
        """The factor of a warm-up over a share of the training, which rises evenly to 1 at its last point."""
        steps = round(share * self.points)
        return min(1.0, (self.point + 1) / max(steps, 1))
