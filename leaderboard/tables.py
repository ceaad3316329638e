"""Results in, one table out: a row per model, best first. Results that do not compare are refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import mean, stdev
from typing import Any, Literal, TypeAlias

import numpy as np

from bench.errors import BenchError, unknown_name
from bench.leaderboard.ranking import Ranks, meaning, rank_ranges, ranking_column
from bench.leaderboard.trainings import is_best, row_names, training_notes
from bench.results.comparison import refuse_mixture
from bench.results.estimates import mean_estimate
from bench.results.file import AttackRecord, EvaluationResult, canonical_json
from bench.results.metrics import (
    CLEAN,
    Convention,
    Outcomes,
    PerSample,
    columns,
    correct,
    derived_columns,
    main_autoattack,
    wilson_interval,
    worst_cases,
)

AVERAGE = "Avg"
_SAME_BUT_FOR_THE_SEED = (
    *("model", "source", "defense", "hyperparameters", "backbone", "protocol", "training_data", "checkpoint", "epoch"),
    *("precision", "processes"),
)
_SAME_EVALUATION = ("precision", "seed")
_FULL_PRECISION = "fp32"

Number: TypeAlias = PerSample | float
"""What a cell is made of, for each seed: outcomes of its samples, or a number that no samples are stored of."""


Trust: TypeAlias = Literal["error", "warning", "passed", "unchecked"]
"""`unchecked`: the file holds no trust report."""


@dataclass(frozen=True)
class Cell:
    """One accuracy, in percent."""

    percent: float
    interval: tuple[float, float] | None
    """Of 95 %, in percent: over samples; of a mean over seeds, over both. None: it has no samples."""
    spread: float | None = None
    """Standard deviation over training seeds, in points, where `percent` is their mean."""

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, in points."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[int, ...] = ()
    """Numbers of this row's notes, from 1; a row with notes carries a dagger."""
    ranked: bool = True
    """False where a finding says that the numbers cannot be believed: last, and never best."""
    ranks: Mapping[str, Ranks | None] = field(default_factory=dict)
    """By column that is tested, what `leaderboard.ranking` says; of a row that is not ranked: nothing."""
    trust: Trust = "unchecked"
    """The worst finding of its trust report, or reports."""
    results: tuple[int, ...] = ()
    """Places of the results it is made of among those the table was built from."""


@dataclass(frozen=True)
class ColumnFormat:
    """How the numbers of a column are read."""

    decimals: int = 1
    lower_is_better: bool = False
    compares: bool = True
    """False where rows were attacked by losses of their own: then no best is marked."""


