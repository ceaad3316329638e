"""Results beside the published numbers of the same table: ours with its interval, the paper's, and their difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from bench.metrics import CLEAN, Convention, main_autoattack, wilson_interval
from bench.results import EvaluationResult
from leaderboard.markdown import escape
from leaderboard.measured import corruption_cells, feature_cells
from leaderboard.published import PublishedFigure
from leaderboard.tables import AVERAGE, cells_of

TOLERANCE = 0.5
"""Points by which an accuracy may miss the paper's beyond our interval, before it is marked."""
MARK = "≠"
ABSENT = "not yet run"

LEGEND = (
    "± half of the 95 % interval: Wilson's over test images (of Avg and of mean accuracies a bound), or Student's over "
    f"training seeds where that is wider. {MARK}: an accuracy that differs by more than the interval and {TOLERANCE} "
    "points. Losses, ratios and angles are not marked."
)


@dataclass(frozen=True)
class Measured:
    """One number of ours."""

    value: float
    half_width: float | None
    """Half of its 95 % interval; None: not known."""
    accuracy: bool
    """Whether it is in percent."""


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
        """Whether an accuracy differs by more than our interval and the tolerance."""
        if self.difference is None or self.ours is None or not self.ours.accuracy:
            return False
        return abs(self.difference) > (self.ours.half_width or 0.0) + TOLERANCE


def side_by_side(
    results: Sequence[EvaluationResult],
    published: Mapping[tuple[str, str], PublishedFigure],
    columns: Mapping[str, str],
    convention: Convention = "any",
    defenses: Sequence[str] = (),
) -> list[Line]:
    """A line for every defense and column, defenses in the order of the results; seeds of a defense are merged.

    Args:
        results: of one dataset, backbone and suite.
        published: the paper's numbers, by defense and column.
        columns: the paper's column to ours.
        convention: of success.
        defenses: get lines of the paper's numbers where there are no results of theirs.

    Raises:
        BenchError: a result lacks what the table shows.
    """
    numbers: dict[str, list[dict[str, Measured]]] = {name: [] for name in defenses}
    for result in results:
        numbers.setdefault(str(result.run.get("defense")), []).append(measured(result, convention))
    return [
        Line(defense, column, _merged([one[title] for one in found if title in one]), published.get((defense, column)))
        for defense, found in numbers.items()
        for column, title in columns.items()
    ]


def measured(result: EvaluationResult, convention: Convention = "any") -> dict[str, Measured]:
    """Every number of a result by column title: accuracies, mean losses ("PGD-20 loss"), feature metrics."""
    if result.corruptions:
        right = [int((one.prediction == result.label).sum()) for one in result.corruptions.values()]
        shown = [_half_width(count, len(result.label)) for count in right]
        return {title: Measured(cell.percent, mean(shown), True) for title, cell in corruption_cells(result).items()}
    if result.features:
        return {title: Measured(cell.percent, None, False) for title, cell in feature_cells(result).items()}
    cells = cells_of(result, convention)
    found = {title: Measured(cell.percent, cell.half_width, True) for title, cell in cells.items()}
    autoattack = main_autoattack(result)
    if autoattack:
        # The error of a mean is at most the mean of the errors.
        halves = [cells[title].half_width or 0.0 for title in (CLEAN, autoattack.label)]
        found[AVERAGE] = Measured(cells[AVERAGE].percent, mean(halves), True)
    for label, record in result.attacks.items():
        if record.loss is not None:
            losses = record.loss.astype(float)
            half = 1.96 * losses.std(ddof=1) / sqrt(len(losses)) if len(losses) > 1 else None
            found[f"{label} loss"] = Measured(float(losses.mean()), half, False)
    return found


def render_comparison(title: str, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """Markdown: title, notes, a row per line, and what the marks mean."""
    import pandas

    rows = [list(_texts(line)) for line in lines]
    frame = pandas.DataFrame(rows, columns=["Defense", "Column", "Ours", "Paper", "Difference"])
    alignment = ("left", "left", "right", "right", "right")
    table = frame.to_markdown(index=False, tablefmt="pipe", colalign=alignment, disable_numparse=True)
    return "\n\n".join([f"## {escape(title)}", *map(escape, notes), table, LEGEND]) + "\n"


def _texts(line: Line) -> Iterator[str]:
    places = line.paper.decimals if line.paper else 2
    yield escape(line.defense)
    yield escape(line.column)
    half = line.ours and line.ours.half_width
    yield ABSENT if line.ours is None else f"{line.ours.value:.{places}f}" + (f" ± {half:.{places}f}" if half else "")
    yield line.paper.text if line.paper else "-"
    mark = f" {MARK}" if line.marked else ""
    yield "-" if line.difference is None else f"{line.difference:+.{places}f}{mark}"


def _half_width(successes: int, total: int) -> float:
    low, high = wilson_interval(successes, total)
    return 50 * (high - low)


def _merged(seeds: Sequence[Measured]) -> Measured | None:
    """The mean over seeds, with the wider of both errors."""
    if not seeds:
        return None
    from scipy.stats import t

    halves = [one.half_width for one in seeds if one.half_width is not None]
    half = mean(halves) if halves else None
    if len(seeds) > 1:
        student = float(t.ppf(0.975, len(seeds) - 1)) * stdev([one.value for one in seeds]) / sqrt(len(seeds))
        half = max(half or 0.0, student)
    return Measured(mean(one.value for one in seeds), half, seeds[0].accuracy)
