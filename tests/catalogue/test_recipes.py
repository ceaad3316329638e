"""Recipes: the default one is the protocol that it was before there were recipes; files of one's own, and refusals."""

import dataclasses
import json

import pytest

from bench.catalogue.names import recipe_names
from bench.catalogue.plugins import names
from bench.catalogue.protocol import LATER
from bench.catalogue.recipes import load_recipe, protocol_for
from bench.data.datasets import DATASET_PROTOCOLS
from bench.errors import BenchError
from bench.models.checkpoints import load_checkpoint
from bench.results.trainings import recipe_of, recorded_protocol, recorded_recipe
from bench.training.request import TrainingRequest
from bench.training.train import train


def resolved(recipe, dataset, **given):
    about = DATASET_PROTOCOLS[dataset]
    protocol = protocol_for(dataset, about.epsilons, about.crop_padding, about.flip, given, recipe)
    return dataclasses.asdict(protocol)


FORMER = {
    "epochs": 110,
    "batch_size": 128,
    "learning_rate": 0.1,
    "milestones": (100, 105),
    "decay": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "norm": "linf",
    "epsilon": "8/255",
    "attack_steps": 10,
    "attack_step": "eps/4",
    "crop_padding": 4,
    "flip": True,
    "holdout": 0,
}
"""Every setting of a training on CIFAR-10 before there were recipes."""
DEPARTURES = {
    "cifar10": {},
    "cifar100": {},
    "npz": {"flip": False},
    "folder": {"epsilon": "4/255", "flip": False},
    "imagenet": {"epsilon": "4/255", "crop_padding": 0, "flip": False},
    "tinyimagenet": {},
    "hf": {"epsilon": "4/255", "flip": False},
    "svhn": {"flip": False, "attack_step": "eps/8"},
    "mnist": {"epsilon": "0.3", "attack_steps": 40, "attack_step": "eps/30", "crop_padding": 0, "flip": False},
    "digits": {
        "epochs": 20,
        "batch_size": 64,
        "learning_rate": 0.05,
        "milestones": (15, 18),
        "epsilon": "0.15",
        "crop_padding": 0,
        "flip": False,
    },
}

SINCE = {
    "optimizer": "sgd",
    "schedule": "milestones",
    "schedule_by": "epoch",
    "peak": 0.3,
    "rate_start": 0.04,
    "rate_end": 0.0,
    "warm_up": 0.0,
    "momentum_peak": None,
    "average": "none",
    "average_decay": 0.9995,
    "average_from": 0.0,
    "label_smoothing": 0.0,
    "awp": 0.0,
    "augmentation": "crop-flip",
    "extra_share": 0.0,
}
"""Settings that came later, as every training before them was."""


def test_a_record_that_lacks_later_settings_means_what_was_done_then():
    assert LATER == SINCE
    assert recorded_protocol({"protocol": FORMER}) == FORMER | SINCE
    assert recorded_protocol({"protocol": {**FORMER, "optimizer": "adamw"}})["optimizer"] == "adamw"
    assert recorded_protocol({}) == {}


@pytest.mark.parametrize("dataset", DATASET_PROTOCOLS)
def test_the_default_recipe_is_the_protocol_that_was(dataset):
    found = resolved("pang2021", dataset)
    assert found == FORMER | DEPARTURES[dataset] | SINCE
    small = dataset in ("mnist", "digits")
    assert load_recipe("pang2021").settings(dataset)["backbone"] == ("cnn-small" if small else "resnet18")
    assert TrainingRequest("at", dataset).resolved_backbone == ("cnn-small" if small else "resnet18")


