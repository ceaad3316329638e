"""What a sweep varies: its combinations, their folders and rows, and what is refused before anything runs."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.experiments.grid import MOST_RUNS, Sweep, parse_seeds
from bench.experiments.sweep import check_plans, plan_jobs
from bench.leaderboard.render.commands import commands
from bench.leaderboard.tables.build import build_table
from bench.models.checkpoints import load_checkpoint
from bench.results.file import read_result
from bench.results.trainings import run_place
from bench.training import train as training
from bench.training.request import TrainingRequest
from tests.leaderboard.test_trainings import trained
from tests.support.refusals import refusal


def digits(*defenses, **options):
    return Sweep(**{"datasets": ("digits",), "defenses": defenses, "suites": ("clean",), **options})


def folders(sweep):
    return [request.run_folder.as_posix() for plan in sweep.plans() for request in plan.trainings()]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1", (0,)),
        ("3", (0, 1, 2)),
        ("0-4", (0, 1, 2, 3, 4)),
        ("3-3", (3,)),
        ("7,", (7,)),
        ("0,2,5", (0, 2, 5)),
        ("0-1, 4294967295", (0, 1, 2**32 - 1)),
    ],
)
def test_seeds_are_a_number_a_range_or_a_list(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "4-2", "1-2-3", "a", "1,1", "0-2,1", "4294967296,", "0-4294967295"])
def test_other_seeds_are_refused(text):
    refusal(lambda: parse_seeds(text), "seed")


def test_every_combination_is_a_run_whose_folder_names_what_of_the_grid_it_is_of():
    sweep = digits("trades", "mart", grid={"epochs": ["10", "20"], "beta": ["1", 3]}, seeds=(0, 2))
    assert folders(sweep) == [
        f"runs/digits/cnn-small/{name}/beta={beta},epochs={epochs}/seed-{seed}"
        for epochs in (10, 20)
        for beta in ("1.0", "3.0")
        for seed in (0, 2)
        for name in ("trades", "mart")
    ]
    for plan in sweep.plans():
        for request in plan.trainings():
            assert request.run_folder.parts[-2] == "beta={beta},epochs={epochs}".format(
                **request.hyperparameters, **request.protocol
            )
    assert sweep.differing() == {
        **{"defense": ["trades", "mart"], "epochs": ["10", "20"], "beta": ["1.0", "3.0"], "seed": ["0", "2"]}
    }


def test_what_is_varied_of_one_defense_alone_is_not_varied_of_the_others():
    sweep = digits("at", "trades", "mart", grid={"trades.beta": ["1", "6"], "mart.beta": ["2"]}, recipes=RECIPES)
    place = "runs/digits/cnn-small"
    assert folders(sweep) == [
        f"{place}/{recipe}{run}/seed-0"
        for recipe in ("", "rice2020/")
        for run in ("at", "trades/beta=1.0", "trades/beta=6.0", "mart/beta=2.0")
    ]


RECIPES = ("pang2021", "rice2020")


def test_a_sweep_without_a_grid_is_where_it_was():
    sweep = digits("at", "st", datasets=("digits", "mnist"), suites=("clean", "quick"))
    assert len(sweep.plans()) == 4
    assert sorted(set(folders(sweep))) == [
        f"runs/{dataset}/cnn-small/{name}/seed-0" for dataset in ("digits", "mnist") for name in ("at", "st")
    ]


def test_a_model_that_a_defense_needs_has_the_settings_and_not_the_hyperparameters():
    sweep = digits("hat", grid={"epochs": [1, 2], "gamma": [0.5]})
    check_plans(sweep.plans())
    jobs = {job.name: job for job in plan_jobs(sweep.plans())}
    for epochs in (1, 2):
        needed = f"train digits/cnn-small/st/epochs={epochs}/seed-0"
        assert jobs[f"train digits/cnn-small/hat/epochs={epochs},gamma=0.5/seed-0"].after == (needed,)
        assert "--set" not in jobs[needed].arguments
    assert len(jobs) == 6


def test_a_job_trains_into_the_folder_that_its_name_says(bench, tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text('{"name": "mine", "version": 1, "include": "pang2021", "settings": {}}')
    grid = {
        "epsilon": ["8/255", "0.1"],
        "flip": [False],
        "milestones": ["1 2", ()],
        "trades.reuse_clean_logits": [True],
    }
    sweep = digits("trades", "at", grid=grid, recipes=("mine.json",), shared={"runs": tmp_path / "r"})
    asked = []
    monkeypatch.setattr(training, "train", lambda request, resume: asked.append(request) or request.run_folder)
    jobs = [job for job in plan_jobs(sweep.plans()) if job.arguments[0] == "train"]
    for job in jobs:
        assert bench(*job.arguments)[0] == 0
        assert job.name == f"train {asked[-1].run_folder.relative_to(tmp_path / 'r')}"
    assert len({request.run_folder for request in asked}) == len(jobs) == 8
    assert jobs[0].name == "train digits/cnn-small/mine/at/epsilon=8_255,flip=False,milestones=1,2/seed-0"
    assert asked[0].setting == {"epsilon": "8/255", "flip": False, "milestones": (1, 2)}


def test_other_settings_have_other_folders_whatever_their_text():
    texts = ["a", "a b", "a  b", "a:b", "../../etc", "x" * 300, "x" * 301, "\u00e9", "", "=", "A/B"]
    places = [run_place("d", "b", None, "at", {"kind": text}, 0) for text in texts]
    assert len(set(places)) == len(texts)
    assert {place.count("/") for place in places} == {4}
    assert max(map(len, places)) < 200
    assert [text for text in places if set("./") >= {*text.split("/")[3]}] == []


GRIDS = [
    ({"betta": [1]}, "unknown name in the grid 'betta'. Did you mean 'beta'? Choose from: "),
    (
        {"beta": [1]},
        "at, ikl have no hyperparameter beta, unlike trades: write trades.beta to vary it of trades alone, or ",
    ),
    ({"mart.beta": [1]}, "unknown defense of the sweep 'mart'. Did you mean 'at'? Choose from: at, ikl, trades."),
    ({"trades.bet": [1]}, "unknown hyperparameter of trades 'bet'. Did you mean 'beta'? Choose from: beta, reuse_"),
    ({"trades.epochs": [1]}, "unknown hyperparameter of trades 'epochs'."),
    ({"awp": [0.005]}, "awp is a setting of recipes and a hyperparameter of ikl: write ikl.awp for the latter, or "),
    ({"epochs": ["many"]}, "grid value epochs='many' is not a whole number."),
    ({"epochs": []}, "no value of epochs is given."),
    ({"trades.beta": ["6", "6.0"]}, "value of beta 6.0 is given twice."),
    ({"learning-rate": [1], "learning_rate": [2]}, "learning_rate is given twice."),
    ({"batch_size": [1]}, "batch_size is given twice. Give it once, in --grid or as an option."),
    (
        {"epochs": range(1, MOST_RUNS), "holdout": [0, 5]},
        f"that is {6 * (MOST_RUNS - 1)} trainings; a sweep has at most ",
    ),
]


@pytest.mark.parametrize(("grid", "line"), GRIDS, ids=[line[:40] for _, line in GRIDS])
def test_a_grid_that_cannot_be_meant_is_refused_by_name(grid, line):
    refusal(lambda: digits("at", "trades", "ikl", grid=grid, protocol={"batch_size": 64}).plans(), line)


def test_a_sweep_names_the_combination_that_would_fail_before_it_starts(blobs, tmp_path):
    idle = digits("at", grid={"schedule": ["cosine", "milestones"], "rate_end": [0.1]})
    line = refusal(lambda: check_plans(idle.plans()), "--rate-end would change nothing with --schedule milestones")
    assert line.startswith("of schedule=milestones, rate_end=0.1: ") or line.startswith("of rate_end=0.1, schedule=mil")
    (tmp_path / "same.json").write_text('{"name": "same", "version": 1, "include": "pang2021", "settings": {}}')
    twice = digits("at", recipes=("pang2021", str(tmp_path / "same.json")))
    refusal(lambda: check_plans(twice.plans()), "/same/at/seed-0 would be the same training. Leave one of the two out.")
    copy = tmp_path / "blobs.npz"
    copy.write_bytes(Path(blobs.removeprefix("npz:")).read_bytes())
    alike = digits("at", datasets=(blobs, f"npz:{copy}"), shared={"backbone": "cnn-small"})
    refusal(lambda: check_plans(alike.plans()), "two trainings of this sweep would share the folder runs/npz-blobs/")
    refusal(lambda: digits("at", datasets=("digits", "digits")).plans(), "dataset digits is given twice.")


def test_a_grid_is_trained_evaluated_and_told_apart_on_the_board(bench, tmp_path, blobs):
    given = ["sweep", "--dataset", blobs, "--backbone", "cnn-small", "--defenses", "at,trades", "--suite", "clean"]
    given += ["--grid", "trades.beta=1,6", "--grid", "batch-size=24", "--epochs", 1, "--limit-train", 24, "--limit", 4]
    code, output = bench(*given, "--seeds", "5,")
    assert code == 0, output
    names = ("trades (beta=1.0)", "trades (beta=6.0)", "| at ")
    assert [name for name in names if name not in output] == []
    (path,) = tmp_path.rglob("trades/batch_size=24,beta=1.0/seed-5/results/clean-v1-limit4.h5")
    result = read_result(path)
    assert result.run["hyperparameters"]["beta"] == 1.0 and result.run["protocol"]["batch_size"] == 24
    assert load_checkpoint(path.parent.parent).config["named_by"] == ["batch_size", "beta"]
    train, evaluate = commands(result)
    assert "--set beta=1.0 --named-by batch_size,beta" in train
    assert shlex.split(evaluate)[2] == "runs/npz-blobs/cnn-small/trades/batch_size=24,beta=1.0/seed-5"
    assert len([*tmp_path.rglob("*.h5")]) == 3
    assert bench(*given, "--seeds", "5-5", "--dry-run")[1].endswith("Nothing is missing.\n")


def test_names_that_name_nothing_are_refused_where_one_run_is_trained(bench):
    code, output = bench("train", "--defense", "at", "--dataset", "digits", "--epochs", 1, "--named-by", "epochs,beta")
    assert (code, output.count("\n")) == (2, 1)
    assert "--named-by beta names nothing that is given: add --set beta=VALUE" in output


def test_several_tables_are_not_written_into_one(bench):
    code, output = bench("sweep", "--datasets", "digits,mnist", "--defenses", "at", "--board", "b.md")
    assert (code, "b.md holds one table, and the sweep has several." in output) == (2, True)


def test_milestones_that_nobody_gave_are_no_part_of_a_label():
    def run(epochs, milestone, **given):
        return trained("T", protocol={"epochs": epochs, "milestones": [milestone]}, protocol_given=given)

    rows = build_table([run(10, 8), run(20, 16)]).rows
    assert sorted(row.name for row in rows) == ["T (epochs=10)", "T (epochs=20)"]
    rows = build_table([run(10, 8), run(10, 5, milestones="5")]).rows
    assert sorted(row.name for row in rows) == ["T", "T (milestones=5)"]


def test_a_request_without_names_is_as_it_was():
    request = TrainingRequest("trades", "digits", hyperparameters={"beta": "1"}, protocol={"epochs": "2"})
    assert request.run_folder.as_posix() == "runs/digits/cnn-small/trades/seed-0"
    named = dataclasses.replace(request, named_by=("beta",))
    assert named.run_folder.as_posix() == "runs/digits/cnn-small/trades/beta=1.0/seed-0"
    with pytest.raises(BenchError, match="beta='high' is not a number"):
        _ = dataclasses.replace(named, hyperparameters={"beta": "high"}).run_folder
