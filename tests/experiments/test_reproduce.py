"""`bench reproduce`: every table and figure end to end on digits, the published numbers, and the marks by hand."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench.attacks import autoattack
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.square import Square
from bench.data.datasets import load_dataset
from bench.evaluation import evaluate as evaluation
from bench.experiments import paper as reproduction
from bench.experiments.matching import differences, image_digests
from bench.experiments.paper import exhibit_names, load_exhibit
from bench.experiments.sweep import Plan
from bench.leaderboard.paper.published import published, published_figures
from bench.leaderboard.paper.reproduction import measured, render_comparison, side_by_side
from bench.results.file import read_result, write_result
from bench.results.metrics import robust_accuracy
from bench.training import train as training
from bench.training.profiling import seconds_per_image
from bench.training.request import TrainingRequest
from bench.training.train import prepare_run
from tests import ROOT
from tests.support.command import bench
from tests.support.example_results import LABEL, corrupted, example, featured, predictions, with_attack, with_run
from tests.support.few_digits import few_digits
from tests.support.refusals import refusal

TABLES = [f"table{number}" for number in range(1, 9)]
PAIR = "at,adv-dpnp"
WILSON_5_OF_10 = 26.3405
"""Half of the interval: z / (1 + z^2/n) sqrt(p (1 - p) / n + z^2 / 4 n^2) with z = 1.959964, in points."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained():
    """The run folders that were trained so far."""
    return []


@pytest.fixture
def reproduce(trained, monkeypatch, tmp_path_factory):
    """Runs `bench reproduce ARGUMENTS` at tiny settings, on few digits; returns (exit code, output)."""
    fit = training.fit
    tiny = replace(reproduction.SCALES["smoke"], protocol={"epochs": 1, "attack_steps": 2}, limit=2)
    few_digits(monkeypatch, tmp_path_factory.mktemp("digits"), train=64)
    monkeypatch.setattr(reproduction, "SCALES", {**reproduction.SCALES, "smoke": tiny})
    monkeypatch.setattr(autoattack, "standard", lambda norm: (APGDCE(steps=5), Square(queries=20)))
    monkeypatch.setattr(evaluation, "probed", lambda *arguments: [])
    monkeypatch.setattr(
        training, "fit", lambda run, folder, *rest: trained.append(folder.path) or fit(run, folder, *rest)
    )
    return lambda runs, *arguments: bench("reproduce", *arguments, "--runs", runs)


def rows(text):
    """By defense and column: ours, the paper's, and the difference; empty texts for those that are not there."""
    found, defense, columns = {}, "", []
    for line in (line for line in text.splitlines() if line.startswith("|")):
        name, kind, *cells = (part.strip() for part in line.strip("|").split("|"))
        if name == "Defense":
            columns = cells
        elif name[:1] != ":":
            defense = name or defense
            for column, cell in zip(columns, cells, strict=True):
                found.setdefault((defense, column), dict.fromkeys(("ours", "paper", "difference"), ""))[kind] = cell
    return {place: list(cells.values()) for place, cells in found.items()}


@pytest.mark.parametrize("name", exhibit_names())
def test_every_table_and_figure_end_to_end_and_nothing_is_trained_twice(reproduce, name, runs, trained, tmp_path):
    path, defenses = tmp_path / f"{name}.md", "adv-dpnp" if name in ("table2", "table6", "table7") else PAIR
    code, output = reproduce(runs, name, "--defenses", defenses, "--out", path)
    assert code == 0, output
    assert path.read_text().strip() in output
    assert "At scale smoke this shows that the pipeline works" in output
    backbone = "lenetpp" if name == "figure2" else "cnn-small"
    assert {runs / "digits" / backbone / defense / "seed-0" for defense in defenses.split(",")} <= set(trained)
    assert set(Counter(trained).values()) == {1}
    if name in TABLES:
        shown = rows(output)
        columns = load_exhibit(name).columns
        assert sorted(shown) == sorted((defense, column) for defense in defenses.split(",") for column in columns)
        assert all(ours and paper for (defense, _), (ours, paper, _) in shown.items() if defense != "at")
        assert not any(difference for _, _, difference in shown.values()) and "≠" not in output
    else:
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / f"{name}.svg").exists()
        assert f"![{name}]({name}.png)" in output


