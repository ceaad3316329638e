"""Ranks that say no more than the samples do: for each row, the highest and the lowest that it may have.

All pairs of rows are tested, in both directions, and Holm's correction keeps the chance that any of these tests errs
below 5 %. A row ranks below those that are better than it and above those that are worse; the others may be on either
side. So with 95 % all true ranks together lie within the ranges shown. These are simultaneous confidence intervals for
ranks: Mogstad, Romano, Shaikh and Wilhelm 2024, https://doi.org/10.1093/restud/rdad006; Al Mohamad, Goeman and van Zwet
2021 (Biometrics), "Simultaneous confidence intervals for ranks with application to ranking institutions".
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from bench.results.comparison import holm, mcnemar_p_value
from bench.results.estimates import LEVEL, Numbers, Seeds, differences

Ranks: TypeAlias = tuple[int, int]
"""The highest (1: the best) and the lowest rank that a row may have."""


def rank_ranges(rows: Sequence[Seeds]) -> list[Ranks | None]:
    """The ranks that rows may have in one column, given by their outcomes on the same samples, by seed.

    Rows of one seed are compared by the exact McNemar test, or, of shares of several outcomes, by that of
    `bench.results.estimates`. Where any row has several seeds all are, over seeds and samples, and rows of one seed get
    None: how much another seed would change is not known of them.
    """
    merged = any(len(row) > 1 for row in rows)
    tested = [place for place, row in enumerate(rows) if len(row) > 1 or not merged]
    ranges: list[Ranks | None] = [None] * len(rows)
    better = _better([rows[place] for place in tested])
    highest, lowest = 1 + better.sum(axis=0), len(tested) - better.sum(axis=1)
    for place, first, last in zip(tested, highest, lowest, strict=True):
        ranges[place] = (int(first), int(last))
    return ranges


def _better(rows: Sequence[Seeds]) -> np.ndarray:
    """At [i, j], True if row i is better than row j."""
    better = np.zeros((len(rows), len(rows)), dtype=bool)
    apart = ~np.eye(len(rows), dtype=bool)
    if apart.any():
        p_values, sign = _tests(rows)
        one_sided = np.where(sign > 0, p_values / 2, 1 - p_values / 2)
        better[apart] = holm(one_sided[apart]) < LEVEL
    return better


def _tests(rows: Sequence[Seeds]) -> tuple[Numbers, np.ndarray]:
    """At [i, j], the p-value of the test that rows i and j are equal, and which of them is better: 1, -1 or 0."""
    if any(len(row) > 1 or row.dtype != bool for row in rows):
        found = differences(rows)
        return found.p_value(), np.sign(found.value)
    right = np.concatenate(rows).astype(float)
    only_first = (right @ (1 - right).T).round().astype(int)
    return mcnemar_p_value(only_first, only_first.T), np.sign(only_first - only_first.T)
