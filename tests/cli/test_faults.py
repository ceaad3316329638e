"""Full and read-only disks, two writers, damaged files, too little memory, NaN, clocks: nothing lost, one line said."""

import errno
import fcntl
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.defenses.at import AdversarialTraining
from bench.engine import run as engine
from bench.engine.adversarials import adversarials_path, read_adversarials
from bench.engine.memory import in_pieces, ran_out
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import Defense, LinearClassifier
from bench.leaderboard.render.files import write_leaderboard
from bench.models.checkpoints import load_checkpoint, load_training_state, older_state
from bench.results.file import content_digest, read_result
from bench.system.files import write_text
from bench.system.locks import sole_writer
from bench.system.progress import TrainingProgress
from bench.training import loop
from bench.training import train as training
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests import ROOT
from tests.support.command import refused
from tests.support.example_results import example, with_run
from tests.support.refusals import raising, refusal
from tests.support.trainings import Plain, assert_same_run, damage, plug_in, train_and_stop

FULL = OSError(errno.ENOSPC, "No space left on device")


def request(runs, blobs, defense="st", **options):
    options.setdefault("protocol", {"epochs": 2, "batch_size": 48})
    return TrainingRequest(defense, blobs, "cnn-small", runs=runs, save_every=0.0, **options)


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if path.name == ".lock" or path.name.endswith(".tmp")]


@pytest.fixture
def tensorboard_off(monkeypatch):
    """Its events are no file of ours."""
    monkeypatch.setattr("bench.system.progress.importlib.util.find_spec", lambda name: None)


# ---------------------------------------------------------------------------------------------- full disk


def fail_at(patch, number, error):
    """The `number`-th flush to disk, of a file or a folder, fails; returns the list of all flushes."""
    original, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise error
        original(descriptor)

    patch.setattr(os, "fsync", fsync)
    return calls


