"""Figures from result data given as plain numbers, after those of the Adv-DPNP paper (https://arxiv.org/abs/2504.03782).

Each function returns a matplotlib figure; `leaderboard.canvas.write_figure` makes it a PNG and an SVG file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from bench.errors import BenchError
from bench.leaderboard.canvas import (
    COLOURS,
    HATCHES,
    MARKS,
    add_legend,
    house_style,
    legend_width,
    name_axes,
    new_figure,
    plain,
    require,
)
from bench.results.metrics import wilson_interval

if TYPE_CHECKING:
    import matplotlib.figure

LINE_STYLES: Mapping[str, str] = {"pgd": "-", "fgsm": "--"}
"""By attack."""
_OTHER_LINE_STYLES = (":", "-.")
DASHES = ("-", "--", "-.", ":")
"""By run."""

_LEGEND_ROWS = 20
_MANY_POINTS = 2000
_SHORT = 18
"""Characters of a class name that fit below an image."""


@dataclass(frozen=True)
class RobustnessCurve:
    """Accuracy of one model under one attack over growing radii."""

    name: str
    attack: str
    """`pgd` is drawn solid, `fgsm` dashed."""
    epsilons: tuple[str, ...]
    """As result files hold them: `8/255` or `0.15`, in units of a pixel's range [0, 1]."""
    robust: tuple[int, ...]
    """Samples right clean and under attack, by radius."""
    total: int
    """Samples in all."""


def robustness_curve(panels: Mapping[str, Sequence[RobustnessCurve]]) -> "matplotlib.figure.Figure":
    """Accuracy (percent) over epsilon with 95 % Wilson bands, a panel per dataset: figure 4 of the paper.

    Raises:
        BenchError: nothing to draw, a radius that is not a number, or counts that are not of the radii or samples.
    """
    _require_some("dataset", panels)
    for title, curves in panels.items():
        _require_some(f"curve of {title!r}", curves)
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    attacks = list(dict.fromkeys(curve.attack for curves in panels.values() for curve in curves))
    with house_style():
        from matplotlib.lines import Line2D

        figure, grid = new_figure(1, len(panels), 3.6 * len(panels) + legend_width(names), 3.4)
        for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
            for curve in curves:
                _draw_curve(axes, curve, names.index(curve.name), _line_style(curve.attack, attacks))
            name_axes(axes, title, y="Accuracy (%)" if axes is grid[0, 0] else "")
            axes.set_ylim(0, 100)
            _epsilon_axis(axes, [text for curve in curves for text in curve.epsilons])
        series = [Line2D([], [], **_colour_and_mark(number)) for number in range(len(names))]
        styles: list[Any] = [Line2D([], [], color="#555555") for _ in attacks]
        for style, attack in zip(styles, attacks, strict=True):
            style.set_linestyle(_line_style(attack, attacks))
        add_legend(figure, [*series, *styles], [*names, *map(str.upper, attacks)], "outside right center", 1)
    return figure


def _draw_curve(axes: Any, curve: RobustnessCurve, number: int, line_style: str) -> None:
    require(
        len(curve.epsilons) == len(curve.robust),
        f"curve {curve.name!r} has {len(curve.epsilons)} radii and {len(curve.robust)} counts. Give one for each.",
    )
    points = sorted(zip(map(_radius, curve.epsilons), curve.robust, strict=True))
    radii = [radius for radius, _ in points]
    bounds = [wilson_interval(robust, curve.total) for _, robust in points]
    low, high = ([100 * bound[side] for bound in bounds] for side in (0, 1))
    axes.fill_between(radii, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.18, linewidth=0)
    accuracy = [100 * robust / curve.total for _, robust in points]
    axes.plot(radii, accuracy, **{**_colour_and_mark(number), "linestyle": line_style})


