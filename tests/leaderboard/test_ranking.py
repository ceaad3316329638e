"""Ranks: ranges by hand, that they hold the truth for all rows together, and which column ranks."""

import numpy as np
import pytest

from bench.errors import BenchError
from bench.leaderboard.render.board_data import board_data
from bench.leaderboard.tables.attacks import ranking_column
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.ranking import rank_ranges
from bench.leaderboard.wording.ranks import leading, meaning, rank_text
from bench.results.file import write_result
from tests.support.example_results import corrupted, example, featured, predictions, with_attack, with_run
from tests.support.markdown_tables import column


def right(*counts: int, samples: int = 10) -> np.ndarray:
    """Outcomes of each seed: the first so many samples are right."""
    return np.stack([np.arange(samples) < count for count in counts])


# ------------------------------------------------------------------------------------------------- by hand


def test_ranges_by_hand() -> None:
    # 12 tests, two for each pair. One-sided p: 1 / 2^10 for 10 against 0, 1 / 2^8 for 10 against 2 and for 8 against 0,
    # times 12, 11 and 10 below 0.05; 1 / 2^6 for 8 against 2, times 9 above.
    assert rank_ranges([right(count) for count in (10, 8, 2, 0)]) == [(1, 2), (1, 3), (2, 4), (3, 4)]
    assert rank_ranges([right(count) for count in (0, 10)]) == [(2, 2), (1, 1)]
    assert rank_ranges([right(5)] * 3) == [(1, 3)] * 3
    assert rank_ranges([right(5)]) == [(1, 1)]
    assert rank_ranges([]) == []


def test_shares_of_versions_are_tested_too() -> None:
    better, worse = np.full((1, 50), 0.75), np.full((1, 50), 0.25)
    assert rank_ranges([worse, better]) == [(2, 2), (1, 1)]


def test_of_several_seeds_one_is_not_enough() -> None:
    rows = [right(90, 91, 92, samples=100), right(99, samples=100), right(10, 11, 12, samples=100)]
    assert rank_ranges(rows) == [(1, 1), None, (2, 2)]
    # The seeds of a row differ as much as the rows do.
    assert rank_ranges([right(95, 50, 5, samples=100), right(94, 45, 2, samples=100)]) == [(1, 2), (1, 2)]


def test_bold_is_what_can_only_be_first_of_several() -> None:
    assert leading([(1, 1), (2, 3), (2, 3)]) == [True, False, False]
    assert leading([(1, 2), (1, 2)]) == [False, False]
    assert leading([(1, 1)]) == leading([None]) == [False]
    assert leading([(1, 1), None]) == [False, False]


def test_ranks_and_their_meaning_as_text() -> None:
    assert [rank_text(one) for one in ((1, 4), (2, 2), None)] == ["1-4", "2", "-"]
    outcomes, shares = np.array([True]), np.array([0.5])
    assert "exact McNemar tests" in meaning("AA", [1, 1], outcomes)
    assert "paired tests" in meaning("Avg", [1, 1], shares)
    assert "over training seeds and test images" in meaning("AA", [3, 3], outcomes)
    assert "one seed has no rank" in meaning("AA", [3, 1], outcomes)
    assert "one seed" not in meaning("AA", [3, 3], outcomes)
    assert "FDR; no test ranks" in meaning("FDR", [1], 0.5)


# ---------------------------------------------------------------------------------------------- simulation


def boards(count: int, seeds: int, samples: int, advantages: np.ndarray, spread: float) -> np.ndarray:
    """Outcomes [board, row, seed, sample]: images are hard for all rows alike, and seeds are luckier or less so."""
    draws = np.random.default_rng(3)
    images = draws.standard_normal((count, 1, 1, samples))
    luck = spread * draws.standard_normal((count, len(advantages), seeds, 1))
    own = 0.6 * draws.standard_normal((count, len(advantages), seeds, samples))
    return images + luck + own + advantages[:, None, None] > 0


@pytest.mark.parametrize(("count", "seeds", "samples"), [(150, 1, 1000), (40, 3, 300)])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_thirteen_equal_models_may_have_any_rank(count, seeds, samples, spread) -> None:
    spread = spread if seeds > 1 else 0  # luck of the only seed is the model's own
    found = [rank_ranges(list(board)) for board in boards(count, seeds, samples, np.zeros(13), spread)]
    assert np.mean([ranges == [(1, 13)] * 13 for ranges in found]) >= 0.95


def test_a_clearly_best_model_is_first_and_the_rest_share_the_others() -> None:
    advantages = np.array([0.6, *[0.0] * 12])
    found = [rank_ranges(list(board)) for board in boards(60, 1, 1000, advantages, 0)]
    assert np.mean([ranges[0] == (1, 1) for ranges in found]) >= 0.95
    assert np.mean([ranges[1:] == [(2, 13)] * 12 for ranges in found]) >= 0.95


def test_all_true_ranks_lie_within_their_ranges_together() -> None:
    found = [rank_ranges(list(board)) for board in boards(100, 1, 1000, np.linspace(0.3, 0, 13), 0)]
    within = [all(low <= rank <= high for rank, (low, high) in enumerate(ranges, 1)) for ranges in found]
    assert np.mean(within) >= 0.95
    # And they say something: the best of thirteen is known not to be among the last.
    assert np.mean([ranges[0][1] for ranges in found]) < 9