@pytest.mark.usefixtures("tensorboard_off")
def test_training_that_fails_at_any_flush_goes_on_to_the_same_bits(tmp_path, blobs, monkeypatch):
    """A full disk and Ctrl-C by turns, each at a file and at a folder."""
    holdout = {"epochs": 2, "batch_size": 48, "holdout": 16}
    whole = train(request(tmp_path / "whole", blobs, protocol=holdout), quiet=True)
    errors = itertools.cycle((FULL, FULL, KeyboardInterrupt(), KeyboardInterrupt()))
    for number, error in zip(range(1, 60, 3), errors, strict=False):
        asked = request(tmp_path / str(number), blobs, protocol=holdout)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number, error)
            try:
                train(asked, quiet=True)
            except BenchError as caught:
                assert "No space left on device. Free some" in str(caught)
            except KeyboardInterrupt:
                pass
        assert leftovers(asked.run_folder) == []
        train(asked, resume=True, quiet=True)
        assert_same_run(whole, asked.run_folder)
        if len(calls) < number:
            break
    else:
        pytest.fail("more flushes than expected")
    assert number > 20


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, where):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    owner, name = {"write": (Path, "write_text"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, raising(FULL))
        told = (f"cannot write {str(path)!r}: No space", "Free some", "what was there before is as it was")
        refusal(lambda: write_text(path, "new"), *told)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


@contextmanager
def mounted(folder, options):
    """A file system in memory on a folder, where this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting takes root and Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "size=8m") as folder:
        yield folder


@pytest.mark.usefixtures("tensorboard_off")
def test_a_disk_that_is_really_full(small_disk, tmp_path, blobs, monkeypatch):
    whole = train(request(tmp_path / "whole", blobs), quiet=True)
    original = loop.train_epoch

    def filling(run, epoch, *rest):
        if epoch == 1:
            (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
        return original(run, epoch, *rest)

    folder = request(small_disk, blobs).run_folder
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", filling)
        refusal(lambda: train(request(small_disk, blobs), quiet=True), "training_state.pt': No space left", "Free some")
    assert load_checkpoint(folder).config["epoch"] == 1
    assert leftovers(small_disk) == []
    (small_disk / "filler").unlink()
    train(request(small_disk, blobs), resume=True, quiet=True)
    assert_same_run(whole, folder)


def test_an_evaluation_that_fails_at_any_flush_keeps_what_was_there(digits_run, tmp_path, monkeypatch):
    path, suite = tmp_path / "r.h5", tmp_path / "few.json"
    cells = [{"label": f"PGD-{steps}", "attack": "pgd", "parameters": {"steps": steps}} for steps in (1, 3)]
    suite.write_text(json.dumps({"name": "few", "version": 1, "cells": cells}))

    def asked(**options):
        options = {"limit": 12, "batch_size": 6, "probes": 0, "save_adversarials": True, **options}
        return EvaluationRequest(str(suite), checkpoint=digits_run, out=path, overwrite=True, **options)

    earlier = content_digest(evaluate(asked(seed=1))[0])
    files = {name: name.read_bytes() for name in (path, adversarials_path(path))}
    expected = content_digest(evaluate(asked())[0])
    for number in range(1, 99, 4):
        for name, content in files.items():
            name.write_bytes(content)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number, FULL)
            try:
                evaluate(asked())
            except BenchError as error:
                assert "No space left on device" in str(error)
        found = read_result(path)
        assert content_digest(found) in (earlier, expected)
        assert leftovers(tmp_path) == []
        # Images are those of the result, or known to be another's.
        try:
            assert read_adversarials(adversarials_path(path), found, (1, 8, 8))
        except BenchError as error:
            assert "belong to another result" in str(error)
        assert content_digest(evaluate(asked())[0]) == expected
        assert not list(tmp_path.glob(".*"))
        if len(calls) < number:
            break
    assert number > 10


@pytest.mark.parametrize("form", ["board.html", "board.md", "board.csv", "board.json"])
def test_a_board_on_a_full_disk(form, tmp_path, monkeypatch):
    path = tmp_path / form
    write_leaderboard([example()], path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fail_at(patch, 1, FULL)
        refusal(lambda: write_leaderboard([with_run(example(), seed=7)], path), "Free some")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [form]


# ---------------------------------------------------------------------------------------- read-only folder


@pytest.fixture
def read_only(tmp_path):
    """A folder that cannot be written: by its mode, for root by its mount."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() == 0:
        with mounted(folder, "ro"):
            yield folder
        return
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


@pytest.mark.parametrize("name", ["train", "eval", "leaderboard", "corrupt"])
def test_a_read_only_folder_is_named_before_any_work(name, read_only, digits_run, blobs, monkeypatch):
    no_work = raising(AssertionError)
    monkeypatch.setattr(training, "fit", no_work)
    monkeypatch.setattr(engine.GroupRun, "run_block", no_work)
    golden = ROOT / "tests" / "goldens" / "result-v1.h5"
    arguments = {
        "train": ["train", "--defense", "st", "--dataset", blobs, "--out", read_only / "run"],
        "eval": ["eval", digits_run, "--limit", 10, "--out", read_only / "r.h5"],
        "leaderboard": ["leaderboard", golden, "--out", read_only / "board.html"],
        "corrupt": ["data", "corrupt", "--dataset", "digits", "--limit", 2, "--out", read_only / "corrupted"],
    }[name]
    line = refused(*arguments)
    assert line.startswith("cannot write '") and str(read_only) in line and "writable folder" in line


def test_a_finished_run_in_a_read_only_folder_is_left_alone(tmp_path, blobs, monkeypatch):
    folder = train(request(tmp_path, blobs), quiet=True)

    refuse = raising(OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert train(request(tmp_path, blobs), quiet=True) == folder


def test_what_a_training_killed_at_its_very_end_left_goes_with_the_next_one(tmp_path, blobs):
    folder = train(request(tmp_path, blobs), quiet=True)
    lock_file(folder, pid=1, host=socket.gethostname(), since="2020-01-01T00:00:00+00:00")
    (folder / "last" / ".model.safetensors.1a2b.tmp").touch()
    assert train(request(tmp_path, blobs), quiet=True) == folder
    assert not list(folder.rglob(".*"))
    with sole_writer(folder):
        assert train(request(tmp_path, blobs), quiet=True) == folder
        assert (folder / ".lock").exists()


# -------------------------------------------------------------------------------------------- two writers


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom bench.system.locks import sole_writer\n"
        f"with sole_writer(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
        told = f"{tmp_path} is in use by process {owner.pid} on {socket.gethostname()}, since 20"
        refusal(lambda: enter(tmp_path), told, f"if it is gone, delete {tmp_path / '.lock'}.")
        owner.kill()
        owner.wait()
    assert (tmp_path / ".lock").exists(), "a killed owner leaves its file, and not its lock"
    enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


def enter(folder):
    with sole_writer(folder):
        pass


def lock_file(folder, **content):
    (folder / ".lock").write_text(json.dumps(content))


def test_a_stale_lock_of_this_host_is_taken_over_even_if_its_number_lives_again(tmp_path):
    lock_file(tmp_path, pid=os.getppid(), host=socket.gethostname(), since="2020-01-01T00:00:00+00:00")
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_another_host_is_respected_whatever_the_clock_says(tmp_path):
    lock_file(tmp_path, pid=1, host="elsewhere", since="2999-01-01T00:00:00+00:00")
    refusal(lambda: enter(tmp_path), "process 1 on elsewhere, since 2999-01-01T00:00:00+00:00 (0:00:00)")
    assert (tmp_path / ".lock").exists()


def test_a_job_of_a_sweep_which_runs_once_at_most_takes_over_what_another_host_left(tmp_path, monkeypatch):
    lock_file(tmp_path, pid=1, host="elsewhere")
    monkeypatch.setenv("BENCH_ONE_JOB", "1")
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["host"] == socket.gethostname()


def test_without_locks_a_job_of_a_sweep_leaves_what_another_host_holds(tmp_path, monkeypatch):
    unsupported = raising(OSError(errno.ENOSYS, "Function not implemented"))
    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setenv("BENCH_ONE_JOB", "1")
    lock_file(tmp_path, pid=2**22 + 5, host="elsewhere")
    path = tmp_path / ".lock"
    before = path.read_text()
    refusal(lambda: enter(tmp_path), f"in use by process {2**22 + 5} on elsewhere", f"if it is gone, delete {path}")
    assert path.read_text() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"{}", b"[" * 900])
