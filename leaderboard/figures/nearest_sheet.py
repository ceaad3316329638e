"""Test images above the extra training images that are nearest to them, in the space of pixels or another."""

from collections.abc import Mapping, Sequence

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


def nearest_sheet(spaces: Mapping[str, Sequence[NearestPair]]) -> Figure:
    """Two rows per space, by name, and in them a column per pair, with the classes, and the distance below.

    Raises:
        BenchError: no pair.
    """
    for pairs in spaces.values():
        require_some("pair", pairs)
    columns = max(map(len, spaces.values()))
    with house_style():
        figure, grid = new_figure(2 * len(spaces), columns, 1.3 * columns + 0.4, 3.4 * len(spaces), "compressed")
        for (space, pairs), two in zip(spaces.items(), grid.reshape(len(spaces), 2, columns), strict=True):
            for (above, below), pair in zip(two.T, pairs, strict=True):
                show_image(above, pair.test)
                show_image(below, pair.extra)
                name_axes(above, plain(pair.test_class, SHORT_NAME))
                name_axes(below, plain(pair.extra_class, SHORT_NAME), f"distance {pair.distance:.3g}")
            for axes, name in zip(two[:, 0], ("test", f"extra, by {plain(space, SHORT_NAME)}"), strict=True):
                axes.set_ylabel(name)
    return figure
