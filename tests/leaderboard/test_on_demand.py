"""Columns on demand: by hand, from the results of `in_pairs` (see tests/results/test_classes.py)."""

import numpy as np
import pytest

from bench.leaderboard.tables.build import build_table
from bench.results.file import write_result
from tests.support.command import bench
from tests.support.example_results import corrupted, featured, in_pairs, robust, with_attack, with_distances, with_run
from tests.support.refusals import refusal

STAGE = np.array([0, 0, 2, 2, 0, 2, 1, 1, 0, 0], dtype=np.int16)


def test_columns_of_classes_and_of_what_broke_first_by_hand() -> None:
    result = with_attack(in_pairs(), "AA", stage=STAGE)
    expected = {
        "AA": 30,
        "AA: class 2": 50,
        "PGD-20: worst class": 0,
        "Clean: worst 30 % of classes": 50,
        "PGD-20: first to break": 20,
        "AA: stage 2": 30,
        "Avg: class 1": 50,
    }
    table = build_table([result], columns=list(expected))
    cells = table.rows[0].cells
    assert {title: cells[title].value for title in table.columns} == expected
    # Wilson at 95 % for 1 of 2: centre 1/2, half width z sqrt(1/2 + z^2 / 4) / (2 + z^2).
    half = 1.959964 * (0.5 + 1.959964**2 / 4) ** 0.5 / (2 + 1.959964**2)
    assert cells["AA: class 2"].interval == pytest.approx((50 - 100 * half, 50 + 100 * half), abs=1e-4)
    assert cells["PGD-20: worst class"].interval is None
    assert any(
        note.startswith("Column PGD-20: worst class: each row's class") and "(2 of AT)" in note for note in table.notes
    )
    assert not any(": " in title for title in build_table([result]).columns)


def test_rows_are_ranked_by_what_ranks_them_without_columns_on_demand() -> None:
    rows = [in_pairs(), with_run(in_pairs(), model="B"), with_run(in_pairs(), model="C", seed=1)]
    plain, asked = (build_table(rows, columns=columns) for columns in (["AA"], ["AA", "AA: class 0"]))
    assert [(row.name, row.ranks["AA"]) for row in plain.rows] == [(row.name, row.ranks["AA"]) for row in asked.rows]
    merged = build_table([rows[0], with_run(in_pairs(), seed=1)], merge_seeds=True, columns=["FGSM: worst class"])
    assert (merged.rows[0].cells["FGSM: worst class"].value, merged.rows[0].cells["FGSM: worst class"].spread) == (0, 0)


def test_corruptions_have_columns_of_classes_too() -> None:
    table = build_table([corrupted({"fog": (2, 1)})], columns=["Avg Acc 1: class 1"])
    assert table.rows[0].cells["Avg Acc 1: class 1"].value == 50


def test_columns_of_distances_by_hand() -> None:
    expected = {
        "FGSM: at 1/5": 70,
        "FGSM: at 0.19": 80,
        "Worst case: at 0.2": 40,
        "Ensemble: at 0.3": 50,
        "AA: at 1": 30,
    }
    table = build_table([with_distances()], columns=[*expected, "AA: optimality"])
    cells = table.rows[0].cells
    assert {title: cells[title].value for title in expected} == expected
    assert cells["AA: optimality"].value == pytest.approx(60)
    assert any("Column AA: at 1: from the distances that were found: an upper bound" in note for note in table.notes)


def test_what_is_no_column_is_refused_in_one_line() -> None:
    result = in_pairs()
    for title, reason in (
        ("AB", "unknown column 'AB'. Did you mean 'AA'"),
        ("AB: class 1", "unknown column 'AB'. Did you mean 'AA'"),
        ("AA: worst clas", "unknown aspect 'worst clas'. Did you mean 'worst class'"),
        ("AA: class 7", "unknown class '7'. Choose from: 0, 1, 2, 3, 4"),
        ("Clean: first to break", "unknown attack 'Clean'"),
        ("AA: stage 1", "no stages are recorded of 'AA'"),
        ("AA: at eps", "radius 'eps' is not a number"),
        ("Clean: at 1/255", "unknown column of attacks 'Clean'"),
        ("Worst case: optimality", "unknown attack 'Worst case'"),
    ):
        refusal(lambda title=title: build_table([result], columns=[title]), reason)
    refusal(lambda: build_table([with_distances()], "final", columns=["AA: at 0.1"]), "without --convention final")
    refusal(lambda: build_table([featured()], columns=["MeanSep ↑: worst class"]), "is not made of outcomes")


def test_the_command_shows_them_on_the_terminal_and_in_markdown(tmp_path) -> None:
    write_result(in_pairs(), tmp_path / "a.h5")
    write_result(robust(in_pairs(), 0, model="ST"), tmp_path / "b.h5")
    asked = ("--columns", "AA, AA: worst class, FGSM: first to break")
    code, output = bench("leaderboard", tmp_path / "a.h5", tmp_path / "b.h5", *asked, "--out", tmp_path / "board.md")
    assert code == 0
    heading = next(line for line in output.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in heading.split("|")[4:7]] == ["AA", "AA: worst class", "FGSM: first to break"]
    assert "AA: worst class" in (tmp_path / "board.md").read_text()
