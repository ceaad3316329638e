"""The columns of a board of common corruptions: means of accuracies, as in Table 5 of the Adv-DPNP paper.

The means themselves, one a column, are `bench.results.metrics.corruption_columns`.
"""

from collections.abc import Sequence

from bench.leaderboard.tables.attacks import suite_and_samples
from bench.leaderboard.tables.table import ColumnFormat, Columns
from bench.results.comparison import corrupted_set
from bench.results.file import EvaluationResult
from bench.results.metrics import corruption_columns


def columns_of_corruptions(results: Sequence[EvaluationResult]) -> Columns:
    """The mean over corruptions, RobustBench's mean over fifteen, Clean, and the mean at each severity.

    Raises:
        BenchError: a result with corruptions of unequal severities.
    """
    numbers = [corruption_columns(result) for result in results]
    first = results[0]
    given = corrupted_set(first)
    names = list(dict.fromkeys(shown.corruption for shown in first.corruptions.values()))
    notes = [f"The means are over {len(names)} corruptions, unweighted: {', '.join(names)}"]
    if given.get("generated"):
        notes.append(f"{given.get('name')} was generated: its numbers are not those of the published CIFAR-10-C files")
    return Columns(
        title=f"{corrupted_name(first)}, {suite_and_samples(first)}",
        rank_by=next(iter(numbers[0])),
        formats=dict.fromkeys(numbers[0], ColumnFormat()),
        numbers=numbers,
        notes=tuple(notes),
    )


def corrupted_name(result: EvaluationResult) -> str:
    """The set of corrupted images, marked where it was generated."""
    given = corrupted_set(result)
    mark = " (generated)" if given.get("generated") else ""
    return f"{given.get('name', 'corruptions')}{mark}"
