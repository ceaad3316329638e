"""Results beside the published numbers of the same table: ours with its interval, the paper's, and their difference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.errors import BenchError
from bench.leaderboard.paper.published import PublishedFigure
from bench.leaderboard.render.markdown import padded_table
from bench.leaderboard.tables.kinds import board_numbers
from bench.leaderboard.tables.rows import merged_cells
from bench.leaderboard.tables.seeds import same_but_for_the_seed
from bench.leaderboard.tables.table import Cell
from bench.leaderboard.wording.intervals import BOUNDS, error_text, is_one_sided
from bench.results.comparison import refuse_mixture
from bench.results.estimates import unbounded_estimate
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention
from bench.text import escape

TOLERANCE = 0.5
"""Points by which an accuracy may miss the paper's beyond our interval, before it is marked."""
MARK = "≠"

ERRORS = "± half of the 95 % interval, over test images and, of a mean, over training seeds."
LEGEND_OF_BOUNDS = f"In place of ±: {BOUNDS}."
MARKED = (
    f"{MARK}: an accuracy that differs by more than the interval and {TOLERANCE} points. Losses, ratios and angles are "
    "not marked."
)
UNKNOWN = "Where a number of ours is not there, it was not yet run."


@dataclass(frozen=True)
class Measured(Cell):
    """One number of ours; its interval is None where it is not known."""

    accuracy: bool = True
    """False of a loss, an angle or a ratio, which are not in percent."""


@dataclass(frozen=True)
class Line:
    """One number of a table: ours, theirs, or both."""

    defense: str
    column: str
    ours: Measured | None
    paper: PublishedFigure | None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.value - self.paper.value

    @property
    def marked(self) -> bool:
        """True if the paper's accuracy lies outside our interval by more than the tolerance."""
        if self.paper is None or self.ours is None or not self.ours.accuracy:
            return False
        low, high = self.ours.interval or (self.ours.value, self.ours.value)
        return not low - TOLERANCE <= self.paper.value <= high + TOLERANCE


def side_by_side(
    results: Sequence[EvaluationResult],
    published: Mapping[tuple[str, str], PublishedFigure],
    columns: Mapping[str, str],
    convention: Convention = "any",
    defenses: Sequence[str] = (),
) -> list[Line]:
    """A line for every defense and column, defenses in the order of the results; seeds of a defense are merged.

    Args:
        results: of one dataset, backbone and suite; those of a defense differ in their seed alone.
        published: the paper's numbers, by defense and column.
        columns: the paper's column to ours.
        convention: of success.
        defenses: get lines of the paper's numbers where there are no results of theirs.

    Raises:
        BenchError: a result lacks what the table shows, or those of a defense differ in more than their seed.
    """
    seeds: dict[str, list[EvaluationResult]] = {name: [] for name in defenses}
    for result in results:
        seeds.setdefault(str(result.run.get("defense")), []).append(result)
    for found in seeds.values():
        _refuse_mixed_seeds(found)
    numbers = {defense: measured(found, convention) if found else {} for defense, found in seeds.items()}
    return [
        Line(defense, column, found.get(title), published.get((defense, column)))
        for defense, found in numbers.items()
        for column, title in columns.items()
    ]


def _refuse_mixed_seeds(results: Sequence[EvaluationResult]) -> None:
    if not results:
        return
    names = [f"{result.run.get('model')}, seed {result.run.get('seed')}" for result in results]
    refuse_mixture(names, results)
    # A row may be called anything, and files that do not count the processes of a training are of one.
    plain = [{"processes": 1, **result.run, "model": result.run.get("defense")} for result in results]
    groups = same_but_for_the_seed([replace(one, run=run) for one, run in zip(results, plain, strict=True)])
    if len(groups) > 1:
        raise BenchError(
            f"{names[groups[0][0]]!r} and {names[groups[1][0]]!r} differ in more than their seed and have no mean. "
            "Give results of one training protocol."
        )


def measured(seeds: Sequence[EvaluationResult], convention: Convention = "any") -> dict[str, Measured]:
    """Every number of the seeds of a defense by column title: accuracies, mean losses ("PGD-20 loss"), features."""
    numbers = [board_numbers(seed, convention) for seed in seeds]
    if seeds[0].features:
        return {title: _unbounded([np.array([one[title]]) for one in numbers]) for title in numbers[0]}
    found = {title: Measured(cell.value, cell.interval) for title, cell in merged_cells(numbers).items()}
    for label in seeds[0].attacks:
        losses = [loss for loss in (seed.attacks[label].loss for seed in seeds) if loss is not None]
        if len(losses) == len(seeds):
            found[f"{label} loss"] = _unbounded(losses)
    return found


def render_comparison(title: str, lines: Sequence[Line], notes: Sequence[str], comparable: bool = True) -> str:
    """Markdown in the paper's layout: a column for each of its columns, and of each defense our numbers and its own.

    Below them are the differences, where numbers are `comparable`: of another scale they would say nothing.
    """
    heading = [f"## {escape(title)}", *map(escape, notes)]
    if not lines:
        return "\n\n".join(heading) + "\n"
    columns = list(dict.fromkeys(line.column for line in lines))
    defenses: dict[str, dict[str, Line]] = {}
    for line in lines:
        defenses.setdefault(line.defense, {})[line.column] = line
    rows = []
    for defense, found in defenses.items():
        kinds = [(kind, [text(found[column]) for column in columns]) for kind, text in _KINDS.items()]
        kinds = [(kind, texts) for kind, texts in kinds if any(texts) and (comparable or kind != "difference")]
        kinds = kinds or [("ours", [""] * len(columns))]
        rows += [[escape(defense) if not number else "", kind, *texts] for number, (kind, texts) in enumerate(kinds)]
    table = padded_table(["Defense", "", *map(escape, columns)], rows, ("left", "left"))
    shown = [line.ours for line in lines if line.ours and line.ours.accuracy and line.ours.interval]
    bounds = any(is_one_sided(one.value, one.interval) for one in shown if one.interval)
    told = [ERRORS, *([LEGEND_OF_BOUNDS] if bounds else []), *([MARKED] if comparable else []), UNKNOWN]
    return "\n\n".join([*heading, table, " ".join(told)]) + "\n"


def _places(line: Line) -> int:
    return line.paper.decimals if line.paper else 2


def _ours(line: Line) -> str:
    return "" if line.ours is None else f"{line.ours.value:.{_places(line)}f}{_error(line.ours, _places(line))}"


def _paper(line: Line) -> str:
    return line.paper.text if line.paper else ""


def _difference(line: Line) -> str:
    mark = f" {MARK}" if line.marked else ""
    return "" if line.difference is None else f"{line.difference:+.{_places(line)}f}{mark}"


_KINDS: Mapping[str, Callable[[Line], str]] = {"ours": _ours, "paper": _paper, "difference": _difference}


def _error(ours: Measured, places: int) -> str:
    if ours.interval is None or not ours.half_width:
        return ""
    if ours.accuracy:
        return f" {error_text(ours.value, ours.interval, places)}"
    return f" ± {ours.half_width:.{places}f}"


def _unbounded(seeds: Sequence[np.ndarray]) -> Measured:
    """The mean of what is no accuracy, of each seed its values per sample."""
    values = np.stack(seeds).astype(float)
    if not np.isfinite(values).all():
        return Measured(float(values.mean()), None, accuracy=False)
    estimate = unbounded_estimate(values)
    low, high = (float(end) for end in estimate.interval(-np.inf, np.inf))
    return Measured(float(estimate.value), (low, high) if high > low else None, accuracy=False)
