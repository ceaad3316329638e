"""What the record of extra training images says of the images that are evaluated."""

import numpy as np
import pytest

from bench.data.splits import make_split
from bench.trust.extra_data import extra_data

TEST, OTHER = (make_split(np.full((2, 1, 1, 1), value, np.uint8), [0, 1]) for value in (3, 4))
RECORD = {"name": "npz:/home/me/x.npz", "size": 50, "digest": "ab" * 32}


def compared(duplicates, test):
    return {**RECORD, "test_duplicates": duplicates, "test_digest": test.digest()}


@pytest.mark.parametrize(
    ("record", "severity", "value", "told"),
    [
        (compared(0, TEST), "passed", 0, "none of them is a test image"),
        (compared(7, TEST), "error", 7, "7 of them are test images"),
        (compared(7, OTHER), "error", 7, "7 of them are test images"),
        (compared(0, OTHER), "note", 0, "they were compared with other test images than these"),
        (RECORD, "note", None, "whether test images are among them is not recorded"),
    ],
    ids=["none", "some", "some of others", "none of others", "an older record"],
)
def test_the_record_of_extra_images_is_a_finding(record, severity, value, told):
    run = {"training_data": {"name": "cifar10", "extra": record}, "protocol": {"extra_share": 0.7}}
    (found,) = extra_data(run, TEST)
    assert (found["name"], found["severity"], found["value"]) == ("extra-data", severity, value)
    assert found["message"] == f"70 % of each batch from 50 extra images (abababab): {told}"


@pytest.mark.parametrize("run", [{}, {"training_data": {"name": "cifar10"}}])
def test_without_extra_images_there_is_nothing_to_say(run):
    assert extra_data(run, TEST) == []
