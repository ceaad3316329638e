"""Ranks that say no more than the samples do: rows that cannot be told apart share one."""

from collections.abc import Sequence

from bench.comparison import SIGNIFICANCE, mcnemar_p_value, welch_p_value
from bench.metrics import Outcomes


def ranks(rows: Sequence[Sequence[Outcomes]]) -> list[int | None]:
    """Ranks of rows that are in order, best first; a row is its worst-case outcomes, one vector for each seed.

    The first row starts a group. Each further row starts the next group if it differs from the first row of the
    current group with p < 0.05, else it joins that group. The rank of a group is the place of its first row, so that
    1, 1, 3 follow each other. The p-values are not corrected for the number of rows.

    Rows of one result each are compared sample by sample, by the exact McNemar test. Where any row has several seeds,
    the test is Welch's over the accuracies of the seeds, and rows of one seed get None and no place.
    """
    merged = any(len(row) > 1 for row in rows)
    found: list[int | None] = []
    head: Sequence[Outcomes] | None = None
    rank = place = 0
    for row in rows:
        if merged and len(row) == 1:
            found.append(None)
            continue
        place += 1
        if head is None or _p_value(head, row) < SIGNIFICANCE:
            head, rank = row, place
        found.append(rank)
    return found


def meaning(seeds: Sequence[int]) -> str:
    """What equal ranks mean on a board whose rows have so many seeds each, in one line."""
    if max(seeds) == 1:
        return (
            "Rows with the same rank cannot be told apart on these samples (McNemar, 5 %): none differs from the first "
            "of them in the worst case."
        )
    lonely = " A row of one seed has no rank." if min(seeds) == 1 else ""
    return (
        "Rows with the same rank cannot be told apart by their seeds (Welch's t-test, 5 %): none differs from the "
        f"first of them in the worst case.{lonely}"
    )


def _p_value(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> float:
    if len(first) == 1:
        return mcnemar_p_value(first[0], second[0])
    return welch_p_value(*([float(outcomes.mean()) for outcomes in row] for row in (first, second)))
