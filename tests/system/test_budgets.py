"""Small files that claim to be endless are refused before they are, in one line; large honest ones are read."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from bench.catalogue.suites import load_suite
from bench.data.corruptions.sets import load_corrupted, read_manifest
from bench.data.datasets import load_dataset
from bench.engine.adversarials import Adversarials, adversarials_path, read_adversarials, write_adversarials
from bench.interop.model_info import read_model_info
from bench.interop.state_dicts import load_weights
from bench.interop.zoo import untrained_model
from bench.models import weights
from bench.models.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_training_state,
    save_checkpoint,
    save_training_state,
)
from bench.results.file import content_digest, read_result, write_result
from bench.results.trainings import read_history
from bench.system import budgets
from bench.system.blocks import PartStore
from bench.system.budgets import Budget, read_arrays, read_json, require_file
from tests.results.test_results import reseal
from tests.support.command import bench
from tests.support.example_results import example
from tests.support.refusals import refusal

# ----------------------------------------------------------------------------------------------- the budget


def test_a_file_may_become_a_gibibyte_or_a_hundred_times_itself_but_no_more_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(budgets, "MEMORY", 2**40)
    for size, most in ((1, 2**30), (10_737_418, 2**30), (10_737_419, 1_073_741_900), (7 * 2**30, 700 * 2**30)):
        Budget("f", size, "").take("all", most)
        budget = Budget("f", size, "Do this.")
        budget.take("one", 1)
        told = (f"two claims {most} bytes, {most + 1} with what 'f' held before;", "Do this")
        refusal(lambda budget=budget, most=most: budget.take("two", most), *told)
    # Images like ImageNet's, compressed, too: photographs shrink by less than half.
    monkeypatch.setattr(budgets, "MEMORY", 2**34)
    size = 50_000 * 224 * 224 * 3
    for stored in (size, size // 2):
        Budget("imagenet.npz", stored, "").take("array 'x_test'", size)
    monkeypatch.setattr(budgets, "MEMORY", 2**33)
    refusal(lambda: Budget("f", 2**33, "").take("all", 2**33 + 1), f"this machine has {2**33}")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_reader_waits_for_a_pipe_or_reads_a_device_to_its_end(kind, tmp_path):
    endless = tmp_path / "endless"
    os.mkfifo(endless) if kind == "pipe" else endless.symlink_to("/dev/zero")

    def named(name):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        path.symlink_to(endless)
        return path

    readers = {
        "r.h5": read_result,
        "r.adversarials.h5": lambda path: read_adversarials(path, example(), (1, 2, 2)),
        "suite.json": lambda path: load_suite(str(path)),
        "history.jsonl": read_history,
        "info.json": read_model_info,
        "training_state.pt": load_training_state,
    }
    for name, read in readers.items():
        refusal(partial(read, named(name)), "is a pipe or a device, which may never end")
    # What must be a file is said to be missing.
    for name, read in {
        "set.npz": lambda path: load_dataset(f"npz:{path}", tmp_path),
        "w.pt": lambda path: load_weights(nn.Linear(2, 2), path),
        "model.safetensors": load_checkpoint,
    }.items():
        refusal(partial(read, named(name)), "no")
    named("generated.json")
    assert read_manifest(tmp_path) == {}
    parts = PartStore(tmp_path / "r.h5", {})
    parts.put("clean", {"prediction": np.zeros(1)})
    (parts.folder / "clean.npz").unlink()
    (parts.folder / "clean.npz").symlink_to(endless)
    assert parts.get("clean") is None


@pytest.mark.parametrize("command", ["leaderboard", "compare", "trust", "verify", "verify --board", "figure curve"])
def test_commands_refuse_a_pipe_in_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_result(example(), Path("r.h5"))
    os.mkfifo("pipe.md")
    words = {"verify --board": ["verify", "r.h5", "--board", "pipe.md"], "figure curve": ["figure", "curve", "pipe.md"]}
    extra = ["--out", "f"] if command == "figure curve" else ["r.h5"] if command == "compare" else []
    code, output = bench(*words.get(command, [command, "pipe.md"]), *extra)
    assert code == 2 and output.count("\n") == 1, output
    assert "'pipe.md' is a pipe or a device" in output or "no result file at pipe.md" in output


def test_a_text_is_read_up_to_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "MOST_JSON", 10)
    for text, refused in (('"12345678"', False), ('"123456789"', True)):
        (tmp_path / "t.json").write_text(text)
        if refused:
            refusal(lambda: read_json(tmp_path / "t.json"), "t.json' has 11 bytes; such a file may have 10")
        else:
            assert read_json(tmp_path / "t.json") == "12345678"
    with (tmp_path / "sparse.h5").open("wb") as file:
        file.truncate(budgets.MEMORY + 1)
    refusal(lambda: read_result(tmp_path / "sparse.h5"), f"this machine has memory for {budgets.MEMORY}")
    with pytest.raises(FileNotFoundError):
        require_file(tmp_path / "absent")


# ------------------------------------------------------------------------------------------- NumPy's archives


def npy(shape, data=b"", kind="|u1"):
    """An array file whose header states a shape that its data need not have."""
    head = str({"descr": kind, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_header_that_states_more_than_there_is(tmp_path):
    path = zipped(tmp_path / "set.npz", {"x_test.npy": npy((2**20, 2**20, 3)), "y_test.npy": npy((2**40,), kind="<i8")})
    assert path.stat().st_size < 600
    told = f"x_test.npy in '{path}' claims {3 * 2**40} bytes (shape ({2**20}, {2**20}, 3), uint8) and has 0"
    refusal(lambda: load_dataset(f"npz:{path}", tmp_path), told, "Write it again with numpy.savez")
    # A part of an evaluation is then none.
    parts = PartStore(tmp_path / "r.h5", {})
    parts.put("clean", {"prediction": np.zeros(1)})
    zipped(parts.folder / "clean.npz", {"prediction.npy": npy((2**40,))})
    assert parts.get("clean") is None


def test_zeros_that_compress_a_thousandfold(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "GRANTED", 2**20)
    members = {f"{name}.npy": npy((2**19, 2, 2), bytes(2**21)) for name in ("x_test", "y_test")}
    path = zipped(tmp_path / "set.npz", members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 5000
    refusal(lambda: load_dataset(f"npz:{path}", tmp_path), f"array 'x_test' claims {2**21 + 128} bytes", "savez")
    np.savez(path, x_test=np.zeros((2**19, 2, 2), np.uint8), y_test=np.arange(2**19) % 2)
    assert len(load_dataset(f"npz:{path}", tmp_path).test) == 2**19


def test_members_that_are_no_plain_arrays_are_refused(tmp_path):
    for data in (npy((1,), b"12345678", "|O"), b"no array", npy((2,), b"1").replace(b"\x01\x00", b"\x09\x00", 1)):
        path = zipped(tmp_path / "set.npz", {"x_test.npy": data, "y_test.npy": data})
        refusal(partial(load_dataset, f"npz:{path}", tmp_path), "cannot be read as an archive of plain arrays")


def test_what_numpy_writes_is_read(tmp_path):
    arrays = {
        "plain": np.arange(6).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 4), np.float32),
        "text": np.array("of a checkpoint"),
        "big": np.arange(3, dtype=">i4"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_arrays(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        for name, values in arrays.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)
    assert read_arrays(tmp_path / "a.npz", ["text", "absent"]).keys() == {"text"}


def test_labels_of_a_corrupted_set_that_are_larger_than_memory(tmp_path):
    for name in ("labels", "fog"):
        with (tmp_path / f"{name}.npy").open("wb") as file:
            file.write(npy((2**42,), kind="<i8"))
            file.truncate(budgets.MEMORY + 1)
    refusal(lambda: load_corrupted(tmp_path, "digits", ("fog",)), "this machine has memory for")


# ------------------------------------------------------------------------------------------------------- HDF5


def result_of(samples):
    """The example's attacks on more samples, all zeros."""
    given = example()
    zeros = {"label": np.int16, "index": np.int64, "clean_prediction": np.int16}
    attacks = {
        label: dataclasses.replace(
            record,
            **{
                name: np.zeros(samples, getattr(record, name).dtype)
                for name in ("prediction", "final_prediction", "distance", "stage", "loss")
                if getattr(record, name) is not None
            },
        )
        for label, record in given.attacks.items()
    }
    arrays = {name: np.zeros(samples, kind) for name, kind in zeros.items()} | {"index": np.arange(samples)}
    return dataclasses.replace(given, **arrays, attacks=attacks)


