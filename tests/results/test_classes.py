"""Classes, confusions and first breakers, by hand.

`in_pairs` has two samples a class. Right, by class 0 to 4: clean 2 2 2 2 0; FGSM 2 2 2 0 0; PGD-20 2 2 0 1 0;
AA 2 0 1 0 0; in the worst case 2 0 0 0 0.
"""

from dataclasses import replace

import numpy as np
import pytest

from bench.results.classes import (
    broken_by_stage,
    class_accuracies,
    confusion,
    first_broken,
    of_class,
    worst_class,
    worst_prediction,
    worst_share_accuracy,
)
from bench.results.metrics import columns
from tests.support.example_results import example, in_pairs, with_attack
from tests.support.refusals import refusal


def chosen(outcomes: np.ndarray) -> list[int]:
    return np.flatnonzero(outcomes).tolist()


def test_accuracies_by_class() -> None:
    result = in_pairs()
    found = {title: class_accuracies(result, outcomes) for title, outcomes in columns(result).items()}
    assert found["Clean"] == {0: 1, 1: 1, 2: 1, 3: 1, 4: 0}
    assert found["PGD-20"] == {0: 1, 1: 1, 2: 0, 3: 0.5, 4: 0}
    assert found["Worst case"] == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0}
    assert [worst_class(found[title]) for title in ("Clean", "PGD-20", "FGSM")] == [4, 2, 3]
    assert chosen(of_class(result, 3)) == [6, 7]
    refusal(lambda: of_class(result, 5), "unknown class '5'. Choose from: 0, 1, 2, 3, 4")


def test_classes_without_samples_have_no_accuracy_and_shares_of_outcomes_are_averaged() -> None:
    result = replace(in_pairs(), label=np.repeat(np.array([7, 3], dtype=np.int16), 5))
    assert class_accuracies(result, np.linspace(0, 0.9, 10)) == pytest.approx({3: 0.7, 7: 0.2})


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [([0.5], 0.5), ([0.4, 0.2, 0.9], 0.2), ([0.1, 0.5, 0.9, 0.9, 0.3], 0.2), ([n / 10 for n in range(10)], 0.1)],
)
def test_the_worst_three_in_ten_classes(accuracies: list[float], expected: float) -> None:
    """One of one, one of three, two of five, three of ten."""
    assert worst_share_accuracy(dict(enumerate(accuracies))) == pytest.approx(expected)


def test_what_broke_each_sample_first() -> None:
    found = first_broken(in_pairs())
    assert {label: chosen(outcomes) for label, outcomes in found.items()} == {
        "FGSM": [6, 7],
        "PGD-20": [4, 5],
        "AA": [2, 3],
    }
    other = first_broken(in_pairs(), ["AA", "FGSM"])
    assert {label: chosen(outcomes) for label, outcomes in other.items()} == {"AA": [2, 3, 5, 6, 7], "FGSM": []}
    final = first_broken(example(), convention="final")
    assert {label: chosen(outcomes) for label, outcomes in final.items()} == {
        "FGSM": [7],
        "PGD-20": [5],
        "AA": [2, 3, 6],
    }


def test_what_each_stage_of_a_cascade_broke() -> None:
    # The stage of sample 8, which is wrong already, and of sample 4, which stands, count for nothing.
    stage = np.array([0, 0, 2, 2, 1, 2, 1, 1, 1, 0], dtype=np.int16)
    result = with_attack(in_pairs(), "AA", stage=stage)
    assert [chosen(broken_by_stage(result, "AA", number)) for number in (1, 2, 3)] == [[6, 7], [2, 3, 5], []]
    refusal(lambda: broken_by_stage(result, "FGSM", 1), "no stages are recorded of 'FGSM'")
    refusal(lambda: broken_by_stage(result, "AB", 1), "unknown column 'AB'")


def test_which_class_is_taken_for_which() -> None:
    result = in_pairs()
    assert worst_prediction(result).tolist() == [0, 0, 2, 2, 3, 3, 4, 4, 0, 0]
    counted = confusion(result, worst_prediction(result))
    assert (counted.true, counted.predicted) == ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4))
    assert counted.counts.tolist() == (2 * np.eye(5, dtype=int)[[0, 2, 3, 4, 0]]).tolist()


def test_no_class_and_a_class_that_no_sample_has_are_columns_of_their_own() -> None:
    prediction = in_pairs().attacks["AA"].prediction.copy()
    prediction[2:4] = -1, 9
    result = with_attack(in_pairs(), "AA", prediction=prediction)
    counted = confusion(result, worst_prediction(result))
    assert counted.predicted == (-1, 0, 1, 2, 3, 4, 9)
    assert counted.counts[1].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert counted.counts.sum() == 10


def test_a_table_of_more_than_a_thousand_classes_is_refused() -> None:
    label = np.arange(1001, dtype=np.int16)
    result = replace(example(), label=label, index=label.astype(np.int64), clean_prediction=label, attacks={})
    refusal(lambda: confusion(result, label), "1001 classes are too many for a table")