def test_the_numbers_shown_are_those_of_the_result_file_and_of_the_paper(reproduce, runs, trained):
    assert reproduce(runs, "table8", "--defenses", "adv-dpnp")[0] == 0
    before = list(trained)
    code, output = reproduce(runs, "table8", "--defenses", "adv-dpnp")
    assert code == 0
    assert trained == before
    assert "missing: 0 trainings, 0 evaluations." in output
    result = read_result(runs / "digits/cnn-small/adv-dpnp/seed-0/results/table8-v1-first2.h5")
    ours = 100 * robust_accuracy(result, "PGD-20 adaptive")
    shown = rows(output)["adv-dpnp", "pgd-20-composite"]
    assert shown[0].split()[0] == f"{ours:.2f}"
    assert shown[1] == "53.39"
    assert shown[2] == ""  # at scale smoke it would say nothing


def test_the_other_variant_of_table_2_is_judged_by_the_last_image(reproduce, runs):
    code, output = reproduce(runs, "table2", "--variant", "no-start", "--defenses", "adv-dpnp")
    assert code == 0, output
    assert "suite table2-no-start, convention final" in output
    result = read_result(runs / "digits/cnn-small/adv-dpnp/seed-0/results/table2-no-start-v1-first2-final.h5")
    ours = 100 * robust_accuracy(result, "PGD-20", "final")
    assert rows(output)["adv-dpnp", "pgd-20"][0].split()[0] == f"{ours:.2f}"


def test_a_dry_run_says_what_is_missing_and_runs_nothing(reproduce, tmp_path, trained):
    before = list(trained)
    code, output = reproduce(tmp_path, "table2", "--defenses", "hat", "--dry-run")
    assert code == 0
    lines = [line.split() for line in output.splitlines() if line.startswith("  ") and "seed-0" in line]
    assert [line[0].split("/")[-2:] for line in lines] == [["st", "seed-0"], ["hat", "seed-0"]]
    assert [line[1:] for line in lines] == [["train", "1", "epochs"], ["train", "1", "epochs", "evaluate"]]
    assert "missing: 2 trainings, 1 evaluations. Trainings: about 0:00:0" in output
    assert "(timed: st). Evaluations: unknown before a model is trained." in output
    assert trained == before
    assert not list(tmp_path.iterdir())


def test_a_trained_model_gives_the_cost_of_its_evaluations(reproduce, runs):
    assert reproduce(runs, "table8", "--defenses", "adv-dpnp")[0] == 0
    (runs / "digits/cnn-small/adv-dpnp/seed-0/results/table8-v1-first2.h5").unlink()
    code, output = reproduce(runs, "table8", "--defenses", "adv-dpnp", "--dry-run")
    assert code == 0
    assert "missing: 0 trainings, 1 evaluations. Evaluations: at most 0:00:0" in output


@pytest.mark.usefixtures("reproduce")
def test_what_cannot_be_timed_costs_as_much_as_the_slowest(tmp_path, monkeypatch):
    speeds = {"st": 0.5, "adv-dpnp": 2.0}
    monkeypatch.setattr(reproduction, "seconds_per_image", lambda run: speeds[run.config["defense"]])
    ((_, plan),) = load_exhibit("table2").plans("smoke", "hat,adv-dpnp", 2, runs=tmp_path)
    found = reproduction.cost(plan, reproduction.steps(plan))
    # 64 images, one epoch, two seeds: st for hat, hat like adv-dpnp, adv-dpnp.
    assert found.training == 64 * 2 * (0.5 + 2 + 2)
    assert set(found.timed) == {"st", "adv-dpnp"}


def planned(output):
    """Dataset, network and defense of each training that a dry run shows."""
    return ["/".join(line.split()[0].split("/")[-4:-1]) for line in output.splitlines() if line.startswith("  /")]


