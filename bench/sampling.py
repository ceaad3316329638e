"""Which images stand for a whole set: how some of each class are chosen, and whether those chosen are a fair part."""

import numpy as np
from jaxtyping import Float64, Int64

from bench.findings import Finding, Severity, finding

IMPROBABLE = 1e-3
"""How rarely a part drawn at random may be as far from the set's shares as one that raises a warning."""


def evenly_chosen(labels: Int64[np.ndarray, " count"], limit: int) -> Int64[np.ndarray, " limit"]:
    """Rows, ascending, of `limit` examples that have the classes in the shares of all: a function of its arguments.

    A class with n of N labels gets limit * n / N of the places, rounded as Webster and Sainte-Lague share out seats:
    the classes' examples, shuffled, take places in the order of (k + 1/2) / n, k = 0, 1, ... So the examples of a
    smaller limit are among those of a larger one.
    """
    # The generator whose numbers NumPy promises never to change (NEP 19).
    order = np.random.RandomState(0).permutation(len(labels))
    quotients: Float64[np.ndarray, " count"] = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        quotients[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Classes that are equally due come as the shuffle has them.
    return np.sort(order[np.argsort(quotients[order], kind="stable")[:limit]])


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
    severity: Severity = "warning" if chance < IMPROBABLE else "note" if len(missing) else "passed"
    return finding("class-shares", severity, text, chance, IMPROBABLE)
