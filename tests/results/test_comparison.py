"""Paired comparisons: against arithmetic by hand, published examples, and statsmodels called directly."""

import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from bench.results.comparison import (
    compare,
    compare_by_class,
    groups_that_compare,
    mcnemar_p_value,
    paired_difference,
    refuse_mixture,
)
from bench.results.file import EvaluationResult, read_result, write_result
from bench.results.metrics import columns
from tests import ROOT
from tests.support.command import bench
from tests.support.example_results import (
    LABEL,
    corrupted,
    example,
    featured,
    predictions,
    single,
    with_attack,
    with_run,
)
from tests.support.refusals import refusal

DIGITS = ROOT / "leaderboard" / "boards" / "digits-linf-full-v3"


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
    ("only_first", "only_second", "expected"),
    [
        (1, 9, 0.021484375),  # 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
        (5, 0, 0.0625),  # 2 / 2^5
        (6, 0, 0.03125),
        (4, 4, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, expected: float) -> None:
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_p_value(only_second, only_first) == mcnemar_p_value(only_first, only_second)


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
        assert (column.difference, column.p_value, column.holm_p_value) == (0, 1, 1)
        # Two images more, which differ: 1.96 sqrt(2 / 502 / 502) of 500.
        assert column.interval == pytest.approx((-0.5522, 0.5522), abs=1e-4)


# ------------------------------------------------------------------------------- against the libraries


def test_a_committed_board_against_statsmodels() -> None:
    results = [digits(name) for name in ("pcl", "fsr", "trades")]
    comparisons = compare(["pcl", "fsr", "trades"], results)
    vectors_of = [columns(result) for result in results]
    for title, first in vectors_of[0].items():
        p_values = []
        for found, others in zip(comparisons, vectors_of[1:], strict=True):
            second = others[title]
            table = np.histogram2d(~first, ~second, bins=2, range=[[0, 1], [0, 1]])[0]
            assert (found[title].only_first, found[title].only_second) == (table[0, 1], table[1, 0])
            assert found[title].p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-12)
            assert found[title].difference == pytest.approx(100 * (first.mean() - second.mean()))
            p_values.append(found[title].p_value)
        corrected = multipletests(p_values, method="holm")[1]
        assert [found[title].holm_p_value for found in comparisons] == pytest.approx(list(corrected))


def test_the_interval_is_that_of_bonett_and_price() -> None:
    """`ci.prop.ps(.05, 12, 4, 26, 6)` of the authors' R package statpsych prints 0.44, 0.2548067 and 0.6251933.

    By hand: (27 - 5) / 50, and 1.959964 sqrt((32 / 50 - 0.44^2) / 50) = 0.1851933 on either side.
    """
    low, high = paired_difference(*vectors(6, 26, 4, 12)).interval
    assert (low, high) == pytest.approx((25.48067, 62.51933), abs=1e-5)


def of_two_classes(name: str, *wrong: int) -> EvaluationResult:
    """Twenty samples, ten of class 0 and ten of class 1: right clean, and under the attack but for these."""
    label = np.repeat(np.array([0, 1], dtype=np.int16), 10)
    broken = label.copy()
    broken[list(wrong)] += 1
    attack = replace(
        example().attacks["AA"], prediction=broken, final_prediction=broken, distance=np.zeros(20, np.float32)
    )
    suite = {**example().suite, "cells": [{"label": "AA"}], "derived": []}
    same = {"label": label, "index": np.arange(20), "clean_prediction": label, "attacks": {"AA": attack}}
    return with_run(replace(example(), suite=suite, **same), model=name)


def three_of_two_classes() -> list[EvaluationResult]:
    return [of_two_classes("A"), of_two_classes("B", *range(6)), of_two_classes("C", *range(5), *range(10, 16))]


def test_classes_are_compared_on_their_own_and_corrected_together() -> None:
    b, c = compare_by_class("ABC", three_of_two_classes(), "AA")
    assert [(one.only_first, one.only_second) for one in (*b.values(), *c.values())] == [(6, 0), (0, 0), (5, 0), (6, 0)]
    assert b[0].accuracies == (100, 40)
    assert [one.p_value for one in (*b.values(), *c.values())] == pytest.approx([1 / 32, 1, 1 / 16, 1 / 32])
    # Sorted: 1/32 times 4; 1/32 times 3, but no less; 1/16 times 2; 1.
    assert [one.holm_p_value for one in (*b.values(), *c.values())] == pytest.approx([1 / 8, 1, 1 / 8, 1 / 8])
    refusal(lambda: compare_by_class("AB", three_of_two_classes()[:2], "A"), "unknown column 'A'. Did you mean 'AA'")