def test_full_scale_without_data_shows_the_plan_and_then_refuses(reproduce, tmp_path):
    arguments = ("table2", "--scale", "full", "--data", tmp_path / "none", "--defenses", "oc,dio")
    code, output = reproduce(tmp_path / "runs", *arguments, "--dry-run")
    assert code == 0
    small = ["cifar10/resnet18/oc", "cifar10/resnet18/dio", "cifar100/resnet18/oc", "cifar100/resnet18/dio"]
    assert planned(output) == [*small, "svhn/resnet18/dio", "cifar10/wrn-34-10/dio"]
    assert output.count("train 110 epochs") == 6
    assert "They cannot run as things are: cifar10 is missing" in output
    code, output = reproduce(tmp_path / "runs", *arguments, "--block", "svhn", "--dry-run")
    assert planned(output) == ["svhn/resnet18/dio"]
    code, output = reproduce(tmp_path / "runs", *arguments)
    assert code == 2
    assert output.splitlines()[-1].startswith("Error: cifar10 is missing")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table9"], "unknown table or figure 'table9'. Did you mean"),
        (["figure1"], "Choose from: figure2, figure3, figure4, table1, table2, table3, table4, table5, table6, table7"),
        (["table1", "--variant", "no-start"], "unknown variant of table1 'no-start'."),
        (["table2", "--block", "cifar10/resnet"], "Did you mean 'cifar10/resnet18'?"),
        (["table1", "--defenses", "trade"], "Did you mean 'trades'?"),
        (["table1", "--defenses", ","], "no defense to run for table1"),
    ],
)
def test_what_does_not_exist_is_refused_on_one_line(reproduce, tmp_path, arguments, expected):
    code, output = reproduce(tmp_path, *arguments)
    assert (code, output.count("\n")) == (2, 1)
    assert expected in output


def test_what_is_done_is_shown_where_a_run_fails(reproduce, runs, tmp_path):
    assert reproduce(runs, "table8", "--defenses", "adv-dpnp")[0] == 0
    (runs / "digits/cnn-small/trades/seed-0/last").mkdir(parents=True)
    (runs / "digits/cnn-small/trades/seed-0/training_state.pt").write_bytes(b"damaged")
    code, output = reproduce(runs, "table8", "--defenses", "trades,adv-dpnp")
    assert code == 2
    assert {defense for defense, _ in rows(output)} == {"adv-dpnp"}
    assert output.splitlines()[-1].startswith("Error: 1 of 2 runs failed")


# ------------------------------------------------------------------------------- results that are not the plan's


def test_results_of_another_training_or_evaluation_are_left_out_and_named(reproduce, tmp_path):
    folder = tmp_path / "digits/cnn-small/adv-dpnp/seed-0"
    training = ("--defense", "adv-dpnp", "--dataset", "digits", "--runs", tmp_path)
    assert bench("train", *training, "--epochs", 2, "--attack-steps", 2)[0] == 0
    place = folder / "results/table8-v1-first2.h5"
    assert bench("eval", folder, "--suite", "table8", "--limit", 2, "--eps", "0.001", "--out", place)[0] == 0
    for arguments, code in (((), 2), (("--stored",), 0)):
        found, output = reproduce(tmp_path, "table8", "--defenses", "adv-dpnp", *arguments)
        assert found == code
        assert not rows(output)
        (line,) = [line for line in output.splitlines() if line.startswith("Left out")]
        assert line.startswith(f"Left out: {folder / 'results/table8-v1-first2.h5'} is of another model or evaluation")
        assert "suite: radius of PGD-20 0.001, not 0.15; epochs 2, not 1; " in line
        assert line.endswith("delete it, or choose another folder with --runs.")


def test_a_seed_of_another_training_is_no_part_of_the_mean(reproduce, runs, tmp_path):
    assert reproduce(runs, "table8", "--defenses", "adv-dpnp")[0] == 0
    name = "results/table8-v1-first2.h5"
    result = read_result(runs / "digits/cnn-small/adv-dpnp/seed-0" / name)
    for seed, changes in ((0, {}), (1, {"protocol": {**result.run["protocol"], "epochs": 7}}), (2, {})):
        path = tmp_path / f"digits/cnn-small/adv-dpnp/seed-{seed}" / name
        path.parent.mkdir(parents=True)
        write_result(with_run(result, seed=seed, **changes), path)
    code, output = reproduce(tmp_path, "table8", "--defenses", "adv-dpnp", "--seeds", 3, "--stored")
    assert code == 0
    assert len(rows(output)) == 2
    assert "1 epochs, 2 of 500 test images" in output
    assert "Fewer seeds: adv-dpnp 2." in output
    (line,) = [line for line in output.splitlines() if line.startswith("Left out")]
    assert f"seed-1/{name} is of another model or evaluation (epochs 7, not 1): delete it" in line
    write_result(with_run(result, defense_sha256="0" * 64), tmp_path / "digits/cnn-small/adv-dpnp/seed-0" / name)
    output = reproduce(tmp_path, "table8", "--defenses", "adv-dpnp", "--stored")[1]
    assert len(rows(output)) == 2
    assert "was trained with another version of adv-dpnp than this program's." in output


