"""A check that the images that are evaluated are a fair part of the set."""

import numpy as np
from jaxtyping import Float64, Int64

from bench.results.findings import Finding, finding, graded

IMPROBABLE = 1e-3
"""How rarely a part drawn at random may be as far from the set's shares as one that raises a warning."""


def class_shares(part: Int64[np.ndarray, " part"], whole: Int64[np.ndarray, " count"]) -> Finding:
    """The finding on the labels of a part: a warning where a part drawn at random would hardly have such shares.

    Each class has two tails of a hypergeometric distribution, and the smallest of all is taken as often as there are
    (Bonferroni). A class that is missing by chance is a note.
    """
    counts = np.bincount(whole)
    drawn = np.bincount(part, minlength=len(counts))
    classes = counts > 0
    tails = [_tail(int(seen), int(count), len(part), len(whole)) for seen, count in zip(drawn, counts, strict=True)]
    chance = min(1.0, min(tails) * 2 * int(classes.sum()))
    missing = np.flatnonzero(classes & (drawn == 0))
    seen = f"{int(classes.sum()) - len(missing)} of {int(classes.sum())} classes"
    text = f"{len(part)} of {len(whole)} test images, of {seen}"
    if chance < IMPROBABLE:
        text += f"; a random part has such shares of the classes with a chance of {chance:.1g}"
    severity = graded(warning=chance < IMPROBABLE, note=len(missing) > 0)
    return finding("class-shares", severity, text, chance, IMPROBABLE)


def _tail(seen: int, count: int, part: int, whole: int) -> float:
    """The chance of at most, or of at least, so many of a class of `count` in a part, whichever is smaller."""
    from scipy.special import betaln

    def log_comb(of: int, chosen: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        return -np.log(of + 1) - betaln(of - chosen + 1, chosen + 1)

    possible = np.arange(max(0, part + count - whole), min(part, count) + 1)
    ways = log_comb(count, possible) + log_comb(whole - count, part - possible)
    chances = np.exp(ways - log_comb(whole, np.array([part])))
    return float(min(chances[possible <= seen].sum(), chances[possible >= seen].sum()))
