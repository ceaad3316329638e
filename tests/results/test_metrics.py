"""Metrics against the table in `example_results.py`, worked out by hand, and against closed formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.catalogue.corruption_names import ALL_CORRUPTIONS, COMMON_CORRUPTIONS
from bench.results.file import EvaluationResult
from bench.results.metrics import (
    clean_accuracy,
    columns,
    correct,
    corruption_columns,
    main_autoattack,
    robust_accuracy,
    severity_accuracies,
    wilson_interval,
    worst_case,
    worst_case_accuracy,
)
from tests.support.example_results import RUN, SUITE, corrupted, example, predictions, record, single, with_attack
from tests.support.refusals import refusal


def right(*samples: int) -> list[bool]:
    return [sample in samples for sample in range(10)]


def test_outcomes_per_sample() -> None:
    result = example()
    assert correct(result).tolist() == right(*range(8))
    assert correct(result, "FGSM").tolist() == right(0, 1, 2, 3, 4, 5)
    assert correct(result, "FGSM", "final").tolist() == right(0, 1, 2, 3, 4, 5, 6)
    assert correct(result, "Ensemble").tolist() == right(0, 1, 2, 3)
    assert worst_case(result).tolist() == right(0, 1)


@pytest.mark.parametrize(
    ("label", "found", "final"), [("FGSM", 0.6, 0.7), ("PGD-20", 0.5, 0.6), ("AA", 0.3, 0.3), ("Ensemble", 0.4, 0.6)]
)
def test_accuracies(label: str, found: float, final: float) -> None:
    assert robust_accuracy(example(), label) == found
    assert robust_accuracy(example(), label, "final") == final


def test_worst_case_is_per_sample_not_a_minimum() -> None:
    assert clean_accuracy(example()) == 0.8
    assert worst_case_accuracy(example()) == 0.2
    assert worst_case_accuracy(example(), convention="final") == 0.3
    assert worst_case_accuracy(example(), ["FGSM", "AA"]) == 0.3
    assert worst_case_accuracy(example(), []) == 0.8


def autoattack_of(result: EvaluationResult) -> str | None:
    found = main_autoattack(result)
    return found and found.label


def test_the_main_autoattack_is_under_the_main_threat_model() -> None:
    assert autoattack_of(example()) == "AA"
    assert autoattack_of(with_attack(example(), "AA", norm="l2")) is None
    assert autoattack_of(with_attack(example(), "AA", epsilon="4/255")) is None
    assert autoattack_of(with_attack(example(), "AA", attack="pgd")) is None
    assert autoattack_of(single(True)) is None
    moved = with_attack(example(suite={**SUITE, "threat": {"norm": "l2", "epsilon": "1/2"}}), "AA", norm="l2")
    assert autoattack_of(with_attack(moved, "AA", epsilon="1/2")) == "AA"


def test_the_main_autoattack_without_a_stated_threat_follows_the_first_attack() -> None:
    suite = {key: value for key, value in SUITE.items() if key != "threat"}
    assert autoattack_of(example(suite=suite)) == "AA"
    assert autoattack_of(with_attack(example(suite=suite), "FGSM", norm="l1")) is None


def test_columns_in_suite_order() -> None:
    found = {title: round(float(outcomes.mean()), 9) for title, outcomes in columns(example()).items()}
    assert list(found.items()) == [
        ("Clean", 0.8),
        ("Worst case", 0.2),
        ("FGSM", 0.6),
        ("PGD-20", 0.5),
        ("AA", 0.3),
        ("Ensemble", 0.4),
    ]
    assert list(columns(single(False))) == ["Clean", "Worst case"]


def closed_formula(successes: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson 1927: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share = successes / total
    centre = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (centre - reach) / scale, (centre + reach) / scale


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 10), (5, 10), (348, 500), (10_000, 10_000)])
def test_wilson_interval_is_the_closed_formula(successes: int, total: int) -> None:
    assert wilson_interval(successes, total) == pytest.approx(closed_formula(successes, total), abs=1e-12)


def test_wilson_interval_at_another_confidence() -> None:
    assert wilson_interval(5, 10, 0.99) == pytest.approx(closed_formula(5, 10, 2.5758293035489004), abs=1e-12)
    refusal(lambda: wilson_interval(0, 0), "0 of 0 samples")
    refusal(lambda: wilson_interval(3, 2), "3 of 2 samples")


@pytest.mark.parametrize(
    ("derived", "expected"),
    [
        ([{"label": "E", "worst_of": ["FGSN"]}], "Did you mean 'FGSM'"),
        ([{"label": "E"}], "not of the form"),
        ([{"label": "E", "worst_of": []}, {"label": "E", "worst_of": []}], "not of the form"),
        ([{"label": "E", "worst_of": "FGSM"}], "suite.derived[0].worst_of is not an array"),
        ([{"label": 1}], "suite.derived[0].label is not a text"),
        ("E", "suite.derived is not an array"),
        ([{"label": "AA", "worst_of": ["FGSM"]}], "two columns 'AA'"),
        ([{"label": "Worst case", "worst_of": ["FGSM"]}], "two columns 'Worst case'"),
    ],
)
def test_malformed_derived_columns(derived: object, expected: str) -> None:
    refusal(lambda: columns(example(suite={**SUITE, "derived": derived})), expected)


def test_an_attack_cannot_take_a_reserved_title() -> None:
    taken = {"Clean": record("Clean", "pgd", (), ())}
    refusal(lambda: columns(example(attacks=taken, suite={})), "two columns 'Clean'")


def test_no_samples_no_accuracy() -> None:
    empty = predictions()[:0]
    nothing = EvaluationResult(RUN, {}, empty, np.zeros(0, dtype=np.int64), empty, {})
    refusal(lambda: clean_accuracy(nothing), "no samples")


def means_of(result: EvaluationResult) -> dict[str, float]:
    """The columns that are means over severities."""
    columns = corruption_columns(result)
    return {title: float(np.mean(shares)) for title, shares in columns.items() if title.startswith(("Avg", "mCA"))}


def test_corruptions_by_hand() -> None:
    result = corrupted({"fog": (8, 4), "frost": (6, 1), "snow": (10, 0)})
    assert severity_accuracies(result) == {1: pytest.approx(2.4 / 3), 2: pytest.approx(0.5 / 3)}
    assert means_of(result) == {"Avg Acc 3": pytest.approx(2.9 / 6)}
    assert clean_accuracy(result) == 0.8
    assert severity_accuracies(corrupted({"fog": (8, 4)})) == {1: 0.8, 2: 0.4}


def test_the_named_means_are_over_fifteen_and_nineteen() -> None:
    common = {name: (10, 6) for name in COMMON_CORRUPTIONS}
    assert means_of(corrupted(common)) == {"Avg Acc 15": pytest.approx(0.8), "mCA 15": pytest.approx(0.8)}
    extra = {name: (1, 0) for name in ALL_CORRUPTIONS if name not in common}
    assert len(extra) == 4
    means = means_of(corrupted({**common, **extra}))
    assert means == {"mCA 15": pytest.approx(0.8), "Avg Acc 19": pytest.approx((15 * 1.6 + 4 * 0.1) / 38)}
    assert list(means) == ["Avg Acc 19", "mCA 15"]


def test_a_corruption_that_is_right_where_the_clean_image_is_wrong_counts() -> None:
    assert severity_accuracies(corrupted({"fog": (9, 0)})) == {1: 0.9, 2: 0.0}


def test_a_severity_that_is_missing_leaves_no_mean() -> None:
    result = corrupted({"fog": (8, 4), "frost": (6, 1)})
    lacking = {label: shown for label, shown in result.corruptions.items() if label != "frost-2"}
    refusal(lambda: means_of(replace(result, corruptions=lacking)), "corruptions of unequal severities")