def test_two_hundred_attacks_that_share_one_attacks_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "GRANTED", 2**24)
    monkeypatch.setattr(budgets, "RATIO", 1)
    path = tmp_path / "r.h5"
    write_result(result_of(2**14), path)
    buffer = io.BytesIO(path.read_bytes())
    with h5py.File(buffer, "r+") as file:
        first = file["attacks/000-fgsm"]
        for number in range(3, 203):
            group = file.create_group(f"attacks/{number}")
            group.attrs.update({**first.attrs, "label": f"a{number}", "order": number})
            for name, values in first.items():
                group[name] = values  # a second name for the same array
    path.write_bytes(reseal(buffer.getvalue()[512:]))
    assert path.stat().st_size < 2**20
    refusal(lambda: read_result(path), "claims", f"and it may become {2**24}", "Evaluate again")


def test_a_chunk_that_is_larger_than_its_array(tmp_path):
    path = tmp_path / "r.h5"
    write_result(example(), path)
    buffer = io.BytesIO(path.read_bytes())
    with h5py.File(buffer, "r+") as file:
        del file["samples/label"]
        options = {"maxshape": (None,), "chunks": (2**30,), "compression": "gzip"}
        file["samples"].create_dataset("label", (10,), "<i2", **options)
    path.write_bytes(reseal(buffer.getvalue()[512:]))
    refusal(lambda: read_result(path), "'/samples/label' claims 2147483648 bytes")


