"""Accuracy by class under each attack, and which class is taken for which in the worst case, as heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from bench.errors import BenchError
from bench.leaderboard.figures.canvas import Figure, house_style, name_axes, new_figure, plain, require, require_some
from bench.leaderboard.tables.row_names import row_names
from bench.results.classes import class_accuracies, confusion, worst_prediction
from bench.results.comparison import refuse_mixture
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention, columns

_WRITTEN = 20
"""Cells are numbered up to so many columns, and every tick is: with more, they would run into each other."""


@dataclass(frozen=True)
class ClassMap:
    """A heat map: percents by row and column."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    percents: Float[np.ndarray, "row column"]
    axes: tuple[str, str]
    """Names of the horizontal and of the vertical axis."""


def class_figure(results: Sequence[EvaluationResult], convention: Convention = "any") -> Figure:
    """Two heat maps per result: accuracy by column and true class, and the class that the worst case leads to.

    In the second, a row holds the shares of a true class: of its images, those that are wrong clean count by the class
    of the clean image, and others by the class that the first attack of the suite which breaks them leads to.

    Raises:
        BenchError: a result of corruptions or without attacks, results that do not compare, or too many classes.
    """
    require_some("result", results)
    names = row_names(results)
    refuse_mixture(names, results)
    if not all(result.attacks for result in results):
        raise BenchError(
            f"{names[0]!r} has no attacks, and this figure shows what they do. Evaluate with --suite quick."
        )
    maps = [_maps(name, result, convention) for name, result in zip(names, results, strict=True)]
    return class_maps(maps)


def _maps(name: str, result: EvaluationResult, convention: Convention) -> list[ClassMap]:
    counted = confusion(result, worst_prediction(result, convention=convention))
    accuracies = {
        title: list(class_accuracies(result, shown).values()) for title, shown in columns(result, convention).items()
    }
    true, predicted = ([str(one) if one >= 0 else "none" for one in own] for own in (counted.true, counted.predicted))
    shares = 100 * counted.counts / counted.counts.sum(axis=1, keepdims=True)
    return [
        ClassMap(f"{name}: accuracy", list(accuracies), true, 100 * np.array([*accuracies.values()]), ("Class", "")),
        ClassMap(f"{name}: worst case", true, predicted, shares, ("Taken for", "Class")),
    ]


def class_maps(rows: Sequence[Sequence[ClassMap]]) -> Figure:
    """Heat maps in percent, a row of panels for each item; dark is 100.

    Raises:
        BenchError: nothing to draw, or percents outside 0..100 or that are not of the rows and columns.
    """
    require_some("map", [one for row in rows for one in row])
    for one in (one for row in rows for one in row):
        fits = one.percents.shape == (len(one.rows), len(one.columns))
        require(fits, f"{one.title!r} has percents of shape {one.percents.shape}. Give one for each row and column.")
        require(
            bool(((one.percents >= 0) & (one.percents <= 100)).all()), f"{one.title!r} has percents outside 0..100."
        )
    with house_style():
        width = 1.6 + sum(0.45 + 0.38 * min(len(one.columns), _WRITTEN) for one in rows[0])
        height = sum(0.9 + 0.28 * min(max(len(one.rows) for one in row), _WRITTEN) for row in rows)
        figure, grid = new_figure(len(rows), len(rows[0]), width, height)
        for axes_row, row in zip(grid, rows, strict=True):
            for axes, one in zip(axes_row, row, strict=True):
                _draw(axes, one)
    return figure


def _draw(axes: Any, one: ClassMap) -> None:
    axes.imshow(one.percents, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    for axis, names in ((axes.xaxis, one.columns), (axes.yaxis, one.rows)):
        places = range(0, len(names), -(-len(names) // _WRITTEN))
        axis.set_ticks(places, [plain(names[place], 24) for place in places], parse_math=False)
    if len(one.columns) <= _WRITTEN:
        for (row, column), percent in np.ndenumerate(one.percents):
            ink = "white" if percent > 60 else "black"
            axes.text(column, row, f"{percent:.0f}", ha="center", va="center", color=ink, fontsize=7)
    name_axes(axes, one.title, *one.axes)
