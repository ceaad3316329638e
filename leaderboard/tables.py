"""Results in, one table out: a row per model, best first. Results that do not compare are refused."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import mean, stdev
from typing import Any, Literal, TypeAlias

from bench.comparison import refuse_mixture
from bench.errors import BenchError, unknown_name
from bench.leaderboard.ranking import meaning, ranks
from bench.metrics import (
    CLEAN,
    WORST_CASE,
    Convention,
    Outcomes,
    average_accuracy,
    columns,
    derived_columns,
    main_autoattack,
    wilson_interval,
    worst_case,
)
from bench.results import AttackRecord, EvaluationResult, canonical_json, content_digest

AVERAGE = "Avg"
_SAME_BUT_FOR_THE_SEED = (
    *("model", "source", "defense", "hyperparameters", "backbone", "protocol", "training_data", "checkpoint", "epoch"),
    *("precision", "processes"),
)
_SAME_EVALUATION = ("precision", "seed")
_FULL_PRECISION = "fp32"


Trust: TypeAlias = Literal["error", "warning", "passed", "unchecked"]
"""`unchecked`: the file holds no trust report."""


@dataclass(frozen=True)
class Cell:
    """One accuracy, in percent."""

    percent: float
    interval: tuple[float, float] | None
    """95 % Wilson interval, in percent; None for a mean of accuracies."""
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
    rank: int | None = None
    """As `leaderboard.ranking` defines it; None: the row is not ranked, or no test places it."""
    trust: Trust = "unchecked"
    """The worst finding of its trust report, or reports."""
    results: tuple[int, ...] = ()
    """Places of the results it is made of among those the table was built from."""


@dataclass(frozen=True)
class Scale:
    """How the numbers of a column are read."""

    decimals: int = 1
    lower_is_better: bool = False
    compares: bool = True
    """False where rows were attacked by losses of their own: then no best is marked."""


@dataclass(frozen=True)
class LeaderboardTable:
    """What a renderer shows."""

    title: str
    headers: tuple[str, ...]
    """The first is of the names."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    ranking: str
    """What equal ranks mean."""
    scales: tuple[Scale, ...] = ()
    """Of each column but that of the names; empty: one decimal, and higher is better."""
    measure: str = "Accuracy in percent"


def build_table(
    results: Sequence[EvaluationResult], convention: Convention = "any", merge_seeds: bool = False
) -> LeaderboardTable:
    """One row per result, best worst case first, then best clean accuracy; rows with an error last.

    With `merge_seeds`, results that differ only in their training seed become one row: mean and standard deviation
    over seeds, which say nothing of the sampling error of the test set.

    Raises:
        BenchError: no result, an empty result, the same result twice, or results that differ in suite, data or attacks.
    """
    if not results:
        raise BenchError("there is no result to show. Give at least one result file.")
    if any(result.corruptions for result in results):
        raise BenchError("results under corruptions hold no attacks: `bench leaderboard` shows their means.")
    names = row_names(results)
    refuse_mixture(names, results)
    cells = [cells_of(result, convention) for result in results]
    remarks = [_remarks(result) for result in results]
    title = _title(results[0], convention)
    notes_on_columns = [*_column_notes(results), *_loss_notes(names, results)]
    groups = same_but_for_the_seed(results) if merge_seeds else [[row] for row in range(len(results))]
    if merge_seeds:
        names = row_names([results[group[0]] for group in groups])
        remarks = [_merged_remarks([(results[row], remarks[row]) for row in group]) for group in groups]
        title += f", means over {'/'.join(sorted({str(len(group)) for group in groups}))} seeds"
        notes_on_columns.append(
            _sampling_note([cells[row] for group in groups for row in group], len(results[0].label))
        )
        cells = [merged_cells([cells[row] for row in group]) for group in groups]
    trust = [_trust([results[row] for row in group]) for group in groups]
    ranked = [found != "error" for found in trust]

    def place(row: int) -> tuple[bool, float, float, str]:
        return not ranked[row], -cells[row][WORST_CASE].percent, -cells[row][CLEAN].percent, names[row]

    order = sorted(range(len(cells)), key=place)
    believed = [[worst_case(results[run], None, convention) for run in groups[row]] for row in order if ranked[row]]
    places = dict(zip(order, ranks(believed), strict=False))  # the rows that are not ranked are last
    notes: list[str] = []
    rows = []
    for row in order:
        texts = [f"{names[row]}: {text} ({severity})" for severity, text in remarks[row]]
        numbers = range(len(notes) + 1, len(notes) + len(texts) + 1)
        facts = (ranked[row], places.get(row), trust[row], tuple(groups[row]))
        rows.append(Row(names[row], tuple(cells[row].values()), tuple(numbers), *facts))
        notes += texts
    notes += notes_on_columns
    scales = tuple(Scale(compares=len(_objectives(results, column)) < 2) for column in cells[0])
    return LeaderboardTable(
        title, ("Model", *cells[0]), tuple(rows), tuple(notes), meaning([len(group) for group in groups]), scales
    )


