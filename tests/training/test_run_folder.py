"""A finished training is finished in every file, or it says what to do: each file damaged in turn."""

import itertools
import shutil
from dataclasses import replace

import pytest
import torch

from bench.errors import BenchError
from bench.models.checkpoints import (
    load_checkpoint,
    load_training_state,
    older_state,
    save_checkpoint,
    save_training_state,
)
from bench.training import loop
from bench.training import request as requested
from bench.training import train as training
from bench.training.request import TrainingRequest, dataset_and_protocol, is_finished
from bench.training.train import train
from tests.support.refusals import refusal
from tests.support.trainings import damage, rows, train_and_stop

SCORES = (10.0, 30.0, 20.0)
BEST, LAST, HISTORY = "best/model.safetensors", "last/model.safetensors", "history.jsonl"
FILES = (HISTORY, BEST, "best/config.json", LAST, "last/config.json")


def scored(patch, scores=SCORES):
    """Held-out accuracies of the epochs are given, so that the second is the best."""

    original = loop.train_epoch

    def scoring(run, epoch, *rest):
        accuracies = {"held_out_clean": 50.0, "held_out_pgd": scores[epoch]}
        patch.setattr(loop, "held_out_accuracies", lambda *given: accuracies)
        return original(run, epoch, *rest)

    patch.setattr(loop, "train_epoch", scoring)


@pytest.fixture(scope="module")
def asked(blobs, tmp_path_factory):
    protocol = {"epochs": 3, "batch_size": 48, "holdout": 24}
    runs = tmp_path_factory.mktemp("runs")
    return TrainingRequest("st", blobs, "cnn-small", protocol=protocol, runs=runs, device="cpu", save_every=0.0)


@pytest.fixture(scope="module")
def finished(asked):
    with pytest.MonkeyPatch.context() as patch:
        scored(patch)
        return train(asked, quiet=True)


@pytest.fixture
def copied(asked, finished, tmp_path):
    """The request, of a copy of the finished folder."""
    return replace(asked, folder=shutil.copytree(finished, tmp_path / "run"))


def contents(folder):
    return {name: content(folder / name) for name in FILES if (folder / name).exists()}


def content(path):
    """Of a checkpoint its digest: safetensors writes the entries of its head in any order."""
    try:
        return load_checkpoint(path).digest
    except BenchError:
        return path.read_bytes()


def without_states(folder):
    for path in folder.glob("training_state*"):
        path.unlink()


def test_when_states_are_written_changes_no_file(asked, finished, tmp_path, monkeypatch):
    """The best epoch is the second of three, between two saves."""
    scored(monkeypatch)
    once = train(replace(asked, folder=tmp_path / "once", save_every=30.0), quiet=True)
    assert contents(once) == contents(finished)
    assert len(load_training_state(older_state(finished / "training_state.pt"))["history"]) == 2
    assert not older_state(once / "training_state.pt").exists()


@pytest.mark.parametrize(
    ("name", "how"),
    [*itertools.product(FILES, ["flipped", "cut", "missing"]), *itertools.product(FILES[:2], ["torn", "empty"])],
)
def test_any_damaged_file_is_written_again_as_it_was(copied, finished, capsys, name, how):
    assert load_checkpoint(finished / BEST).config["epoch"] == 2
    path = copied.folder / name
    damage(path, how)
    if path.suffix == ".safetensors":
        refusal(lambda: load_checkpoint(path.parent), str(path.parent))
    assert train(copied) == copied.folder
    assert capsys.readouterr().err == f"Written again from the training state: {path}.\n"
    assert contents(copied.folder) == contents(finished)
    train(copied)
    assert capsys.readouterr().err == f"{copied.folder} is already finished: nothing to do.\n"


def test_everything_at_once_is_written_as_it_was_trained(copied, finished, monkeypatch):
    for name in FILES:
        (copied.folder / name).unlink()
    # Not as this machine is, nor as this version describes a run.
    describe = training.describe
    monkeypatch.setattr(requested, "describe_environment", lambda device: {"device": "another", "versions": {}})
    monkeypatch.setattr(training, "describe", lambda *given: {**describe(*given), "later": True})
    train(copied, quiet=True)
    assert contents(copied.folder) == contents(finished)


