"""Results that differ in their training seed alone, which `--merge-seeds` makes one row."""

from collections.abc import Sequence
from typing import Any

from bench.errors import BenchError
from bench.leaderboard.tables.trainings import is_best
from bench.results.file import EvaluationResult, canonical_json
from bench.results.trainings import recorded_protocol

_SAME_TRAINING = (
    *("model", "source", "defense", "hyperparameters", "backbone", "training_data", "checkpoint", "epoch"),
    *("precision", "processes", "weights", "backbone_sha256", "augmentation_sha256"),
)
_SAME_EVALUATION = ("precision", "seed")


def same_but_for_the_seed(results: Sequence[EvaluationResult]) -> list[list[int]]:
    """Places of results that differ only in their training seed, group by group.

    Raises:
        BenchError: two of a group have the same seed.
    """
    groups: dict[str, list[int]] = {}
    for row, result in enumerate(results):
        evaluation = result.run.get("evaluation", {})
        same = {key: result.run.get(key) for key in _SAME_TRAINING} | {"protocol": recorded_protocol(result.run)}
        if is_best(result):
            del same["epoch"]  # the best epoch is each seed's own
        how = {key: evaluation.get(key) for key in _SAME_EVALUATION}
        groups.setdefault(canonical_json("run", [same, how]), []).append(row)
    parts = [part for rows in groups.values() for part in _by_version(results, rows)]
    for rows in parts:
        seeds = [results[row].run.get("seed") for row in rows]
        if len(set(map(str, seeds))) < len(seeds):
            raise BenchError(
                f"two results of {results[rows[0]].run.get('model')!r} have the training seed {seeds[0]}: seeds cannot "
                "be merged. Give one result for each seed, or leave --merge-seeds out."
            )
    return parts


def _by_version(results: Sequence[EvaluationResult], rows: list[int]) -> list[list[int]]:
    """The rows of each version of the defense's file; older results do not name it, and go with the only one named."""
    versions: dict[Any, list[int]] = {}
    for row in rows:
        versions.setdefault(results[row].run.get("defense_sha256"), []).append(row)
    return list(versions.values()) if len(versions.keys() - {None}) > 1 else [rows]
