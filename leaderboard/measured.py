"""Tables of what is no attack: common corruptions and feature spaces, as Tables 5 and 4 of the Adv-DPNP paper."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from bench.comparison import corrupted_set, refuse_mixture
from bench.errors import BenchError
from bench.leaderboard.tables import (
    Cell,
    LeaderboardTable,
    Scale,
    accuracy_cell,
    build_table,
    cells_of,
    row_names,
    unranked_table,
    with_columns,
)
from bench.metrics import (
    Convention,
    corruption_columns,
)
from bench.results import EvaluationResult, FeatureRecord

Kind: TypeAlias = Literal["attacks", "corruptions", "features"]

_FEATURE_COLUMNS = {
    "FDR ↓ clean": "fdr_clean",
    "FDR ↓ adv": "fdr_adversarial",
    "AFS ↓ clean": "afs_clean",
    "AFS ↓ adv": "afs_adversarial",
    "SCR ↑ clean": "scr_clean",
    "SCR ↑ adv": "scr_adversarial",
    "MeanSep ↑": "mean_separation",
    "MinSep ↑": "min_separation",
}


def table_of(
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    merge_seeds: bool = False,
    columns: Sequence[str] = (),
) -> LeaderboardTable:
    """The table of results, by what they hold: features, corruptions, or attacks; of its columns all, or those named.

    Raises:
        BenchError: as `build_table`, or a title that no column has.
    """
    table = _whole_table(results, convention, merge_seeds)
    return with_columns(table, columns) if columns else table


def _whole_table(results: Sequence[EvaluationResult], convention: Convention, merge_seeds: bool) -> LeaderboardTable:
    kinds = {kind_of(result) for result in results}
    if len(kinds) > 1:
        refuse_mixture(row_names(results), results)
    if "corruptions" in kinds:
        return corruption_table(results, merge_seeds)
    if "features" in kinds:
        return feature_table(results, merge_seeds)
    return build_table(results, convention, merge_seeds)


def kind_of(result: EvaluationResult) -> Kind:
    """What a result's table shows."""
    return "corruptions" if result.corruptions else "features" if result.features else "attacks"


def cells_by_part(result: EvaluationResult, convention: Convention = "any") -> dict[str, dict[str, Cell]]:
    """All numbers of a result: `accuracies`, and what it has of `corruptions` (by label) and `features`.

    Raises:
        BenchError: as `cells_of` and `corruption_cells`.
    """
    if result.corruptions:
        each = {label: accuracy_cell(shown.prediction == result.label) for label, shown in result.corruptions.items()}
        return {"accuracies": corruption_cells(result), "corruptions": each}
    features = {"features": feature_cells(result)} if result.features else {}
    return {"accuracies": cells_of(result, convention), **features}


def corruption_table(results: Sequence[EvaluationResult], merge_seeds: bool = False) -> LeaderboardTable:
    """Accuracy under corruptions: their mean, RobustBench's mean over fifteen, and the mean at each severity.

    Raises:
        BenchError: no result of corruptions, results on different images, or the same result twice.
    """
    cells = [corruption_cells(result) for result in results]
    first = max(results, key=lambda result: len(result.corruptions))
    given = corrupted_set(first)
    names = list(dict.fromkeys(shown.corruption for shown in first.corruptions.values()))
    notes = [f"The means are over {len(names)} corruptions, unweighted: {', '.join(names)}"]
    if given.get("generated"):
        notes.append(f"{given.get('name')} was generated: its numbers are not those of the published CIFAR-10-C files")
    shape = LeaderboardTable(
        title=f"{corrupted_name(first)}, {_samples(first)}",
        headers=("Model", *cells[0]),
        rows=(),
        notes=tuple(notes),
        ranking=f"Rows are in the order of {next(iter(cells[0]))}; no test ranks them.",
        scales=tuple(Scale(decimals=2) for _ in cells[0]),
    )
    return unranked_table(results, cells, shape, merge_seeds)


def corrupted_name(result: EvaluationResult) -> str:
    """The set of corrupted images, marked where it was generated."""
    given = corrupted_set(result)
    mark = " (generated)" if given.get("generated") else ""
    return f"{given.get('name', 'corruptions')}{mark}"


def corruption_cells(result: EvaluationResult) -> dict[str, Cell]:
    """Accuracies of one result under corruptions, by column title.

    Raises:
        BenchError: the severities are unequal, or there is no corruption.
    """
    shares = corruption_columns(result)
    return {title: Cell(round(100 * float(share.mean()), 9), None) for title, share in shares.items()}


def feature_table(results: Sequence[EvaluationResult], merge_seeds: bool = False) -> LeaderboardTable:
    """Feature metrics, one column for each of `bench.features`, in the order of the paper.

    Raises:
        BenchError: a result without features, results that do not compare, or the same result twice.
    """
    cells = [feature_cells(result) for result in results]
    record = results[0].attacks[_recorded(results[0]).attack]
    notes = (
        f"adv: the last iterate of {record.label}, {record.norm} {record.epsilon}, of every sample",
        "FDR, AFS: within over between classes. SCR: from a class centre to its nearest rival, over the distance of "
        "its samples. MeanSep, MinSep: degrees from a class centre to its nearest rival",
        *dict.fromkeys(f"Class centres: {_recorded(result).centres}" for result in results),
    )
    shape = LeaderboardTable(
        title=f"Features of {results[0].run.get('dataset')}, {record.norm} {record.epsilon}, {_samples(results[0])}",
        headers=("Model", *_FEATURE_COLUMNS),
        rows=(),
        notes=notes,
        ranking="Rows are in the order of the first column; no test ranks them.",
        scales=tuple(Scale(2 if "Sep" in title else 3, "↓" in title) for title in _FEATURE_COLUMNS),
        measure="Arrows say whether lower or higher is better",
    )
    return unranked_table(results, cells, shape, merge_seeds)


def feature_cells(result: EvaluationResult) -> dict[str, Cell]:
    """Feature metrics of one result, by column title; `percent` holds their own unit.

    Raises:
        BenchError: the result has no features.
    """
    record = _recorded(result)
    return {title: Cell(getattr(record, name), None) for title, name in _FEATURE_COLUMNS.items()}


def _recorded(result: EvaluationResult) -> FeatureRecord:
    if result.features is None:
        raise BenchError(f"{result.run.get('model')!r} has no features: `bench eval --suite features` measures them.")
    return result.features


def _samples(result: EvaluationResult) -> str:
    return f"suite {result.suite.get('name')} version {result.suite.get('version')}, {len(result.label)} samples"