# ------------------------------------------------------------------------------------------ which column ranks


def two_norms(name: str, linf: int, l2: int, aa: int):
    """Right clean everywhere; under FGSM (linf), PGD-20 (l2) and AA (linf) for so many samples.

    AA and PGD-20 name stages, as a cascade of attacks does.
    """
    result = with_run(example(clean_prediction=predictions(*range(10))), model=name)
    for label, count in (("FGSM", linf), ("PGD-20", l2), ("AA", aa)):
        result = with_attack(result, label, prediction=predictions(*range(count)))
    result = with_attack(result, "AA", stage=np.ones(10, dtype=np.int16))
    return with_attack(result, "PGD-20", norm="l2", stage=np.ones(10, dtype=np.int16))


def test_autoattack_ranks_and_the_union_of_norms_is_a_column() -> None:
    results = [two_norms("A", 9, 0, 8), two_norms("B", 9, 9, 7)]
    table = build_table(results)
    assert [(title, table.rows[0].cells[title].value) for title in list(table.columns)[:4]] == [
        *(("Clean", 100), ("Worst case", 0), ("Worst case (linf)", 80), ("FGSM", 90))
    ]
    assert ([row.name for row in table.rows], table.rank_by) == (["A", "B"], "AA")
    assert "Column Worst case (linf): per image, under every attack in that norm (linf)" in table.notes
    union = build_table(results, rank_by="Worst case")
    assert ([row.name for row in union.rows], union.rank_by) == (["B", "A"], "Worst case")


def test_a_norm_without_a_cascade_makes_no_union() -> None:
    loose = with_attack(two_norms("A", 9, 0, 8), "PGD-20", stage=None)
    table = build_table([loose])
    assert list(table.columns)[:3] == ["Clean", "Worst case (linf)", "FGSM"]
    assert table.rows[0].cells["Worst case (linf)"].value == 80


def test_without_autoattack_the_worst_case_of_the_main_norm_ranks() -> None:
    result = with_attack(two_norms("A", 9, 0, 8), "AA", attack="pgd")
    assert ranking_column(result) == "Worst case (linf)"
    assert ranking_column(with_attack(result, "PGD-20", norm="linf")) == "Worst case"
    assert ranking_column(example(attacks={})) == "Clean"
    # Of losses that differ no column ranks.
    assert ranking_column(example(), ["AA"]) == "Worst case"


def test_columns_are_shown_in_the_order_of_one_that_need_not_be_among_them(bench, tmp_path) -> None:
    for name, result in (("a", two_norms("A", 9, 0, 8)), ("b", two_norms("B", 9, 9, 7))):
        write_result(result, f"{name}.h5")

    def order(*options: str) -> tuple[str, list[str]]:
        code, output = bench("leaderboard", "a.h5", "b.h5", *options)
        assert code == 0, output
        return output.splitlines()[0].partition(", ranked by ")[2], column(output, "Model")

    assert order("--columns", "Clean,AA") == ("AA", ["A", "B"])
    assert order("--columns", "Clean,AA", "--rank-by", "PGD-20") == ("PGD-20", ["B", "A"])
    code, output = bench("leaderboard", "a.h5", "b.h5", "--rank-by", "PGD20")
    assert code == 2 and "unknown column 'PGD20'. Did you mean 'PGD-20'?" in output
    said = {"html": "ranked by PGD-20<", "json": '"rank_by": "PGD-20"', "csv": ",PGD-20,1,1,B,", "md": "by PGD-20\n"}
    for form, text in said.items():
        assert bench("leaderboard", "a.h5", "b.h5", "--rank-by", "PGD-20", "--out", f"board.{form}")[0] == 0
        assert text in (tmp_path / f"board.{form}").read_text(encoding="utf-8"), form


def test_a_column_whose_losses_differ_ranks_nothing() -> None:
    rows = [with_run(example(), model="own"), with_attack(with_run(example(), model="x"), "AA", objective="adaptive")]
    assert build_table(rows).rank_by == "Worst case"
    with pytest.raises(BenchError, match=r"'AA' ranks no rows.*a loss of its own"):
        build_table(rows, rank_by="AA")


def test_each_board_of_a_page_says_by_what_it_is_ranked() -> None:
    results = [example(), corrupted({"fog": (8, 4)}), featured()]
    plain = {board["kind"]: board["rank_by"] for board in board_data(results)["boards"]}
    assert plain == {"attacks": "AA", "corruptions": "Avg Acc 1", "features": "FDR ↓ clean"}
    asked = {board["kind"]: board["rank_by"] for board in board_data(results, rank_by="Clean")["boards"]}
    assert asked == {"attacks": "Clean", "corruptions": "Clean", "features": "FDR ↓ clean"}
    with pytest.raises(BenchError, match="unknown column 'Dirty'"):
        board_data(results, rank_by="Dirty")


def test_corruptions_have_ranks_and_features_none() -> None:
    shown = [corrupted({"fog": (10, 10)}, model="good"), corrupted({"fog": (0, 0)}, model="bad")]
    table = build_table(shown)
    assert [row.ranks["Avg Acc 1"] for row in table.rows] == [(1, 1), (2, 2)]
    assert "paired tests" in table.ranking
    assert build_table([featured(), featured(model="B")]).rows[0].ranks == {}
