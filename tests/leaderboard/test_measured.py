"""Tables of corruptions and features: numbers by hand, order, marks, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.catalogue.corruption_names import ALL_CORRUPTIONS
from bench.errors import BenchError
from bench.leaderboard.markdown import render
from bench.leaderboard.measured import table_of
from bench.leaderboard.tables import build_table
from tests.support.example_results import corrupted, example, featured

FEW = {"fog": (8, 4), "frost": (6, 1)}


def cells(table):
    percents = {row.name: [cell.percent for cell in row.cells] for row in table.rows}
    return {name: dict(zip(table.headers[1:], values, strict=True)) for name, values in percents.items()}


def lines(table):
    return {line.split("|")[2].strip(): [part.strip() for part in line.split("|")[4:-1]] for line in body(table)}


def body(table):
    return [line for line in render(table).splitlines() if line.startswith("|")][2:]


def test_corruptions_by_hand_best_mean_first():
    worse = corrupted({"fog": (8, 1), "frost": (6, 1)}, model="TRADES")
    table = table_of([worse, corrupted(FEW)])
    assert table.headers == ("Model", "Avg Acc 2", "Clean", "Severity 1", "Severity 2")
    found = cells(table)
    assert list(found) == ["AT", "TRADES"]
    assert found["AT"] == pytest.approx({"Avg Acc 2": 47.5, "Clean": 80, "Severity 1": 70, "Severity 2": 25})
    assert found["TRADES"] == pytest.approx({"Avg Acc 2": 40, "Clean": 80, "Severity 1": 70, "Severity 2": 10})
    assert table.title == "CIFAR-10-C, suite corruptions version 1, 10 samples, ranked by Avg Acc 2"
    # Avg Acc 2 of the images of AT: two images with all versions right and two with none are added.
    shares = np.array([1] + [0.75] * 3 + [0.5] * 2 + [0.25] * 2 + [0] * 2 + [1, 1, 0, 0])
    half = 1.959964 * 100 * shares.std() / 14**0.5
    assert table.rows[0].cells[0].interval == pytest.approx((100 * shares.mean() - half, 100 * shares.mean() + half))
    assert [one[:4] for one in lines(table)["AT"]] == ["47.5", "80.0", "70.0", "25.0"]
    assert [one[:4] for one in lines(table)["TRADES"]] == ["40.0", "80.0", "70.0", "10.0"]
    assert "± half the width of its 95 % interval" in render(table)


def test_the_papers_columns_are_named():
    table = table_of([corrupted({name: (10, 6) for name in ALL_CORRUPTIONS})])
    assert table.headers == ("Model", "Avg Acc 19", "mCA 15", "Clean", "Severity 1", "Severity 2")
    assert cells(table)["AT"]["Avg Acc 19"] == pytest.approx(80)


def test_generated_images_are_marked_and_never_beside_published_ones():
    generated = corrupted(FEW, model="X", corruptions={"name": "cifar10-C-gen1", "generated": True, "digest": "f" * 64})
    text = render(table_of([generated]))
    assert text.startswith("## cifar10-C-gen1 (generated), ")
    assert "its numbers are not those of the published CIFAR-10-C files" in text
    with pytest.raises(BenchError, match=r"do not compare: set of corrupted images is \[\"cifar10-C-gen1\", true"):
        table_of([generated, corrupted(FEW)])


def test_other_corruptions_or_other_images_do_not_share_a_table():
    with pytest.raises(BenchError, match="list of corruptions"):
        table_of([corrupted(FEW), corrupted({"fog": (1, 1), "snow": (1, 1)}, model="X")])
    other = corrupted(FEW, model="X", corruptions={"name": "CIFAR-10-C", "generated": False, "digest": "0" * 64})
    with pytest.raises(BenchError, match="set of corrupted images"):
        table_of([corrupted(FEW), other])
    with pytest.raises(BenchError, match=r"do not compare: suite is \"corruptions\" .* and \"tiny\" for the second"):
        table_of([corrupted(FEW), example()])
    uneven = corrupted(FEW)
    uneven = replace(uneven, corruptions={label: uneven.corruptions[label] for label in ("fog-1", "fog-2", "frost-1")})
    with pytest.raises(BenchError, match="has corruptions of unequal severities, or none"):
        table_of([uneven])


def test_seeds_of_corruptions_merge():
    table = table_of([corrupted(FEW, seed=0), corrupted({"fog": (8, 2), "frost": (6, 1)}, seed=1)], "any", True)
    row = table.rows[0]
    assert (row.cells[0].percent, row.cells[0].spread) == (pytest.approx(45.0), pytest.approx(math.sqrt(12.5)))
    assert table.title.endswith(", means over 2 seeds, ranked by Avg Acc 2")
    assert lines(table)["AT"][0].endswith(" (3.5)")


VALUES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 90.0, 80.0)


def test_features_by_hand_lower_is_better_where_the_arrow_says_so():
    other = (0.125, math.inf, 1.5, 1.75, 3.5, 3.0, 95.5, 70.25)
    table = table_of([featured(VALUES), featured(other, model="Adv-DPNP")])
    assert table.headers[1:] == (
        *("FDR ↓ clean", "FDR ↓ adv", "FDR/M² ↓ clean", "FDR/M² ↓ adv"),
        *("AFS ↓ clean", "AFS ↓ adv", "SCR ↑ clean", "SCR ↑ adv"),
        *("MeanSep ↑", "MinSep ↑"),
    )
    assert [row.name for row in table.rows] == ["Adv-DPNP", "AT"]
    # Ten classes: eq. 8 over 100.
    assert tuple(cells(table)["AT"].values()) == (*VALUES[:2], 0.0025, 0.005, *VALUES[2:])
    assert lines(table) == {
        "AT": ["0.2", "0.5", "0.003", "0.005", "1.00", "2.00", "3.00", "4.00", "90.0", "80.0"],
        "Adv-DPNP": ["0.1", "inf", "0.001", "inf", "1.50", "1.75", "3.50", "3.00", "95.5", "70.2"],
    }
    title = "Features of digits, linf 8/255, suite features version 1, 10 samples, ordered by FDR ↓ clean"
    assert table.title == title
    assert any("the last iterate of PGD-20, linf 8/255, of every sample" in note for note in table.notes)


def test_seeds_of_features_merge_infinities_too():
    table = table_of([featured(VALUES, seed=0), featured((math.inf, 1.5, *VALUES[2:]), seed=1)], "any", True)
    first, second = table.rows[0].cells[:2]
    assert (first.percent, first.spread) == (math.inf, None)
    assert (second.percent, second.spread) == (1.0, pytest.approx(math.sqrt(0.5)))


def test_rows_that_cannot_be_believed_are_last_and_never_best():
    fault = {"name": "near-chance", "severity": "error", "message": "guessing"}
    broken = replace(corrupted({"fog": (10, 9), "frost": (9, 9)}, model="X"), findings=(fault,))
    table = table_of([broken, corrupted(FEW)])
    assert [row.name for row in table.rows] == ["AT", "X"]
    assert lines(table)["X †1"][0] == "92.5 (60.4 to 100.0)"
    assert table.rows[1].ranks == {}
    assert table.notes[0] == "X: near-chance: guessing (error)"


def test_what_has_no_such_table_is_one_line():
    with pytest.raises(BenchError, match="'AT' has no features: `bench eval --suite features`"):
        table_of([featured(VALUES), replace(featured(VALUES, seed=1), features=None)])
    with pytest.raises(BenchError, match="was given twice"):
        table_of([corrupted(FEW), corrupted(FEW)])
    with pytest.raises(BenchError, match="hold no attacks"):
        build_table([corrupted(FEW)])
    assert table_of([example()]) == build_table([example()])