@dataclass(frozen=True)
class LeaderboardTable:
    """What a renderer shows."""

    title: str
    rank_by: str
    """Title of the column that puts rows in order, and ranks them where it is tested."""
    headers: tuple[str, ...]
    """The first is of the names."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    ranking: str
    """What the ranks mean, or that there are none."""
    scales: tuple[ColumnFormat, ...] = ()
    """Of each column but that of the names; empty: one decimal, and higher is better."""
    measure: str = "Accuracy in percent"


def build_table(
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    merge_seeds: bool = False,
    rank_by: str | None = None,
) -> LeaderboardTable:
    """One row per result of attacks, ranked by `ranking_column` or the column asked for; rows with an error last.

    With `merge_seeds`, results that differ only in their training seed become one row: their mean.

    Raises:
        BenchError: no result, an empty result, the same result twice, results that differ in suite, data or attacks,
            or no such column to rank by.
    """
    if not results:
        raise BenchError("there is no result to show. Give at least one result file.")
    if any(result.corruptions for result in results):
        raise BenchError("results under corruptions hold no attacks: `bench leaderboard` shows their means.")
    names = row_names(results)
    refuse_mixture(names, results)
    differing = [label for label in results[0].attacks if len(_objectives(results, label)) > 1]
    numbers = [numbers_of(result, convention) for result in results]
    shape = LeaderboardTable(
        title=_title(results[0], convention),
        rank_by=ranking_column(results[0], differing),
        headers=("Model", *numbers[0]),
        rows=(),
        notes=(*_column_notes(results), *_loss_notes(names, results)),
        ranking="",
        scales=tuple(ColumnFormat(compares=column not in differing) for column in numbers[0]),
    )
    return filled(shape, results, numbers, merge_seeds, rank_by)


def filled(
    shape: LeaderboardTable,
    results: Sequence[EvaluationResult],
    numbers: Sequence[Mapping[str, Number]],
    merge_seeds: bool,
    rank_by: str | None,
) -> LeaderboardTable:
    """The table of `shape` with a row per result, in the order of a column.

    Args:
        shape: title, headers, scales, notes on columns, and the column that puts rows in order unless another does.
        results: one for each row, or for each seed of a row.
        numbers: of each result, by column title.
        merge_seeds: whether results that differ only in their training seed become one row.
        rank_by: title of the column to order by, if not that of `shape`.

    Raises:
        BenchError: the same result twice, results that do not compare, or no such column to rank by.
    """
    refuse_mixture(row_names(results), results)
    groups = same_but_for_the_seed(results) if merge_seeds else [[row] for row in range(len(results))]
    firsts = [results[group[0]] for group in groups]
    names = row_names(firsts)
    seeds = [[numbers[row] for row in group] for group in groups]
    cells = [merged_cells(row) for row in seeds]
    trust = [_trust([results[row] for row in group]) for group in groups]
    scales = dict(zip(shape.headers[1:], shape.scales, strict=True))
    order_by = _order(rank_by or shape.rank_by, scales)
    believed = [row for row, found in enumerate(trust) if found != "error"]
    ranks = dict(zip(believed, _ranks([seeds[row] for row in believed], scales), strict=True))

    def place(row: int) -> tuple[bool, float, float, str]:
        sign = 1 if scales[order_by].lower_is_better else -1
        clean = cells[row][CLEAN].percent if CLEAN in scales else 0.0
        return trust[row] == "error", sign * cells[row][order_by].percent, -clean, names[row]

    order = sorted(range(len(groups)), key=place)
    own = [_row_notes(names[row], [results[one] for one in group], merge_seeds) for row, group in enumerate(groups)]
    notes, numbered = _numbered(order, own, training_notes(names, firsts))
    tested = isinstance(numbers[0][order_by], np.ndarray)
    counts = [len(group) for group in groups]
    title = shape.title + (f", means over {'/'.join(map(str, sorted(set(counts))))} seeds" if merge_seeds else "")
    return replace(
        shape,
        title=f"{title}, {'ranked' if tested else 'ordered'} by {order_by}",
        rank_by=order_by,
        rows=tuple(
            Row(
                names[row],
                tuple(cells[row].values()),
                numbered[row],
                row in believed,
                ranks.get(row, {}),
                trust[row],
                tuple(groups[row]),
            )
            for row in order
        ),
        notes=(*notes, *shape.notes),
        ranking=meaning(order_by, counts, numbers[0][order_by]),
    )


def _order(title: str, scales: Mapping[str, ColumnFormat]) -> str:
    """`title`, if it is that of a column by which rows can be put in order."""
    if title not in scales:
        raise unknown_name("column", title, scales)
    if not scales[title].compares:
        raise BenchError(f"column {title!r} ranks no rows: each was attacked by a loss of its own. Choose another.")
    return title


def _ranks(
    rows: Sequence[Sequence[Mapping[str, Number]]], scales: Mapping[str, ColumnFormat]
) -> list[dict[str, Ranks | None]]:
    """Of each row, given by its seeds' numbers: the ranks it may have in every column whose samples are known."""
    ranks: list[dict[str, Ranks | None]] = [{} for _ in rows]
    for title, scale in scales.items():
        if scale.compares and rows and isinstance(rows[0][0][title], np.ndarray):
            found = rank_ranges([np.stack([seed[title] for seed in row]) for row in rows])
            for row, one in zip(ranks, found, strict=True):
                row[title] = one
    return ranks


