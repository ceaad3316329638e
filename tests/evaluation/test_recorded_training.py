"""A training with extra images and averaged weights tells all of it: in row, board, trust report and exports."""

import dataclasses
import json

import numpy as np
import pytest

from bench.data import datasets
from bench.interop.model_info import from_result
from bench.models.checkpoints import load_checkpoint
from bench.results.file import read_result
from bench.results.trainings import recorded_recipe
from tests.support.command import bench
from tests.support.example_results import example

RECIPE = "wang2023 version 1 with attack-steps=2, batch-size=64, epochs=2, extra-share=0.3"
OPTIONS = ("--attack-steps", 2, "--batch-size", 64, "--epochs", 2, "--extra-share", 0.3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a run by wang2023, to whose training images three tenths of all came as extra ones."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("recorded")
        patch.chdir(folder)
        with np.load(datasets.DIGITS, allow_pickle=False) as whole:
            digits = {name: values[:100] for name, values in whole.items()}
        own = {**digits, "x_train": digits["x_train"][:70], "y_train": digits["y_train"][:70]}
        np.savez("digits.npz", **own)
        patch.setattr(datasets, "DIGITS", folder / "digits.npz")
        pixels = (255 / 16 * digits["x_train"][70:, 0]).round().astype(np.uint8)
        np.savez("generated.npz", image=pixels, label=digits["y_train"][70:])
        given = ("--dataset", "digits", "--recipe", "wang2023", "--extra", "npz:generated.npz", "--out", "run")
        code, output = bench("train", "--defense", "trades", *given, *OPTIONS)
        assert code == 0, output
        code, output = bench(
            "eval", "run", "--checkpoint", "average", "--suite", "quick", "--probes", 2, "--out", "r.h5"
        )
        assert code == 0, output
        code, output = bench("leaderboard", "r.h5", "--out", "board.json")
        assert code == 0, output
        code, output = bench("export", "huggingface", "run", "card", "--checkpoint", "average", "--result", "r.h5")
        assert code == 0, output
        yield folder


@pytest.fixture(scope="module")
def extra(recorded):
    """The record of the extra images."""
    return load_checkpoint(recorded / "run").config["dataset"]["extra"]


def test_the_row_records_recipe_extra_images_and_average(recorded, extra):
    run = read_result(recorded / "r.h5").run
    assert recorded_recipe(run) == RECIPE
    assert (run["training_data"]["train_size"], extra["size"], extra["test_duplicates"]) == (70, 30, 0)
    assert run["training_data"]["extra"] == extra
    assert (run["protocol"]["extra_share"], run["protocol"]["average"]) == (0.3, "ema")
    assert (run["weights"], run["checkpoint"]) == ("average", "average")
    assert run["checkpoint_digest"] == load_checkpoint(recorded / "run" / "average").digest


def test_the_board_and_its_data_tell_it(recorded, extra):
    board = json.loads((recorded / "board.json").read_text())["boards"][0]
    (row,) = board["rows"]
    assert row["name"] == "trades (average)"
    told = f"extra images 30 of npz:generated.npz; extra images (sha256) {extra['digest'][:8]}; extra_share 0.3"
    assert board["notes"][0] == f"Training of every row: recipe {RECIPE}; {told}"
    (result,) = row["results"]
    assert (result["recipe"], result["extra"], result["checkpoint"]) == (RECIPE, extra, "average")
    train, evaluation = result["commands"]
    assert " --recipe wang2023 " in train and " --extra npz:generated.npz " in train and " --extra-share 0.3" in train
    assert evaluation.startswith("bench eval runs/digits/cnn-small/wang2023/trades/seed-0/average ")


def test_the_trust_report_says_how_many_and_that_none_is_a_test_image(recorded, extra):
    _, output = bench("trust", recorded / "r.h5")
    told = f"30 % of each batch from 30 extra images ({extra['digest'][:8]}): none of them is a test image"
    assert [line.split(maxsplit=2) for line in output.splitlines() if "extra-data" in line] == [
        ["✓", "extra-data", told]
    ]


def test_the_model_card_shows_every_number(recorded, extra):
    text = (recorded / "card" / "README.md").read_text()
    rows = {
        **{"recipe": RECIPE, "weights": "average", "average": "ema", "training images": 70, "extra share": 0.3},
        **{f"extra images: {key.replace('_', ' ')}": value for key, value in extra.items()},
    }
    assert [name for name, value in rows.items() if f"\n| {name} | {value} |\n" not in text] == []
    assert "| trades (average) |" in text


def test_the_file_for_robustbench_says_additional_data_exactly_then(recorded, extra):
    run = read_result(recorded / "r.h5").run
    plain = {key: value for key, value in run["training_data"].items() if key != "extra"}
    infos = []
    for data in (run["training_data"], plain):
        # RobustBench has no board of digits.
        as_cifar = {**run, "dataset": "cifar10", "training_data": {**data, "name": "cifar10"}}
        infos.append(from_result(dataclasses.replace(example(), run=as_cifar), {"authors": "A. One"})[0])
    assert [info.additional_data for info in infos] == [True, False]
    told = f"Trained with 30 % of each batch from 30 extra images ({extra['digest'][:8]})."
    assert told in infos[0].footnote
    assert "extra images" not in infos[1].footnote
    assert all("Weights are an average over the training." in info.footnote for info in infos)