def test_texts_that_are_longer_than_any_text(tmp_path):
    path = tmp_path / "r.h5"
    write_result(example(), path)
    for name, value in (("label", "x" * 2**17), ("norm", np.array(["x"] * 3, object))):
        buffer = io.BytesIO(path.read_bytes())
        with h5py.File(buffer, "r+") as file:
            group = file["attacks/000-fgsm"]
            del group.attrs[name]
            # Long ones are kept apart from the group, where two may be one.
            group.attrs.create(name, value, dtype=h5py.string_dtype())
        (tmp_path / "long.h5").write_bytes(reseal(buffer.getvalue()[512:]))
        told = f"attribute '{name}' of '/attacks/000-fgsm' is missing or of the wrong type"
        refusal(lambda: read_result(tmp_path / "long.h5"), told)


def test_images_that_many_attacks_share(tmp_path, monkeypatch):
    result = example()
    write_result(result, tmp_path / "r.h5")
    path = adversarials_path(tmp_path / "r.h5")
    none = np.zeros((0, 1, 2, 2), np.float32)
    kept = Adversarials(np.arange(3), np.ones(3, np.float32), np.ones((3, 1, 2, 2), np.int8), np.arange(0), none)
    write_adversarials(dict.fromkeys(result.attacks, kept), content_digest(result), path)
    assert len(read_adversarials(path, result, (1, 2, 2))["FGSM"].rows) == 3
    monkeypatch.setattr(budgets, "GRANTED", 100)
    monkeypatch.setattr(budgets, "RATIO", 0)
    refusal(lambda: read_adversarials(path, result, (1, 2, 2)), "claims")


# -------------------------------------------------------------------------------------------- tensors and models


def test_a_configuration_that_asks_for_ten_million_layers(digits_run, tmp_path):
    trained = load_checkpoint(digits_run)
    for defense, hyperparameters in (
        ("dio", {"heads": 10**7}),
        ("pcl", {"width": 10**11}),
        ("dio", {"heads": 10**400}),
    ):
        config = {**trained.config, "defense": defense, "hyperparameters": hyperparameters}
        save_checkpoint(Checkpoint(config, trained.weights), tmp_path / "run" / "last")
        refusal(lambda: load_checkpoint(tmp_path / "run").build(), "describes a model of far more numbers than the")
    # One row of pixels makes a network that is wide instead of deep.
    config = {**trained.config, "dataset": {**trained.config["dataset"], "image_shape": [1, 1, 2**22]}}
    refusal(Checkpoint(config, trained.weights).build, "of far more numbers")
    path = tmp_path / "exported.pt"
    torch.save({"state_dict": dict(trained.weights)}, path)
    config = {**trained.config, "defense": "dio", "hyperparameters": {"heads": 10**7}}
    refusal(lambda: untrained_model(config, path), "exported.json describes a model of far more numbers")