def test_a_figure_is_drawn_of_the_plans_results_only(reproduce, runs, tmp_path):
    assert reproduce(runs, "figure4", "--defenses", PAIR)[0] == 0
    for defense in PAIR.split(","):
        place = f"digits/cnn-small/{defense}/seed-0/results/figure4-v1-first2.h5"
        result = read_result(runs / place)
        (tmp_path / place).parent.mkdir(parents=True)
        suite = {**result.suite, "version": 9} if defense == "at" else result.suite
        write_result(replace(result, suite=suite), tmp_path / place)
    code, output = reproduce(tmp_path, "figure4", "--defenses", PAIR, "--stored")
    assert code == 0, output
    assert "at/seed-0/results/figure4-v1-first2.h5 is of another model or evaluation (suite: version 9" in output
    table = [line.split("|")[2].strip() for line in output.splitlines() if line.startswith("|")]
    assert [name.split()[0] for name in table[2:]] == ["adv-dpnp"]


BOARD = ROOT / "leaderboard/boards/digits-linf-full-v3"


def committed(defense="at", seed=0, **changes):
    """A committed result, and the training and evaluation that made it."""
    plan = Plan("digits", (defense,), "full", seeds=(seed,), **changes)
    (training,) = plan.trainings()
    return read_result(BOARD / f"{defense}-seed-{seed}.h5"), training, plan.evaluation(training)


@pytest.mark.parametrize("defense", ["mart", "at", "hat", "trades"])
def test_committed_results_are_those_of_their_plan(defense):
    images = image_digests(load_dataset("digits", Path("data")), None)
    assert differences(*committed(defense, seed=2), images) == []


def test_a_result_from_before_a_hyperparameter_was_added_is_of_its_former_value():
    result, *plan = committed("adv-dpnp")
    former = {name: value for name, value in result.run["hyperparameters"].items() if name != "alignment_reduction"}
    assert differences(with_run(result, hyperparameters=former), *plan, {}) == ["alignment_reduction sum, not mean"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"suite": "linf"}, "suite: name full, not linf"),
        ({"limit": 100}, "number of images 500, not 100"),
        ({"convention": "final"}, "convention any, not final"),
        ({"eval_precision": "bf16"}, "attack precision fp32, not bf16"),
        ({"backbone": "lenetpp"}, "backbone cnn-small, not lenetpp"),
        ({"precision": "bf16"}, "precision fp32, not bf16"),
        ({"protocol": {"learning_rate": 0.1}}, "learning_rate 0.05, not 0.1"),
        ({"protocol": {"milestones": (4, 5)}}, "milestones 15, 18, not 4, 5"),
    ],
)
def test_another_plan_is_told_apart(changes, expected):
    values = {"suite": "full", **changes}
    ((training, plan),) = [(p.trainings()[0], p) for p in [Plan("digits", ("at",), **values)]]
    result = committed()[0]
    assert differences(result, training, plan.evaluation(training), {}) == [expected]


def test_what_a_result_says_of_its_making_is_compared():
    result, training, evaluation = committed("trades")
    cells = [{**cell, "parameters": {**cell["parameters"], "steps": 3}} for cell in result.suite["cells"]]
    given = result.run["hyperparameters"]
    for changed, expected in (
        (with_run(result, hyperparameters={**given, "beta": 1.5}), f"beta 1.5, not {given['beta']}"),
        (with_run(result, seed=4), "seed 4, not 0"),
        (with_run(result, finished=False), "finished False, not True"),
        (with_run(result, checkpoint="best"), "checkpoint best, not last"),
        (with_run(result, defense="at"), "defense at, not trades"),
        (with_run(result, evaluation={**result.run["evaluation"], "seed": 5}), "attack seed 5, not 0"),
        (replace(result, suite={**result.suite, "cells": cells}), "suite: parameters of FGSM {'steps': 3}, not {}"),
        (replace(result, index=result.index + 1), "its images are not the first ones"),
    ):
        assert differences(changed, training, evaluation, {}) == [expected]
    images = {"training images": "0" * 64, "test images": "1" * 64}
    texts = [" ".join(text.split()[:2]) for text in differences(result, training, evaluation, images)]
    assert texts == ["test images", "training images"]


# ------------------------------------------------------------------------------------- published numbers


