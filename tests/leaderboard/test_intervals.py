"""How an interval is shown near 0 and 100 percent; all by hand from Wilson's bounds."""

import pytest

from bench.leaderboard.intervals import error_text
from bench.leaderboard.tables import accuracy_cell
from tests.support.example_results import LABEL


@pytest.mark.parametrize(
    ("percent", "interval", "expected"),
    [
        (0.0, (0.0, 79.3457), "(0.0 to 79.3)"),
        (100.0, (20.6543, 100.0), "(20.7 to 100.0)"),
        (50.0, (23.6595, 76.3405), "± 26.3"),
        # None of 1,000, and all of 500: off by a fifth and two fifths of a point.
        (0.0, (0.0, 0.3827), "± 0.2"),
        (100.0, (99.2376, 100.0), "± 0.4"),
        # Of seeds: the interval itself leaves 0 to 100, and is centred.
        (30.0, (-224.1, 284.1), "± 254.1"),
    ],
)
def test_bounds_are_shown_where_a_centred_interval_would_leave_the_scale(percent, interval, expected):
    assert error_text(percent, interval) == expected


def test_every_interval_that_is_shown_centred_stays_on_the_scale():
    for right in range(len(LABEL) + 1):
        cell = accuracy_cell(right > LABEL)
        centred = error_text(cell.percent, cell.interval).startswith("±")
        assert centred == (cell.percent - cell.half_width >= -0.5 and cell.percent + cell.half_width <= 100.5)
