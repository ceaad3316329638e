"""Results in, one table out: a row per model, best first. Results that do not compare are refused."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.metrics import (
    CLEAN,
    WORST_CASE,
    Convention,
    Outcomes,
    average_accuracy,
    columns,
    main_autoattack,
    wilson_interval,
)
from bench.results import EvaluationResult, canonical_json, content_digest

AVERAGE = "Avg"


@dataclass(frozen=True)
class Cell:
    """One accuracy, in percent."""

    percent: float
    half_width: float | None
    """Half the width of the 95 % Wilson interval, in points; None for a mean of accuracies."""


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[int, ...] = ()
    """Numbers of this row's notes, from 1; a row with notes carries a dagger."""
    ranked: bool = True
    """False where a finding says that the numbers cannot be believed: last, and never best."""


@dataclass(frozen=True)
class LeaderboardTable:
    """What a renderer shows."""

    title: str
    headers: tuple[str, ...]
    """The first is of the names."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def build_table(results: Sequence[EvaluationResult], convention: Convention = "any") -> LeaderboardTable:
    """One row per result, best worst case first, then best clean accuracy; rows with an error last.

    Raises:
        BenchError: no result, an empty result, the same result twice, or results that differ in suite, data or attacks.
    """
    if not results:
        raise BenchError("there is no result to show. Give at least one result file.")
    names = _row_names(results)
    _refuse_mixture(names, results)
    cells = [_cells(result, convention) for result in results]
    ranked = [all(severity != "error" for severity, _ in _remarks(result)) for result in results]

    def place(row: int) -> tuple[bool, float, float, str]:
        return not ranked[row], -cells[row][WORST_CASE].percent, -cells[row][CLEAN].percent, names[row]

    notes: list[str] = []
    rows = []
    for row in sorted(range(len(results)), key=place):
        texts = [f"{names[row]}: {text} ({severity})" for severity, text in _remarks(results[row])]
        numbers = range(len(notes) + 1, len(notes) + len(texts) + 1)
        rows.append(Row(names[row], tuple(cells[row].values()), tuple(numbers), ranked[row]))
        notes += texts
    notes += _column_notes(results)
    return LeaderboardTable(_title(results[0], convention), ("Model", *cells[0]), tuple(rows), tuple(notes))


def _cells(result: EvaluationResult, convention: Convention) -> dict[str, Cell]:
    cells = {title: _cell(outcomes) for title, outcomes in columns(result, convention).items()}
    average = average_accuracy(result, convention)
    if average is not None:
        if AVERAGE in cells:
            raise BenchError(f"the suite has a column {AVERAGE!r} of its own. Give it another label.")
        cells[AVERAGE] = Cell(round(100 * average, 9), None)
    return cells


def _cell(outcomes: Outcomes) -> Cell:
    successes = int(outcomes.sum())
    low, high = wilson_interval(successes, outcomes.size)
    return Cell(100 * successes / outcomes.size, 50 * (high - low))


def _title(result: EvaluationResult, convention: Convention) -> str:
    threats = dict.fromkeys(f"{record.norm} {record.epsilon}" for record in result.attacks.values())
    return (
        f"{result.run.get('dataset')}, {', '.join(threats) or 'no attack'}, "
        f"suite {result.suite.get('name')} version {result.suite.get('version')}, "
        f"{len(result.label)} samples, convention {convention}"
    )


def _remarks(result: EvaluationResult) -> list[tuple[str, str]]:
    """Severity and text of the findings that a reader must see."""
    remarks = [(str(finding.get("severity")), finding) for finding in result.findings]
    return [
        (severity, f"{finding.get('name')}: {finding.get('message')}")
        for severity, finding in remarks
        if severity in ("error", "warning")
    ]


def _column_notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    for label in results[0].attacks:
        objectives = sorted({result.attacks[label].objective for result in results})
        if len(objectives) > 1:
            yield f"Column {label}: objectives differ between rows ({', '.join(objectives)})"
    autoattack = main_autoattack(results[0])
    if autoattack:
        yield f"Column {AVERAGE}: mean of {CLEAN} and {autoattack.label}"


# ------------------------------------------------------------------------------------------------- names


def _row_names(results: Sequence[EvaluationResult]) -> list[str]:
    """Model names; those that occur twice grow by backbone, seed, checkpoint and content until they differ."""
    facts = [_distinctions(result) for result in results]
    names = [str(result.run.get("model", "unnamed")) for result in results]
    extras: list[list[str]] = [[] for _ in results]
    for level in range(len(facts[0])):
        shown = _shown(names, extras)
        count = Counter(shown)
        for row, name in enumerate(shown):
            if count[name] > 1:
                extras[row].append(facts[row][level])
    shown = _shown(names, extras)
    twice = [name for name, count in Counter(shown).items() if count > 1]
    if twice:
        raise BenchError(f"the result of {twice[0]!r} was given twice. Give each result once.")
    return shown


def _distinctions(result: EvaluationResult) -> tuple[str, ...]:
    run = result.run
    checkpoint = str(run.get("checkpoint_digest"))[:8]
    return (
        str(run.get("backbone")),
        f"seed {run.get('seed')}",
        f"checkpoint {checkpoint}",
        f"result {content_digest(result)[:8]}",
    )


def _shown(names: Sequence[str], extras: Sequence[Sequence[str]]) -> list[str]:
    return [f"{name} ({', '.join(extra)})" if extra else name for name, extra in zip(names, extras, strict=True)]


# --------------------------------------------------------------------------------------------- comparison


def _refuse_mixture(names: Sequence[str], results: Sequence[EvaluationResult]) -> None:
    first = _comparable(results[0])
    for name, result in zip(names[1:], results[1:], strict=True):
        other = _comparable(result)
        for fact in [*first, *(other.keys() - first.keys())]:
            if first.get(fact) != other.get(fact):
                raise BenchError(
                    f"{names[0]!r} and {name!r} do not compare: {fact} is {first.get(fact, 'not set')} for the first "
                    f"and {other.get(fact, 'not set')} for the second. Make one table for each."
                )


def _comparable(result: EvaluationResult) -> dict[str, str]:
    """What rows of one table must share, as JSON by name, in the order in which to report it."""
    samples = hashlib.sha256(result.index.tobytes() + result.label.tobytes()).hexdigest()[:12]
    facts: dict[str, Any] = {
        "suite": result.suite.get("name"),
        "suite version": result.suite.get("version"),
        "suite threat": result.suite.get("threat"),
        "dataset": result.run.get("dataset"),
        "dataset digest": result.run.get("dataset_digest"),
        "sample set (size, digest of index and label)": [len(result.label), samples],
        "list of attacks": list(result.attacks),
        "list of derived columns": result.suite.get("derived", []),
    }
    for label, record in result.attacks.items():
        facts[f"attack of column {label!r}"] = record.attack
        facts[f"threat model of column {label!r}"] = f"{record.norm} {record.epsilon}"
        for name, value in record.parameters.items():
            facts[f"parameter {name!r} of column {label!r}"] = value
    return {name: canonical_json(name, value) for name, value in facts.items()}
