"""How some of each class are chosen to stand for a whole set."""

import numpy as np
from jaxtyping import Float64, Int64


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
