"""When memory runs out, half as many images at once: no outcome depends on how many share a forward pass."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from bench.engine.target import Target
from bench.errors import BenchError, ran_out

T = TypeVar("T")
AT_ONCE = 2**21
"""Values of images that a CPU is given at once, where an image has many: 13 of 3x224x224. More gain nothing there."""


@contextmanager
def shortage(advice: str) -> Iterator[None]:
    """Memory that runs out here is a `BenchError` of one line that ends with the advice."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise _refusal(error, advice) from error


def room_for(shape: tuple[int, ...], device: torch.device) -> int | None:
    """How many images of a shape a device is given at once, before it says what it has room for; None: any number.

    A CPU does not say it: where memory runs out, the process is ended. Small images do not fill it.
    """
    fitting = AT_ONCE // math.prod(shape)
    return None if device.type != "cpu" or fitting >= 512 else max(8, fitting // 8 * 8)


def in_pieces(rows: np.ndarray, target: Target, run: Callable[[np.ndarray], T]) -> list[T]:
    """The values of `run` for some samples, in as many pieces as memory asks for, of at most `target.room` samples.

    Raises:
        BenchError: a single sample is too much.
    """
    waiting, finished = [rows], []
    while waiting:
        piece = waiting.pop(0)
        if target.room is not None and len(piece) > target.room:
            waiting[:0] = [piece[first : first + target.room] for first in range(0, len(piece), target.room)]
            continue
        try:
            finished.append(run(piece))
            continue
        except Exception as error:
            if not ran_out(error):
                raise
            if len(piece) == 1:
                raise _refusal(error, "Even one image at a time is too much: free memory.") from error
        # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
        target.room = -(-len(piece) // 2)
        waiting.insert(0, piece)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logging.getLogger(__name__).warning("out of memory: going on with %d images at once", target.room)
    return finished


def _refusal(error: Exception, advice: str) -> BenchError:
    reason = " ".join(str(error).split()).partition(". ")[0]
    return BenchError(f"memory ran out ({reason[:200]}). {advice}")
