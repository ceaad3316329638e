"""Tables and boards: order, marks, notes and refusals, against hand-made results and a golden board."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import BenchError
from bench.leaderboard.markdown import escape, render, write_board
from bench.leaderboard.measured import corruption_table, feature_table
from bench.leaderboard.tables import ColumnFormat, build_table, with_columns
from bench.results.file import EvaluationResult, write_result
from tests import GOLDENS
from tests.support import example_results
from tests.support.example_results import SUITE, predictions, single, with_attack, with_run

GOLDEN = GOLDENS / "board.md"


def example(**changes: Any) -> EvaluationResult:
    """The example, as an evaluation whose probes looked at the model."""
    return with_run(example_results.example(**changes), evaluation={"probes": 64})


def finding(severity: str, message: str) -> dict[str, str]:
    return {"name": "masking", "severity": severity, "message": message}


def board() -> list[EvaluationResult]:
    """AT; a better TRADES that a warning marks; an undefended ST; a model whose numbers are not to be believed."""
    trades = with_attack(with_run(example(), model="TRADES"), "AA", prediction=predictions(0, 1, 2, 3))
    nowhere = {label: {"prediction": predictions(), "final_prediction": predictions()} for label in example().attacks}
    standard = with_run(example(clean_prediction=predictions(*range(10))), model="ST")
    for label, changes in nowhere.items():
        standard = with_attack(standard, label, **changes)
    perfect = {label: {"prediction": predictions(*range(10))} for label in example().attacks}
    masked = with_run(example(clean_prediction=predictions(*range(10))), model="Masked")
    for label, changes in perfect.items():
        masked = with_attack(masked, label, **changes)
    return [
        with_attack(example(), "AA", objective="adaptive"),
        replace(masked, findings=(finding("error", "zero gradients"), finding("note", "x"))),
        standard,
        replace(trades, findings=(finding("warning", "more steps\nstill help"),)),
    ]


def test_golden_board() -> None:
    assert render(build_table(board())) == GOLDEN.read_text(encoding="utf-8")


def test_numbers_and_order() -> None:
    table = build_table(board())
    # TRADES ascended another loss in AA, which so ranks none.
    title = "digits, linf 8/255, suite tiny version 1, 10 samples, convention any, ranked by Worst case"
    assert table.title == title
    assert table.headers == ("Model", "Clean", "Worst case", "FGSM", "PGD-20", "AA", "Ensemble", "Avg")
    assert [row.name for row in table.rows] == ["TRADES", "AT", "ST", "Masked"]
    assert [row.ranked for row in table.rows] == [True, True, True, False]
    assert [row.notes for row in table.rows] == [(1,), (), (), (2,)]
    # Of ten samples, TRADES has two right that AT has not, and four that ST has not: p = 1/2 and 1/8.
    assert [row.ranks.get("Worst case") for row in table.rows] == [(1, 3), (1, 3), (1, 3), None]
    assert [cell.percent for cell in table.rows[1].cells] == [80, 20, 60, 50, 30, 40, 55]
    # Avg: 0 or 1/2 or 1 of each image; two of them with both right and two with none are added.
    shares = np.array([1, 1, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 0, 0, 1, 1, 0, 0])
    half = 196 * shares.std() / 14**0.5
    low, high = table.rows[1].cells[-1].interval or (0, 0)
    assert (low, high) == pytest.approx((100 * shares.mean() - half, 100 * shares.mean() + half), abs=1e-2)
    # Wilson at 5 of 10: z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.263407
    assert table.rows[1].cells[3].half_width == pytest.approx(26.3407, abs=1e-4)


def test_some_columns_in_the_order_asked_for() -> None:
    whole = build_table(board())
    table = with_columns(whole, ["AA", "Clean", "AA"])
    assert table.headers == ("Model", "AA", "Clean")
    assert [[cell.percent for cell in row.cells] for row in table.rows][1] == [30, 80]
    assert [(row.name, row.ranks, row.notes) for row in table.rows] == [
        (row.name, row.ranks, row.notes) for row in whole.rows
    ]
    scaled = with_columns(replace(whole, scales=tuple(ColumnFormat(place) for place in range(7))), ["AA", "Clean"])
    assert scaled.scales == (ColumnFormat(4), ColumnFormat(0))
    with pytest.raises(
        BenchError, match=r"unknown column 'PGD20'\. Did you mean 'PGD-20'\? Choose from: AA, Avg, Clean"
    ):
        with_columns(whole, ["PGD20"])


def test_a_column_of_different_losses_has_no_best() -> None:
    rows = [robust("own", 10), with_attack(robust("plain", 0), "AA", objective="adaptive")]
    table = build_table(rows)
    assert [scale.compares for scale in table.scales] == [True, True, True, True, False, True, True]
    assert [cell.startswith("**") for cell in column(render(table), "PGD-20")] == [True, False]
    assert [cell.startswith("**") for cell in column(render(table), "AA")] == [False, False]


def test_final_convention() -> None:
    table = build_table([example()], "final")
    assert [cell.percent for cell in table.rows[0].cells] == [80, 30, 70, 60, 30, 60, 55]
    assert table.title.endswith("convention final, ranked by AA")


def test_clean_accuracy_settles_a_tie() -> None:
    lower = with_run(example(clean_prediction=predictions(*range(7))), model="A")
    assert [row.name for row in build_table([lower, example()]).rows] == ["AT", "A"]


def column(text: str, title: str) -> list[str]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [line[lines[0].index(title)] for line in lines[2:]]


def robust(name: str, count: int) -> EvaluationResult:
    """Right clean everywhere, and for the first so many samples under every attack."""
    result = with_run(example(clean_prediction=predictions(*range(10))), model=name)
    for label in result.attacks:
        result = with_attack(result, label, prediction=predictions(*range(count)))
    return result


def test_bold_is_what_is_better_than_every_other_row() -> None:
    text = render(build_table([robust("A", 10), robust("B", 0), robust("C", 0)]))
    assert column(text, "AA") == ["**100.0 (72.2 to 100.0)**", *["0.0 (0.0 to 27.8)"] * 2]
    assert column(text, "Clean") == ["100.0 (72.2 to 100.0)"] * 3
    assert "**Bold**: significantly better than every other row in this column." in text
    # Of two equal rows neither is, nor is the only row of a table.
    assert "**1" not in render(build_table([robust("A", 10), robust("B", 10), robust("C", 0)]))
    assert "**1" not in render(build_table([robust("A", 10)]))


def test_one_sample_and_no_attack() -> None:
    # Wilson at n = 1: z^2 / (1 + z^2) = 0.793457 wide
    text = render(build_table([single(True)]))
    assert text.startswith("## digits, no attack, suite none version 1, 1 samples, convention any, ranked by Clean\n")
    assert column(text, "Worst case") == ["100.0 (20.7 to 100.0)"]
    assert column(render(build_table([single(False)])), "Clean") == ["0.0 (0.0 to 79.3)"]


def test_only_believable_rows_are_marked() -> None:
    doubtful = example(findings=(finding("error", "no"),))
    text = render(build_table([doubtful]))
    assert column(text, "Model") == ["AT †1"]
    assert column(text, "AA") == ["30.0 ± 24.8"]
    assert column(text, "Rank") == ["-"]


def test_ranks_are_ranges() -> None:
    # 10 against 0 and 9 against 0 have p = 2 / 2^10 and 2 / 2^9; of 10 against 3, 2 / 2^7, Holm makes 20 times as much.
    text = render(build_table([robust("A", 10), robust("B", 9), robust("C", 3), robust("D", 0)]))
    assert column(text, "Model") == ["A", "B", "C", "D"]
    assert column(text, "Rank") == ["1-3", "1-3", "1-4", "3-4"]
    assert "Ranks by AA: those that a row may have, all rows together with 95 % (exact McNemar tests" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {"backbone": "wrn"}], ["AT (resnet18)", "AT (wrn)"]),
        ([{}, {"seed": 1}], ["AT (seed 0)", "AT (seed 1)"]),
        ([{}, {"model": "B"}, {"seed": 1}], ["AT (seed 0)", "AT (seed 1)", "B"]),
        (
            [{}, {"checkpoint_digest": "e" * 64}],
            ["AT (seed 0, checkpoint cccccccc)", "AT (seed 0, checkpoint eeeeeeee)"],
        ),
        ([{"checkpoint": "last"}, {"checkpoint": "best"}], ["AT", "AT (best)"]),
        ([{"checkpoint": "best"}], ["AT (best)"]),
        (
            [{"checkpoint": "best", "seed": seed} for seed in (0, 1)],
            ["AT (best, seed 0)", "AT (best, seed 1)"],
        ),
    ],
)
def test_equal_names_grow_until_they_differ(changes: list[dict[str, Any]], expected: list[str]) -> None:
    table = build_table([with_run(example(), **change) for change in changes])
    assert [row.name for row in table.rows] == expected


def test_the_same_result_twice_is_refused() -> None:
    with pytest.raises(BenchError, match="was given twice"):
        build_table([example(), with_run(example(), created="later")])
    with pytest.raises(BenchError, match="no result to show"):
        build_table([])


MIXED: list[tuple[Callable[[EvaluationResult], dict[str, Any]], str]] = [
    (lambda one: {"suite": {**SUITE, "name": "full"}}, 'suite is "tiny" for the first and "full" for the second'),
    (lambda one: {"suite": {**SUITE, "version": 2}}, "suite version is 1 for the first and 2"),
    (lambda one: {"suite": {**SUITE, "derived": []}}, "list of derived columns"),
    (lambda one: {"run": {**one.run, "dataset": "svhn"}}, 'dataset is "digits" for the first and "svhn"'),
    (lambda one: {"run": {**one.run, "dataset_digest": "e" * 64}}, "dataset digest is"),
    (lambda one: {"index": one.index + 1}, "sample set"),
    (lambda one: {"label": predictions(0)}, "sample set"),
    (lambda one: {"attacks": {"AA": one.attacks["AA"]}}, "list of attacks"),
    (
        lambda one: vars(with_attack(one, "AA", epsilon="4/255")),
        'is "linf 8/255" for the first and "linf 4/255"',
    ),
    (lambda one: vars(with_attack(one, "AA", norm="l2")), "threat model of column 'AA'"),
    (lambda one: vars(with_attack(one, "AA", attack="pgd")), "attack of column 'AA'"),
    (lambda one: vars(with_attack(one, "PGD-20", parameters={"steps": 20, "step_size": "1/255"})), "'step_size' of"),
    (lambda one: vars(with_attack(one, "PGD-20", parameters={"steps": 20})), "and not set for the second"),
    (lambda one: vars(with_attack(one, "AA", parameters={"norm": "x"})), "is not set for the first"),
    (
        lambda one: vars(with_attack(one, "AA", parameters={"source_digest": "e" * 64})),
        f"parameter 'source_digest' of column 'AA' is not set for the first and \"{'e' * 64}\"",
    ),
]


@pytest.mark.parametrize(("change", "expected"), MIXED)
def test_what_does_not_compare_is_refused(change: Callable[[EvaluationResult], dict[str, Any]], expected: str) -> None:
    other = with_run(example(), model="B\nC")
    other = replace(other, **change(other))
    with pytest.raises(BenchError, match=re.escape(expected)) as caught:
        build_table([example(), other])
    assert "'AT' and 'B\\nC'" in str(caught.value) and "\n" not in str(caught.value)


def test_names_and_notes_cannot_break_the_board() -> None:
    evil = "a | b\n| c | `x` <script>alert(1)</script> **d** [e](f) &lt; \u202e\ud800"
    result = with_run(example(findings=(finding("warning", evil),)), model=evil)
    text = render(build_table([result]))
    lines = text.splitlines()
    assert [line.count("|") for line in lines if line.startswith("|")] == [11, 11, 11]
    assert re.findall(r"<[^>]*>", text) == []
    assert "`" not in text and "[" not in text
    shown = "a &#124; b &#124; c &#124; &#96;x&#96; &#60;script&#62;alert(1)&#60;/script&#62; &#42;&#42;d&#42;&#42; "
    assert column(text, "Model") == [shown + "&#91;e&#93;(f) &#38;lt; †1"]
    assert text.encode().decode() == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C&W", "C&W"),
        ("&amp;", "&#38;amp;"),
        ("# x", "&#35; x"),
        ("- x", "&#45; x"),
        ("1. x", "&#49;. x"),
        ("3 x", "3 x"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_terminal_shows_text_as_it_is_but_acts_on_nothing(bench) -> None:
    write_result(with_run(example(), model="A_[0, 1] *x* | \x1b[31m\x9b2J\n\u202ey"), "a.h5")
    code, output = bench("leaderboard", "a.h5", "--out", "a.md")
    assert code == 0
    assert "| A_[0, 1] *x* | [31m 2J y |" in output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)
    assert "| A&#95;&#91;0, 1&#93; &#42;x&#42; &#124; &#91;31m 2J y |" in Path("a.md").read_text(encoding="utf-8")


def test_nameless_model() -> None:
    assert column(render(build_table([with_run(example(), model=" \n ")])), "Model") == ["unnamed"]


def test_board_is_written_whole(tmp_path: Path) -> None:
    write_board("± †\n", tmp_path / "board.md")
    assert (tmp_path / "board.md").read_bytes() == "± †\n".encode()
    with pytest.raises(BenchError, match="cannot write"):
        write_board("x", tmp_path / "board.md" / "below.md")


def test_an_own_column_cannot_be_called_avg() -> None:
    suite = {**SUITE, "derived": [{"label": "Avg", "worst_of": ["AA"]}]}
    with pytest.raises(BenchError, match="column 'Avg' of its own"):
        build_table([example(suite=suite)])


def test_seeds_are_merged_into_mean_and_standard_deviation() -> None:
    runs = [with_run(example(), seed=seed) for seed in (0, 1)]
    runs[1] = replace(runs[1], clean_prediction=runs[1].label)
    other = with_run(example(), model="other", defense="other", seed=0)
    single = build_table([*runs, other])
    merged = build_table([*runs, other], merge_seeds=True)
    assert len(single.rows) == 3
    assert sorted(row.name for row in merged.rows) == sorted({row.name.partition(" (")[0] for row in single.rows})
    row = next(row for row in merged.rows if row.name != "other")
    parts = [entry for entry in single.rows if entry.name != "other"]
    for number, cell in enumerate(row.cells):
        first, second = (part.cells[number].percent for part in parts)
        assert cell.percent == pytest.approx((first + second) / 2)
        assert cell.spread == pytest.approx(abs(first - second) / 2**0.5)
    assert "means over 1/2 seeds, ranked by AA" in merged.title
    assert {entry.name: entry.ranks["AA"] for entry in merged.rows} == {row.name: (1, 1), "other": None}
    assert "A row of one seed has no rank." in merged.ranking
    # PGD-20 leaves 5 of both seeds, so none of the interval is theirs: 7 of 14 with the four images that are added.
    low, high = row.cells[3].interval or (0, 0)
    assert (high - low) / 2 == pytest.approx(196 * (7 * 7 / 14**3) ** 0.5, abs=1e-2)
    # Clean: 80 and 100, and t(0.975, 1) = 12.7 times their standard error of 10 leaves nothing out.
    assert row.cells[0].interval == (0, 100)
    text = render(merged)
    assert f"{row.cells[0].percent:.1f} (0.0 to 100.0) ({row.cells[0].spread:.1f})" in text
    assert "over training seeds and test images" in text and "in brackets the standard deviation over seeds" in text


def test_two_results_of_one_seed_are_not_merged() -> None:
    runs = [with_run(example(), seed=0), with_run(example(), seed=0, evaluation={"batch_size": 1})]
    with pytest.raises(BenchError, match="have the training seed 0: seeds cannot be merged"):
        build_table(runs, merge_seeds=True)


def test_measured_losses_become_a_note() -> None:
    result = example()
    label = next(iter(result.attacks))
    loss = np.linspace(0, 1, len(result.label), dtype=np.float32)
    table = build_table([replace(result, attacks={**result.attacks, label: replace(result.attacks[label], loss=loss)})])
    assert table.notes[-1].endswith(f"at the last iterate: {label} 0.5000")


# ---------------------------------------------------------------------------- how the numbers came about


def merged_names(*runs: dict[str, Any]) -> list[str]:
    results = [with_run(example(), **{"seed": seed, **run}) for seed, run in enumerate(runs)]
    return [row.name for row in build_table(results, merge_seeds=True).rows]


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
def test_seeds_of_other_code_or_of_another_evaluation_do_not_merge(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert merged_names(first, first) == merged_names(second, second) == ["AT"]
    assert len(merged_names(first, second)) == 2


def test_results_that_do_not_name_the_file_of_their_defense_go_with_the_only_one_named() -> None:
    versions = [{"defense_sha256": "a" * 64}, {}, {"defense_sha256": "b" * 64}]
    assert merged_names(*versions[:2]) == ["AT"]
    assert len(merged_names(*versions)) == 3


def notes(result: EvaluationResult) -> tuple[str, ...]:
    """Of the row."""
    table = build_table([result])
    return tuple(table.notes[number - 1] for number in table.rows[0].notes)


def test_a_search_in_another_precision_is_noted() -> None:
    assert notes(with_run(example(), evaluation={"precision": "fp32"})) == notes(example()) == ()
    assert notes(with_run(example(), evaluation={"precision": "bf16"})) == (
        "AT: attacks searched in bf16, every success judged in fp32: accuracies under attack are upper bounds, which a "
        "search in fp32 may lower (note)",
    )
    # Corruptions are not searched.
    shown = example_results.corrupted({"fog": (8, 6)}, evaluation={"precision": "bf16"})
    assert corruption_table([shown]).rows[0].notes == ()
    assert feature_table([example_results.featured((1.0,) * 8, evaluation={"precision": "bf16"})]).rows[0].notes == (1,)


def test_a_training_that_was_not_finished_is_noted() -> None:
    middle = {"epoch": 6, "protocol": {"epochs": 20}, "finished": False}
    expected = ("AT: checkpoint of epoch 6 of 20: training was not finished (note)",)
    assert notes(with_run(example(), checkpoint="last", **middle)) == expected
    assert notes(with_run(example(), checkpoint="last", **{**middle, "epoch": 20, "finished": True})) == ()
    # A best epoch may be any of a finished training.
    assert notes(with_run(example(), checkpoint="best", **middle)) == ()
    assert notes(with_run(example(), finished=False)) == (
        "AT: checkpoint of epoch ? of 110: training was not finished (note)",
    )


def test_losses_of_one_name_and_other_files_are_noted() -> None:
    def own(model: str, digest: str | None) -> EvaluationResult:
        given = {} if digest is None else {"objective_sha256": digest}
        return with_attack(with_run(example(), model=model), "AA", objective="own.py:loss", parameters=given)

    def told(*results: EvaluationResult) -> list[str]:
        return [note for note in build_table(results).notes if "losses" in note]

    assert told(own("A", "a" * 64), own("B", "a" * 64)) == told(own("A", None), own("B", None)) == []
    assert told(own("A", "a" * 64), own("B", "b" * 64)) == [
        "Column AA: the rows' losses differ, so none is best "
        "(own.py:loss [sha256 aaaaaaaa]: A; own.py:loss [sha256 bbbbbbbb]: B)"
    ]
    assert told(own("A", None), own("B", "b" * 64)) == [
        "Column AA: the rows' losses differ, so none is best (own.py:loss: A; own.py:loss [sha256 bbbbbbbb]: B)"
    ]
