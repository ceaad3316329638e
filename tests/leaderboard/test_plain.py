"""Plain text for a terminal: nothing is wider than it, and what is left out is counted."""

import re

import pytest

from bench.leaderboard.render.comparison import comparison_text
from bench.leaderboard.render.plain import plain_table, render_plain
from bench.leaderboard.tables.build import build_table
from bench.results.file import read_result
from tests import ROOT
from tests.support.example_results import example

DIGITS = ROOT / "leaderboard" / "boards" / "digits-linf-full-v3"


@pytest.fixture(scope="module")
def digits() -> list:
    return [read_result(DIGITS / f"{name}-seed-0.h5") for name in ("fsr", "trades", "adv-dpnp")]


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_columns_that_do_not_fit_are_counted_and_the_others_are_whole() -> None:
    headers, rows = ["Name", "A", "Bee", "C"], [["one", "1.0", "2.0", "3.0"], ["three", "10.0", "2.5", "-"]]
    assert plain_table(headers, rows, 24).splitlines() == [
        "Name      A  Bee    C",
        "-----  ----  ---  ---",
        "one     1.0  2.0  3.0",
        "three  10.0  2.5    -",
    ]
    # Name, A and C take 5 + 2 + 4 + 2 + 3 = 16; Bee would take 5 more.
    assert plain_table(headers, rows, 20, first=(0, 3), others="why").splitlines() == [
        "Name      A    C",
        "-----  ----  ---",
        "one     1.0  3.0",
        "three  10.0    -",
        "+1 more column: why",
    ]
    assert plain_table(headers, rows, 15).splitlines()[-1] == "+2 more columns"


def test_a_long_name_keeps_both_ends_and_a_wide_letter_takes_two_places() -> None:
    names = ["cnn (recipe one, seed 0, checkpoint cccccccc)", "漢字"]
    lines = plain_table(["Model", "Clean"], [[name, "1.0"] for name in names], 30, first=(0, 1)).splitlines()
    # 30 less two spaces and Clean's five are 23: ten of the head, three points, ten of the tail.
    assert lines[2] == "cnn (recip... cccccccc)    1.0"
    assert lines[3] == f"漢字{' ' * 19}    1.0"


@pytest.mark.parametrize("width", [80, 120])
def test_a_board_fits_the_terminal(width: int, digits: list) -> None:
    table = build_table(digits)
    text = render_plain(table, width)
    title, body = re.split(r"\n\n", text)[:2]
    header, rule, *rows, more = body.splitlines()
    assert widest(text) <= width and "**" not in text and "|" not in text
    assert title.replace("\n", " ") == table.title
    shown = [header[found.start() : found.end()].strip() for found in re.finditer("-+", rule)]
    assert shown[:4] == ["Rank", "Model", "Trust", "Clean"] and "AutoAttack" in shown
    assert [column for column in table.columns if column in shown[3:]] == shown[3:]
    assert more.startswith(f"+{len(table.columns) - len(shown[3:])} more columns: ")
    assert [row.split()[1] for row in rows] == ["fsr", "trades", "adv-dpnp"]
    assert "98.2 ± 1.2" in rows[0] and rows[0].endswith("80.6 ± 3.5")
    legend = " ".join(text.split())
    assert all(" ".join(note.split()) in legend for note in table.notes)


def test_a_board_that_fits_leaves_nothing_out() -> None:
    text = render_plain(build_table([example()]), 140)
    assert "more column" not in text
    assert "30.0 ± 24.8" in text


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_comparison_says_its_sentences_first(width: int | None, digits: list) -> None:
    text = comparison_text(digits, "any", ["AutoAttack"], width)
    first, second, title, heading, table = text.split("\n\n")[:5]
    assert first.startswith("In the column AutoAttack, fsr and trades cannot be told apart")
    assert second.replace("\n", " ").startswith("In the column AutoAttack, fsr is better than adv-dpnp by")
    if width is None:
        assert (title[:3], heading) == ("## ", "### fsr against trades") and table.startswith("| Column")
        return
    assert (title[:7], heading) == ("digits,", "fsr against trades") and widest(text) <= width
    assert table.splitlines()[2].split()[:4] == ["AutoAttack", "80.6", "78.6", "+2.0"]
    # Without p, six take 10 + 5 + 6 + 10 + 13 + 8 and five gaps of 2: 62. Who alone is right takes 16 and 17 more.
    assert table.splitlines()[-1].startswith("+2 more columns: ") == (width == 80)
    assert table.splitlines()[0].endswith("  p (Holm)")