def test_a_damaged_lock_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pid", "free"),
    # An id that holds no process number: workers of one test run must agree on it.
    [pytest.param(os.getpid(), False, id="own"), (2**22 + 5, True), (-1, True), ("1", True)],
)
def test_where_the_file_system_has_no_locks_the_process_is_asked(tmp_path, monkeypatch, pid, free):
    unsupported = raising(OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock_file(tmp_path, pid=pid, host=socket.gethostname())
    if free:
        with sole_writer(tmp_path):
            assert (tmp_path / ".lock").exists()
    else:
        refusal(lambda: enter(tmp_path), "in use by process")


def test_a_training_in_a_folder_in_use_is_refused_and_changes_nothing(tmp_path, blobs):
    folder = request(tmp_path, blobs).run_folder
    with sole_writer(folder):
        # flock belongs to the open file: the same process is refused like another.
        refusal(lambda: train(request(tmp_path, blobs), quiet=True), "is in use by process")
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_a_killed_writer_left_is_removed(tmp_path, blobs):
    folder = request(tmp_path, blobs).run_folder
    for name in (folder / ".training_state.pt.0.tmp", folder / "last" / ".model.safetensors.0.tmp"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text("half")
    train(request(tmp_path, blobs), quiet=True)
    assert leftovers(tmp_path) == []


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path, monkeypatch):
    """Processes of two containers may have one number: each reader sees the whole text of one of them."""
    from bench.system.files import write_whole

    monkeypatch.setattr(os, "getpid", lambda: 1)
    seen = []

    def outer(temporary):
        temporary.write_text("outer")
        write_whole(tmp_path / "file", lambda inner: (seen.append(inner != temporary), inner.write_text("inner")))

    write_whole(tmp_path / "file", outer)
    assert seen == [True]
    assert (tmp_path / "file").read_text() == "outer"


# ------------------------------------------------------------------------------------------ damaged states


def stopped(tmp_path, blobs):
    """A run that was interrupted after two of three epochs, and what it should have come to."""
    asked, whole = (
        request(tmp_path / name, blobs, protocol={"epochs": 3, "batch_size": 48}) for name in ("stopped", "whole")
    )
    train_and_stop(asked, 2)
    return train(whole, quiet=True), asked


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_state_falls_back_to_the_older_one_and_the_same_bits(tmp_path, blobs, capsys, how):
    whole, asked = stopped(tmp_path, blobs)
    path = asked.run_folder / "training_state.pt"
    assert len(load_training_state(older_state(path))["history"]) == 1
    damage(path, how)
    refusal(lambda: train(asked, quiet=True), "holds 1 of 3 epochs of this run: add --resume")
    capsys.readouterr()
    train(asked, resume=True)
    told = [line for line in capsys.readouterr().err.splitlines() if "training_state" in line]
    assert len(told) == 1 and str(path) in told[0] and "older copy has 1 epochs" in told[0]
    assert_same_run(whole, asked.run_folder)
    # The damaged state did not become the older copy.
    assert [len(load_training_state(file)["history"]) for file in (older_state(path), path)] == [2, 3]


def test_curves_of_epochs_that_are_trained_again_are_shown_once(tmp_path, blobs):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, asked = stopped(tmp_path, blobs)
    damage(asked.run_folder / "training_state.pt", "cut")
    train(asked, resume=True, quiet=True)
    events = accumulator.EventAccumulator(str(asked.run_folder / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("learning_rate")] == [1, 2, 3]


def test_two_damaged_states_are_refused_with_the_way_out(tmp_path, blobs):
    _, asked = stopped(tmp_path, blobs)
    path = asked.run_folder / "training_state.pt"
    for file in (path, older_state(path)):
        damage(file, "cut")
    told = (f"{path} is not a readable training state", f"No older copy can be read: delete {asked.run_folder}")
    refusal(lambda: train(asked, resume=True, quiet=True), *told)


# ------------------------------------------------------------------------------------------- not a number


class BreaksAtTheEnd(Plain):
    """Finite losses, and weights that are not after the last step of the second epoch."""

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        terms = super().update(model, optimizer, images, labels, context)
        if context.epoch == 1:
            with torch.no_grad():
                model.head.weight[0, 0] = torch.nan
        return terms


def test_weights_that_no_loss_shows_to_be_broken_are_never_saved(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "breaks", BreaksAtTheEnd)
    asked = request(tmp_path, blobs, "breaks", protocol={"epochs": 2, "batch_size": 96})
    refusal(lambda: train(asked, quiet=True), "not finite after epoch 2: head.weight", "checkpoint of epoch 1 is in")
    assert load_checkpoint(asked.run_folder).config["epoch"] == 1


class NanFeatures(Plain):
    """Features that are not a number from the second batch on."""

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        features = model.features(images)
        compact = (features * torch.tensor(torch.nan)).square().mean()
        return {"clean": functional.cross_entropy(model.score(features), labels), "compact": compact}


def test_features_that_are_not_a_number_name_the_term(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "nan-features", NanFeatures)
    monkeypatch.setattr("bench.system.progress.SECONDS_BETWEEN_CHECKS", 0.0)
    asked = request(tmp_path, blobs, "nan-features", protocol={"epochs": 2, "batch_size": 48})
    told = ("not finite in epoch 1, by step 1: compact = nan", "no epoch was finished", "Lower")
    refusal(lambda: train(asked, quiet=True), *told)


class Cornered(LinearClassifier):
    """Finite features, with a gradient that is NaN in one pixel of every image, and in no weight."""

    def features(self, images: Any) -> Any:
        root = images.flatten(1)[:, :1] - 2
        return super().features(images) + 0 * torch.where(root > 0, root.sqrt(), 0)


class CorneredTraining(AdversarialTraining):
    def build(self, backbone: Any, num_classes: int) -> Any:
        return Cornered(backbone(), num_classes)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradients_that_are_not_a_number_never_craft_images_that_stay_clean(norm, tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "cornered", CorneredTraining)
    asked = request(tmp_path, blobs, "cornered", protocol={"epochs": 1, "batch_size": 48, "norm": norm})
    refusal(lambda: train(asked, quiet=True), "the loss is not finite in epoch 1", "adversarial = nan")


class PartlyNan(nn.Module):
    """Linear logits; not a number for images whose first pixel is white."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 2, 3, 4], [2, 1, 4, 3], [-1, 5, 0, 1]]))

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return torch.where(images[:, 0, 0, :1] == 1, torch.nan, logits)


def test_logits_that_are_not_a_number_become_a_finding_whichever_image_it_is():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (90, 1, 2, 2), generator=generator, dtype=torch.uint8)
    pixels[85:, 0, 0, 0] = 255
    split = Split(pixels, torch.arange(90) % 3)
    cells = tuple(AttackCell(name, name, epsilon="0.1") for name in ("fgsm", "pgd", "square"))
    cells = (*cells[:2], AttackCell("square", "square", epsilon="0.1", parameters={"queries": 20}))
    outcome = run_suite(Target(PartlyNan(), split, batch_size=40), Suite("test", 1, "", cells, {}))
    found = {finding["name"]: finding for finding in outcome.findings}["non-finite-logits"]
    assert (found["severity"], found["value"]) == ("error", 5)
    assert "5 of 90 clean images" in found["message"]


# --------------------------------------------------------------------------------------- too little memory


class Narrow(nn.Module):
    """Class by the brighter half; more than `most` images at once do not fit."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.refused = most, error, 0
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, images):
        if len(images) > self.most:
            self.refused += 1
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total of ...")
        left, right = (images[:, :, :, part].mean((1, 2, 3)) for part in (slice(0, 2), slice(2, 4)))
        return torch.stack([left, right, (left * right).sqrt()], 1) * self.scale


def allocator_error(text):
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


def halves(count=50):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    pixels[::2, :, :, :2] //= 2
    with torch.no_grad():
        labels = Narrow(99, MemoryError)(pixels / 255).argmax(1)
    return Split(pixels, labels)


CELLS = (
    AttackCell("PGD-5", "pgd", epsilon="0.05", parameters={"steps": 5}),
    AttackCell("PGD-9", "pgd", epsilon="0.05", parameters={"steps": 9}),
    AttackCell("APGD-CE", "apgd-ce", epsilon="0.05", parameters={"steps": 5}),
    AttackCell("Square", "square", epsilon="0.05", parameters={"queries": 30}),
    AttackCell("PGD with loss", "pgd", epsilon="0.04", parameters={"steps": 5}, measure_loss=True),
)


@pytest.mark.parametrize(
    ("error", "convention"), [(torch.OutOfMemoryError, "any"), (MemoryError, "final"), (allocator_error, "any")]
)
def test_too_large_batches_are_halved_and_nothing_else_changes(error, convention, caplog):
    suite = Suite("test", 1, "", CELLS, {})
    whole = run_suite(Target(Narrow(99, error), halves(), batch_size=40), suite, convention=convention)
    model = Narrow(16, error)
    target = Target(model, halves(), batch_size=40)
    narrow = run_suite(target, suite, convention=convention)
    assert target.room == 10 and model.refused == 2, "40, 20, and from then on 10 at once"
    assert [entry.getMessage() for entry in caplog.records] == [
        f"out of memory: going on with {room} images at once" for room in (20, 10)
    ]
    np.testing.assert_array_equal(whole.clean_prediction, narrow.clean_prediction)
    assert whole.findings == narrow.findings
    for label, expected in whole.attacks.items():
        found = narrow.attacks[label]
        assert 0 < (expected.prediction != whole.label).sum() < 50
        for name in ("prediction", "final_prediction", "distance", "loss"):
            np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), err_msg=f"{label} {name}")


