"""The README's board of `make demo`: its intervals are those of its digits, and a demo made here agrees within them.

Another processor rounds differently and trains other weights, so digits differ and intervals overlap.
"""

import re

import numpy as np
import pytest

from bench.leaderboard.wording.intervals import error_text
from bench.results.estimates import mean_estimate
from bench.results.metrics import wilson_interval
from tests import ROOT

COUNT = 500
ACCURACY = re.compile(r"(\d+\.\d) (?:± (\d+\.\d)|\((\d+\.\d) to (\d+\.\d)\))")


def accuracies(text):
    """Of the first table of a page, by model and column: percent, and the interval's low and high end."""
    table = re.search(r"^\|(?:.*\|\n)+", text, re.MULTILINE)[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
    found = {}
    for row in rows:
        for title, cell in zip(header, row, strict=True):
            if shown := ACCURACY.search(cell):
                percent, half, low, high = (float(number or 0) for number in shown.groups())
                ends = (percent - half, percent + half) if shown[2] else (low, high)
                found[row[header.index("Model")], title] = (percent, *ends)
    return found


def disagreements(first, second):
    """Cells of which one has no counterpart, or whose intervals do not overlap."""
    apart = [
        cell
        for cell in first.keys() & second.keys()
        if first[cell][2] < second[cell][1] or second[cell][2] < first[cell][1]
    ]
    return sorted([*(first.keys() ^ second.keys()), *apart])


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_intervals_are_those_of_500_digits(readme):
    shown = accuracies(readme)
    assert len(shown) == 3 * 6
    for (model, title), (percent, low, high) in shown.items():
        right, clean, robust = (round(one * COUNT / 100) for one in (percent, *alone(shown, model)))
        if title == "Avg":  # of an image 1, 1/2 or 0: what stands under AutoAttack is right clean
            shares = np.repeat([1.0, 0.5, 0.0], [robust, clean - robust, COUNT - clean])
            assert percent == pytest.approx(100 * shares.mean(), abs=1e-9)
            exact = tuple(100 * float(end) for end in mean_estimate(shares[None]).interval(0.0, 1.0))
        else:
            assert percent == pytest.approx(100 * right / COUNT, abs=1e-9)
            exact = tuple(100 * end for end in wilson_interval(right, COUNT))
        assert error_text(percent, exact) == error_text(percent, (low, high))


def alone(shown, model):
    """Percent right on clean images, and under AutoAttack."""
    return [shown[model, title][0] for title in ("Clean", "AutoAttack")]


def test_other_digits_agree_and_another_outcome_does_not(readme):
    shown = accuracies(readme)
    assert shown["at", "PGD-20"] == (78.0, pytest.approx(74.4), pytest.approx(81.6))
    other = readme.replace("78.0 ± 3.6", "71.0 ± 4.0")
    assert disagreements(shown, accuracies(other)) == []
    other = other.replace("71.0 ± 4.0", "69.6 ± 4.0").replace("15.4 ± 3.2", "1.0 (0.4 to 2.3)")
    assert disagreements(shown, accuracies(other)) == [("at", "PGD-20"), ("st", "PGD-20")]
    columns = [title for model, title in shown if model == "at"]
    renamed = disagreements(shown, accuracies(readme.replace("| at ", "| mart ", 1)))
    assert renamed == sorted((model, title) for model in ("at", "mart") for title in columns)


def test_a_demo_made_here_agrees_with_the_readme(readme):
    board = ROOT / "demo" / "leaderboard.md"
    if not board.is_file():
        pytest.skip("no demo was made here (make demo)")
    assert disagreements(accuracies(readme), accuracies(board.read_text(encoding="utf-8"))) == []
