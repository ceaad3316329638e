"""The one exception a person sees: its text names the value, what is allowed, and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches


class BenchError(Exception):
    """Bad input or an unusable file. The command line prints the text on one line and exits with 2."""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> BenchError:
    """An error for a name that does not exist: the nearest right one first, then all of them."""
    choices = sorted(allowed)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BenchError(f"unknown {kind} {name!r}.{hint} Choose from: {', '.join(choices)}.")
