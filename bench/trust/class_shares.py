"""A check that the images that are evaluated are a fair part of the set."""

import numpy as np
from jaxtyping import Int64

from bench.results.findings import Finding, finding, graded

IMPROBABLE = 1e-3
"""How rarely a part drawn at random may be as far from the set's shares as one that raises a warning."""


def class_shares(part: Int64[np.ndarray, " part"], whole: Int64[np.ndarray, " count"]) -> Finding:
    """The finding on the labels of a part: a warning where a part drawn at random would hardly have such shares.

    Each class has two tails of a hypergeometric distribution, and the smallest of all is taken as often as there are
    (Bonferroni). A class that is missing by chance is a note.
    """
    from scipy.stats import hypergeom

    counts = np.bincount(whole)
    drawn = np.bincount(part, minlength=len(counts))
    classes = counts > 0
    held = hypergeom(len(whole), counts[classes], len(part))
    tails = np.minimum(held.cdf(drawn[classes]), held.sf(drawn[classes] - 1))
    chance = min(1.0, float(tails.min()) * 2 * int(classes.sum()))
    missing = np.flatnonzero(classes & (drawn == 0))
    seen = f"{int(classes.sum()) - len(missing)} of {int(classes.sum())} classes"
    text = f"{len(part)} of {len(whole)} test images, of {seen}"
    if chance < IMPROBABLE:
        text += f"; a random part has such shares of the classes with a chance of {chance:.1g}"
    severity = graded(warning=chance < IMPROBABLE, note=len(missing) > 0)
    return finding("class-shares", severity, text, chance, IMPROBABLE)