def with_columns(table: LeaderboardTable, titles: Sequence[str]) -> LeaderboardTable:
    """The table with these columns only, in this order. Rows, ranks and notes stay.

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


def best_two(percents: Iterable[float], scale: Scale) -> list[float]:
    """The best of a column's values, and the second; equal values share a place."""
    return sorted(set(percents), reverse=not scale.lower_is_better)[:2] if scale.compares else []


def cells_of(result: EvaluationResult, convention: Convention = "any") -> dict[str, Cell]:
    """Accuracies of one result by column title."""
    cells = {title: accuracy_cell(outcomes) for title, outcomes in columns(result, convention).items()}
    average = average_accuracy(result, convention)
    if average is not None:
        if AVERAGE in cells:
            raise BenchError(f"the suite has a column {AVERAGE!r} of its own. Give it another label.")
        cells[AVERAGE] = Cell(round(100 * average, 9), None)
    return cells


def same_but_for_the_seed(results: Sequence[EvaluationResult]) -> list[list[int]]:
    """Places of results that differ only in their training seed, group by group.

    Raises:
        BenchError: two of a group have the same seed.
    """
    groups: dict[str, list[int]] = {}
    for row, result in enumerate(results):
        evaluation = result.run.get("evaluation", {})
        same = {key: result.run.get(key) for key in _SAME_BUT_FOR_THE_SEED}
        if _is_best(result):
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


def merged_cells(rows: Sequence[Mapping[str, Cell]]) -> dict[str, Cell]:
    """Mean and standard deviation over seeds, by column title."""
    merged = {}
    for title in rows[0]:
        percents = [row[title].percent for row in rows]
        spread = stdev(percents) if len(percents) > 1 and all(map(isfinite, percents)) else None
        merged[title] = Cell(round(mean(percents), 9), None, spread)
    return merged


def _merged_remarks(found: Sequence[tuple[EvaluationResult, list[tuple[str, str]]]]) -> list[tuple[str, str]]:
    return [
        (severity, f"seed {result.run.get('seed')}: {text}") for result, remarks in found for severity, text in remarks
    ]


def _sampling_note(rows: Sequence[dict[str, Cell]], count: int) -> str:
    widest = max(cell.half_width or 0.0 for row in rows for cell in row.values())
    return (
        f"In brackets: standard deviation over seeds. It leaves out the sampling error of {count} test images, whose "
        f"95 % interval is up to ± {widest:.1f} points for one seed"
    )


def accuracy_cell(outcomes: Outcomes) -> Cell:
    """The share of samples that are right, with its interval."""
    successes = int(outcomes.sum())
    low, high = wilson_interval(successes, outcomes.size)
    return Cell(100 * successes / outcomes.size, (100 * low, 100 * high))


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


