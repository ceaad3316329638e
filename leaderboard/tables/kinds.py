"""The kinds of boards: which one a result belongs on, and its numbers there."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from bench.leaderboard.tables.attacks import attack_numbers, columns_of_attacks
from bench.leaderboard.tables.corruptions import columns_of_corruptions
from bench.leaderboard.tables.features import columns_of_features, feature_numbers
from bench.leaderboard.tables.rows import merged_cells
from bench.leaderboard.tables.table import Cell, Columns, Number
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention, corruption_columns

Kind: TypeAlias = Literal["attacks", "corruptions", "features"]


def kind_of(result: EvaluationResult) -> Kind:
    """The kind of board that a result belongs on."""
    return "corruptions" if result.corruptions else "features" if result.features else "attacks"


def columns_of_kind(kind: Kind, results: Sequence[EvaluationResult], convention: Convention) -> Columns:
    """The columns of a board of this kind, and each result's numbers in them.

    Raises:
        BenchError: a result does not hold what they show.
    """
    if kind == "corruptions":
        return columns_of_corruptions(results)
    return columns_of_features(results) if kind == "features" else columns_of_attacks(results, convention)


def numbers_by_part(result: EvaluationResult, convention: Convention = "any") -> dict[str, Mapping[str, Number]]:
    """All numbers of a result: `accuracies`, and what it has of `corruptions` (by label) and `features`.

    Raises:
        BenchError: as `attack_numbers` and `metrics.corruption_columns`.
    """
    if result.corruptions:
        each = {label: shown.prediction == result.label for label, shown in result.corruptions.items()}
        return {"accuracies": corruption_columns(result), "corruptions": each}
    features = {"features": feature_numbers(result)} if result.features else {}
    return {"accuracies": attack_numbers(result, convention), **features}


def board_numbers(result: EvaluationResult, convention: Convention = "any") -> Mapping[str, Number]:
    """The numbers of a result that are columns of its board, by title."""
    return numbers_by_part(result, convention)["features" if result.features else "accuracies"]


def cells_by_part(results: Sequence[EvaluationResult], convention: Convention = "any") -> dict[str, dict[str, Cell]]:
    """`numbers_by_part` of a result, or of the seeds of a row, as cells."""
    seeds = [numbers_by_part(result, convention) for result in results]
    return {part: merged_cells([seed[part] for seed in seeds]) for part in seeds[0]}
