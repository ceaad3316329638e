"""Ctrl-C stops at once: files are whole at any time. SIGTERM waits for the batch or block in progress.

Schedulers send it some seconds before they kill, 30 mostly; a finished block can be kept.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


GRACE = 25.0
"""Seconds that a SIGTERM waits for work that may take longer."""


class _Termination:
    """A SIGTERM that waits, or none, and the nested pieces of work that it would wait for, each with its limit."""

    def __init__(self) -> None:
        self.limits: list[float | None] = []
        self.waits = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.limits and not self.waits:
            self.waits = True
            if self.limits[0] is not None:
                signal.setitimer(signal.ITIMER_REAL, self.limits[0])
            return
        raise Terminated

    def expire(self, number: int, frame: FrameType | None) -> None:
        if self.waits:
            self.waits = False
            raise Terminated

    def end(self) -> None:
        """The innermost piece has ended."""
        self.limits.pop()
        if self.waits and not self.limits:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def take_effect(self) -> None:
        if self.waits and not self.limits:
            self.waits = False
            raise Terminated


_termination = _Termination()


def listen() -> None:
    """From now on SIGTERM raises `Terminated` in this process, at the end of a `to_its_end` if one is open."""
    signal.signal(signal.SIGTERM, _termination.receive)
    signal.signal(signal.SIGALRM, _termination.expire)


@contextmanager
def to_its_end(limit: float | None = None) -> Iterator[None]:
    """Work that a SIGTERM waits for, the outermost for at most `limit` seconds; a second one, or Ctrl-C, does not.

    Raises:
        Terminated: at the end, if a SIGTERM came meanwhile, or when the limit is over.
    """
    _termination.limits.append(limit)
    try:
        yield
    finally:
        _termination.end()
    _termination.take_effect()