def test_published_numbers_are_those_of_the_paper():
    sizes = (2 * 6 * 6, 22 * 8, 8 * 6, 2 * 8 * 8, 11, 2 * 5 * 2, 2 * 4, 2 * 2)
    assert Counter(figure.table for figure in published_figures()) == dict(enumerate(sizes, start=1))
    first = published(1, "cifar10", "resnet18")
    assert first["at-he", "clean"].text == "80.28"
    assert first["adv-dpnp", "pgd-l1"].value == 55.11
    assert published(2, "svhn", "resnet18")["ikl", "autoattack"].text == "47.53"
    assert published(2, "cifar10", "wrn-34-10")["fsr", "ensemble"].text == "52.37"
    assert published(4, "cifar100", "resnet18")["mart", "minsep"].text == "50.49"
    loss = published(6, "cifar10", "resnet18")["adv-dpnp", "pgd-20-ce-loss"]
    assert (loss.text, loss.value, loss.decimals) == ("1.2380", 1.238, 4)
    assert published(1, "digits", "cnn-small") == {}


@pytest.mark.parametrize("name", TABLES)
def test_plans_have_the_defenses_and_columns_of_the_paper_in_its_order(name):
    exhibit = load_exhibit(name)
    blocks = {}
    for figure in published_figures():
        if figure.table == int(name[5:]):
            blocks.setdefault((figure.dataset, figure.backbone), []).append(figure)
    assert {(block.published, block.backbone) for block in exhibit.blocks} == set(blocks)
    for block in exhibit.blocks:
        figures = blocks[block.published, block.backbone]
        assert block.defenses == tuple(dict.fromkeys(figure.defense for figure in figures))
        assert {figure.column for figure in figures} == set(exhibit.columns)


# --------------------------------------------------------------------------------------- ours beside theirs


def paper(value, column="pgd-20", defense="at"):
    return {(defense, column): replace(published_figures()[0], defense=defense, column=column, text=value)}


@pytest.mark.parametrize(
    ("value", "difference", "marked"),
    [("50.00", 0.0, False), ("76.84", -26.84, False), ("76.85", -26.85, True), ("23.15", 26.85, True)],
)
def test_a_mark_needs_more_than_the_interval_and_half_a_point(value, difference, marked):
    (line,) = side_by_side([example()], paper(value), {"pgd-20": "PGD-20"})
    assert line.ours.value == pytest.approx(50)
    assert line.ours.half_width == pytest.approx(WILSON_5_OF_10, abs=1e-3)
    assert line.difference == pytest.approx(difference)
    assert line.marked is marked
    row = rows(render_comparison("Table", [line], []))["at", "pgd-20"]
    assert row == ["50.00 ± 26.34", value, f"{difference:+.2f}{' ≠' if marked else ''}"]


def test_near_an_end_the_bounds_of_the_interval_decide_and_are_shown():
    # Wilson at 0 of 10: from 0 to z^2 / (10 + z^2) = 27.753 %, so up to 28.253 with the tolerance.
    none, every = (with_attack(example(clean_prediction=LABEL), "PGD-20", prediction=p) for p in (predictions(), LABEL))
    shown = []
    for result, values in ((none, ("20.00", "28.25", "28.26")), (every, ("80.00", "71.75", "71.74"))):
        for value in values:
            (line,) = side_by_side([result], paper(value), {"pgd-20": "PGD-20"})
            text = render_comparison("Table", [line], [])
            assert "In place of ±: (its bounds)" in text
            shown.append((rows(text)["at", "pgd-20"][0], line.marked))
    assert shown[:3] == [("0.00 (0.00 to 27.75)", False)] * 2 + [("0.00 (0.00 to 27.75)", True)]
    assert shown[3:] == [("100.00 (72.25 to 100.00)", False)] * 2 + [("100.00 (72.25 to 100.00)", True)]


def test_seeds_of_unlike_trainings_or_evaluations_have_no_mean():
    columns = {"pgd-20": "PGD-20"}
    second = with_run(example(), seed=1)
    assert side_by_side([example(), with_run(second, model="again")], {}, columns)[0].ours.value == pytest.approx(50)
    for other, reason in (
        (with_run(second, protocol={"epochs": 1, "batch_size": 128}), "differ in more than their seed"),
        (with_attack(second, "PGD-20", epsilon="4/255"), "threat model of column 'PGD-20'"),
        (example(), "have the training seed 0"),
    ):
        refusal(partial(side_by_side, [example(), other], {}, columns), reason)


def test_a_defense_without_results_has_the_papers_numbers():
    figures = paper("50.00") | paper("60.00", defense="mart")
    lines = side_by_side([example()], figures, {"pgd-20": "PGD-20"}, defenses=["mart", "at"])
    shown = rows(render_comparison("Table", lines, []))
    assert list(shown) == [("mart", "pgd-20"), ("at", "pgd-20")]
    assert shown["mart", "pgd-20"] == ["", "60.00", ""]
    assert shown["at", "pgd-20"][1:] == ["50.00", "+0.00"]


