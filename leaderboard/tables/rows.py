"""The cells of a row, its mark of trust, and its notes: all that it shows but its name."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from statistics import mean, stdev
from typing import Any

import numpy as np

from bench.leaderboard.tables.table import Cell, Number, Trust
from bench.leaderboard.tables.trainings import is_best
from bench.results.board_rows import BoardRow
from bench.results.estimates import mean_estimate
from bench.results.file import EvaluationResult
from bench.results.metrics import wilson_interval

_FULL_PRECISION = "fp32"
_LONG = 200
"""Characters of adapters that a note shows: one of them may list a thousand classes."""


def merged_cells(seeds: Sequence[Mapping[str, Number]]) -> dict[str, Cell]:
    """The cells of one row by column title, given by its seeds' numbers."""
    return {title: _cell([seed[title] for seed in seeds]) for title in seeds[0]}


def _cell(seeds: Sequence[Number]) -> Cell:
    numbers = [seed for seed in seeds if not isinstance(seed, np.ndarray)]
    if numbers:
        return Cell(mean(numbers), None, _spread(numbers))
    outcomes = np.stack(seeds)
    percents = [100 * float(seed.mean()) for seed in outcomes]
    if len(percents) == 1 and outcomes.dtype == bool:
        low, high = wilson_interval(int(outcomes.sum()), outcomes.size)
        return Cell(100 * int(outcomes.sum()) / outcomes.size, (100 * low, 100 * high))
    low, high = (100 * float(end) for end in mean_estimate(outcomes).interval(0.0, 1.0))
    return Cell(round(mean(percents), 9), (low, high), _spread(percents))


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None


def trust_of(results: Sequence[EvaluationResult], findings: Sequence[Mapping[str, Any]] | None = None) -> Trust:
    """The worst that is known of a row's results; `unchecked` where one of them is, unless another has a fault.

    `findings`, such as those made anew, take the place of the results' own.
    """
    known = [finding for result in results for finding in result.findings] if findings is None else findings
    found = {str(finding.get("severity")) for finding in known}
    if "error" in found:
        return "error"
    if "warning" in found:
        return "warning"
    return "passed" if all(map(_looked_at, results)) else "unchecked"


def _looked_at(result: EvaluationResult) -> bool:
    """True if probes looked at the model: outcomes alone do not show what attacks could not find."""
    return bool(result.findings) and bool(result.run.get("evaluation", {}).get("probes"))


def row_notes(name: str, results: Sequence[EvaluationResult], merged: bool) -> list[str]:
    """Notes that a reader must see of a row: findings, and how the numbers came about where that is unusual."""
    return [
        f"{name}: {seed}{text} ({severity})"
        for result in results
        for seed in [f"seed {result.run.get('seed')}: " if merged else ""]
        for severity, text in [
            *_faults(result),
            *(("note", text) for text in (*circumstances(result), *_by_others(result))),
        ]
    ]


def _faults(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    """Severity and text of findings that a reader must see."""
    for finding in result.findings:
        severity = str(finding.get("severity"))
        if severity in ("error", "warning"):
            yield severity, f"{finding.get('name')}: {finding.get('message')}"


def _by_others(result: EvaluationResult) -> Iterator[str]:
    """Who checked a row of a board, and whose images lowered what is best known of it."""
    if not isinstance(result, BoardRow):
        return
    if result.checked:
        count = len(result.checked["again"])
        who = f"checked by {result.checked['by']}, {result.checked['created'][:10]}"
        yield f"{who}: every broken sample by its image, and {count} of the others evaluated again"
    for found in result.found:
        count, method = int((found.prediction != result.label).sum()), found.method and f" ({found.method})"
        link = found.link and f", {found.link}"
        yield f"best known: {count} more broken by images of {found.by}{method}, {found.created[:10]}{link}"


def circumstances(result: EvaluationResult) -> Iterator[str]:
    """How the numbers came about, where that is unusual."""
    run = result.run
    precision = run.get("evaluation", {}).get("precision", _FULL_PRECISION)
    if precision != _FULL_PRECISION and result.attacks:
        yield (
            f"attacks searched in {precision}, every success judged in {_FULL_PRECISION}: accuracies under attack are "
            f"upper bounds, which a search in {_FULL_PRECISION} may lower"
        )
    if result.draws is not None:
        passes = run.get("evaluation", {}).get("passes", {})
        each = ", ".join(f"{label} {count}" for label, count in passes.items())
        yield (
            f"random, declared {run.get('randomised')}: attacks search on the mean of "
            f"{result.suite['draws']['search']} draws, each verdict is of {result.draws}; passes an image: {each}"
        )
    if replaced := run.get("backward_as"):
        shown = ", ".join(f"{part} as {name}" for part, name in replaced.items())
        yield f"gradients that the model replaced for attacks (BPDA): {shown}"
    if adapters := " ".join(map(str, run.get("adapters", []))):
        yield f"adapters around the model: {adapters if len(adapters) <= _LONG else f'{adapters[:_LONG]}...'}"
    # Of a best checkpoint, `finished` says whether the best epoch was the last, and nothing of the training.
    if run.get("finished") is False and not is_best(result):
        epochs = run.get("protocol", {}).get("epochs", "?")
        yield f"checkpoint of epoch {run.get('epoch', '?')} of {epochs}: training was not finished"