def _epsilon_axis(axes: Any, epsilons: Sequence[str]) -> None:
    """Ticks in 255ths where every radius is written so."""
    from matplotlib.ticker import MaxNLocator

    if not all(text.replace(" ", "").endswith("/255") or _radius(text) == 0 for text in epsilons):
        axes.set_xlabel("ε")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        return
    widest = max(255 * _radius(text) for text in epsilons)
    ticks = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 4, 8, 10]).tick_values(0, max(widest, 1))
    axes.set_xticks([tick / 255 for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0, 1.03 * max(widest, 1) / 255)
    axes.set_xlabel("ε (units of 1/255)")


def _radius(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise BenchError(f"epsilon {text!r} is not a number. Write 8/255 or 0.15.") from None


def severity_bars(
    accuracies: Mapping[str, Sequence[float]], title: str = "", lowest: float = 0.0
) -> "matplotlib.figure.Figure":
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
            look = {"facecolor": _colour(number), "hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white"}
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
    _require_some("model", accuracies)
    counts = {name: len(values) for name, values in accuracies.items()}
    require(len(set(counts.values())) == 1, f"models have different numbers of severities: {counts}. Give the same.")
    for name, values in accuracies.items():
        outside = [value for value in values if not lowest <= value <= 100]
        require(not outside, f"{name!r} has {outside[:1]} %, outside the axis {lowest:g}..100. Lower its start.")
    _require_some("severity", next(iter(accuracies.values())))


@dataclass(frozen=True)
class FeatureCloud:
    """Two-dimensional features of one model."""

    model: str
    clean: Float[np.ndarray, "sample dim"]
    adversarial: Float[np.ndarray, "sample dim"]
    labels: Int[np.ndarray, " sample"]
    centres: Float[np.ndarray, "classes dim"] | None = None
    """Prototypes, drawn as stars; None: no stars."""


def feature_scatter(clouds: Sequence[FeatureCloud], class_names: Sequence[str]) -> "matplotlib.figure.Figure":
    """Features by class, clean above adversarial, a column per model: figure 2 of the paper.

    The two panels of a model share their axes, so that what moved is seen.

    Raises:
        BenchError: no model, features that are not two-dimensional or not finite, or a label without a name.
    """
    _require_some("model", clouds)
    for cloud in clouds:
        dim = cloud.clean.shape[1]
        require(dim == 2, f"{cloud.model!r} has {dim} features; a plane shows 2. Train with --backbone lenetpp.")
        finite = np.isfinite(cloud.clean).all() and np.isfinite(cloud.adversarial).all()
        require(bool(finite), f"features of {cloud.model!r} are not all finite. Check the model's weights.")
        unnamed = [label for label in cloud.labels.tolist() if not 0 <= label < len(class_names)]
        require(not unnamed, f"label {unnamed[:1]} of {cloud.model!r} is not among {len(class_names)} class names.")
    with house_style():
        starred = ["class centre"] if any(cloud.centres is not None for cloud in clouds) else []
        names = [*class_names, *starred]
        legend_columns = math.ceil(len(names) / _LEGEND_ROWS)
        width = 3.0 * len(clouds) + 0.4 + legend_columns * legend_width(names)
        figure, grid = new_figure(2, len(clouds), width, 6.2, "compressed")
        for column, cloud in enumerate(clouds):
            for axes, points in zip(grid[:, column], (cloud.clean, cloud.adversarial), strict=True):
                _draw_points(axes, cloud, points)
                _square(axes, cloud)
            name_axes(grid[0, column], cloud.model, y="Clean" if column == 0 else "")
            name_axes(grid[1, column], y="Adversarial" if column == 0 else "")
        handles = [_dot(number) for number in range(len(names))]
        if starred:
            handles[-1].set(marker="*", markersize=11, color="white", markeredgecolor="black")
        add_legend(figure, handles, names, "outside right center", legend_columns)
    return figure


def _draw_points(axes: Any, cloud: FeatureCloud, points: Float[np.ndarray, "sample dim"]) -> None:
    # Thousands of outlines make an SVG that no viewer opens quickly; as pixels they look the same.
    rasterized = len(points) > _MANY_POINTS
    for label in np.unique(cloud.labels).tolist():
        chosen = points[cloud.labels == label]
        look = {"marker": MARKS[label % len(MARKS)], "color": _colour(label), "rasterized": rasterized}
        axes.scatter(chosen[:, 0], chosen[:, 1], s=9, linewidths=0, alpha=0.65, **look)
    if cloud.centres is not None:
        colours = [_colour(label) for label in range(len(cloud.centres))]
        axes.scatter(*cloud.centres.T, s=170, marker="*", c=colours, edgecolors="white", linewidths=2.2, zorder=4)
        axes.scatter(*cloud.centres.T, s=130, marker="*", c=colours, edgecolors="black", linewidths=0.8, zorder=5)


def _square(axes: Any, cloud: FeatureCloud) -> None:
    """The smallest square that holds all points of a model, clean and adversarial, and its centres."""
    points = np.concatenate([part for part in (cloud.clean, cloud.adversarial, cloud.centres) if part is not None])
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, 0.54 * max(float((high - low).max()), 1e-9)
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    axes.locator_params(nbins=5)


def _dot(number: int) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=MARKS[number % len(MARKS)], color=_colour(number))


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "matplotlib.figure.Figure":
    """What `history.jsonl` holds, over epochs: a panel per loss term or recorded value, a line per run.

    Args:
        runs: by name: one record per epoch, with `epoch` (from 1), the rates that were used, and the epoch's means.

    Raises:
        BenchError: no record, one without an epoch, or a value that is not a number.
    """
    records = [record for history in runs.values() for record in history]
    _require_some("epoch", records)
    require(all("epoch" in record for record in records), "a record has no epoch. Give rows of history.jsonl.")
    wrong = [record for record in records if not all(isinstance(value, int | float) for value in record.values())]
    require(not wrong, f"record {wrong[:1]} holds something that is not a number. Give rows of history.jsonl.")
    keys = [key for key in dict.fromkeys(key for record in records for key in record) if key != "epoch"]
    _require_some("value", keys)
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
    return axes.plot(*zip(*points, strict=True) if points else ([], []), **_colour_and_mark(number), **look)[0]


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


@dataclass(frozen=True)
class AdversarialExample:
    """An image before and after an attack, in [0, 1], and what the model says of both."""

    clean: Float[np.ndarray, "channel row column"]
    adversarial: Float[np.ndarray, "channel row column"]
    true: str
    clean_prediction: str
    adversarial_prediction: str


def adversarial_sheet(
    examples: Sequence[AdversarialExample], magnification: float | None = None
) -> "matplotlib.figure.Figure":
    """A row per example: clean, adversarial, and their magnified difference on grey, with true and predicted classes.

    Args:
        examples: what to show.
        magnification: of the difference; None: one for all rows, such that the largest difference is black or white.

    Raises:
        BenchError: no example.
    """
    _require_some("example", examples)
    largest = max(float(np.abs(example.adversarial - example.clean).max()) for example in examples)
    factor = magnification or (0.5 / largest if largest else 1.0)
    with house_style():
        figure, grid = new_figure(len(examples), 3, 6.4, 2.3 * len(examples) + 0.4, "compressed")
        for row, example in zip(grid, examples, strict=True):
            shown = (example.clean, example.adversarial, 0.5 + factor * (example.adversarial - example.clean))
            for axes, image in zip(row, shown, strict=True):
                pixels = np.clip(image, 0.0, 1.0).transpose(1, 2, 0)
                axes.imshow(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.spines[:].set_visible(False)
            for axes, predicted in zip(row, (example.clean_prediction, example.adversarial_prediction), strict=False):
                axes.set_xlabel(f"{'right' if predicted == example.true else 'wrong'}: {plain(predicted, _SHORT)}")
                axes.xaxis.label.set_parse_math(False)
            row[0].set_ylabel(f"true: {plain(example.true, _SHORT)}", parse_math=False)
            row[2].set_xlabel(f"largest change {np.abs(example.adversarial - example.clean).max():.3g}")
        for axes, title in zip(grid[0], ("Clean", "Adversarial", f"Difference x {factor:.3g}"), strict=True):
            name = (axes.get_xlabel(), axes.get_ylabel())
            name_axes(axes, title, *name)
    return figure


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _colour_and_mark(number: int) -> dict[str, Any]:
    return {"color": _colour(number), "marker": MARKS[number % len(MARKS)]}


def _line_style(attack: str, attacks: Sequence[str]) -> str:
    others = [name for name in attacks if name not in LINE_STYLES]
    return LINE_STYLES.get(attack) or _OTHER_LINE_STYLES[others.index(attack) % len(_OTHER_LINE_STYLES)]


def _require_some(kind: str, items: Any) -> None:
    require(len(items) > 0, f"there is no {kind} to draw. Give at least one.")
