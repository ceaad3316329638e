"""How ranks are shown: as ranges, with bold numbers where one can only be the first, and a line on what they mean."""

from collections.abc import Sequence

import numpy as np

from bench.results.metrics import PerSample

BOLD = "significantly better than every other row in this column"
"""The meaning of bold numbers, in the words of every legend; `leading` finds them."""


def rank_text(ranks: Sequence[int] | None) -> str:
    """`1-4`, `2` where only one is possible, `-` where there is none."""
    return "-" if ranks is None else "-".join(map(str, dict.fromkeys(ranks)))


def leading(ranges: Sequence[Sequence[int] | None]) -> list[bool]:
    """True for the row of a column, if any, that can only be the first of several."""
    return [one is not None and tuple(one) == (1, 1) and sum(map(bool, ranges)) > 1 for one in ranges]


def meaning(title: str, seeds: Sequence[int], numbers: PerSample | float) -> str:
    """A line on what the ranks by a column mean, or that there are none.

    Args:
        title: of the column.
        seeds: how many each row has.
        numbers: the column of a result: per sample right or not, or a share; or a number without samples.
    """
    if not isinstance(numbers, np.ndarray):
        return f"Rows are in the order of {title}; no test ranks them."
    test = "exact McNemar tests" if numbers.dtype == bool else "paired tests"
    test = "tests over training seeds and test images" if max(seeds) > 1 else test
    lonely = " A row of one seed has no rank." if max(seeds) > 1 and min(seeds) == 1 else ""
    return (
        f"Ranks by {title}: those that a row may have, all rows together with 95 % ({test} of all pairs, Holm).{lonely}"
    )
