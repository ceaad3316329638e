"""The columns of a board of feature spaces: how well they separate classes, as in Table 4 of the Adv-DPNP paper."""

from collections.abc import Callable, Mapping, Sequence

from bench.errors import BenchError
from bench.leaderboard.tables.attacks import suite_and_samples
from bench.leaderboard.tables.table import ColumnFormat, Columns
from bench.results.file import EvaluationResult, FeatureRecord

_COLUMNS: Mapping[str, tuple[Callable[[FeatureRecord], float], int]] = {
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
"""By title: the number, and its decimals. An arrow down: lower is better."""


def columns_of_features(results: Sequence[EvaluationResult]) -> Columns:
    """One column for each metric of `bench.evaluation.features`, in the order of the paper.

    Raises:
        BenchError: a result without features.
    """
    numbers = [feature_numbers(result) for result in results]
    first = results[0]
    record = first.attacks[_recorded(first).attack]
    return Columns(
        title=f"Features of {first.run.get('dataset')}, {record.norm} {record.epsilon}, {suite_and_samples(first)}",
        rank_by=next(iter(_COLUMNS)),
        formats={title: ColumnFormat(decimals, "↓" in title) for title, (_, decimals) in _COLUMNS.items()},
        numbers=numbers,
        notes=(
            f"adv: the last iterate of {record.label}, {record.norm} {record.epsilon}, of every sample",
            "FDR, AFS: within over between classes. SCR: from a class centre to its nearest rival, over the distance "
            "of its samples. MeanSep, MinSep: degrees from a class centre to its nearest rival",
            "FDR is eq. 8 of the Adv-DPNP paper; FDR/M², over the square of the number of classes, is what its Table 4 "
            "seems to print",
            *dict.fromkeys(f"Class centres: {_recorded(result).centres}" for result in results),
        ),
        measure="Arrows say whether lower or higher is better",
    )


def feature_numbers(result: EvaluationResult) -> dict[str, float]:
    """Feature metrics of one result, by column title; features are not stored, so these have no samples.

    Raises:
        BenchError: the result has no features.
    """
    record = _recorded(result)
    return {title: number(record) for title, (number, _) in _COLUMNS.items()}


def _recorded(result: EvaluationResult) -> FeatureRecord:
    if result.features is None:
        raise BenchError(f"{result.run.get('model')!r} has no features: `bench eval --suite features` measures them.")
    return result.features