def coverage(samples: int, differing: float, only_first: float) -> float:
    """How often the interval holds the true difference: the sum over all outcomes of `samples` pairs.

    Args:
        samples: pairs that are drawn.
        differing: expected number of pairs in which one model alone is right.
        only_first: share of these in which it is the first.
    """
    share = differing / samples
    held = 0.0
    for count in range(int(binom.ppf(1 - 1e-5, samples, share)) + 1):
        weights = binom.pmf(count, samples, share) * binom.pmf(np.arange(count + 1), count, only_first)
        for first, weight in enumerate(weights):
            if weight > 1e-7:
                low, high = paired_difference(*vectors(samples - count, first, count - first, 0)).interval
                held += weight * (low <= 100 * share * (2 * only_first - 1) <= high)
    return held


@pytest.mark.parametrize("samples", [100, 1000])
@pytest.mark.parametrize(
    ("differing", "only_first"), [(1, 0.5), (1, 1.0), (3, 0.9), (5, 0.5), (5, 0.95), (10, 0.5), (10, 0.8), (10, 1.0)]
)
def test_the_interval_covers_where_few_images_differ(samples: int, differing: float, only_first: float) -> None:
    assert coverage(samples, differing, only_first) >= 0.93


def test_the_interval_is_near_the_normal_one() -> None:
    first, second = vectors(300, 60, 30, 110)
    change = first.astype(float) - second
    half = 196 * change.std() / change.size**0.5
    low, high = paired_difference(first, second).interval
    # 60 and 30 of 500 become 61 and 31 of 502.
    assert (low, high) == pytest.approx((6 - half, 6 + half), abs=0.06)


def test_the_sign_is_symmetric() -> None:
    pcl, fsr = digits("pcl"), digits("fsr")
    (there,), (back,) = compare(["pcl", "fsr"], [pcl, fsr]), compare(["fsr", "pcl"], [fsr, pcl])
    for title, found in there.items():
        assert found.difference == -back[title].difference
        assert (found.only_first, found.only_second) == (back[title].only_second, back[title].only_first)
        assert found.p_value == back[title].p_value
        low, high = back[title].interval
        assert found.interval == pytest.approx((-high, -low))


# ------------------------------------------------------------------------------------------------ refusals


def test_refusals() -> None:
    one = example()
    refusal(lambda: compare(["A"], [one]), "1 result is nothing to compare")
    refusal(lambda: compare(["A", "B"], [single(True), single(False)]), "a sample count of 1 is too small")
    refusal(lambda: compare(["A", "B"], [one, one], titles=["PGD-2"]), "unknown column 'PGD-2'. Did you mean 'PGD-20'")
    for other, reason in (
        (replace(one, index=one.index + 1), "sample set"),
        (
            with_run(replace(single(True), suite=one.suite), dataset_digest="e" * 64),
            "number of samples is 10 for the first and 1 for the second. Evaluate both with the same --limit",
        ),
        (with_run(one, dataset="svhn"), 'dataset is "digits" for the first and "svhn" for the second'),
        (replace(one, suite={**one.suite, "version": 2}), "suite version is 1 for the first and 2 for the second"),
        (with_attack(one, "AA", epsilon="4/255"), "threat model of column 'AA'"),
    ):
        refusal(partial(compare, ["A", "B\n"], [one, other]), r"'A' and 'B\n' do not compare: ", reason)


# -------------------------------------------------------------------------------------------- command line


def run(*arguments: object) -> tuple[int, str]:
    return bench("compare", *arguments)


