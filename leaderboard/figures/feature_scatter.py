"""Two-dimensional features by class, clean and attacked: figure 2 of the paper."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bench.leaderboard.figures.canvas import (
    MARKS,
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
from bench.results.pictures import FeatureCloud

_LEGEND_ROWS = 20
_MANY_POINTS = 2000


def feature_scatter(clouds: Sequence[FeatureCloud]) -> Figure:
    """Features by class, clean above adversarial, a column per model, centres as stars: figure 2 of the paper.

    The two panels of a model share their axes, so that what moved is seen.

    Raises:
        BenchError: no model, features that are not two-dimensional or not finite, or a label without a name.
    """
    require_some("model", clouds)
    for cloud in clouds:
        dim = cloud.clean.shape[1]
        require(dim == 2, f"{cloud.model!r} has {dim} features; a plane shows 2. Train with --backbone lenetpp.")
        finite = np.isfinite(cloud.clean).all() and np.isfinite(cloud.adversarial).all()
        require(bool(finite), f"features of {cloud.model!r} are not all finite. Check the model's weights.")
        unnamed = [label for label in cloud.labels.tolist() if not 0 <= label < len(cloud.classes)]
        require(not unnamed, f"label {unnamed[:1]} of {cloud.model!r} is not among {len(cloud.classes)} class names.")
    with house_style():
        starred = ["class centre"] if any(cloud.centres is not None for cloud in clouds) else []
        names = [*clouds[0].classes, *starred]
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
        look = {"marker": MARKS[label % len(MARKS)], "color": colour(label), "rasterized": rasterized}
        axes.scatter(chosen[:, 0], chosen[:, 1], s=9, linewidths=0, alpha=0.65, **look)
    if cloud.centres is not None:
        colours = [colour(label) for label in range(len(cloud.centres))]
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

    return Line2D([], [], linestyle="none", marker=MARKS[number % len(MARKS)], color=colour(number))
