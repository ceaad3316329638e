"""Paired comparisons and ranks: against arithmetic by hand, and statsmodels and scipy called directly."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from bench.comparison import (
    compare,
    groups_that_compare,
    mcnemar_p_value,
    paired_difference,
    refuse_mixture,
    welch_p_value,
)
from bench.errors import BenchError
from bench.leaderboard.ranking import meaning, ranks
from bench.metrics import columns
from bench.results import EvaluationResult, read_result, write_result
from tests.command import bench
from tests.example_results import LABEL, corrupted, example, featured, predictions, single, with_attack, with_run

DIGITS = Path(__file__).resolve().parent.parent / "leaderboard" / "boards" / "digits-linf-full-v2"


def vectors(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def robust(name: str, *right: int) -> EvaluationResult:
    """Right clean everywhere, and under every attack for these samples only."""
    result = with_run(example(clean_prediction=LABEL), model=name)
    for label in result.attacks:
        result = with_attack(result, label, prediction=predictions(*right), final_prediction=predictions(*right))
    return result


def digits(name: str) -> EvaluationResult:
    return read_result(DIGITS / f"{name}-seed-0.h5")


# ------------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((3, 1, 9, 2), 0.021484375),  # 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
        ((0, 5, 0, 5), 0.0625),  # 2 / 2^5
        ((0, 6, 0, 4), 0.03125),
        ((7, 4, 4, 0), 1.0),
        ((7, 0, 0, 3), 1.0),
    ],
)
def test_mcnemar_by_hand(counts: tuple[int, int, int, int], expected: float) -> None:
    first, second = vectors(*counts)
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_p_value(second, first) == mcnemar_p_value(first, second)


def test_welch_by_hand() -> None:
    # Variances 2 and 2, so t = 10 / sqrt(2/2 + 2/2) and df = 2, where p = 1 - t / sqrt(2 + t^2).
    assert welch_p_value([80.0, 82.0], [70.0, 72.0]) == pytest.approx(1 - (50 / 52) ** 0.5, rel=1e-9)
    assert welch_p_value([80.0, 80.0], [80.0, 80.0]) == 1
    assert welch_p_value([80.0, 80.0], [79.0, 79.0]) == 0
    first, second = [0.3, 0.5, 0.9], [0.2, 0.21, 0.25, 0.1]
    direct = scipy.stats.ttest_ind(first, second, equal_var=False).pvalue
    assert welch_p_value(first, second) == pytest.approx(direct, rel=1e-9)


def test_counts_and_difference_by_hand() -> None:
    (found,) = compare(["A", "B"], [robust("A", 0, 1, 2, 3, 4), robust("B", 0, 1, 9)])
    assert list(found) == ["Clean", "Worst case", "FGSM", "PGD-20", "AA", "Ensemble"]
    worst = found["Worst case"]
    assert (worst.only_first, worst.only_second) == (3, 1)
    assert worst.accuracies == (50, 30)
    assert worst.difference == pytest.approx(20)
    assert worst.p_value == worst.holm_p_value == pytest.approx(2 * (1 + 4) / 2**4)
    assert found["Clean"].difference == 0
    assert worst.interval[0] <= 20 <= worst.interval[1]


def test_the_convention_is_that_of_the_columns() -> None:
    other = with_run(robust("B", 0), model="B")
    differences = {
        convention: compare(["AT", "B"], [example(), other], convention)[0]["Worst case"].difference
        for convention in ("any", "final")
    }
    assert differences == pytest.approx({"any": 10, "final": 20})


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((6, 5, 1), (0.09375, 0.125, 1.0)),  # p = 1/32, 1/16, 1, times 3, 2, 1
        ((6, 6, 5), (0.09375, 0.09375, 0.09375)),  # 3/32, then never less
    ],
)
def test_holm_by_hand(counts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    results = [robust("A", *range(10)), *(robust(f"B{n}", *range(count, 10)) for n, count in enumerate(counts))]
    comparisons = compare([f"{n}" for n in range(len(results))], results, titles=["AA"])
    assert [set(found) for found in comparisons] == [{"AA"}] * 3
    assert [found["AA"].holm_p_value for found in comparisons] == pytest.approx(expected)


def test_identical_results_do_not_differ() -> None:
    first = digits("at")
    (found,) = compare(["at", "again"], [first, first])
    for column in found.values():
        assert (column.difference, column.interval, column.p_value, column.holm_p_value) == (0, (0, 0), 1, 1)


# ------------------------------------------------------------------------------- against the libraries


def test_a_committed_board_against_statsmodels_and_scipy() -> None:
    results = [digits(name) for name in ("pcl", "fsr", "trades")]
    comparisons = compare(["pcl", "fsr", "trades"], results)
    vectors_of = [columns(result) for result in results]
    for title, first in vectors_of[0].items():
        p_values = []
        for found, others in zip(comparisons, vectors_of[1:], strict=True):
            second = others[title]
            table = np.histogram2d(~first, ~second, bins=2, range=[[0, 1], [0, 1]])[0]
            assert (found[title].only_first, found[title].only_second) == (table[0, 1], table[1, 0])
            assert found[title].p_value == mcnemar(table, exact=True).pvalue
            assert found[title].difference == pytest.approx(100 * (first.mean() - second.mean()))
            p_values.append(found[title].p_value)
        corrected = multipletests(p_values, method="holm")[1]
        assert [found[title].holm_p_value for found in comparisons] == pytest.approx(list(corrected))


@pytest.mark.parametrize("title", ["Clean", "Worst case"])
def test_the_interval_is_the_paired_bootstrap(title: str) -> None:
    first, second = (columns(digits(name))[title] for name in ("pcl", "fsr"))
    direct = scipy.stats.bootstrap(
        (first, second),
        lambda one, other, axis: one.mean(axis=axis) - other.mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        batch=1000,
        rng=0,
    ).confidence_interval
    assert paired_difference(first, second).interval == pytest.approx((100 * direct.low, 100 * direct.high))


def test_the_interval_is_near_the_normal_one() -> None:
    first, second = vectors(300, 60, 30, 110)
    change = first.astype(float) - second
    half = 196 * change.std() / change.size**0.5
    low, high = paired_difference(first, second).interval
    assert (low, high) == pytest.approx((6 - half, 6 + half), abs=0.25)


def test_the_sign_is_symmetric() -> None:
    pcl, fsr = digits("pcl"), digits("fsr")
    (there,), (back,) = compare(["pcl", "fsr"], [pcl, fsr]), compare(["fsr", "pcl"], [fsr, pcl])
    for title, found in there.items():
        assert found.difference == -back[title].difference
        assert (found.only_first, found.only_second) == (back[title].only_second, back[title].only_first)
        assert found.p_value == back[title].p_value
        low, high = back[title].interval
        assert found.interval == pytest.approx((-high, -low), abs=0.21)  # quantiles may fall one sample apart


# ------------------------------------------------------------------------------------------------ refusals


def test_refusals() -> None:
    one = example()
    with pytest.raises(BenchError, match="1 result is nothing to compare"):
        compare(["A"], [one])
    with pytest.raises(BenchError, match="a sample count of 1 is too small"):
        compare(["A", "B"], [single(True), single(False)])
    with pytest.raises(BenchError, match=r"unknown column 'PGD-2'\. Did you mean 'PGD-20'"):
        compare(["A", "B"], [one, one], titles=["PGD-2"])
    for other, reason in (
        (replace(one, index=one.index + 1), "sample set"),
        (
            with_run(replace(single(True), suite=one.suite), dataset_digest="e" * 64),
            r"number of samples is 10 for the first and 1 for the second\. Evaluate both with the same --limit\.$",
        ),
        (with_run(one, dataset="svhn"), 'dataset is "digits" for the first and "svhn" for the second'),
        (replace(one, suite={**one.suite, "version": 2}), "suite version is 1 for the first and 2 for the second"),
        (with_attack(one, "AA", epsilon="4/255"), "threat model of column 'AA'"),
    ):
        with pytest.raises(BenchError, match=reason) as caught:
            compare(["A", "B\n"], [one, other])
        assert str(caught.value).startswith(r"'A' and 'B\n' do not compare: ") and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- ranks


def right(count: int) -> np.ndarray:
    return np.arange(10) < count


def test_a_rank_is_the_place_of_the_first_row_of_its_group() -> None:
    # From 10: 5 differ with p = 1/16 and 6 with p = 1/32; from 4: 4 differ with p = 1/8.
    assert ranks([[right(count)] for count in (10, 5, 4, 0)]) == [1, 1, 3, 3]
    assert ranks([[right(count)] for count in (10, 10, 10)]) == [1, 1, 1]
    assert ranks([[right(count)] for count in (10, 4)]) == [1, 2]
    assert ranks([]) == []


def test_ranks_over_seeds_are_welchs() -> None:
    def row(*counts: int) -> list[np.ndarray]:
        return [np.arange(100) < count for count in counts]

    # p = 1 - t / sqrt(2 + t^2): 0.019 for 80, 82 and 70, 72 (as above); t = 2 / sqrt(2) gives 0.29.
    assert ranks([row(80, 82), row(78, 80), row(70, 72)]) == [1, 1, 3]
    assert ranks([row(99), row(80, 82), row(75), row(70, 72)]) == [None, 1, None, 2]
    assert welch_p_value([0.80, 0.82], [0.78, 0.80]) == pytest.approx(1 - (2 / 4) ** 0.5)


def test_the_legend_names_the_test() -> None:
    assert "cannot be told apart on these samples (McNemar, 5 %)" in meaning([1, 1])
    assert "by their seeds (Welch's t-test, 5 %)" in meaning([3, 3])
    assert "one seed has no rank" in meaning([3, 1]) and "one seed" not in meaning([3, 3])


# -------------------------------------------------------------------------------------------- command line


def run(*arguments: object) -> tuple[int, str]:
    return bench("compare", *arguments)


def test_compare_prints_a_table_and_a_sentence() -> None:
    code, output = run(*(DIGITS / f"{name}-seed-0.h5" for name in ("fsr", "trades", "adv-dpnp")))
    assert code == 0
    found = compare(["fsr", "trades", "adv-dpnp"], [digits(name) for name in ("fsr", "trades", "adv-dpnp")])
    worst = found[1]["Worst case"]
    low, high = worst.interval
    cells = ["79.0", "74.8", "+4.2", f"[{low:+.1f}, {high:+.1f}]", "37", "16", "0.00549", "0.011"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    assert ["Worst case", *cells] in rows
    assert worst.holm_p_value == pytest.approx(2 * worst.p_value)
    assert "trades cannot be told apart on these 500 samples: difference +2.2 points" in output
    sentence = f"fsr is better than adv-dpnp by 4.2 points [{low:.1f}, {high:.1f}], p = 0.011 (Holm, 2 comparisons)."
    assert sentence in output
    assert "Column Avg" not in output


def test_compare_two_with_one_column() -> None:
    code, output = run(DIGITS / "st-seed-0.h5", DIGITS / "at-seed-0.h5", "--column", "AutoAttack")
    assert code == 0
    assert re.search(r"at is better than st by 64\.4 points \[6\d\.\d, 6\d\.\d\], p < 0\.001\.\n", output)
    assert "Holm" not in output
    assert "| AutoAttack |" in output and "| Clean" not in output


def test_compare_refuses_in_one_line(tmp_path: Path) -> None:
    at = DIGITS / "at-seed-0.h5"
    write_result(example(), tmp_path / "other.h5")
    for arguments, expected in (
        ((at,), "1 result is nothing to compare"),
        ((at, at), "was given twice"),
        ((at, tmp_path / "other.h5"), "do not compare: suite is"),
        ((at, DIGITS / "st-seed-0.h5", "--column", "autoattack"), "Did you mean 'AutoAttack'?"),
        ((at, DIGITS / "st-seed-0.h5", "--convention", "final"), "Evaluate with --convention final"),
        ((at, tmp_path / "nowhere.h5"), "nowhere.h5"),
    ):
        code, output = run(*arguments)
        assert code == 2 and expected in output and len(output.splitlines()) == 1, output


def test_compare_shows_doubts_and_escapes_what_files_say(tmp_path: Path) -> None:
    evil = "<b>x</b> | *y*"
    finding = {"name": "masking", "severity": "error", "message": evil}
    suite = {**example().suite, "derived": [{"label": evil, "worst_of": ["AA"]}]}
    for name, result in (("a", robust(evil, *range(10))), ("b", robust("B"))):
        write_result(replace(result, suite=suite, findings=(finding,) if name == "a" else ()), tmp_path / f"{name}.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, output = run(tmp_path / "a.h5", tmp_path / "b.h5")
    assert code == 0
    shown = "&#60;b&#62;x&#60;/b&#62; &#124; &#42;y&#42;"
    assert f"In the worst case, {shown} is better than B by 100.0 points [100.0, 100.0], p = 0.00195." in output
    assert f"The numbers of {shown} cannot be believed." in output
    assert f"- {shown}: masking: {shown} (error)" in output
    assert evil not in output
    assert {line.count("|") for line in output.splitlines() if line.startswith("|")} == {9}


def test_identical_outcomes_are_not_told_apart(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_result(with_run(example(), model=name), tmp_path / f"{name}.h5")
    code, output = run(tmp_path / "A.h5", tmp_path / "B.h5")
    assert code == 0
    assert "A and B cannot be told apart on these 10 samples: difference +0.0 points [+0.0, +0.0], p = 1." in output


def test_help_says_why() -> None:
    code, output = run("--help")
    assert code == 0
    for word in ("Why pairs", "McNemar's test", "Wilson", "Holm's p", "--merge-seeds"):
        assert word in output


def test_the_mean_over_seeds_is_what_welch_sees() -> None:
    seeds = {name: [read_result(DIGITS / f"{name}-seed-{seed}.h5") for seed in range(3)] for name in ("fsr", "pcl")}
    rows = [[columns(result)["Worst case"] for result in seeds[name]] for name in ("fsr", "pcl")]
    p_value = scipy.stats.ttest_ind(*[[vector.mean() for vector in row] for row in rows], equal_var=False).pvalue
    means = [[float(vector.mean()) for vector in row] for row in rows]
    assert welch_p_value(*means) == pytest.approx(p_value, rel=1e-9)
    assert p_value < 0.05 and ranks(rows) == [1, 2]


def test_corruptions_are_compared_by_the_share_of_versions_that_are_right() -> None:
    # Of ten images: the first model has both versions of one right and one of another; the second model none of those.
    ours = corrupted({"fog": (2, 0), "snow": (1, 0)})
    theirs = corrupted({"fog": (0, 0), "snow": (0, 0)})
    (found,) = compare(["A", "B"], [ours, with_run(theirs, model="B")])
    assert list(found) == ["Avg Acc 2", "Clean", "Severity 1", "Severity 2"]
    mean = found["Avg Acc 2"]
    assert mean.accuracies == (pytest.approx(7.5), 0)
    assert (mean.only_first, mean.only_second, mean.difference) == (2, 0, pytest.approx(7.5))
    # Shares of four versions: 1/2, 1/4 and eight times 0.
    assert mean.p_value == pytest.approx(scipy.stats.ttest_rel([0.5, 0.25, *[0] * 8], [0] * 10).pvalue, rel=1e-9)
    assert found["Clean"].p_value == found["Severity 2"].p_value == 1


def test_the_command_compares_results_under_corruptions(tmp_path: Path) -> None:
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file, right in zip(files, (10, 0), strict=True):
        write_result(with_run(corrupted({"fog": (right, right)}), model=file.stem), file)
    code, output = bench("compare", *files)
    assert code == 0
    assert "In the column Avg Acc 1, a is better than b by 100.0 points" in output
    assert "paired t-test" in output


def test_results_of_features_are_compared_by_their_attack(tmp_path: Path) -> None:
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file in files:
        write_result(featured((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 80.0, 30.0), model=file.stem), file)
    code, output = bench("compare", *files)
    assert code == 0
    assert "In the worst case, a and b cannot be told apart" in output
    assert "FDR" not in output


def test_transfers_from_other_weights_at_the_same_path_do_not_compare() -> None:
    def transferred(name: str, digest: str | None) -> EvaluationResult:
        given = {"source": "runs/at", **({} if digest is None else {"source_digest": digest})}
        return with_attack(with_run(example(), model=name), "AA", parameters=given)

    before, same = [transferred(name, None) for name in "AB"], [transferred(name, "a" * 64) for name in "AB"]
    refuse_mixture("AB", before)
    refuse_mixture("AB", same)
    for other in (transferred("B", "b" * 64), before[1]):
        with pytest.raises(BenchError, match="parameter 'source_digest' of column 'AA' is"):
            refuse_mixture("AB", [same[0], other])
        assert len(groups_that_compare([*same, other])) == 2


def test_losses_of_ones_own_compare() -> None:
    own = [with_attack(example(), "AA", parameters={"objective_sha256": digit * 64}) for digit in "ab"]
    refuse_mixture("AB", own)
    assert len(groups_that_compare(own)) == 1
