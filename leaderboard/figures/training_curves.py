"""Losses, rates, recorded values and watched accuracies of trainings, over epochs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
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
from bench.results.watched import OUTCOMES, UNDER, watched_key

DASHES = ("-", "--", "-.", ":")
"""By run."""
PALE = {"alpha": 0.4, "marker": ""}
"""The look of accuracies on training images, in one panel with those on test images."""


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The values of `history.jsonl` over epochs: a panel per loss term or recorded value, a line per run.

    Watched accuracies have a panel clean and one under each attack, with a pale line for training images.

    Args:
        runs: by name: one record per epoch, with `epoch` (from 1), the rates that were used, and the epoch's means.

    Raises:
        BenchError: no record, one without an epoch, or a value that is not a number.
    """
    runs = {
        name: [{key: value for key, value in record.items() if key != OUTCOMES} for record in history]
        for name, history in runs.items()
    }
    records = [record for history in runs.values() for record in history]
    require_some("epoch", records)
    require(all("epoch" in record for record in records), "a record has no epoch. Give rows of history.jsonl.")
    wrong = [record for record in records if not all(isinstance(value, int | float) for value in record.values())]
    require(not wrong, f"record {wrong[:1]} holds something that is not a number. Give rows of history.jsonl.")
    panels = _panels(dict.fromkeys(key for record in records for key in record))
    require_some("value", panels)
    rows = math.ceil(len(panels) / 4)
    columns = math.ceil(len(panels) / rows)
    watched = any(len(keys) > 1 for keys in panels.values())
    names = [*runs, *(["pale: training images"] if watched else [])]
    width = max(2.5 * columns, legend_width(names))
    with house_style():
        figure, grid = new_figure(rows, columns, width, 1.9 * rows + 0.8)
        for axes, (name, keys) in zip(grid.flat, panels.items(), strict=False):
            for key in keys[1:]:
                pale = [_draw_history(axes, history, key, run, PALE) for run, history in enumerate(runs.values())]
            lines = [_draw_history(axes, history, keys[0], run) for run, history in enumerate(runs.values())]
            _finish_history(axes, name)
            if len(keys) > 1:
                axes.set_ylim(-2, 102)  # percent, to be compared from panel to panel
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        for axes in list(grid.flat)[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("Epoch")
        handles = [*lines, *(pale[:1] if watched else [])]
        add_legend(figure, handles, names, "outside upper center", int(width / legend_width(names)))
    return figure


def _panels(keys: Iterable[str]) -> dict[str, list[str]]:
    """The values that are drawn in each panel, by its name: the first has the look of its run."""
    pairs = {f"watched_{under}": [watched_key(split, under) for split in ("test", "train")] for under in UNDER}
    paired = {key for pair in pairs.values() for key in pair}
    plain = {key: [key] for key in keys if key != "epoch" and key not in paired}
    return plain | {name: pair for name, pair in pairs.items() if {*pair} & {*keys}}


def _draw_history(
    axes: Any,
    history: Sequence[Mapping[str, Any]],
    key: str,
    number: int,
    other: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    points = [(record["epoch"], record[key]) for record in history if key in record]
    look = {"markevery": max(1, len(points) // 6), "markersize": 3.5, "linestyle": DASHES[number % len(DASHES)]}
    return axes.plot(
        *zip(*points, strict=True) if points else ([], []), **{**colour_and_mark(number), **look, **other}
    )[0]


def _finish_history(axes: Any, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    epochs = [epoch for line in axes.lines for epoch in line.get_xdata()]
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    name_axes(axes, name.replace("_", " "))
    if "learning_rate" in name and all(value > 0 for line in axes.lines for value in line.get_ydata()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