def test_kept_images_survive_halving():
    suite = Suite("test", 1, "", CELLS[:1], {})
    kept = []
    for most in (99, 16):
        target = Target(Narrow(most, torch.OutOfMemoryError), halves(), batch_size=40, keeps_images=True)
        kept.append(run_suite(target, suite).adversarials["PGD-5"])
    assert len(kept[0].rows) > 0
    for name, values in vars(kept[0]).items():
        np.testing.assert_array_equal(values, getattr(kept[1], name))


def test_blocks_keep_their_names_when_memory_runs_out_in_a_part_of_them(tmp_path, monkeypatch):
    """A run that was stopped with half the room and goes on with all of it takes each sample once."""
    from bench.system.blocks import PartStore

    suite = Suite("test", 1, "", CELLS, {})
    whole = run_suite(Target(Narrow(99, MemoryError), halves(), batch_size=40), suite)
    parts = PartStore(tmp_path / "r.h5", {})
    run_suite(Target(Narrow(16, MemoryError), halves(), batch_size=40), suite, parts=parts)
    removed = [path for path in parts.folder.iterdir() if path.name.endswith("-00000.npz")]
    assert removed
    for path in removed:
        path.unlink()
    again = run_suite(Target(Narrow(99, MemoryError), halves(), batch_size=40), suite, parts=parts)
    for label in whole.attacks:
        np.testing.assert_array_equal(whole.attacks[label].prediction, again.attacks[label].prediction)