def test_building_counts_numbers_before_they_are_made():
    with weights.building(1000, "it"):
        model = nn.Linear(99, 10)
    assert model.weight.shape == (10, 99)
    most = 8 * 1000 + 2**20
    with weights.building(1000, "it"):
        assert torch.empty(most).numel() == most
    for make in (lambda: torch.empty(most + 1), lambda: [torch.zeros(1) for _ in range(most // 64 + 1)]):
        with weights.building(1000, "it"):
            refusal(make, "it describes a model of far more numbers")


def doubled(levels):
    inner = ["x"]
    for _ in range(levels):
        inner = [inner, inner]
    return inner


def itself():
    inner = {}
    inner["inner"] = inner
    return inner


def test_a_training_state_whose_lists_unfold_without_end(tmp_path):
    for state in (doubled(40), itself()):
        torch.save({"sha256": "", "state": {"held": state}}, tmp_path / "s.pt")
        refusal(lambda: load_training_state(tmp_path / "s.pt"), "holds more than 10000000 items, as lists in lists")
    shared = [0] * 1000
    weights.require_few_items([shared] * 9000, tmp_path)  # 9,009,001 items
    refusal(lambda: weights.require_few_items([shared] * 9991, tmp_path), "more than 10000000 items")  # 10,000,992


@pytest.mark.parametrize(
    ("state", "size"),
    [
        (lambda: torch.zeros(1).expand(2**34), 2**36),
        (lambda: [torch.zeros(2**11, 2**11)] * 2**11, 2**24),
    ],
    ids=["expanded", "repeated"],
)
def test_tensors_that_claim_more_than_their_file_can_hold(state, size, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "RATIO", 1)
    torch.save({"sha256": "", "state": {"held": state()}}, tmp_path / "s.pt")
    for read in (load_training_state, lambda path: load_weights(nn.Linear(1, 1), path)):
        refusal(partial(read, tmp_path / "s.pt"), f"a tensor claims {size} bytes")


def test_a_compressed_file_of_torch_is_unpacked_within_the_budget(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    path = zipped(tmp_path / "small.pt", members, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(budgets, "GRANTED", 2**20)
    assert path.stat().st_size < 2**14
    refusal(lambda: load_weights(nn.Linear(1, 1), path), "record 'plain/data/0' claims 4194304 bytes")


def test_honest_states_and_weights_are_read(tmp_path):
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "rng": torch.get_rng_state()}
    save_training_state(tmp_path / "s.pt", state)
    assert load_training_state(tmp_path / "s.pt")["epoch"] == 3
    torch.save(model.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    load_weights(nn.Linear(64, 64), tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(b"no tensors"))
    refusal(lambda: load_weights(model, tmp_path / "p.pt"), "cannot be read as weights")


# ------------------------------------------------------------------------------------------------------ suites


def suite(folder, name, include=(), cells=1):
    made = [{"label": f"{name} {number}", "attack": "fgsm", "epsilon": f"{number + 1}/999"} for number in range(cells)]
    text = json.dumps({"name": name, "version": 1, "include": list(include), "cells": made})
    (folder / f"{name}.json").write_text(text)
    return f"{name}.json"


def test_suites_that_include_each_other_twice_are_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = suite(tmp_path, "s0")
    for level in range(1, 41):
        name = suite(tmp_path, f"s{level}", [name, name, f"./{name}"][: 2 if level % 2 else 3], cells=0)
    assert [cell.label for cell in load_suite(name).cells] == ["s0 0"]


def test_suites_that_include_themselves_or_hold_too_many_cells_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite(tmp_path, "a", ["b.json"]), suite(tmp_path, "b", ["a.json"])
    refusal(lambda: load_suite("a.json"), "suite 'a.json' includes itself")
    assert len(load_suite(suite(tmp_path, "most", cells=1000)).cells) == 1000
    refusal(lambda: load_suite(suite(tmp_path, "more", ["most.json"])), "more than 1000 cells")


def test_the_seal_is_looked_at_before_the_rest(tmp_path):
    body = b"\x89HDF\r\n\x1a\n" + bytes(100)
    head = f"bench-result 1 {hashlib.sha256(body).hexdigest()}\n".encode().ljust(512, b"\0")
    (tmp_path / "r.h5").write_bytes(head + body)
    refusal(lambda: read_result(tmp_path / "r.h5"), "the file is malformed")