def _numbered(
    order: Sequence[int], own: Sequence[Sequence[str]], shared: Sequence[tuple[str, Sequence[int]]]
) -> tuple[list[str], dict[int, tuple[int, ...]]]:
    """Notes in the order of the rows, those of several rows last; and the numbers of each row's notes, from 1."""
    texts: list[str] = []
    numbers: dict[int, tuple[int, ...]] = {}
    for row in order:
        numbers[row] = tuple(range(len(texts) + 1, len(texts) + len(own[row]) + 1))
        texts += own[row]
    for text, rows in shared:
        texts.append(text)
        numbers |= {row: (*numbers[row], len(texts)) for row in rows}
    return texts, numbers


def with_columns(table: LeaderboardTable, titles: Sequence[str]) -> LeaderboardTable:
    """The table with these columns only, in this order. Rows, their order, ranks and notes stay.

    Raises:
        BenchError: a title that no column has.
    """
    places = {title: place for place, title in enumerate(table.headers[1:])}
    for title in titles:
        if title not in places:
            raise unknown_name("column", title, places)
    kept = [places[title] for title in dict.fromkeys(titles)]
    return replace(
        table,
        headers=(table.headers[0], *(table.headers[1 + place] for place in kept)),
        rows=tuple(replace(row, cells=tuple(row.cells[place] for place in kept)) for row in table.rows),
        scales=tuple(table.scales[place] for place in kept) if table.scales else (),
    )


def numbers_of(result: EvaluationResult, convention: Convention = "any") -> dict[str, PerSample]:
    """Outcomes of one result of attacks by column title; in the last column, the mean of two of each sample."""
    found: dict[str, PerSample] = dict(columns(result, convention))
    autoattack = main_autoattack(result)
    if autoattack is not None:
        if AVERAGE in found:
            raise BenchError(f"the suite has a column {AVERAGE!r} of its own. Give it another label.")
        found[AVERAGE] = (correct(result) * 1.0 + correct(result, autoattack.label, convention)) / 2
    return found


def merged_cells(seeds: Sequence[Mapping[str, Number]]) -> dict[str, Cell]:
    """Of one row, given by its seeds' numbers: its cells by column title."""
    return {title: _cell([seed[title] for seed in seeds]) for title in seeds[0]}


def _cell(seeds: Sequence[Number]) -> Cell:
    numbers = [seed for seed in seeds if not isinstance(seed, np.ndarray)]
    if numbers:
        return Cell(mean(numbers), None, _spread(numbers))
    outcomes = [seed for seed in seeds if isinstance(seed, np.ndarray)]
    if len(outcomes) == 1 and outcomes[0].dtype == bool:
        return accuracy_cell(outcomes[0])
    percents = [100 * float(seed.mean()) for seed in outcomes]
    low, high = (100 * float(end) for end in mean_estimate(np.stack(outcomes)).interval(0.0, 1.0))
    return Cell(round(mean(percents), 9), (low, high), _spread(percents))


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None


def accuracy_cell(outcomes: Outcomes) -> Cell:
    """The share of samples that are right, with its interval."""
    successes = int(outcomes.sum())
    low, high = wilson_interval(successes, outcomes.size)
    return Cell(100 * successes / outcomes.size, (100 * low, 100 * high))


def same_but_for_the_seed(results: Sequence[EvaluationResult]) -> list[list[int]]:
    """Places of results that differ only in their training seed, group by group.

    Raises:
        BenchError: two of a group have the same seed.
    """
    groups: dict[str, list[int]] = {}
    for row, result in enumerate(results):
        evaluation = result.run.get("evaluation", {})
        same = {key: result.run.get(key) for key in _SAME_BUT_FOR_THE_SEED}
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


def _title(result: EvaluationResult, convention: Convention) -> str:
    threats = dict.fromkeys(f"{record.norm} {record.epsilon}" for record in result.attacks.values())
    return (
        f"{result.run.get('dataset')}, {', '.join(threats) or 'no attack'}, "
        f"suite {result.suite.get('name')} version {result.suite.get('version')}, "
        f"{len(result.label)} samples, convention {convention}"
    )


