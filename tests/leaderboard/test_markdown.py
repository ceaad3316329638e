"""Boards as Markdown and on a terminal: bold, intervals at the ends of the scale, and names that act on nothing."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import leaderboard
from bench.leaderboard.render.markdown import render
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.rows import merged_cells
from bench.leaderboard.wording.intervals import error_text
from bench.results.file import write_result
from bench.text import escape
from tests.support.example_results import corrupted, example, featured, robust, single, with_attack, with_run
from tests.support.markdown_tables import cells, column


def models(**counts: int) -> list:
    return [robust(example(), count, model=name) for name, count in counts.items()]


def test_bold_is_what_is_better_than_every_other_row() -> None:
    text = render(build_table(models(A=10, B=0, C=0)))
    assert column(text, "AA") == ["**100.0 (72.2 to 100.0)**", *["0.0 (0.0 to 27.8)"] * 2]
    assert column(text, "Clean") == ["100.0 (72.2 to 100.0)"] * 3
    assert "**Bold**: significantly better than every other row in this column." in text
    # Of two equal rows neither is, nor is the only row of a table.
    assert "**1" not in render(build_table(models(A=10, B=10, C=0)))
    assert "**1" not in render(build_table(models(A=10)))


def test_a_column_of_different_losses_has_no_best() -> None:
    own, plain = models(own=10, plain=0)
    text = render(build_table([own, with_attack(plain, "AA", objective="adaptive")]))
    assert [cell.startswith("**") for cell in column(text, "PGD-20")] == [True, False]
    assert [cell.startswith("**") for cell in column(text, "AA")] == [False, False]


def test_ranks_are_ranges() -> None:
    # 10 against 0 and 9 against 0 have p = 2 / 2^10 and 2 / 2^9; of 10 against 3, 2 / 2^7, Holm makes 20 times as much.
    text = render(build_table(models(A=10, B=9, C=3, D=0)))
    assert (column(text, "Model"), column(text, "Rank")) == (["A", "B", "C", "D"], ["1-3", "1-3", "1-4", "3-4"])
    assert "Ranks by AA: those that a row may have" in text and "exact McNemar tests" in text


def test_features_are_in_an_order_and_have_decimals_of_their_own() -> None:
    other = featured((0.125, float("inf"), 1.5, 1.75, 3.5, 3.0, 95.5, 70.25), model="Adv-DPNP")
    text = render(build_table([featured(), other]))
    assert [row[1:2] + row[3:] for row in cells(text)[1:]] == [
        ["Adv-DPNP", "0.1", "inf", "0.001", "inf", "1.50", "1.75", "3.50", "3.00", "95.5", "70.2"],
        ["AT", "0.2", "0.5", "0.003", "0.005", "1.00", "2.00", "3.00", "4.00", "90.0", "80.0"],
    ]
    assert column(text, "Rank") == ["-", "-"] and "no test ranks them" in text and "Bold" not in text


def test_one_sample_and_no_attack() -> None:
    # Wilson at n = 1: z^2 / (1 + z^2) = 0.793457 wide
    text = render(build_table([single(True)]))
    assert text.startswith("## digits, no attack, suite none version 1, 1 samples, convention any, ranked by Clean\n")
    assert column(text, "Worst case") == ["100.0 (20.7 to 100.0)"]
    assert column(render(build_table([single(False)])), "Clean") == ["0.0 (0.0 to 79.3)"]


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
def test_bounds_are_shown_where_a_centred_interval_would_leave_the_scale(percent, interval, expected) -> None:
    assert error_text(percent, interval) == expected


def test_every_interval_that_is_shown_centred_stays_on_the_scale() -> None:
    for right in range(11):
        cell = merged_cells([{"Clean": np.arange(10) < right}])["Clean"]
        assert cell.interval is not None and cell.half_width is not None
        centred = error_text(cell.value, cell.interval).startswith("±")
        assert centred == (cell.value - cell.half_width >= -0.5 and cell.value + cell.half_width <= 100.5)


def test_names_and_notes_cannot_break_the_board() -> None:
    evil = "a | b\n| c | `x` <script>alert(1)</script> **d** [e](f) &lt; \u202e\ud800"
    warning = {"name": "masking", "severity": "warning", "message": evil}
    text = render(build_table([with_run(example(findings=(warning,)), model=evil)]))
    assert [line.count("|") for line in text.splitlines() if line.startswith("|")] == [11, 11, 11]
    assert re.findall(r"<[^>]*>", text) == []
    assert "`" not in text and "[" not in text
    shown = "a &#124; b &#124; c &#124; &#96;x&#96; &#60;script&#62;alert(1)&#60;/script&#62; &#42;&#42;d&#42;&#42; "
    assert column(text, "Model") == [shown + "&#91;e&#93;(f) &#38;lt; †1"]
    assert text.encode().decode() == text


def test_python_shows_the_board_that_the_command_shows() -> None:
    for result in (example(), corrupted({"fog": (8, 4)}), featured()):
        assert leaderboard([result]) == render(build_table([result]))


def test_a_nameless_model_has_a_name() -> None:
    assert column(render(build_table([with_run(example(), model=" \n ")])), "Model") == ["unnamed"]


def test_escape() -> None:
    plain = {"C&W": "C&W", "3 x": "3 x"}
    for text, expected in {
        **plain,
        "&amp;": "&#38;amp;",
        "# x": "&#35; x",
        "- x": "&#45; x",
        "1. x": "&#49;. x",
    }.items():
        assert escape(text) == expected


def test_a_terminal_shows_text_as_it_is_but_acts_on_nothing(bench) -> None:
    write_result(with_run(example(), model="A_[0, 1] *x* | \x1b[31m\x9b2J\n\u202ey"), "a.h5")
    code, output = bench("leaderboard", "a.h5", "--out", "a.md")
    assert code == 0
    assert "| A_[0, 1] *x* | [31m 2J y |" in output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)
    assert "| A&#95;&#91;0, 1&#93; &#42;x&#42; &#124; &#91;31m 2J y |" in Path("a.md").read_text(encoding="utf-8")


def test_doubt_is_marked_and_has_no_rank() -> None:
    fault = {"name": "masking", "severity": "error", "message": "no"}
    text = render(build_table([replace(corrupted({"fog": (8, 4)}), findings=(fault,))]))
    assert (column(text, "Rank"), column(text, "Model"), column(text, "Trust")) == (["-"], ["AT †1"], ["✗"])
