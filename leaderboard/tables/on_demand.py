"""Columns that a table has only where they are asked for: `COLUMN: ASPECT`, such as `AutoAttack: worst class`.

Aspects of any column of outcomes: `class N`, `worst class`, `worst 30 % of classes`. Of any column of attacks, beside
AutoAttack: `surrogate error`. Of an attack: `first to break`; of
a cascade of attacks also `stage N`. From the distances that attacks of one norm found: `at RADIUS`, and, of one attack,
`optimality`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.errors import BenchError, unknown_name
from bench.leaderboard.tables.row_names import row_names
from bench.leaderboard.tables.table import ColumnFormat, Columns, Number
from bench.results.classes import (
    broken_by_stage,
    class_accuracies,
    first_broken,
    of_class,
    worst_class,
    worst_share_accuracy,
)
from bench.results.distances import optimality, right_at, stored_radius
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention, PerSample, members
from bench.results.surrogates import surrogate_error

_RADIUS = re.compile(r"at (\S+)")
_NUMBERED = re.compile(r"(class|stage) (\d{1,5})")
_SHARE = ColumnFormat(compares=False)
"""Of what attacks found: more is neither better nor worse for a model."""


@dataclass(frozen=True)
class _Asked:
    """One such column: each result's number in it, and what is said of it."""

    numbers: Sequence[Number]
    note: str
    format: ColumnFormat


def with_asked(
    board: Columns, results: Sequence[EvaluationResult], convention: Convention, titles: Sequence[str]
) -> Columns:
    """The board with those of these columns that it does not have by itself, and a note on each.

    Raises:
        BenchError: no column has such a title, or the results do not hold what it shows.
    """
    found = {title: _asked(board, results, convention, title) for title in titles if title not in board.formats}
    return replace(
        board,
        formats={**board.formats, **{title: one.format for title, one in found.items()}},
        numbers=[
            {**own, **{title: one.numbers[place] for title, one in found.items()}}
            for place, own in enumerate(board.numbers)
        ],
        notes=(*board.notes, *(f"Column {title}: {one.note}" for title, one in found.items())),
    )


def _asked(board: Columns, results: Sequence[EvaluationResult], convention: Convention, title: str) -> _Asked:
    base, colon, aspect = title.rpartition(": ")
    if not colon or base not in board.formats:
        raise unknown_name("column", base if colon else title, board.formats)
    if chosen := _NUMBERED.fullmatch(aspect):
        return {"class": _class, "stage": _stage}[chosen[1]](board, results, base, int(chosen[2]))
    if chosen := _RADIUS.fullmatch(aspect):
        return _at(results, convention, base, chosen[1])
    if aspect not in _ASPECTS:
        raise unknown_name("aspect", aspect, [*_ASPECTS, "class 0", "stage 1", "at 4/255"])
    return _ASPECTS[aspect](board, results, convention, base)


def _class(board: Columns, results: Sequence[EvaluationResult], base: str, number: int) -> _Asked:
    each = zip(results, board.numbers, strict=True)
    numbers = [_outcomes(own, base)[of_class(result, number)] for result, own in each]
    return _Asked(numbers, f"images of class {number} only", board.formats[base])


def _stage(board: Columns, results: Sequence[EvaluationResult], base: str, number: int) -> _Asked:
    numbers = [broken_by_stage(result, base, number) for result in results]
    return _Asked(numbers, "share of all images that are right clean and that this stage breaks", _SHARE)


def _at(results: Sequence[EvaluationResult], convention: Convention, base: str, text: str) -> _Asked:
    radius = stored_radius(text)
    _require_distances(results, convention, base)
    return _Asked(
        [right_at(result, members(result)[base], radius) for result in results],
        "from the distances that were found: an upper bound of robust accuracy at that radius",
        ColumnFormat(),
    )


def _optimality(board: Columns, results: Sequence[EvaluationResult], convention: Convention, base: str) -> _Asked:
    _require_distances(results, convention, base)
    if base not in results[0].attacks:
        raise unknown_name("attack", base, results[0].attacks)
    return _Asked(
        [100 * optimality(result, base) for result in results],
        "100 for an attack that finds, of every image, the best distance known from this file in its norm",
        _SHARE,
    )


def _require_distances(results: Sequence[EvaluationResult], convention: Convention, base: str) -> None:
    if convention != "any":
        raise BenchError("distances are of images found on the way: ask for them without --convention final.")
    if base not in members(results[0]):
        raise unknown_name("column of attacks", base, members(results[0]))


def _outcomes(numbers: Mapping[str, Number], base: str) -> PerSample:
    outcomes = numbers[base]
    if not isinstance(outcomes, np.ndarray):
        raise BenchError(f"column {base!r} is not made of outcomes per image: it has no classes. Choose another.")
    return outcomes


def _by_class(board: Columns, results: Sequence[EvaluationResult], base: str) -> list[dict[int, float]]:
    return [class_accuracies(one, _outcomes(own, base)) for one, own in zip(results, board.numbers, strict=True)]


def _worst_class(board: Columns, results: Sequence[EvaluationResult], convention: Convention, base: str) -> _Asked:
    accuracies = _by_class(board, results, base)
    worst = [worst_class(own) for own in accuracies]
    named = ", ".join(f"{number} of {name}" for number, name in zip(worst, row_names(results), strict=True))
    return _Asked(
        [100 * own[number] for own, number in zip(accuracies, worst, strict=True)],
        f"each row's class of lowest accuracy ({named}); no interval, as the lowest of several is lower by chance",
        board.formats[base],
    )


def _worst_share(board: Columns, results: Sequence[EvaluationResult], convention: Convention, base: str) -> _Asked:
    numbers = [100 * worst_share_accuracy(own) for own in _by_class(board, results, base)]
    return _Asked(
        numbers,
        "mean over each row's 30 % of classes of lowest accuracy; no interval, as these are lowest by chance too",
        board.formats[base],
    )


def _first_to_break(board: Columns, results: Sequence[EvaluationResult], convention: Convention, base: str) -> _Asked:
    if base not in results[0].attacks:
        raise unknown_name("attack", base, results[0].attacks)
    return _Asked(
        [first_broken(result, convention=convention)[base] for result in results],
        "share of all images that are right clean, that it breaks, and that no attack before it in the suite does",
        _SHARE,
    )


def _surrogate_error(board: Columns, results: Sequence[EvaluationResult], convention: Convention, base: str) -> _Asked:
    if base not in members(results[0]):
        raise unknown_name("column of attacks", base, members(results[0]))
    return _Asked(
        [surrogate_error(result, members(result)[base], convention) for result in results],
        "share of all images of which it says something else than AutoAttack in the main norm; never in its place",
        _SHARE,
    )


_ASPECTS: Mapping[str, Callable[[Columns, Sequence[EvaluationResult], Convention, str], _Asked]] = {
    "worst class": _worst_class,
    "worst 30 % of classes": _worst_share,
    "first to break": _first_to_break,
    "optimality": _optimality,
    "surrogate error": _surrogate_error,
}
