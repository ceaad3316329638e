"""Accuracy from distances, and optimality, by hand: `with_distances` has the table."""

import numpy as np
import pytest

from bench.results.distances import attacks_of_norm, nearest_found, optimality, right_at, stored_radius
from bench.results.metrics import correct
from tests.support.example_results import example, with_attack, with_distances
from tests.support.refusals import refusal

INFINITE = float("inf")


def test_the_nearest_found_of_one_attack_and_of_all() -> None:
    result = with_distances()
    assert nearest_found(result, ["FGSM"]) == pytest.approx([*[INFINITE] * 6, 0.4, 0.2, 0, 0])
    best = [INFINITE, INFINITE, 0.5, 0.2, 0.1, 0.1, 0.4, 0.2, 0, 0]
    assert nearest_found(result, attacks_of_norm(result, "linf")) == pytest.approx(best)
    moved = with_attack(result, "AA", norm="l2")
    assert attacks_of_norm(moved, "linf") == ["FGSM", "PGD-20"]
    refusal(lambda: nearest_found(moved, list(moved.attacks)), "distances in l2 and linf do not compare")
    refusal(lambda: nearest_found(moved, ["AB"]), "unknown column 'AB'")


@pytest.mark.parametrize("epsilon", ["8/255", "0.1", "0.3", "1/3", "2000/255"])
def test_at_an_attacks_own_radius_accuracy_is_the_attacks(epsilon: str) -> None:
    # A little beyond the radius, and by one rounding below it: both are at it.
    distance = np.full(10, np.nextafter(np.float32(eval_fraction(epsilon)), np.float32(9)), dtype=np.float32)
    distance[::2] = np.nextafter(np.float32(eval_fraction(epsilon)), np.float32(0))
    result = with_attack(example(), "AA", epsilon=epsilon, distance=distance)
    assert right_at(result, ["AA"], stored_radius(epsilon)).tolist() == correct(result, "AA").tolist()
    assert right_at(result, ["AA"], 0.99 * stored_radius(epsilon)).tolist() == correct(result).tolist()


def eval_fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def test_optimality_by_hand() -> None:
    """Up to 0.5, of ten samples: best area 2.5 / 10; clean accuracy times 0.5: 4 / 10.

    FGSM 3.6: 1 - 1.1 / 1.5. PGD-20 3.3: 1 - 0.8 / 1.5. AA 3.1: 1 - 0.6 / 1.5.
    """
    result = with_distances()
    found = [optimality(result, label) for label in ("FGSM", "PGD-20", "AA")]
    assert found == pytest.approx([1 - 1.1 / 1.5, 1 - 0.8 / 1.5, 0.6], rel=1e-6)


def test_optimality_of_the_best_and_of_an_attack_that_breaks_nothing() -> None:
    result = with_distances()
    alone = with_attack(with_attack(result, "FGSM", norm="l1"), "PGD-20", norm="l2")
    assert optimality(alone, "AA") == 1
    nothing = with_attack(result, "FGSM", prediction=result.label)
    assert optimality(nothing, "FGSM") == 0
    only = with_attack(alone, "FGSM", prediction=result.label)
    refusal(lambda: optimality(only, "FGSM"), "no attack in the norm of 'FGSM' breaks an image")
