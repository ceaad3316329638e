"""Outcomes of watched trainings, as rows of a history hold them: by hand, there and back, and refused."""

import numpy as np
import pytest

from bench.results.watched import OUTCOMES, watched_curve, watched_row, watched_text
from tests.support.refusals import refusal

# Of three images: trained on clean, under FGSM, under PGD; then the same of test images. Bits 111 110 100 101 010 000.
RIGHT = np.array([[[1, 1, 1], [1, 1, 0], [1, 0, 0]], [[1, 0, 1], [0, 1, 0], [0, 0, 0]]], dtype=bool)
ROW = {"epoch": 1, **watched_row(RIGHT)}


def test_a_row_has_the_accuracies_and_the_bits_they_are_of():
    third = 100 / 3
    expected = {
        "epoch": 1,
        **{"watched_train_clean": 100.0, "watched_train_fgsm": pytest.approx(2 * third)},
        **{"watched_train_pgd_10": pytest.approx(third), "watched_test_clean": pytest.approx(2 * third)},
        **{"watched_test_fgsm": pytest.approx(third), "watched_test_pgd_10": 0.0},
        # 1111 1010 0101 0100 00, and zeros to the end of the byte.
        OUTCOMES: "fa5400",
    }
    assert expected == ROW
    assert watched_text(ROW) == "clean/FGSM/PGD-10 train 100.0/66.7/33.3 test 66.7/33.3/0.0"


def test_rows_give_back_the_outcomes_of_the_first_epochs():
    other = np.random.default_rng(0).integers(0, 2, RIGHT.shape).astype(bool)
    rows = [ROW, {"epoch": 2, **watched_row(other)}, {"epoch": 3, "clean": 1.0}]
    np.testing.assert_array_equal(watched_curve(rows, 2, 3), [RIGHT, other])


@pytest.mark.parametrize(
    ("row", "epochs", "images"),
    [
        *(
            ({**ROW, OUTCOMES: bad}, 1, 3)
            for bad in (None, 5, "", "fa54", "fa540000", "no hex", ["fa5400"], {}, "ÿ" * 6)
        ),
        *(({**ROW, "epoch": bad}, 1, 3) for bad in (2, "1", None, float("nan"), [1])),
        *((ROW, 1, bad) for bad in (0, -3, 5, 10**30, True, 3.0, "3", None, [3])),
        *((ROW, bad, 3) for bad in (0, -1, 2, 10**9)),
        ({}, 1, 3),
    ],
)
def test_rows_that_do_not_hold_them_are_refused(row, epochs, images):
    assert "history" in refusal(lambda: watched_curve([row], epochs, images))
