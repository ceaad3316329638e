"""Tables of what is no attack: common corruptions and feature spaces, as Tables 5 and 4 of the Adv-DPNP paper."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from bench.errors import BenchError
from bench.leaderboard.tables import (
    Cell,
    ColumnFormat,
    LeaderboardTable,
    Number,
    build_table,
    filled,
    merged_cells,
    numbers_of,
    with_columns,
)
from bench.leaderboard.trainings import row_names
from bench.results.comparison import corrupted_set, refuse_mixture
from bench.results.file import EvaluationResult, FeatureRecord
from bench.results.metrics import Convention, corruption_columns

Kind: TypeAlias = Literal["attacks", "corruptions", "features"]

_FEATURES: Mapping[str, tuple[Callable[[FeatureRecord], float], int]] = {
    "FDR ↓ clean": (lambda one: one.fdr_clean, 1),
    "FDR ↓ adv": (lambda one: one.fdr_adversarial, 1),
    "FDR/M² ↓ clean": (lambda one: one.fdr_clean / one.classes**2, 3),
    "FDR/M² ↓ adv": (lambda one: one.fdr_adversarial / one.classes**2, 3),
    "AFS ↓ clean": (lambda one: one.afs_clean, 2),
    "AFS ↓ adv": (lambda one: one.afs_adversarial, 2),
    "SCR ↑ clean": (lambda one: one.scr_clean, 2),
    "SCR ↑ adv": (lambda one: one.scr_adversarial, 2),
    "MeanSep ↑": (lambda one: one.mean_separation, 1),
    "MinSep ↑": (lambda one: one.min_separation, 1),
}
"""By column title: the number, and its decimals."""


def table_of(
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    merge_seeds: bool = False,
    columns: Sequence[str] = (),
    rank_by: str | None = None,
) -> LeaderboardTable:
    """The table of results, by what they hold: features, corruptions, or attacks; of its columns all, or those named.

    Raises:
        BenchError: as `build_table`, or a title that no column has.
    """
    table = _whole_table(results, convention, merge_seeds, rank_by)
    return with_columns(table, columns) if columns else table


def _whole_table(
    results: Sequence[EvaluationResult], convention: Convention, merge_seeds: bool, rank_by: str | None
) -> LeaderboardTable:
    kinds = {kind_of(result) for result in results}
    if len(kinds) > 1:
        refuse_mixture(row_names(results), results)
    if "corruptions" in kinds:
        return corruption_table(results, merge_seeds, rank_by)
    if "features" in kinds:
        return feature_table(results, merge_seeds, rank_by)
    return build_table(results, convention, merge_seeds, rank_by)


def kind_of(result: EvaluationResult) -> Kind:
    """What a result's table shows."""
    return "corruptions" if result.corruptions else "features" if result.features else "attacks"


def numbers_by_part(result: EvaluationResult, convention: Convention = "any") -> dict[str, dict[str, Number]]:
    """All numbers of a result: `accuracies`, and what it has of `corruptions` (by label) and `features`.

    Raises:
        BenchError: as `numbers_of` and `metrics.corruption_columns`.
    """
    if result.corruptions:
        each = {label: shown.prediction == result.label for label, shown in result.corruptions.items()}
        return {"accuracies": dict(corruption_columns(result)), "corruptions": dict(each)}
    features = {"features": feature_numbers(result)} if result.features else {}
    return {"accuracies": dict(numbers_of(result, convention)), **features}


def columns_of(result: EvaluationResult, convention: Convention = "any") -> dict[str, Number]:
    """The numbers of a result that are columns of its table, by title."""
    return numbers_by_part(result, convention)["features" if result.features else "accuracies"]


def cells_by_part(results: Sequence[EvaluationResult], convention: Convention = "any") -> dict[str, dict[str, Cell]]:
    """`numbers_by_part` of a result, or of the seeds of a row, as cells."""
    seeds = [numbers_by_part(result, convention) for result in results]
    return {part: merged_cells([seed[part] for seed in seeds]) for part in seeds[0]}


def corruption_table(
    results: Sequence[EvaluationResult], merge_seeds: bool = False, rank_by: str | None = None
) -> LeaderboardTable:
    """Accuracy under corruptions: their mean, RobustBench's mean over fifteen, and the mean at each severity.

    Raises:
        BenchError: no result of corruptions, results on different images, or the same result twice.
    """
    numbers = [corruption_columns(result) for result in results]
    first = max(results, key=lambda result: len(result.corruptions))
    given = corrupted_set(first)
    names = list(dict.fromkeys(shown.corruption for shown in first.corruptions.values()))
    notes = [f"The means are over {len(names)} corruptions, unweighted: {', '.join(names)}"]
    if given.get("generated"):
        notes.append(f"{given.get('name')} was generated: its numbers are not those of the published CIFAR-10-C files")
    shape = LeaderboardTable(
        title=f"{corrupted_name(first)}, {_samples(first)}",
        rank_by=next(iter(numbers[0])),
        headers=("Model", *numbers[0]),
        rows=(),
        notes=tuple(notes),
        ranking="",
        scales=tuple(ColumnFormat() for _ in numbers[0]),
    )
    return filled(shape, results, numbers, merge_seeds, rank_by)


def corrupted_name(result: EvaluationResult) -> str:
    """The set of corrupted images, marked where it was generated."""
    given = corrupted_set(result)
    mark = " (generated)" if given.get("generated") else ""
    return f"{given.get('name', 'corruptions')}{mark}"


def feature_table(
    results: Sequence[EvaluationResult], merge_seeds: bool = False, rank_by: str | None = None
) -> LeaderboardTable:
    """Feature metrics, one column for each of `bench.evaluation.features`, in the order of the paper.

    Raises:
        BenchError: a result without features, results that do not compare, or the same result twice.
    """
    numbers = [feature_numbers(result) for result in results]
    record = results[0].attacks[_recorded(results[0]).attack]
    notes = (
        f"adv: the last iterate of {record.label}, {record.norm} {record.epsilon}, of every sample",
        "FDR, AFS: within over between classes. SCR: from a class centre to its nearest rival, over the distance of "
        "its samples. MeanSep, MinSep: degrees from a class centre to its nearest rival",
        "FDR is eq. 8 of the Adv-DPNP paper; FDR/M², over the square of the number of classes, is what its Table 4 "
        "seems to print",
        *dict.fromkeys(f"Class centres: {_recorded(result).centres}" for result in results),
    )
    shape = LeaderboardTable(
        title=f"Features of {results[0].run.get('dataset')}, {record.norm} {record.epsilon}, {_samples(results[0])}",
        rank_by=next(iter(_FEATURES)),
        headers=("Model", *_FEATURES),
        rows=(),
        notes=notes,
        ranking="",
        scales=tuple(ColumnFormat(decimals, "↓" in title) for title, (_, decimals) in _FEATURES.items()),
        measure="Arrows say whether lower or higher is better",
    )
    return filled(shape, results, numbers, merge_seeds, rank_by)


def feature_numbers(result: EvaluationResult) -> dict[str, Number]:
    """Feature metrics of one result, by column title; features are not stored, so these have no samples.

    Raises:
        BenchError: the result has no features.
    """
    record = _recorded(result)
    return {title: number(record) for title, (number, _) in _FEATURES.items()}


def _recorded(result: EvaluationResult) -> FeatureRecord:
    if result.features is None:
        raise BenchError(f"{result.run.get('model')!r} has no features: `bench eval --suite features` measures them.")
    return result.features


def _samples(result: EvaluationResult) -> str:
    return f"suite {result.suite.get('name')} version {result.suite.get('version')}, {len(result.label)} samples"