def test_means_over_seeds_have_intervals_over_seeds_and_images():
    # PGD-20 leaves five samples, then one: 50 % and 10 %, and t(0.975, 1) * sd / sqrt(2) = 12.7062 * 20.
    few = np.where(np.arange(10) == 0, np.int16(0), (np.arange(10, dtype=np.int16) + 1) % 10).astype(np.int16)
    second = with_run(with_attack(example(), "PGD-20", prediction=few), seed=1)
    (line,) = side_by_side([example(), second], paper("30.00"), {"pgd-20": "PGD-20"})
    assert line.ours.value == pytest.approx(30)
    assert line.ours.interval == (0, 100)
    (same,) = side_by_side([example(), with_run(example(), seed=1)], {}, {"pgd-20": "PGD-20"})
    # 7 of 14, with the four images that are added.
    half = 196 * (0.25 / 14) ** 0.5
    assert same.ours.interval == pytest.approx((50 - half, 50 + half), abs=1e-2)
    assert (same.paper, same.difference, same.marked) == (None, None, False)


def test_means_of_accuracies_have_the_interval_of_the_means_of_each_image():
    # Of ten images, three have both right and two neither.
    shares = np.array([1] * 3 + [0.5] * 5 + [0] * 2 + [1, 1, 0, 0])
    half = 196 * shares.std() / 14**0.5
    found = measured([example()])["Avg"]
    assert (found.value, found.half_width) == pytest.approx((55, half), abs=1e-2)
    shown = measured([corrupted({"fog": (5, 5)})])
    assert shown["Avg Acc 1"].half_width == pytest.approx(196 * (0.25 / 14) ** 0.5, abs=1e-2)


def test_the_papers_fdr_is_compared_with_eq_8_over_the_square_of_the_classes():
    columns = load_exhibit("table4").columns
    values = (27.1, 56.2, 1.38, 2.46, 0.35, 0.36, 61.1, 43.9)
    figures = paper("0.061", "fdr-clean") | paper("0.120", "fdr-adv")
    lines = {line.column: line for line in side_by_side([featured(values)], figures, columns)}
    # Ten classes.
    assert lines["fdr-clean"].ours.value == pytest.approx(0.271)
    assert lines["fdr-clean"].difference == pytest.approx(0.271 - 0.061)
    assert lines["fdr-adv"].ours.value == pytest.approx(0.562)
    assert "square of the number of classes" in load_exhibit("table4").note


def test_features_over_seeds_have_students_interval():
    seeds = [featured((value, *(1.0,) * 7), seed=seed) for seed, value in enumerate((10.0, 12.0, 14.0))]
    (line,) = side_by_side(seeds, {}, {"fdr": "FDR ↓ clean"})
    # The standard error of three seeds, and t(0.975, 2).
    assert (line.ours.value, line.ours.half_width) == pytest.approx((12, 4.302653 * 2 / 3**0.5))


def test_losses_and_features_are_no_accuracies_and_never_marked():
    losses = np.array([0, 2] * 5, dtype=np.float32)
    result = with_attack(example(), "PGD-20", loss=losses)
    (line,) = side_by_side([result], paper("1.2380", "loss"), {"loss": "PGD-20 loss"})
    # The standard deviation is sqrt(10 / 9), over sqrt(10): 1 / 3.
    assert (line.ours.value, line.ours.half_width) == pytest.approx((1, 1.959964 / 3))
    assert rows(render_comparison("Table", [line], []))["at", "loss"] == ["1.0000 ± 0.6533", "1.2380", "-0.2380"]
    result = featured((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 90.0, 80.0))
    (line,) = side_by_side([result], paper("94.51", "minsep"), {"minsep": "MinSep ↑"})
    assert (line.ours.value, line.difference, line.marked) == (80, pytest.approx(-14.51), False)
    assert rows(render_comparison("Table", [line], []))["at", "minsep"] == ["80.00", "94.51", "-14.51"]


def test_timing_a_step_trains_nothing_that_is_kept(tmp_path):
    request = TrainingRequest("at", "digits", protocol={"attack_steps": 1}, limit_train=64, runs=tmp_path)
    seconds = seconds_per_image(prepare_run(request, quiet=True))
    assert 0 < seconds < 1
    assert not list(tmp_path.iterdir())
