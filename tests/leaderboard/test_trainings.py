"""Differences in training are noted, mark their rows, and tell models of one name apart."""

from typing import Any

import pytest

from bench.leaderboard.tables.build import build_table
from bench.results.file import EvaluationResult, write_result
from tests.support.example_results import RUN, example, with_run

DATA = {"name": "cifar10", "train_size": 50000, "train_digest": "a" * 64}

DEFAULT = "pang2021 version 1"
"""The recipe of a record that names none."""

RICE = {"recipe": {"name": "rice2020", "version": 1}, "protocol": {**RUN["protocol"], "epochs": 200}}


def trained(model: str, **changes: Any) -> EvaluationResult:
    return with_run(example(), **{"model": model, "training_data": DATA, "precision": "fp32", **changes})


def notes(*results: EvaluationResult) -> list[str]:
    return [note for note in build_table(results).notes if note.startswith("Training")]


def epochs(count: int) -> dict[str, Any]:
    return {"protocol": {**RUN["protocol"], "epochs": count}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (epochs(6), "epochs: 110 for A; 6 for B"),
        ({"backbone": "wrn"}, "backbone: resnet18 for A; wrn for B"),
        ({"precision": "bf16"}, "precision: fp32 for A; bf16 for B"),
        ({"processes": 4}, "processes: 1 for A; 4 for B"),
        (
            {"training_data": {**DATA, "train_size": 500, "train_digest": "b" * 64}},
            "training images: 50000 of cifar10 for A; 500 of cifar10 for B",
        ),
        (
            {"training_data": {**DATA, "train_digest": "b" * 64}},
            "training images (sha256): aaaaaaaa for A; bbbbbbbb for B",
        ),
        ({"recipe": {"name": "rice2020", "version": 1}}, f"recipe: {DEFAULT} for A; rice2020 version 1 for B"),
        (
            {"start": {"defense": "st", "dataset": "digits", "digest": "e" * 64, "path": "runs/x"}},
            "first weights: random for A; st on digits (eeeeeeee) for B",
        ),
        ({"protocol": {**RUN["protocol"], "awp": 0.005}}, "awp: 0.0 for A; 0.005 for B"),
        (
            {"recipe": {"name": "pang2021", "version": 1}, "protocol_given": {"weight_decay": "0.1", "flip": False}},
            f"recipe: {DEFAULT} for A; {DEFAULT} with flip=False, weight-decay=0.1 for B",
        ),
        ({"protocol": {**RUN["protocol"], "averaging": "ema"}}, "averaging: not recorded for A; ema for B"),
    ],
)
def test_what_differs_is_noted(changes: dict[str, Any], expected: str) -> None:
    assert notes(trained("A"), trained("B", **changes)) == [f"Training differs in {expected}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"recipe": {"name": "pang2021", "version": 1}},
        {"defense": "trades", "hyperparameters": {"beta": 6.0}},
        {"training_environment": {"device": "cuda"}, "command": "bench eval x", "created": "later"},
    ],
    ids=["seed", "the default recipe", "another defense", "environment"],
)
def test_a_method_and_its_luck_and_place_are_no_difference(changes: dict[str, Any]) -> None:
    assert notes(trained("A"), trained("B", **changes)) == []
    assert notes(trained("A", protocol={"epochs": 1})) == []


def test_a_setting_that_changed_nothing_is_said_to_be_unused() -> None:
    ema = {"protocol": {**RUN["protocol"], "average": "ema", "average_decay": 0.9, "average_from": 0.0}}
    assert notes(trained("A"), trained("B", **ema)) == [
        "Training differs in average: none for A; ema for B",
        "Training differs in average_decay: unused for A; 0.9 for B",
        "Training differs in average_from: unused for A; 0.0 for B",
    ]
    # Of rows without an average nobody asks how fast it would have been.
    assert notes(trained("A"), trained("B", protocol={**RUN["protocol"], "average_decay": 0.9})) == []


