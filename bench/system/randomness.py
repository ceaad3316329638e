"""The state of the process's generators, which belongs to whoever called."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put back the state of Python's, NumPy's and torch's generators, whatever an attack does to them."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's, NumPy's and Python's random states from a seed, for plug-ins that draw from them; then as before."""
    with untouched_randomness():
        torch.manual_seed(seed)  # also of devices that are not in use yet
        start_generators(seed)
        yield


def start_generators(seed: int) -> None:
    """Start torch's, NumPy's and Python's generators from a seed, in microseconds, on devices that are in use.

    `torch.manual_seed` takes a millisecond where CUDA is not: it keeps a stack trace until it is.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