ONE_CYCLE = {
    **{"schedule": "one-cycle", "schedule_by": "epoch", "rate_start": 1 / 25, "rate_end": 1 / 25 / 1e4},
    **{"momentum": 0.95, "momentum_peak": 0.85},
}
"""OneCycleLR's defaults, stepped once an epoch."""
PUBLISHED = {
    "pang2021-short": {"epochs": 6, "milestones": (4, 5), "learning_rate": 0.1, "decay": 0.1},
    "fastat2026": {
        **{"epochs": 100, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4, "nesterov": False},
        **ONE_CYCLE,
        **{"peak": 0.3, "average": "ema", "average_decay": 0.9995, "label_smoothing": 0.4, "holdout": 1000},
        **{"attack_steps": 10, "epsilon": "8/255", "attack_step": "eps/4"},
    },
    "wang2023": {
        **{"epochs": 400, "batch_size": 512, "learning_rate": 0.2, "weight_decay": 5e-4, "nesterov": True},
        **ONE_CYCLE,
        **{"peak": 0.025, "average": "ema", "average_decay": 0.995, "average_from": 0.025, "label_smoothing": 0.1},
        **{"attack_steps": 10, "epsilon": "8/255", "attack_step": "eps/4", "holdout": 1024, "extra_share": 0.7},
    },
    "rice2020": {"epochs": 200, "milestones": (100, 150), "decay": 0.1, "learning_rate": 0.1, "batch_size": 128},
}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_named_like_its_file_and_holds_the_published_numbers(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.version == 1
    assert recipe.about
    assert recipe.source
    found = resolved(name, "cifar10")
    assert found == found | PUBLISHED.get(name, {})
    for dataset in DATASET_PROTOCOLS:
        assert resolved(name, dataset)["epochs"] == recipe.settings(dataset)["epochs"]
        assert recipe.settings(dataset)["backbone"] in names("backbone")


MINE = {
    "name": "mine",
    "version": 3,
    "about": "for a test",
    "include": "pang2021",
    "settings": {"epochs": 4, "milestones": [2]},
    "datasets": {"digits": {"batch_size": 32}},
}


@pytest.fixture
def written(tmp_path):
    """Writes a recipe's file; returns its path."""

    def write(content, name="mine.json"):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    return write


def test_what_a_recipe_names_replaces_what_it_includes(written):
    path = written(MINE)
    assert resolved(path, "cifar10") == resolved("pang2021", "cifar10") | {"epochs": 4, "milestones": (2,)}
    # Of the included one, what departs on a dataset stays unless it is named again.
    digits = {"epochs": 4, "milestones": (2,), "batch_size": 32}
    assert resolved(path, "digits") == resolved("pang2021", "digits") | digits
    assert resolved(path, "digits", epochs="8") == resolved("pang2021", "digits") | digits | {
        "epochs": 8,
        "milestones": (4,),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**MINE, "settings": {"epoch": 3}}, ("unknown setting 'epoch'", "Did you mean 'epochs'?")),
        ({**MINE, "settings": {"epochs": "many"}}, ("epochs='many' is not a whole number",)),
        ({**MINE, "setings": {}}, ("setings is none of name, version",)),
        ({**MINE, "name": "../mine"}, ("name '../mine'", "my-recipe.2")),
        ({**MINE, "version": "2"}, ("version '2' must be a whole number",)),
        ({**MINE, "name": "rice2020"}, ("rice2020 comes with the program", "another name")),
        ({"name": "mine", "version": 1, "settings": {"epochs": 3}}, ("lack backbone, batch_size", '"include"')),
        ({"name": "mine", "version": 1}, ("KeyError: 'settings'",)),
        ([1], ("is not a recipe",)),
        ({**MINE, "datasets": {"digit": {}}}, ("unknown dataset 'digit'", "Did you mean 'digits'?")),
        ({**MINE, "include": "pang2020"}, ("unknown recipe 'pang2020'", "Did you mean 'pang2021'?")),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(written, content, words):
    with pytest.raises(BenchError) as caught:
        load_recipe(written(content))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_recipe_that_includes_itself_and_a_file_that_is_not_there_are_refused(written, tmp_path):
    path = written({**MINE, "include": str(tmp_path / "mine.json")})
    with pytest.raises(BenchError, match="includes itself"):
        load_recipe(path)
    with pytest.raises(BenchError, match=r"absent\.json is not a recipe: FileNotFoundError"):
        load_recipe(str(tmp_path / "absent.json"))


def test_a_training_records_its_recipe_and_what_replaced_parts_of_it(written, blobs, tmp_path, capsys):
    request = TrainingRequest("st", blobs, recipe=written(MINE), protocol={"epochs": 1}, backbone="cnn-small")
    request = dataclasses.replace(request, runs=tmp_path, device="cpu")
    folder = train(request)
    assert folder == tmp_path / "npz-blobs" / "cnn-small" / "mine" / "st" / "seed-0"
    config = load_checkpoint(folder).config
    assert config["recipe"] == {"name": "mine", "version": 3, "file": "mine.json"}
    assert (config["protocol_given"], config["protocol"]["epochs"]) == ({"epochs": 1}, 1)
    assert (recipe_of(config), recorded_recipe(config)) == ("mine version 3", "mine version 3 with epochs=1")
    assert "Recipe mine version 3 with epochs=1.\n" in capsys.readouterr().err


def test_recipes_are_listed_and_chosen_by_name(bench):
    code, output = bench("list", "recipes")
    assert code == 0
    assert "pang2021" in output
    assert "digits: backbone cnn-small, epochs 20, batch_size 64, learning_rate 0.05, milestones 15,18" in output
    assert "rice2020" in bench("list")[1]
    code, output = bench("train", "--defense", "at", "--dataset", "digits", "--recipe", "rice20")
    assert code == 2
    assert "unknown recipe 'rice20'. Did you mean 'rice2020'?" in output


def test_a_recipe_with_extra_images_asks_for_them(bench):
    code, output = bench("train", "--defense", "trades", "--dataset", "digits", "--recipe", "wang2023")
    assert code == 2
    assert "extra_share 0.7 is of no images: give them, as --extra npz:PATH, or --extra-share 0" in output
