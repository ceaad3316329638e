"""Tables: numbers by hand, order, notes, merged seeds and refusals, of attacks, corruptions and features."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.catalogue.corruption_names import ALL_CORRUPTIONS
from bench.errors import BenchError
from bench.leaderboard.render.markdown import render
from bench.leaderboard.tables.attacks import radius_families
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.table import Cell, LeaderboardTable
from bench.results.file import EvaluationResult
from tests import GOLDENS
from tests.support.example_results import (
    FEATURES,
    SUITE,
    corrupted,
    example,
    featured,
    predictions,
    probed,
    robust,
    with_attack,
    with_run,
)

FEW = {"fog": (8, 4), "frost": (6, 1)}


def finding(severity: str, message: str) -> dict[str, str]:
    return {"name": "masking", "severity": severity, "message": message}


def board() -> list[EvaluationResult]:
    """AT; a better TRADES that a warning marks; an undefended ST; a model whose numbers are not to be believed."""
    trades = with_attack(with_run(probed(), model="TRADES"), "AA", prediction=predictions(0, 1, 2, 3))
    return [
        with_attack(probed(), "AA", objective="adaptive"),
        replace(
            robust(probed(), 10, model="Masked"), findings=(finding("error", "zero gradients"), finding("note", "x"))
        ),
        robust(probed(), 0, model="ST"),
        replace(trades, findings=(finding("warning", "more steps\nstill help"),)),
    ]


def values(table: LeaderboardTable) -> dict[str, list[float]]:
    return {row.name: [row.cells[title].value for title in table.columns] for row in table.rows}


def half_of_shares(*shares: float) -> float:
    """Half of the interval, in points, of the mean of these, two right and two wrong images added."""
    counted = np.array([*shares, 1, 1, 0, 0])
    return 195.9964 * float(counted.std()) / len(counted) ** 0.5


# ------------------------------------------------------------------------------------------------- attacks


def test_golden_board() -> None:
    assert render(build_table(board())) == (GOLDENS / "board.md").read_text(encoding="utf-8")


def test_numbers_and_order() -> None:
    table = build_table(board())
    # TRADES ascended another loss in AA, which so ranks none.
    assert table.rank_by == "Worst case" and not table.columns["AA"].compares
    assert list(table.columns) == ["Clean", "Worst case", "FGSM", "PGD-20", "AA", "Ensemble", "Avg"]
    assert list(values(table)) == ["TRADES", "AT", "ST", "Masked"]
    assert [(row.ranked, row.notes) for row in table.rows] == [(True, (1,)), (True, ()), (True, ()), (False, (2,))]
    # Of ten samples, TRADES has two right that AT has not, and four that ST has not: p = 1/2 and 1/8.
    assert [row.ranks.get("Worst case") for row in table.rows] == [(1, 3), (1, 3), (1, 3), None]
    assert values(table)["AT"] == [80, 20, 60, 50, 30, 40, 55]
    # Avg: 0 or 1/2 or 1 of each image.
    average = table.rows[1].cells["Avg"]
    half = half_of_shares(1, 1, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 0, 0)
    assert average.interval == pytest.approx((100 * 7.5 / 14 - half, 100 * 7.5 / 14 + half), abs=1e-3)
    # Wilson at 5 of 10: z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.263407
    assert table.rows[1].cells["PGD-20"].half_width == pytest.approx(26.3407, abs=1e-4)


def test_some_columns_in_the_order_asked_for() -> None:
    whole, table = build_table(board()), build_table(board(), columns=["AA", "Clean", "AA"])
    assert values(table)["AT"] == [30, 80]
    assert (table.rows, table.notes) == (whole.rows, whole.notes)
    assert list(table.columns.items()) == [(title, whole.columns[title]) for title in ("AA", "Clean")]
    with pytest.raises(BenchError, match=r"'PGD20'.*'PGD-20'.*AA, Avg, Clean"):
        build_table(board(), columns=["PGD20"])


def test_final_convention() -> None:
    table = build_table([example()], "final")
    assert values(table)["AT"] == [80, 30, 70, 60, 30, 60, 55]
    assert "convention final" in table.title


def test_clean_accuracy_settles_a_tie() -> None:
    lower = with_run(example(clean_prediction=predictions(*range(7))), model="A")
    assert list(values(build_table([lower, example()]))) == ["AT", "A"]


def test_an_own_column_cannot_be_called_avg() -> None:
    with pytest.raises(BenchError, match=r"'Avg'.*another label"):
        build_table([example(suite={**SUITE, "derived": [{"label": "Avg", "worst_of": ["AA"]}]})])


def test_one_attack_at_several_radii_is_a_family() -> None:
    half = {"attack": "fgsm", "parameters": {}, "epsilon": "4/255"}
    result = with_attack(with_attack(example(), "PGD-20", **half), "AA", **{**half, "epsilon": "12/765"})
    assert [[record.label for record in family] for family in radius_families(result)] == [["PGD-20", "FGSM"]]
    assert radius_families(example()) == []
    other = with_attack(result, "PGD-20", objective="adaptive", epsilon="1/255")
    assert radius_families(other) == [[result.attacks["AA"], result.attacks["FGSM"]]]


# ----------------------------------------------------------------------------------------- corruptions, features


def test_corruptions_by_hand_best_mean_first() -> None:
    table = build_table([corrupted({"fog": (8, 1), "frost": (6, 1)}, model="TRADES"), corrupted(FEW)])
    assert list(table.columns) == ["Avg Acc 2", "Clean", "Severity 1", "Severity 2"]
    assert list(values(table)) == ["AT", "TRADES"]
    assert values(table)["AT"] == pytest.approx([47.5, 80, 70, 25])
    assert values(table)["TRADES"] == pytest.approx([40, 80, 70, 10])
    assert table.title == "CIFAR-10-C, suite corruptions version 1, 10 samples, ranked by Avg Acc 2"
    half = half_of_shares(1, 0.75, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0, 0)
    assert table.rows[0].cells["Avg Acc 2"].interval == pytest.approx((675 / 14 - half, 675 / 14 + half), abs=1e-3)


def test_the_papers_columns_are_named() -> None:
    table = build_table([corrupted({name: (10, 6) for name in ALL_CORRUPTIONS})])
    assert list(table.columns) == ["Avg Acc 19", "mCA 15", "Clean", "Severity 1", "Severity 2"]
    assert values(table)["AT"][0] == pytest.approx(80)


def test_generated_images_are_marked_and_never_beside_published_ones() -> None:
    generated = corrupted(FEW, model="X", corruptions={"name": "cifar10-C-gen1", "generated": True, "digest": "f" * 64})
    table = build_table([generated])
    assert table.title.startswith("cifar10-C-gen1 (generated), ")
    assert any("not those of the published" in note for note in table.notes)
    with pytest.raises(BenchError, match=r'set of corrupted images.*"cifar10-C-gen1", true'):
        build_table([generated, corrupted(FEW)])


def test_features_by_hand_lower_is_better_where_the_arrow_says_so() -> None:
    table = build_table([featured(), featured((0.125, math.inf, 1.5, 1.75, 3.5, 3.0, 95.5, 70.25), model="Adv-DPNP")])
    titles = "FDR ↓ clean, FDR ↓ adv, FDR/M² ↓ clean, FDR/M² ↓ adv, AFS ↓ clean, AFS ↓ adv, SCR ↑ clean, SCR ↑ adv, "
    assert ", ".join(table.columns) == titles + "MeanSep ↑, MinSep ↑"
    assert [title for title, column in table.columns.items() if column.lower_is_better] == list(table.columns)[:6]
    # Ten classes: eq. 8 over 100.
    assert values(table) == {
        "Adv-DPNP": [0.125, math.inf, 0.00125, math.inf, 1.5, 1.75, 3.5, 3.0, 95.5, 70.25],
        "AT": [*FEATURES[:2], 0.0025, 0.005, *FEATURES[2:]],
    }
    assert table.title.startswith(
        "Features of digits, linf 8/255, suite features version 1, 10 samples, ordered by FDR"
    )
    assert any("the last iterate of PGD-20, linf 8/255, of every sample" in note for note in table.notes)


def test_rows_that_cannot_be_believed_are_last_and_never_best() -> None:
    broken = corrupted({"fog": (10, 9), "frost": (9, 9)}, model="X")
    table = build_table([replace(broken, findings=(finding("error", "guessing"),)), corrupted(FEW)])
    assert values(table) == {"AT": pytest.approx([47.5, 80, 70, 25]), "X": pytest.approx([92.5, 80, 95, 90])}
    assert table.rows[1].ranks == {}
    assert table.notes[0] == "X: masking: guessing (error)"


# ------------------------------------------------------------------------------------------------ refusals

MIXED: list[tuple[Callable[[EvaluationResult], dict[str, Any]], str]] = [
    (lambda one: {"suite": {**SUITE, "name": "full"}}, 'suite is "tiny" .* "full"'),
    (lambda one: {"suite": {**SUITE, "version": 2}}, "suite version is 1 .* 2 "),
    (lambda one: {"suite": {**SUITE, "derived": []}}, "derived columns"),
    (lambda one: {"run": {**one.run, "dataset": "svhn"}}, 'dataset is "digits" .* "svhn"'),
    (lambda one: {"run": {**one.run, "dataset_digest": "e" * 64}}, "dataset digest"),
    (lambda one: {"index": one.index + 1}, "sample set"),
    (lambda one: {"label": predictions(0)}, "sample set"),
    (lambda one: {"attacks": {"AA": one.attacks["AA"]}}, "list of attacks"),
    (lambda one: vars(with_attack(one, "AA", epsilon="4/255")), 'column \'AA\' is "linf 8/255" .* "linf 4/255"'),
    (lambda one: vars(with_attack(one, "AA", norm="l2")), "threat model of column 'AA'"),
    (lambda one: vars(with_attack(one, "AA", attack="pgd")), "attack of column 'AA'"),
    (lambda one: vars(with_attack(one, "PGD-20", parameters={"steps": 20, "step_size": "1/255"})), "'step_size' of"),
    (lambda one: vars(with_attack(one, "PGD-20", parameters={"steps": 20})), "not set for the second"),
    (lambda one: vars(with_attack(one, "AA", parameters={"norm": "x"})), "not set for the first"),
]


@pytest.mark.parametrize(("change", "expected"), MIXED)
def test_what_does_not_compare_is_refused(change: Callable[[EvaluationResult], dict[str, Any]], expected: str) -> None:
    other = with_run(example(), model="B\nC")
    with pytest.raises(BenchError, match=f"^[^\n]*'AT' and 'B.*C'[^\n]*{expected}[^\n]*$"):
        build_table([example(), replace(other, **change(other))])


def test_what_a_table_cannot_show_is_refused() -> None:
    uneven = corrupted(FEW)
    uneven = replace(uneven, corruptions={label: uneven.corruptions[label] for label in ("fog-1", "fog-2", "frost-1")})
    other = corrupted(FEW, model="X", corruptions={"name": "CIFAR-10-C", "generated": False, "digest": "0" * 64})
    for results, told in (
        ([], "no result to show"),
        ([example(), with_run(example(), created="later")], "given twice"),
        ([corrupted(FEW), corrupted({"fog": (1, 1), "snow": (1, 1)}, model="X")], "list of corruptions"),
        ([corrupted(FEW), other], "set of corrupted images"),
        ([corrupted(FEW), example()], 'suite is "corruptions" .*"tiny"'),
        ([uneven], "unequal severities"),
        ([featured(), replace(featured(seed=1), features=None)], "'AT' has no features.*--suite features"),
    ):
        with pytest.raises(BenchError, match=told):
            build_table(results)
    with pytest.raises(BenchError, match="hold no attacks"):
        build_table([corrupted(FEW)], kind="attacks")


# -------------------------------------------------------------------------------------------- merged seeds


def test_seeds_are_merged_into_mean_and_standard_deviation() -> None:
    runs = [with_run(example(), seed=0), with_run(replace(example(), clean_prediction=example().label), seed=1)]
    results = [*runs, with_run(example(), model="other", defense="other")]
    single, table = build_table(results), build_table(results, merge_seeds=True)
    assert len(single.rows) == 3 and {row.name for row in table.rows} == {"AT", "other"}
    (row,) = (row for row in table.rows if row.name == "AT")
    parts = [one for one in single.rows if one.name != "other"]
    for title, cell in row.cells.items():
        first, second = (part.cells[title].value for part in parts)
        assert cell.value == pytest.approx((first + second) / 2)
        assert cell.spread == pytest.approx(abs(first - second) / 2**0.5)
    assert "means over 1/2 seeds, ranked by AA" in table.title
    assert {one.name: one.ranks["AA"] for one in table.rows} == {"AT": (1, 1), "other": None}
    assert "one seed has no rank" in table.ranking
    # PGD-20 leaves 5 of both seeds, so none of the interval is theirs.
    assert row.cells["PGD-20"].half_width == pytest.approx(half_of_shares(*[1] * 5, *[0] * 5), abs=1e-3)
    # Clean: 80 and 100, and t(0.975, 1) = 12.7 times their standard error of 10 leaves nothing out.
    assert (row.cells["Clean"].value, row.cells["Clean"].interval) == (90, (0, 100))
    text = render(table)
    assert "90.0 (0.0 to 100.0) (14.1)" in text
    assert "over training seeds and test images" in text and "in brackets the standard deviation over seeds" in text


def test_seeds_of_corruptions_and_of_features_merge_infinities_too() -> None:
    shown = [corrupted(FEW, seed=0), corrupted({"fog": (8, 2), "frost": (6, 1)}, seed=1)]
    mean = build_table(shown, merge_seeds=True).rows[0].cells["Avg Acc 2"]
    assert (mean.value, mean.spread) == pytest.approx((45, 12.5**0.5))
    spaces = [featured(seed=0), featured((math.inf, 1.5, *FEATURES[2:]), seed=1)]
    cells = build_table(spaces, merge_seeds=True).rows[0].cells
    assert cells["FDR ↓ clean"] == Cell(math.inf, None, None)
    assert (cells["FDR ↓ adv"].value, cells["FDR ↓ adv"].spread) == pytest.approx((1, 0.5**0.5))


def test_two_results_of_one_seed_are_not_merged() -> None:
    runs = [with_run(example(), seed=0), with_run(example(), seed=0, evaluation={"batch_size": 1})]
    with pytest.raises(BenchError, match=r"seed 0.*--merge-seeds"):
        build_table(runs, merge_seeds=True)


def merged_names(*runs: dict[str, Any]) -> list[str]:
    results = [with_run(example(), **{"seed": seed, **run}) for seed, run in enumerate(runs)]
    return list(values(build_table(results, merge_seeds=True)))


def test_best_checkpoints_of_seeds_merge_whatever_their_epochs() -> None:
    assert merged_names({"checkpoint": "best", "epoch": 3}, {"checkpoint": "best", "epoch": 5}) == ["AT (best)"]
    assert len(merged_names({"checkpoint": "last", "epoch": 3}, {"checkpoint": "last", "epoch": 5})) == 2
    assert len(merged_names({"checkpoint": "best", "epoch": 3}, {"checkpoint": "last", "epoch": 3})) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"defense_sha256": "a" * 64}, {"defense_sha256": "b" * 64}),
        ({"evaluation": {"precision": "fp32"}}, {"evaluation": {"precision": "bf16"}}),
        ({"evaluation": {"seed": 0}}, {"evaluation": {"seed": 1}}),
    ],
)
def test_seeds_of_other_code_or_of_another_evaluation_do_not_merge(first: dict[str, Any], second: dict[str, Any]):
    assert merged_names(first, first) == merged_names(second, second) == ["AT"]
    assert len(merged_names(first, second)) == 2


def test_results_that_do_not_name_the_file_of_their_defense_go_with_the_only_one_named() -> None:
    versions = [{"defense_sha256": "a" * 64}, {}, {"defense_sha256": "b" * 64}]
    assert merged_names(*versions[:2]) == ["AT"]
    assert len(merged_names(*versions)) == 3


# --------------------------------------------------------------------------------------------------- notes


def notes(result: EvaluationResult) -> tuple[str, ...]:
    """Those of the only row."""
    table = build_table([result])
    return tuple(table.notes[number - 1] for number in table.rows[0].notes)


def test_a_search_in_another_precision_is_noted() -> None:
    assert notes(with_run(example(), evaluation={"precision": "fp32"})) == notes(example()) == ()
    (note,) = notes(with_run(example(), evaluation={"precision": "bf16"}))
    assert re.fullmatch(r"AT: attacks searched in bf16, .* fp32.*upper bounds.* \(note\)", note)
    # Corruptions are not searched.
    assert notes(corrupted(FEW, evaluation={"precision": "bf16"})) == ()
    assert len(notes(featured(evaluation={"precision": "bf16"}))) == 1


def test_a_training_that_was_not_finished_is_noted() -> None:
    middle = {"epoch": 6, "protocol": {"epochs": 20}, "finished": False}
    (note,) = notes(with_run(example(), checkpoint="last", **middle))
    assert note == "AT: checkpoint of epoch 6 of 20: training was not finished (note)"
    assert notes(with_run(example(), checkpoint="last", **{**middle, "epoch": 20, "finished": True})) == ()
    # A best epoch may be any of a finished training.
    assert notes(with_run(example(), checkpoint="best", **middle)) == ()
    assert "epoch ? of 110" in notes(with_run(example(), finished=False))[0]


def test_measured_losses_become_a_note() -> None:
    table = build_table([with_attack(example(), "FGSM", loss=np.linspace(0, 1, 10, dtype=np.float32))])
    assert table.notes[-1].endswith("at the last iterate: FGSM 0.5000")


def test_losses_of_one_name_and_other_files_are_noted() -> None:
    def own(model: str, digest: str | None) -> EvaluationResult:
        given = {} if digest is None else {"objective_sha256": digest}
        return with_attack(with_run(example(), model=model), "AA", objective="own.py:loss", parameters=given)

    def told(*results: EvaluationResult) -> list[str]:
        return [note.partition("(")[2] for note in build_table(results).notes if "losses" in note]

    assert told(own("A", "a" * 64), own("B", "a" * 64)) == told(own("A", None), own("B", None)) == []
    other = "own.py:loss [sha256 bbbbbbbb]: B)"
    assert told(own("A", "a" * 64), own("B", "b" * 64)) == [f"own.py:loss [sha256 aaaaaaaa]: A; {other}"]
    assert told(own("A", None), own("B", "b" * 64)) == [f"own.py:loss: A; {other}"]