def _remarks(result: EvaluationResult) -> list[tuple[str, str]]:
    """Severity and text of what a reader must see: findings, and how the numbers came about where that is unusual."""
    remarks = [(str(finding.get("severity")), finding) for finding in result.findings]
    found = [
        (severity, f"{finding.get('name')}: {finding.get('message')}")
        for severity, finding in remarks
        if severity in ("error", "warning")
    ]
    return [*found, *(("note", text) for text in _circumstances(result))]


def _circumstances(result: EvaluationResult) -> Iterator[str]:
    run = result.run
    precision = run.get("evaluation", {}).get("precision", _FULL_PRECISION)
    if precision != _FULL_PRECISION and result.attacks:
        yield (
            f"attacks searched in {precision}, every success judged in {_FULL_PRECISION}: accuracies under attack are "
            f"upper bounds, which a search in {_FULL_PRECISION} may lower"
        )
    # Of a best checkpoint, `finished` says whether the best epoch was the last, and nothing of the training.
    if run.get("finished") is False and not _is_best(result):
        epochs = run.get("protocol", {}).get("epochs", "?")
        yield f"checkpoint of epoch {run.get('epoch', '?')} of {epochs}: training was not finished"


def _is_best(result: EvaluationResult) -> bool:
    """Whether the checkpoint is the best on held-out images, not the last."""
    return bool(result.run.get("checkpoint") == "best")


def _column_notes(results: Sequence[EvaluationResult]) -> Iterator[str]:
    attacks = results[0].attacks
    if len(attacks) > 1:
        norms = ", ".join(dict.fromkeys(record.norm for record in attacks.values()))
        yield f"Column {WORST_CASE}: per image, under every attack of the suite ({norms})"
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


# ------------------------------------------------------------------------------------------------- names


def row_names(results: Sequence[EvaluationResult]) -> list[str]:
    """Model names, with `best` for such checkpoints; equal ones grow by backbone, seed, checkpoint and content."""
    facts = [_distinctions(result) for result in results]
    names = [str(result.run.get("model", "unnamed")) for result in results]
    extras = [["best"] if _is_best(result) else [] for result in results]
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


# ----------------------------------------------------------------------------- other numbers than outcomes


def unranked_table(
    results: Sequence[EvaluationResult],
    cells: Sequence[dict[str, Cell]],
    shape: LeaderboardTable,
    merge_seeds: bool,
) -> LeaderboardTable:
    """The table of `shape` with a row per result, best first column first; rows with an error last.

    Args:
        results: one for each row, or for each seed of a row.
        cells: of each result, by column title.
        shape: title, headers, scales, notes on columns, and `ranking`, which says that there are no ranks.
        merge_seeds: whether results that differ only in their training seed become one row.

    Raises:
        BenchError: the same result twice, or results that do not compare.
    """
    names = row_names(results)
    refuse_mixture(names, results)
    groups = same_but_for_the_seed(results) if merge_seeds else [[row] for row in range(len(results))]
    notes: list[str] = []
    rows = []
    if merge_seeds:
        names = row_names([results[group[0]] for group in groups])
    for name, group in zip(names, groups, strict=True):
        found = [(results[row], _remarks(results[row])) for row in group]
        remarks = _merged_remarks(found) if merge_seeds else found[0][1]
        merged = merged_cells([cells[row] for row in group]) if merge_seeds else cells[group[0]]
        trust = _trust([results[row] for row in group])
        numbers = range(len(notes) + 1, len(notes) + len(remarks) + 1)
        notes += [f"{name}: {text} ({severity})" for severity, text in remarks]
        facts = (trust != "error", None, trust, tuple(group))
        rows.append(Row(name, tuple(merged.values()), tuple(numbers), *facts))
    sign = 1 if shape.scales[0].lower_is_better else -1
    rows.sort(key=lambda row: (not row.ranked, sign * row.cells[0].percent, row.name))
    counts = "/".join(sorted({str(len(group)) for group in groups}))
    title = shape.title + (f", means over {counts} seeds" if merge_seeds else "")
    return replace(shape, title=title, rows=tuple(rows), notes=(*notes, *shape.notes))
