"""Checkpoints come back as they were, say when they are damaged, and never execute anything."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.data.datasets import load_dataset
from bench.defenses.adv_dpnp import AdvDPNP
from bench.errors import BenchError
from bench.interop.subjects import from_checkpoint
from bench.models.checkpoints import Checkpoint, load_checkpoint, load_training_state
from bench.system.files import content_digest
from tests import ROOT


@pytest.fixture
def copy(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run")


def test_a_checkpoint_rebuilds_the_same_logits(digits_run):
    state = load_training_state(digits_run / "training_state.pt")
    checkpoint = load_checkpoint(digits_run)
    model = checkpoint.build()
    images = load_dataset("digits", Path()).test.images(slice(0, 20))
    logits = model(images)
    model.load_state_dict(state["model"])
    assert torch.equal(logits, model(images))
    assert not model.training


def test_different_content_has_different_digests():
    pairs = [
        ([1, 12], [11, 2]),
        ({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "c": 2}}),
        ({"a": 1}, {"a": "1"}),
        ([[1], 2], [[1, 2]]),
    ]
    for first, second in pairs:
        assert content_digest(first) != content_digest(second)
    assert content_digest({"a": 1, "b": torch.ones(2)}) == content_digest({"b": torch.ones(2), "a": 1})


@pytest.mark.parametrize("path", ["", "last", "last/model.safetensors"])
def test_a_run_a_folder_or_a_file_will_do(digits_run, path):
    assert load_checkpoint(digits_run / path).config["defense"] == "at"


def test_every_flipped_byte_is_noticed(copy):
    file = copy / "last" / "model.safetensors"
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 60):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        with pytest.raises(BenchError):
            load_checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_a_truncated_checkpoint_is_refused(copy, keep):
    file = copy / "last" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BenchError, match=r"model\.safetensors"):
        load_checkpoint(copy)


def test_foreign_and_future_files_are_refused_by_name(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, file)
    with pytest.raises(BenchError, match=r"was not written by `bench train`.*--model"):
        load_checkpoint(file)
    save_file({"weight": torch.ones(2)}, file, {"format": "bench-checkpoint", "format_version": "99"})
    with pytest.raises(BenchError, match="format version 99; this program reads 1"):
        load_checkpoint(file)
    with pytest.raises(BenchError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "seed-3" / "last").mkdir(parents=True)
    (tmp_path / "seed-4").mkdir()
    file.rename(tmp_path / "seed-3" / "last" / "model.safetensors")
    with pytest.raises(BenchError, match=rf"no checkpoint at {tmp_path}, .*: name one of {tmp_path}/seed-3\.$"):
        load_checkpoint(tmp_path)


def test_flipped_and_truncated_training_states_are_refused(copy):
    file = copy / "training_state.pt"
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    digest = load_training_state(file)["model"]["head.weight"]
    for position in rng.integers(0, len(good), 30):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            # Bytes of the zip container that carry no content (padding, timestamps) may flip unnoticed.
            assert torch.equal(load_training_state(file)["model"]["head.weight"], digest)
        except BenchError:
            continue
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(BenchError, match="not a readable training state"):
        load_training_state(file)


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


def test_a_pickle_that_would_execute_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda file: torch.save({"state": Bomb()}, file),
        lambda file: file.write_bytes(pickle.dumps(Bomb())),
    ):
        file = tmp_path / "training_state.pt"
        write(file)
        with pytest.raises(BenchError, match="not a readable training state"):
            load_training_state(file)
    assert not (tmp_path / "exploded").exists()


def test_a_hyperparameter_that_a_record_lacks_has_the_value_it_had_before():
    recorded = {"defense": "adv-dpnp", "dataset": {"name": "digits"}, "hyperparameters": {"alpha": 7.0}}
    assert (AdvDPNP().alignment_reduction, Checkpoint(recorded, {}).defense().alignment_reduction) == ("mean", "sum")
    later = {**recorded, "hyperparameters": {"alignment_reduction": "mean"}}
    assert Checkpoint(later, {}).defense().alignment_reduction == "mean"


def test_what_a_record_lacks_is_said_of_the_model_and_in_the_command_that_trains_it():
    committed = ROOT / "leaderboard/checkpoints/cifar10/cnn-small-bn/adv-dpnp/seed-0"
    assert "alignment_reduction" not in load_checkpoint(committed).config["hyperparameters"]
    run = from_checkpoint(committed, torch.device("cpu")).description
    assert run["hyperparameters"]["alignment_reduction"] == "sum"
    assert run["hyperparameters_given"] == {"alignment_reduction": "sum"}