def _trust(results: Sequence[EvaluationResult]) -> Trust:
    """Of all results of a row; a row is unchecked where one of them is, unless something is wrong with another."""
    found = {str(finding.get("severity")) for result in results for finding in result.findings}
    if "error" in found:
        return "error"
    if "warning" in found:
        return "warning"
    return "passed" if all(_looked_at(result) for result in results) else "unchecked"


def _looked_at(result: EvaluationResult) -> bool:
    """Whether probes looked at the model: outcomes alone do not show what attacks could not find."""
    return bool(result.findings) and bool(result.run.get("evaluation", {}).get("probes"))


def _row_notes(name: str, results: Sequence[EvaluationResult], merged: bool) -> list[str]:
    """What a reader must see of a row: findings, and how the numbers came about where that is unusual."""
    return [
        f"{name}: {seed}{text} ({severity})"
        for result in results
        for seed in [f"seed {result.run.get('seed')}: " if merged else ""]
        for severity, text in _remarks(result)
    ]


def _remarks(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    """Severity and text."""
    for finding in result.findings:
        severity = str(finding.get("severity"))
        if severity in ("error", "warning"):
            yield severity, f"{finding.get('name')}: {finding.get('message')}"
    for text in _circumstances(result):
        yield "note", text


def _circumstances(result: EvaluationResult) -> Iterator[str]:
    run = result.run
    precision = run.get("evaluation", {}).get("precision", _FULL_PRECISION)
    if precision != _FULL_PRECISION and result.attacks:
        yield (
            f"attacks searched in {precision}, every success judged in {_FULL_PRECISION}: accuracies under attack are "
            f"upper bounds, which a search in {_FULL_PRECISION} may lower"
        )
    # Of a best checkpoint, `finished` says whether the best epoch was the last, and nothing of the training.
    if run.get("finished") is False and not is_best(result):
        epochs = run.get("protocol", {}).get("epochs", "?")
        yield f"checkpoint of epoch {run.get('epoch', '?')} of {epochs}: training was not finished"


def _column_notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    attacks = results[0].attacks
    for title, labels in worst_cases(results[0]).items() if len(attacks) > 1 else ():
        which = "every attack of the suite" if len(labels) == len(attacks) else "every attack in that norm"
        norms = ", ".join(dict.fromkeys(attacks[label].norm for label in labels))
        yield f"Column {title}: per image, under {which} ({norms})"
    for label, members in derived_columns(results[0]).items():
        yield f"Column {label}: per image, under {', '.join(members)}"
    for label in attacks:
        objectives = _objectives(results, label)
        if len(objectives) > 1:
            found = "; ".join(f"{objective}: {', '.join(models)}" for objective, models in sorted(objectives.items()))
            yield f"Column {label}: the rows' losses differ, so none is best ({found})"
    autoattack = main_autoattack(results[0])
    if autoattack:
        yield f"Column {AVERAGE}: mean of {CLEAN} and {autoattack.label}"


def _objectives(results: Sequence[EvaluationResult], label: str) -> dict[str, dict[str, None]]:
    """Models by the loss that an attack ascended on them; empty for a column that is no attack."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        if label in result.attacks:
            models = found.setdefault(objective_text(result.attacks[label]), {})
            models[str(result.run.get("model", "unnamed"))] = None
    return found


def objective_text(record: AttackRecord) -> str:
    """What an attack ascended; of a loss of one's own, also the digest of its file, where that is recorded."""
    digest = record.parameters.get("objective_sha256")
    return f"{record.objective} [sha256 {str(digest)[:8]}]" if digest else record.objective


def _loss_notes(names: Sequence[str], results: Sequence[EvaluationResult]) -> Iterator[str]:
    for name, result in zip(names, results, strict=True):
        losses = {label: record.loss for label, record in result.attacks.items() if record.loss is not None}
        means = ", ".join(f"{label} {loss.mean():.4f}" for label, loss in losses.items())
        if losses:
            yield f"{name}: mean cross-entropy of all samples at the last iterate: {means}"