def test_what_all_rows_share_is_said_once_if_it_is_a_recipe_by_name_or_extra_images() -> None:
    extra = {"training_data": {**DATA, "extra": {"name": "npz:/home/me/x.npz", "size": 50, "digest": "e" * 64}}}
    shared = "extra images 50 of npz:x.npz; extra images (sha256) eeeeeeee; extra_share 0.0"
    assert notes(trained("A", **RICE)) == ["Training of every row: recipe rice2020 version 1"]
    assert notes(trained("A", **extra), trained("B", **extra)) == [f"Training of every row: {shared}"]
    assert notes(trained("A", **extra, **RICE), trained("B", **RICE)) == [
        "Training differs in extra images: 50 of npz:x.npz for A; none for B",
        "Training of every row: recipe rice2020 version 1",
    ]
    table = build_table([trained("A", **RICE)])
    assert table.rows[0].notes == ()


def test_the_rows_that_a_note_names_carry_its_dagger() -> None:
    results = [trained("A"), trained("B"), trained("C", **epochs(6))]
    table = build_table(results)
    assert table.notes[0] == "Training differs in epochs: 6 for C; 110 for the others"
    assert {row.name: row.notes for row in table.rows} == {"A": (), "B": (), "C": (1,)}
    pair = build_table([results[0], results[2]])
    assert {row.name: row.notes for row in pair.rows} == {"A": (1,), "C": (1,)}


def test_a_training_that_is_not_recorded_is_said_to_be_so() -> None:
    unknown = trained("X", protocol={}, training_data={}, backbone="mine")
    assert notes(trained("A"), unknown) == ["Training is not recorded, and may differ in anything: X"]
    assert notes(unknown) == []


def test_merged_seeds_are_one_training() -> None:
    seeds = [trained(name, seed=seed, **changes) for name, changes in (("A", {}), ("B", epochs(6))) for seed in (0, 1)]
    table = build_table(seeds, merge_seeds=True)
    assert table.notes[0] == "Training differs in epochs: 110 for A; 6 for B"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"hyperparameters": {"beta": beta, "steps": 10}} for beta in (6.0, 1.0)], ["T (beta=6.0)", "T (beta=1.0)"]),
        (
            [{"hyperparameters": {"beta": 6.0}}, {"hyperparameters": {"beta": 1.0}, "seed": 1}],
            ["T (beta=6.0, seed 0)", "T (beta=1.0, seed 1)"],
        ),
        ([{}, epochs(6)], ["T (epochs=110)", "T (epochs=6)"]),
        ([{}, {"backbone": "wrn"}], ["T (resnet18)", "T (wrn)"]),
        (
            [{}, {"protocol": {**RUN["protocol"], "average": "ema", "average_decay": 0.9}}],
            ["T (average=none)", "T (average=ema, average_decay=0.9, average_from=0.0)"],
        ),
        ([{}, RICE], ["T (pang2021 version 1)", "T (rice2020 version 1)"]),
        (
            [{}, RICE, {**RICE, "seed": 1}],
            ["T (pang2021 version 1)", "T (rice2020 version 1, seed 0)", "T (rice2020 version 1, seed 1)"],
        ),
        ([{}, {"checkpoint_digest": "e" * 64}], [f"T (seed 0, checkpoint {mark * 8})" for mark in "ce"]),
        ([{"defense_sha256": mark * 64} for mark in "ab"], ["T (code=aaaaaaaa)", "T (code=bbbbbbbb)"]),
        ([{}, {"model": "B"}, {"seed": 1}], ["T (seed 0)", "T (seed 1)", "B"]),
        ([{"checkpoint": "last"}, {"checkpoint": "best"}], ["T", "T (best)"]),
        ([{}, {"checkpoint": "average", "weights": "average"}], ["T", "T (average)"]),
        ([{"checkpoint": "best", "seed": seed} for seed in (0, 1)], ["T (best, seed 0)", "T (best, seed 1)"]),
    ],
)
def test_equal_names_grow_until_they_differ(changes: list[dict[str, Any]], expected: list[str]) -> None:
    rows = build_table([trained(**{"model": "T", **change}) for change in changes]).rows
    assert sorted(row.name for row in rows) == sorted(expected)


def test_compare_names_what_differs_and_of_what_p_speaks(bench) -> None:
    write_result(trained("A"), "a.h5")
    write_result(trained("B", **epochs(6)), "b.h5")
    code, output = bench("compare", "a.h5", "b.h5")
    assert code == 0
    assert "- Training differs in epochs: 110 for A; 6 for B\n" in output
    assert "p speaks of these trained models, not of the methods" in output
