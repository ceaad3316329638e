"""Checks on the training of a checkpoint: curves made by hand, whose answers are known, and histories that lie."""

import json

import numpy as np
import pytest
from scipy import stats

from bench.results.watched import OUTCOMES, watched_row
from bench.trust.watched_training import curve_findings, training_findings

COUNT = 200
FIRED = {"catastrophic-overfitting": "warning", "robust-overfitting": "note"}


def epoch(test_pgd, test_fgsm=None, train_pgd=100, train_fgsm=100):
    """The first so many of the images are right; all of them clean."""
    rights = [[COUNT, train_fgsm, train_pgd], [COUNT, test_pgd if test_fgsm is None else test_fgsm, test_pgd]]
    return np.arange(COUNT) < np.array(rights)[..., None]


def fired(curve):
    return [one["name"] for one in curve_findings(np.stack(curve)) if one["severity"] != "passed"]


ROBUST, COLLAPSED = epoch(80, 100), epoch(4, 180, train_pgd=4, train_fgsm=190)
CURVES = {
    "one epoch": ([epoch(80)], []),
    "rising": ([epoch(40 + 10 * number, train_pgd=100 + 8 * number) for number in range(10)], []),
    "the peak is the last": ([epoch(20, train_pgd=100), epoch(80, train_pgd=150)], []),
    "test falls, train rises": ([epoch(60), epoch(80), epoch(40, train_pgd=160)], ["robust-overfitting"]),
    "test falls, train stays": ([epoch(60), epoch(80), epoch(40, train_pgd=100)], []),
    "test falls, train rises by one": ([epoch(60), epoch(80), epoch(40, train_pgd=101)], []),
    "both fall": ([epoch(60), epoch(80), epoch(40, train_pgd=60)], []),
    "a little less": ([epoch(60), epoch(80), epoch(78, train_pgd=160)], []),
    "collapse": ([epoch(60, 90), ROBUST, COLLAPSED], ["catastrophic-overfitting"]),
    "collapse, then robust again": ([ROBUST, COLLAPSED, ROBUST], []),
    "diverged": ([ROBUST, epoch(4, 10, train_pgd=4)], []),
    "a fall by less than half": ([ROBUST, epoch(50, 180, train_pgd=60)], []),
    "never robust": ([epoch(4, 100), epoch(2, 150), epoch(3, 180)], []),
    "nothing stands": ([epoch(0, 0)] * 3, []),
}


@pytest.mark.parametrize(("curve", "names"), CURVES.values(), ids=CURVES)
def test_each_course_raises_its_own_check_and_no_other(curve, names):
    assert fired(curve) == names
    severities = {one["name"]: one["severity"] for one in curve_findings(np.stack(curve))}
    assert severities == {name: FIRED[name] if name in names else "passed" for name in FIRED}


def test_a_finding_says_what_was_seen():
    collapse, overfitting = curve_findings(np.stack([epoch(60, 90), ROBUST, COLLAPSED]))
    start = "from epoch 2 to 3"
    assert collapse["message"] == f"{start} test images: 40.0 to 2.0 % under PGD-10, 50.0 to 90.0 % under FGSM"
    assert (collapse["value"], collapse["threshold"]) == pytest.approx((0.38, 0.2))
    told = f"{start} under PGD-10: 40.0 to 2.0 % of test images, 50.0 to 2.0 % of training images"
    assert overfitting["message"] == told
    assert (overfitting["value"], overfitting["threshold"]) == (pytest.approx(0.38), 0.0)


def lower_end(lost, miss):
    """Of a fall by which `lost` images are lost and none won: the limits are Clopper and Pearson's, from tails."""
    low = stats.binomtest(lost, COUNT, alternative="greater").proportion_ci(1 - miss, "exact").low
    most_won = 1 - miss ** (1 / COUNT)  # of none of so many
    return lost / COUNT - np.hypot(lost / COUNT - low, most_won)


@pytest.mark.parametrize("before", [1, 2, 20])
def test_the_peak_of_many_epochs_must_lie_farther_above(before):
    """By intervals that miss with 5 % divided by the number of epochs before."""
    least = next(lost for lost in range(2, 50) if lower_end(lost, 0.05 / before) > 0)
    for lost, names in ((least - 1, []), (least, ["robust-overfitting"])):
        assert fired([*[epoch(80)] * before, epoch(80 - lost, train_pgd=180)]) == names
    assert least == {1: 4, 2: 5, 20: 9}[before]


def test_equal_epochs_seldom_seem_worse_than_their_peak():
    """Every epoch is right on an image by its own coin: none is better, and at most one training in twenty says so."""
    draws = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        curve = draws.random((20, 2, 3, 100)) < 0.5
        curve[:, 0, 2] = False
        curve[-1, 0, 2] = True  # training images rise whenever they are asked
        alarms += fired(curve) == ["robust-overfitting"]
    assert alarms <= 200 * 0.05


# ------------------------------------------------------------------------------------------ the run folder

HISTORY = [epoch(60), epoch(80), epoch(40, train_pgd=160)]
ROWS = [{"epoch": number, "clean": 1.0, **watched_row(right)} for number, right in enumerate(HISTORY, 1)]


@pytest.fixture
def run(tmp_path):
    write(tmp_path, ROWS)
    return tmp_path


def write(folder, rows):
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(run, place="last", **recorded):
    description = {"watch": COUNT, "epoch": 3, **recorded}
    return [(one["name"], one["severity"]) for one in training_findings(run / place / "model.safetensors", description)]


PASSED = [(name, "passed") for name in FIRED]


def test_the_history_counts_up_to_the_epoch_of_the_checkpoint(run):
    assert asked(run) == [("catastrophic-overfitting", "passed"), ("robust-overfitting", "note")]
    assert asked(run, "best", epoch=2) == PASSED


def test_nothing_is_said_where_no_curve_is_of_these_weights(run):
    assert asked(run, "copied") == []
    assert asked(run, "average", weights="average") == []
    description = {"epoch": 3}
    assert training_findings(run / "last" / "model.safetensors", description) == []
    (run / "history.jsonl").unlink()
    assert asked(run) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]\n", "5\n", "null\n" * 3, "[" * 100_000, "\x00", json.dumps({OUTCOMES: "00"}), json.dumps(ROWS[0])],
)
def test_a_history_that_cannot_be_read_is_a_note(run, text):
    (run / "history.jsonl").write_text(text)
    assert asked(run) == [(name, "note") for name in FIRED]


@pytest.mark.parametrize("watch", ["many", None, -1, 10**30, 1.5, [COUNT]])
def test_a_record_that_does_not_fit_the_history_is_a_note(run, watch):
    assert asked(run, watch=watch) == [(name, "note") for name in FIRED]
