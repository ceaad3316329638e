"""Accuracy under corruptions by severity: figure 3 of the paper."""

from collections.abc import Mapping, Sequence

import numpy as np

from bench.errors import BenchError
from bench.leaderboard.figures.canvas import (
    HATCHES,
    Figure,
    add_legend,
    colour,
    house_style,
    legend_width,
    name_axes,
    new_figure,
    require,
    require_some,
)
from bench.leaderboard.tables.corruptions import corrupted_name
from bench.leaderboard.tables.row_names import row_names
from bench.results.comparison import refuse_mixture
from bench.results.file import EvaluationResult
from bench.results.metrics import severity_accuracies


def severity_figure(results: Sequence[EvaluationResult], lowest: float = 0.0) -> Figure:
    """Accuracy under corruptions by severity, a bar per result: figure 3 of the Adv-DPNP paper.

    Args:
        results: of the suite `corruptions`, on the same images.
        lowest: where the vertical axis begins, in percent (the paper: 60).

    Raises:
        BenchError: a result without corruptions, results that do not compare, or an accuracy below `lowest`.
    """
    without = [result.run.get("model") for result in results if not result.corruptions]
    if without:
        raise BenchError(f"{without[0]!r} has no corruptions: `bench eval --suite corruptions` measures them.")
    names = row_names(results)
    refuse_mixture(names, results)
    count = len({shown.corruption for shown in results[0].corruptions.values()})
    percents = [[100 * share for share in severity_accuracies(result).values()] for result in results]
    title = f"{corrupted_name(results[0])}, {count} corruptions"
    return severity_bars(dict(zip(names, percents, strict=True)), title, lowest)


def severity_bars(accuracies: Mapping[str, Sequence[float]], title: str = "", lowest: float = 0.0) -> Figure:
    """Accuracy under corruptions by severity, a group of bars per severity: figure 3 of the paper.

    Args:
        accuracies: by model: percent at severity 1, 2, ..., the mean over corruptions.
        title: shown above.
        lowest: where the vertical axis begins, in percent (the paper: 60); above 0, the axis says so.

    Raises:
        BenchError: no model, unequal numbers of severities, or a value outside lowest..100.
    """
    _require_accuracies(accuracies, lowest)
    severities = np.arange(1, len(next(iter(accuracies.values()))) + 1)
    width = 0.84 / len(accuracies)
    with house_style():
        from matplotlib.ticker import MaxNLocator

        bars_width = max(3.6, 0.16 * len(accuracies) * len(severities))
        figure, grid = new_figure(1, 1, bars_width + legend_width(list(accuracies)), 3.6)
        axes, bars = grid[0, 0], []
        for number, values in enumerate(accuracies.values()):
            # The bars stand on the axis' start; their height above 0 is the accuracy.
            places = severities + (number - (len(accuracies) - 1) / 2) * width
            look = {"facecolor": colour(number), "hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white"}
            bars.append(axes.bar(places, values, 0.92 * width, linewidth=0, **look))
        axes.set_ylim(lowest, min(100.0, max(map(max, accuracies.values())) + 0.05 * (100 - lowest)))
        axes.set_xticks(severities)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        axes.grid(visible=False, axis="x")
        cut = f", axis from {lowest:g}" if lowest > 0 else ""
        name_axes(axes, title, "Severity", f"Accuracy (%){cut}")
        add_legend(figure, bars, list(accuracies), "outside right center", 1)
    return figure


def _require_accuracies(accuracies: Mapping[str, Sequence[float]], lowest: float) -> None:
    require_some("model", accuracies)
    counts = {name: len(values) for name, values in accuracies.items()}
    require(len(set(counts.values())) == 1, f"models have different numbers of severities: {counts}. Give the same.")
    for name, values in accuracies.items():
        outside = [value for value in values if not lowest <= value <= 100]
        require(not outside, f"{name!r} has {outside[:1]} %, outside the axis {lowest:g}..100. Lower its start.")
    require_some("severity", next(iter(accuracies.values())))
