"""Surrogates of AutoAttack: errors counted by hand on the example's ten images, as a column and as a table."""

import pytest

from bench.errors import BenchError
from bench.leaderboard.paper import surrogates
from bench.leaderboard.paper.boards import Board
from bench.leaderboard.tables.build import build_table
from bench.results.surrogates import cost_share, surrogate_error
from tests.support.example_results import example
from tests.support.markdown_tables import cells

# Of ten images 0 to 7 are right clean; FGSM leaves 0 to 5, PGD-20 0 to 3 and 6, AutoAttack 0, 1 and 4.
MISSED = {"FGSM": {2, 3, 5}, "PGD-20": {2, 3, 6, 4}}


def without_autoattack():
    return example(attacks={label: one for label, one in example().attacks.items() if label != "AA"})


@pytest.mark.parametrize("label", MISSED)
def test_an_error_is_an_image_of_which_autoattack_says_something_else(label):
    assert {*surrogate_error(example(), [label]).nonzero()[0].tolist()} == MISSED[label]


def test_of_two_attacks_the_worst_case_counts():
    # Together they leave 0 to 3.
    assert {*surrogate_error(example(), ["FGSM", "PGD-20"]).nonzero()[0].tolist()} == {2, 3, 4}
    assert cost_share(example(), ["FGSM", "PGD-20"]) == pytest.approx(2.0)


def test_without_autoattack_there_is_nothing_to_compare_with():
    with pytest.raises(BenchError, match="a surrogate is compared with AutoAttack"):
        surrogate_error(without_autoattack(), ["FGSM"])


def test_it_is_a_column_on_demand_that_ranks_nobody():
    table = build_table([example()], columns=["AA", "PGD-20: surrogate error"])
    cell = table.rows[0].cells["PGD-20: surrogate error"]
    assert cell.value == 40.0 and cell.interval is not None
    assert not table.columns["PGD-20: surrogate error"].compares
    assert any("never in its place" in note for note in table.notes)
    with pytest.raises(BenchError, match="column of attacks 'Clean'"):
        build_table([example()], columns=["Clean: surrogate error"])


def test_the_table_says_how_far_off_and_where(monkeypatch):
    monkeypatch.setattr(surrogates, "SURROGATES", {"FGSM": ("FGSM",)})
    monkeypatch.setattr(surrogates, "BOARDS", ("b",))
    board = Board("b", (example(),), build_table([example()]))
    _, row = cells(surrogates.surrogate_table([board]))
    assert row == [
        "b", "FGSM", "100.0 %", "30.0", "+30.0 (AT: 60.0, AutoAttack 30.0)", "1 of 1", "30.0 %", "0 of 0",
    ]  # fmt: skip