def test_compare_prints_a_table_and_a_sentence() -> None:
    code, output = run(*(DIGITS / f"{name}-seed-0.h5" for name in ("fsr", "trades", "adv-dpnp")))
    assert code == 0
    found = compare(["fsr", "trades", "adv-dpnp"], [digits(name) for name in ("fsr", "trades", "adv-dpnp")])
    worst = found[1]["Worst case (linf)"]
    low, high = worst.interval
    # Counted in the files by hand: fsr alone stands 45 times, adv-dpnp 13 times; 403 and 371 of 500 stand. A coin falls
    # so unevenly 3.0 times in 100,000.
    cells = ["80.6", "74.2", "+6.4", f"[{low:+.1f}, {high:+.1f}]", "45", "13", "< 0.001", "< 0.001"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    assert ["Worst case (linf)", *cells] in rows
    assert worst.holm_p_value == pytest.approx(2 * 3.0115909629e-05)
    decisive = found[1]["AutoAttack"]
    undecided = found[0]["AutoAttack"]
    assert decisive.holm_p_value < 0.05 < undecided.holm_p_value
    apart = f"cannot be told apart on these 500 samples: difference {undecided.difference:+.1f}"
    assert f"In the column AutoAttack, fsr and trades {apart}" in output
    low, high = decisive.interval
    sentence = (
        f"fsr is better than adv-dpnp by {decisive.difference:.1f} points [{low:.1f}, {high:.1f}], p < 0.001 (Holm, "
    )
    assert f"In the column AutoAttack, {sentence}" in output
    assert "Column Avg" not in output


def test_compare_two_with_one_column() -> None:
    code, output = run(DIGITS / "st-seed-0.h5", DIGITS / "at-seed-0.h5", "--column", "AutoAttack")
    assert code == 0
    assert re.search(r"at is better than st by 66\.2 points \[61\.8, 70\.1\], p < 0\.001\.\n", output)
    assert "Holm" not in output
    assert "| AutoAttack |" in output and "| Clean" not in output


def test_compare_by_class_says_which_classes_tell_models_apart(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.h5" for name in "ABC"]
    for file, result in zip(files, three_of_two_classes(), strict=True):
        write_result(result, file)
    code, output = run(*files, "--by-class")
    assert code == 0
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    assert ["class 1", "100.0", "40.0", "+60.0", "6", "0", "0.0312", "0.125"] in [[*row[:4], *row[5:]] for row in cells]
    assert output.count("In the column AA, no class tells them apart (Holm, 4 tests).") == 2
    code, output = run(*files[:2], "--by-class", "--column", "Clean", "--column", "Worst case")
    assert code == 0
    assert "| Clean:" in output and "| Worst case:" in output
    write_result(of_two_classes("D", *range(8)), files[2])
    assert (
        "In the column AA, classes that tell them apart: 0 (Holm, 2 tests)." in run(files[0], files[2], "--by-class")[1]
    )


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
    # 11 and 1 of 12: (10 - 1.96 sqrt((12 - 100 / 12))) / 12
    assert f"In the column AA, {shown} is better than B by 100.0 points [52.1, 100.0], p = 0.00195." in output
    assert f"The numbers of {shown} cannot be believed." in output
    assert f"- {shown}: masking: {shown} (error)" in output
    assert evil not in output
    assert {line.count("|") for line in output.splitlines() if line.startswith("|")} == {9}


def test_identical_outcomes_are_not_told_apart(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_result(with_run(example(), model=name), tmp_path / f"{name}.h5")
    code, output = run(tmp_path / "A.h5", tmp_path / "B.h5")
    assert code == 0
    assert "A and B cannot be told apart on these 10 samples: difference +0.0 points [-23.1, +23.1], p = 1." in output


def test_corruptions_are_compared_by_the_share_of_versions_that_are_right() -> None:
    # Of ten images: the first model has both versions of one right and one of another; the second model none of those.
    ours = corrupted({"fog": (2, 0), "snow": (1, 0)})
    theirs = corrupted({"fog": (0, 0), "snow": (0, 0)})
    (found,) = compare(["A", "B"], [ours, with_run(theirs, model="B")])
    assert list(found) == ["Avg Acc 2", "Clean", "Severity 1", "Severity 2"]
    mean = found["Avg Acc 2"]
    assert mean.accuracies == (pytest.approx(7.5), 0)
    assert (mean.only_first, mean.only_second, mean.difference) == (2, 0, pytest.approx(7.5))
    # Shares of four versions: 1/2, 1/4 and eight times 0; and two images more, 1 and -1.
    value = 0.75 / 12
    half = norm.ppf(0.975) * ((2.3125 / 12 - value**2) / 12) ** 0.5
    assert mean.interval == pytest.approx((100 * (value - half), 100 * (value + half)))
    assert mean.p_value == pytest.approx(2 * norm.sf(value / half * norm.ppf(0.975)), rel=1e-9)
    assert found["Clean"].p_value == found["Severity 2"].p_value == 1


def test_the_command_compares_results_under_corruptions(tmp_path: Path) -> None:
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file, right in zip(files, (10, 0), strict=True):
        write_result(with_run(corrupted({"fog": (right, right)}), model=file.stem), file)
    code, output = bench("compare", *files)
    assert code == 0
    assert "In the column Avg Acc 1, a is better than b by 100.0 points" in output
    assert "p: of the test that goes with the interval" in output


def test_results_of_features_are_compared_by_their_attack(tmp_path: Path) -> None:
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file in files:
        write_result(featured((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 80.0, 30.0), model=file.stem), file)
    code, output = bench("compare", *files)
    assert code == 0
    assert "In the column AA, a and b cannot be told apart" in output
    assert "FDR" not in output


def test_transfers_from_other_weights_at_the_same_path_do_not_compare() -> None:
    def transferred(name: str, digest: str | None) -> EvaluationResult:
        given = {"source": "runs/at", **({} if digest is None else {"source_digest": digest})}
        return with_attack(with_run(example(), model=name), "AA", parameters=given)

    before, same = [transferred(name, None) for name in "AB"], [transferred(name, "a" * 64) for name in "AB"]
    refuse_mixture("AB", before)
    refuse_mixture("AB", same)
    for other in (transferred("B", "b" * 64), before[1]):
        refusal(partial(refuse_mixture, "AB", [same[0], other]), "parameter 'source_digest' of column 'AA' is")
        assert len(groups_that_compare([*same, other])) == 2


def test_losses_of_ones_own_compare() -> None:
    own = [with_attack(example(), "AA", parameters={"objective_sha256": digit * 64}) for digit in "ab"]
    refuse_mixture("AB", own)
    assert len(groups_that_compare(own)) == 1
