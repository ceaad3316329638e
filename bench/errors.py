"""The one exception a person sees: its text names the value, what is allowed, and the way out."""

import os
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class BenchError(Exception):
    """Bad input or an unusable file. The command line prints the text on one line and exits with 2."""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> BenchError:
    """An error for a name that does not exist: the nearest right one first, then all of them."""
    choices = sorted(allowed)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BenchError(f"unknown {kind} {name!r}.{hint} Choose from: {', '.join(choices)}.")


def cause(error: BaseException) -> str:
    """`ValueError: its text (mine.py:17)`, on one line: with the last line of a person's own code that led to it."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    folders = [str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))]
    others = ("<", *(folder + os.sep for folder in folders))
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"{text} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else text
