"""Losses, rates and recorded values of trainings, over epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.leaderboard.figures.canvas import (
    Figure,
    add_legend,
    colour_and_mark,
    house_style,
    legend_width,
    name_axes,
    new_figure,
    require,
    require_some,
)

DASHES = ("-", "--", "-.", ":")
"""By run."""


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The values of `history.jsonl` over epochs: a panel per loss term or recorded value, a line per run.

    Args:
        runs: by name: one record per epoch, with `epoch` (from 1), the rates that were used, and the epoch's means.

    Raises:
        BenchError: no record, one without an epoch, or a value that is not a number.
    """
    records = [record for history in runs.values() for record in history]
    require_some("epoch", records)
    require(all("epoch" in record for record in records), "a record has no epoch. Give rows of history.jsonl.")
    wrong = [record for record in records if not all(isinstance(value, int | float) for value in record.values())]
    require(not wrong, f"record {wrong[:1]} holds something that is not a number. Give rows of history.jsonl.")
    keys = [key for key in dict.fromkeys(key for record in records for key in record) if key != "epoch"]
    require_some("value", keys)
    rows = math.ceil(len(keys) / 4)
    columns = math.ceil(len(keys) / rows)
    width = max(2.5 * columns, legend_width(list(runs)))
    with house_style():
        figure, grid = new_figure(rows, columns, width, 1.9 * rows + 0.8)
        for axes, key in zip(grid.flat, keys, strict=False):
            lines = [_draw_history(axes, history, key, run) for run, history in enumerate(runs.values())]
            _finish_history(axes, key)
        for axes in list(grid.flat)[len(keys) :]:
            axes.remove()
        for axes in list(grid.flat)[max(0, len(keys) - columns) : len(keys)]:
            axes.set_xlabel("Epoch")
        add_legend(figure, lines, list(runs), "outside upper center", int(width / legend_width(list(runs))))
    return figure


def _draw_history(axes: Any, history: Sequence[Mapping[str, Any]], key: str, number: int) -> Any:
    points = [(record["epoch"], record[key]) for record in history if key in record]
    look = {"markevery": max(1, len(points) // 6), "markersize": 3.5, "linestyle": DASHES[number % len(DASHES)]}
    return axes.plot(*zip(*points, strict=True) if points else ([], []), **colour_and_mark(number), **look)[0]


def _finish_history(axes: Any, key: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    epochs = [epoch for line in axes.lines for epoch in line.get_xdata()]
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    name_axes(axes, key.replace("_", " "))
    if "learning_rate" in key and all(value > 0 for line in axes.lines for value in line.get_ydata()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