def test_one_image_that_does_not_fit_is_one_line():
    target = Target(Narrow(0, torch.OutOfMemoryError), halves(), batch_size=4)
    suite = Suite("test", 1, "", CELLS, {})
    refusal(lambda: run_suite(target, suite), "CUDA out of memory", "one image at a time is too much: free memory")


def test_other_errors_are_not_taken_for_a_shortage():
    assert not ran_out(RuntimeError("shapes cannot be multiplied")) and not ran_out(ValueError())
    with pytest.raises(RuntimeError, match="multiplied"):
        in_pieces(np.arange(3), Target(nn.Identity(), halves()), lambda rows: torch.ones(2, 3) @ torch.ones(2, 3))


def test_a_batch_of_training_that_does_not_fit_is_one_line(tmp_path, blobs, monkeypatch):
    monkeypatch.setattr(Defense, "update", raising(torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB.")))
    told = ("CUDA out of memory", "A batch of 48 is too much here: free memory, or take")
    refusal(lambda: train(request(tmp_path, blobs), quiet=True), *told)


# ------------------------------------------------------------------------------------------------- clocks


@contextmanager
def backwards():
    """Every look at any clock shows an earlier time."""
    now = itertools.count(1e9, -7.5)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("time", "monotonic", "perf_counter"):
            patch.setattr(time, name, lambda: next(now))
        yield


def test_a_clock_that_runs_backwards_changes_no_bit_of_a_training(tmp_path, blobs, capsys):
    with backwards():
        odd = train(request(tmp_path / "odd", blobs))
    assert_same_run(train(request(tmp_path / "whole", blobs), quiet=True), odd)
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]) == 2


