"""`bench clean` removes what no command needs, and nothing else; a sweep is refused where its runs would not fit."""

import json
import os
import shutil
import socket
import time

import pytest

from bench.errors import BenchError
from bench.experiments import disk
from bench.experiments.cleaning import removables
from bench.experiments.disk import Room, numbers, run_size
from bench.experiments.sweep import Plan, run_plan
from bench.models.backbones import make_backbone
from bench.system.locks import sole_writer
from bench.text import amount
from bench.training.request import TrainingRequest, dataset_and_protocol
from bench.training.train import train
from tests.support.command import bench
from tests.support.refusals import refusal


def old(path, content=b"x" * 10):
    """A file that nobody has written to for two hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for one in (path, path.parent):
        os.utime(one, (time.time() - 7200,) * 2)
    return path


@pytest.fixture(scope="module")
def finished(blobs, tmp_path_factory):
    """A finished run, without the lock and results."""
    protocol, runs = {"epochs": 2, "batch_size": 32}, tmp_path_factory.mktemp("runs")
    request = TrainingRequest("st", blobs, "cnn-small", protocol=protocol, runs=runs, save_every=0.0)
    return request, train(request, quiet=True)


def kinds(runs, **options):
    return {str(item.path.relative_to(runs)): item.kind for item in removables(runs, **options)}


def test_states_of_finished_runs_go_and_the_run_stays_finished(finished, tmp_path):
    request, folder = finished
    runs, states = tmp_path / "runs", ("training_state.previous.pt", "training_state.pt")
    shutil.copytree(folder, runs / "a")
    assert kinds(runs) == {f"a/{name}": "state" for name in states}
    with sole_writer(runs / "a"):
        assert kinds(runs) == {}, "somebody is at work there"
    sizes = sum((runs / "a" / name).stat().st_size for name in states)
    code, output = bench("clean", runs)
    assert code == 0 and output.endswith(f"{amount(sizes)} in all. Nothing was removed: add --yes.\n")
    assert bench("clean", runs, "--yes")[1].endswith(f"{amount(sizes)} removed.\n")
    assert bench("clean", runs) == (0, "There is nothing to remove.\n")
    assert sorted(path.name for path in (runs / "a").iterdir()) == ["history.jsonl", "last"]
    before = (runs / "a" / "last" / "model.safetensors").read_bytes()
    for name in (".lock", ".status.json"):  # as of a process that was killed at its very end
        (runs / "a" / name).write_text("{}")
    options = ["--dataset", request.dataset, "--backbone", "cnn-small", "--epochs", 2, "--batch-size", 32]
    assert bench("train", "--defense", "st", *options, "--out", runs / "a")[0] == 0
    assert (runs / "a" / "last" / "model.safetensors").read_bytes() == before
    assert not list((runs / "a").glob(".*"))
    shutil.copy(folder / "training_state.pt", runs / "a")
    (runs / "a" / "history.jsonl").write_bytes(b"damaged")
    assert kinds(runs) == {}, "the state holds what belongs there"


def test_what_killed_processes_left_goes_and_what_lives_stays(tmp_path):
    here = socket.gethostname()
    dead, living = {"pid": 2**22 + 5, "host": here}, {"pid": 1, "host": "elsewhere"}
    gone = {
        ".a.h5.0f.tmp": "temporary",
        ".r.h5.status.json": "sign",
        "one/.lock": "lock",
        "results/.r.h5.0123456789abcdef.parts": "parts",
    }
    old(tmp_path / ".a.h5.0f.tmp")
    old(tmp_path / ".r.h5.status.json")
    old(tmp_path / "one" / ".lock", json.dumps(dead).encode())
    old(tmp_path / "two" / ".lock", json.dumps(living).encode())
    old(tmp_path / "results" / ".r.h5.0123456789abcdef.parts" / "000-00000.npz")
    old(tmp_path / "results" / ".other.h5.0123456789abcdef.parts" / "000-00000.npz")
    old(tmp_path / "results" / ".busy.h5.0123456789abcdef.parts" / "000-00000.npz")
    for name in ("results/r.h5", "results/busy.h5", "results/r.adversarials.h5", "logs/train.log", "notes.tmp"):
        old(tmp_path / name)
    (tmp_path / "results" / ".busy.h5.1-of-2.status.json").touch()
    (tmp_path / ".b.h5.0f.tmp").touch()  # younger than an hour
    assert kinds(tmp_path) == gone
    stopped = {"results/.other.h5.0123456789abcdef.parts": "unfinished"}
    assert kinds(tmp_path, unfinished=True) == gone | stopped
    before = {path for path in tmp_path.rglob("*")}
    assert bench("clean", tmp_path, "--yes")[0] == 0
    left = before - {path for path in tmp_path.rglob("*")}
    assert {str(path.relative_to(tmp_path)) for path in left} == {*gone, f"{[*gone][3]}/000-00000.npz"}
    refusal(lambda: removables(tmp_path / "none"), "there is no folder")


def test_a_run_takes_the_room_that_is_reckoned(finished):
    """A backbone without its head, which is all that is left out of this one, but for headers of files."""
    request, folder = finished
    dataset, protocol = dataset_and_protocol(request)
    whole, state = run_size(request, dataset, protocol)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert whole <= there <= 1.1 * whole + 60_000
    model = make_backbone("cnn-small", *dataset.image_shape[:1], dataset.image_shape[1:], "relu", True)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    assert numbers("cnn-small", dataset.image_shape) == count
    assert (whole, state) == (4 * count * 5, 4 * count * 2), "weights and momentum, twice, and a checkpoint"


def test_a_sweep_that_would_not_fit_is_refused_before_it_starts(blobs, tmp_path, monkeypatch):
    plan = Plan(blobs, ("st", "at"), "clean", backbone="cnn-small", runs=tmp_path / "runs")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    refusal(
        lambda: run_plan(plan, lambda line: None),
        "the sweep needs at least",
        f"{str(plan.runs)!r}, where 1.0 kB are free",
    )
    assert not list((tmp_path / "runs").rglob("*.*"))
    options = ["--dataset", blobs, "--backbone", "cnn-small", "--defenses", "st", "--suite", "clean"]
    code, output = bench("sweep", *options, "--runs", plan.runs, "--dry-run")
    assert code == 0 and "; 1.0 kB are free." in output
    Room(1000, 1000).require(tmp_path)
    with pytest.raises(BenchError, match=r"needs at least 1\.0 kB in .*, where 999 B are free"):
        Room(1001, 999).require(tmp_path)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (184_600_000, "185 MB"), (2_400_000_000_000_000, "2,400 TB")],
)
def test_an_amount_is_shown_in_its_unit(size, text):
    assert amount(size) == text
