"""Boards as data, JSON and CSV: numbers by hand, and nothing in them that a reader could take for something else."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from bench.leaderboard.render.board_data import board_data, page_name
from bench.leaderboard.render.json_csv import render_csv, render_json
from bench.results.file import EvaluationResult, content_digest
from bench.results.findings import finding
from tests.support.example_boards import FEW, OTHER, measured, models, other_data
from tests.support.example_results import SUITE, corrupted, featured, probed, robust, with_attack, with_run


def only_board(*results: EvaluationResult, **options: Any) -> dict[str, Any]:
    (board,) = board_data(results, **options)["boards"]
    return board


def csv_lines(*results: EvaluationResult) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(board_data(results)))))


def percents(accuracies: dict[str, dict[str, float]]) -> dict[str, float]:
    return {title: one["percent"] for title, one in accuracies.items()}


def test_json_holds_percent_interval_trust_and_digest() -> None:
    board = only_board(*models())
    row = next(row for row in board["rows"] if row["name"] == "AT")
    # Wilson: centre (1/2 + z^2/20) / (1 + z^2/10) = 1/2, half width z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.263407
    assert row["accuracies"]["PGD-20"] == {"percent": 50.0, "low": 23.6593, "high": 76.3407}
    assert (row["rank"], row["trust"], row["ranked"]) == ([1, 2], "passed", True)
    assert (row["ranks"]["AA"], row["ranks"]["PGD-20"], board["rank_by"]) == ([1, 2], [1, 2], "AA")
    assert row["results"][0]["digest"] == content_digest(models()[0])
    assert board["attacks"]["PGD-20"]["parameters"] == {"steps": 20, "step_size": "2/255"}
    assert board["attacks"]["AA"]["radius"] == 8 / 255


def test_every_corruption_at_every_severity_with_its_interval() -> None:
    board = only_board(corrupted(FEW))
    row = board["rows"][0]
    assert (board["kind"], board["name"], board["rank_by"]) == ("corruptions", "digits-corruptions-v1", "Avg Acc 2")
    assert (board["threat"], board["threats"]) == ("corruptions", ["corruptions"])
    told = {"set": "CIFAR-10-C", "generated": False, "names": ["fog", "frost"], "severities": [1, 2]}
    assert board["corruptions"] == told
    assert percents(row["corruptions"]) == {"fog-1": 80.0, "fog-2": 40.0, "frost-1": 60.0, "frost-2": 10.0}
    # Wilson at 4 of 10: ((0.4 + z^2/20) -+ z sqrt(0.4 0.6 / 10 + z^2/400)) / (1 + z^2/10)
    assert row["corruptions"]["fog-2"] == {"percent": 40.0, "low": 16.8180, "high": 68.7326}
    assert row["accuracies"]["Avg Acc 2"]["percent"] == 47.5
    assert row["results"][0]["corruptions"] == row["corruptions"]
    unsaid = only_board(corrupted(FEW, corruptions={}))["corruptions"]
    assert (unsaid["set"], unsaid["generated"]) == ("corruptions", False)


def test_features_keep_their_unit_and_the_accuracies_beside_them() -> None:
    data = json.loads(render_json(board_data([featured(OTHER)])), parse_constant=pytest.fail)
    (board,) = data["boards"]
    row = board["rows"][0]
    assert board["kind"] == "features"
    assert (row["features"]["FDR ↓ adv"], row["features"]["MinSep ↑"]) == ({"value": "inf"}, {"value": 70.25})
    assert row["accuracies"]["PGD-20"]["percent"] == 50.0
    assert board["scales"]["FDR ↓ adv"] == {"decimals": 1, "lower_is_better": True, "compares": True}


def test_merged_seeds_keep_each_seed() -> None:
    runs = [with_run(probed(), seed=0), with_run(replace(probed(), clean_prediction=probed().label), seed=1)]
    board = only_board(*runs, merge_seeds=True)
    row = board["rows"][0]
    assert board["seeds"] == [2]
    # 80 and 100: mean 90, standard deviation 10 sqrt(2), of two seeds, which leave any mean
    assert row["accuracies"]["Clean"] == {"percent": 90.0, "low": 0.0, "high": 100.0, "sd": 14.1421}
    assert [result["accuracies"]["Clean"]["percent"] for result in row["results"]] == [80.0, 100.0]
    shown = [corrupted(FEW, seed=0), corrupted({"fog": (8, 2), "frost": (6, 1)}, seed=1)]
    row = only_board(*shown, merge_seeds=True)["rows"][0]
    assert row["corruptions"]["fog-2"] == {"percent": 30.0, "low": 0.0, "high": 100.0, "sd": 14.1421}
    assert [result["corruptions"]["fog-2"]["percent"] for result in row["results"]] == [40.0, 20.0]


def test_accuracy_by_class_is_the_mean_over_seeds() -> None:
    """Of ten images of a class each, one seed has eight right, and three under AA; the other has all, and none."""
    row = only_board(with_run(probed(), seed=0), robust(probed(), 0, seed=1), merge_seeds=True)["rows"][0]
    assert row["classes"]["labels"] == list(range(10))
    assert row["classes"]["accuracies"]["Clean"] == [100.0] * 8 + [50.0] * 2
    assert row["classes"]["accuracies"]["AA"] == [50.0, 50.0, 0.0, 0.0, 50.0] + [0.0] * 5
    assert all("classes" not in only_board(result)["rows"][0] for result in (corrupted(FEW), featured()))


def test_what_does_not_compare_gets_a_board_of_its_own() -> None:
    data = board_data([*models(), other_data()])
    assert [(board["dataset"], len(board["rows"])) for board in data["boards"]] == [("digits", 3), ("npz:mine.npz", 1)]
    assert [board["curves"] for board in data["boards"]] == [[], [["PGD 4/255", "PGD 8/255"]]]
    assert "/home/me" not in render_json(data)


def test_checks_are_told_once_and_an_own_text_stays() -> None:
    own = finding("budget", "passed", "seen") | {"advice": "another"}
    data = board_data([*models(), with_run(probed(findings=(own,)), model="Own")])
    findings = [one for row in data["boards"][0]["rows"] for one in row["results"][0]["findings"]]
    assert data["checks"]["budget"]["meaning"] == finding("budget", "passed", "")["meaning"]
    assert [one["advice"] for one in findings if "advice" in one] == ["another"]


def test_numbers_that_json_lacks_become_text() -> None:
    odd = finding("budget", "passed", "a\nb\u202e", float("nan"), float("inf"))
    text = render_json(board_data([probed(findings=(odd,))]))
    told = json.loads(text, parse_constant=pytest.fail)["boards"][0]["rows"][0]["results"][0]["findings"][0]
    assert (told["value"], told["threshold"], told["message"]) == ("nan", "inf", "a b")


def test_csv_has_a_line_per_model_and_every_corruption_and_feature() -> None:
    lines = csv_lines(*models(), other_data())
    assert [line["name"] for line in lines] == ["TRADES", "AT", "Masked", "Other"]
    assert (lines[1]["PGD-20"], lines[1]["PGD-20 low"], lines[1]["PGD-20 high"]) == ("50.0", "23.6593", "76.3407")
    ranks = [(line["rank by"], line["rank low"], line["rank high"]) for line in lines]
    assert ranks == [("AA", "1", "2"), ("AA", "1", "2"), ("AA", "", ""), ("Worst case", "1", "1")]
    assert (lines[2]["trust"], lines[3]["PGD-20"], lines[3]["PGD 4/255"]) == ("error", "", "30.0")
    assert lines[0]["digests"] == content_digest(models()[1])
    lines = csv_lines(*measured())
    assert [line["name"] for line in lines] == ["AT", "TRADES", "TRADES", "AT"]
    assert (lines[0]["Avg Acc 2"], lines[0]["fog-2"], lines[0]["frost-2"]) == ("47.5", "40.0", "10.0")
    assert (lines[2]["FDR ↓ clean"], lines[2]["FDR ↓ adv"], lines[2]["fog-2"]) == ("0.125", "inf", "")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x","y")'])
def test_a_spreadsheet_sees_no_formula(name: str) -> None:
    suite = {**SUITE, "derived": [{"label": name, "worst_of": ["FGSM"]}]}
    rows = list(csv.reader(io.StringIO(render_csv(board_data([with_run(probed(suite=suite), model=name)])))))
    assert f"'{name}" in rows[0] and f"'{name}" in rows[1]
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]


def test_notes_of_a_row_are_in_data_and_csv() -> None:
    doubtful = with_run(models()[1], evaluation={"precision": "bf16"}, checkpoint="last", epoch=6, finished=False)
    board = only_board(models()[0], doubtful)
    row = next(row for row in board["rows"] if row["name"] == "TRADES")
    told = [board["notes"][number - 1] for number in row["notes"]]
    parts = ("zero on 31 % (warning)", "searched in bf16", "epoch 6 of 110", "Training differs in backbone")
    assert all(part in note for part, note in zip(parts, told, strict=True))
    notes = {line["name"]: line["notes"] for line in csv_lines(models()[0], doubtful)}
    assert notes == {"TRADES": "; ".join(told), "AT": told[-1]}


def test_a_loss_of_ones_own_is_of_a_row_and_no_parameter_of_the_board() -> None:
    given = {"steps": 20, "step_size": "2/255", "objective_sha256": "a" * 64}
    board = only_board(with_attack(probed(), "PGD-20", objective="/home/me/own.py:loss", parameters=given))
    assert board["rows"][0]["results"][0]["objectives"] == {"PGD-20": "own.py:loss [sha256 aaaaaaaa]"}
    assert board["attacks"]["PGD-20"]["parameters"] == {"steps": 20, "step_size": "2/255"}


def test_a_page_name_is_a_file_name_that_says_a_word_once() -> None:
    name = page_name(with_run(probed(suite={"name": "../x\0", "version": 1}), dataset="../../etc/passwd"))
    assert re.fullmatch(r"[\w+-][\w.+-]*", name)
    assert page_name(corrupted(FEW)) == "digits-corruptions-v1"
    weather = replace(corrupted(FEW), suite={"name": "weather", "version": 2})
    assert page_name(weather) == "digits-corruptions-weather-v2"