def test_a_checkpoint_of_another_epoch_or_of_other_weights_is_written_again(copied, finished):
    shutil.copytree(finished / "last", copied.folder / "best", dirs_exist_ok=True)
    train(copied, quiet=True)
    assert contents(copied.folder) == contents(finished)
    other = load_checkpoint(finished / "last")
    weights = {name: tensor + 1 for name, tensor in other.weights.items()}
    save_checkpoint(replace(other, weights=weights), copied.folder / "last")
    train(copied, quiet=True)
    assert contents(copied.folder) == contents(finished)


def test_the_best_epoch_of_a_resumed_run_is_mended_before_it_goes_on(asked, finished, tmp_path, monkeypatch):
    request = replace(asked, folder=tmp_path / "run")
    scored(monkeypatch)
    train_and_stop(request, 2)
    damage(request.folder / BEST, "cut")
    train(request, resume=True, quiet=True)
    assert contents(request.folder) == contents(finished)


@pytest.mark.parametrize("how", ["flipped", "torn", "cut", "empty"])
@pytest.mark.parametrize("name", [HISTORY, BEST])
def test_without_a_state_a_damaged_file_is_refused_until_it_is_deleted(copied, name, how):
    without_states(copied.folder)
    path = copied.folder / name
    if (name, how) == (HISTORY, "flipped"):
        path.write_text(path.read_text().replace('"epoch": 2', '"epoch": 7'))
    else:
        damage(path, how)
    before = contents(copied.folder)
    data = dataset_and_protocol(copied)
    assert not is_finished(copied, *data)
    told = (f"{path} is damaged, and no training state holds", "delete it to do without", f"delete {copied.folder} and")
    refusal(lambda: train(copied, quiet=True), *told)
    assert contents(copied.folder) == before
    path.unlink()
    assert train(copied, quiet=True) == copied.folder
    assert is_finished(copied, *data)
    assert contents(copied.folder) == {key: value for key, value in before.items() if key != name}


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_without_a_state_and_a_last_checkpoint_nothing_is_overwritten(copied, how):
    without_states(copied.folder)
    damage(copied.folder / LAST, how)
    before = contents(copied.folder)
    left = "best" if how == "missing" else "last and best"
    told = (
        f"{copied.folder} holds {left}, and neither its last",
        "delete the folder, or choose another one with --out",
    )
    refusal(lambda: train(copied, resume=True, quiet=True), *told)
    assert contents(copied.folder) == before


def of_an_older_version(folder, **changes):
    """The training state, as it was before it held the best epoch's weights."""
    path = folder / "training_state.pt"
    state = {key: value for key, value in load_training_state(path).items() if key != "best"}
    save_training_state(path, {**state, **changes})
    return state


def test_the_state_of_an_older_version_mends_what_it_can(copied, finished, capsys):
    path = copied.folder / BEST
    history = of_an_older_version(copied.folder)["history"]
    train(copied, quiet=True)
    damage(path, "cut")
    refusal(lambda: train(copied, quiet=True), f"{path} is damaged, and no training state holds", "delete it")
    path.unlink()
    capsys.readouterr()
    assert train(copied) == copied.folder
    assert not path.exists()
    assert capsys.readouterr().err == f"{copied.folder} is already finished: nothing to do.\n"
    # Where the last epoch is the best one, it holds the weights.
    history = [{**row, "held_out_pgd": float(number)} for number, row in enumerate(history)]
    of_an_older_version(copied.folder, history=history)
    train(copied, quiet=True)
    found, last = load_checkpoint(path), load_checkpoint(finished / "last")
    assert found.digest == last.digest
    assert rows(copied.folder) == history


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_finished_run_needs_its_state_no_more(copied, finished, how):
    path = copied.folder / "training_state.pt"
    damage(path, how)
    assert train(copied, quiet=True) == copied.folder
    assert contents(copied.folder) == contents(finished)
    damage(older_state(path), "cut")
    for resume in (False, True):
        assert train(copied, resume=resume, quiet=True) == copied.folder
    assert contents(copied.folder) == contents(finished)


def test_the_older_state_gives_a_finished_run_its_files_again(copied, finished, monkeypatch):
    scored(monkeypatch)
    damage(copied.folder / "training_state.pt", "cut")
    damage(copied.folder / BEST, "cut")
    refusal(lambda: train(copied, quiet=True), "is damaged, and no training state holds")
    assert train(copied, resume=True, quiet=True) == copied.folder
    assert contents(copied.folder) == contents(finished)
    state = load_training_state(copied.folder / "training_state.pt")
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in load_checkpoint(finished).weights.items())