def test_a_clock_that_runs_backwards_changes_no_outcome():
    suite = Suite("test", 1, "", CELLS, {})
    whole = run_suite(Target(Narrow(99, MemoryError), halves()), suite)
    with backwards():
        odd = run_suite(Target(Narrow(99, MemoryError), halves()), suite)
    for label in whole.attacks:
        np.testing.assert_array_equal(whole.attacks[label].prediction, odd.attacks[label].prediction)


def test_progress_survives_a_clock_that_runs_backwards():
    with backwards(), TrainingProgress(True, epochs=1, batches=3, device=torch.device("cpu")) as progress:
        due = [progress.step(10) for _ in range(3)]
        assert progress.rate >= 0
    assert due == [False] * 3, "the check of every second waits; the epoch's end checks in any case"


# -------------------------------------------------------------------------------------------- the list itself


def test_every_fault_in_the_list_has_a_test_that_exists():
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[-2] for line in lines if line.startswith("| ")][1:]
    assert len(cells) > 20
    for cell in cells:
        places = [part.rpartition(":") for part in cell.split(";")]
        named = [
            (re.findall(r"`(test_\w+\.py)`", before), re.findall(r"`(test_\w+)(\.\.\.)?`", names))
            for before, _, names in places
        ]
        assert any(names for _, names in named), cell
        for files, names in named:
            (file,) = (ROOT / "tests").rglob((files or ["test_faults.py"])[-1])
            text = file.read_text(encoding="utf-8")
            for name, shortened in names:
                assert re.search(rf"^def {name}{'' if shortened else '[(]'}", text, re.MULTILINE), name
