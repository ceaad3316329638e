"""Test images above the extra training images that are nearest to them."""

from collections.abc import Sequence

from bench.leaderboard.figures.canvas import (
    SHORT_NAME,
    Figure,
    house_style,
    name_axes,
    new_figure,
    plain,
    require_some,
    show_image,
)
from bench.results.pictures import NearestPair


def nearest_sheet(pairs: Sequence[NearestPair]) -> Figure:
    """A column per pair, with the classes, and the distance below.

    Raises:
        BenchError: no pair.
    """
    require_some("pair", pairs)
    with house_style():
        figure, grid = new_figure(2, len(pairs), 1.3 * len(pairs) + 0.4, 3.4, "compressed")
        for (above, below), pair in zip(grid.T, pairs, strict=True):
            show_image(above, pair.test)
            show_image(below, pair.extra)
            name_axes(above, plain(pair.test_class, SHORT_NAME))
            name_axes(below, plain(pair.extra_class, SHORT_NAME), f"distance {pair.distance:.3g}")
        for axes, name in zip(grid[:, 0], ("test", "extra"), strict=True):
            axes.set_ylabel(name)
    return figure
