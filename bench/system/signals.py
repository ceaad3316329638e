"""Ctrl-C stops at once: files are whole at any time. SIGTERM waits for the batch or block in progress.

Schedulers send it some seconds before they kill; a finished block can be kept.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


class _Termination:
    """A SIGTERM that waits, or none, and the number of nested pieces of work that it would wait for."""

    pieces = 0
    waits = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.pieces and not self.waits:
            self.waits = True
            return
        raise Terminated

    def take_effect(self) -> None:
        if self.waits and not self.pieces:
            self.waits = False
            raise Terminated


_termination = _Termination()


def listen() -> None:
    """From now on SIGTERM raises `Terminated` in this process, at the end of a `to_its_end` if one is open."""
    signal.signal(signal.SIGTERM, _termination.receive)


@contextmanager
def to_its_end() -> Iterator[None]:
    """Work that a SIGTERM waits for; a second one, or Ctrl-C, does not.

    Raises:
        Terminated: at the end, if a SIGTERM came meanwhile.
    """
    _termination.pieces += 1
    try:
        yield
    finally:
        _termination.pieces -= 1
    _termination.take_effect()
