"""Standard error, whose reader may leave (`| head`, a lost terminal) while work goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def outliving_its_reader() -> Iterator[None]:
    """Writes to standard error in here end no work: where one is refused, this and all later ones go nowhere."""
    try:
        yield
    except OSError:
        # What could not be written stays in the old stream, and would fail once more when the process ends.
        sys.stderr = _nowhere()


def replace_missing() -> None:
    """Give standard output and error that were closed before the start (`2>&-`) a place, so that all may write."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
