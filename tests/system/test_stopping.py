"""Ctrl-C and SIGTERM: one line, the exit code of the signal, nothing half-written, and it goes on to the same bits."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torch.nn import functional

from bench.engine import run as engine
from bench.evaluation import sharing
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.evaluation.sharing import share
from bench.experiments import sweep
from bench.models.checkpoints import load_checkpoint, load_training_state
from bench.results import file as results
from bench.results.file import content_digest
from bench.system.blocks import PartStore
from bench.system.files import write_text
from bench.system.signals import Terminated, listen, to_its_end
from bench.training import run_folder
from bench.training.request import TrainingRequest
from bench.training.run import TrainingRun
from bench.training.train import train
from tests import ROOT
from tests.support.command import bench
from tests.support.refusals import raising
from tests.support.trainings import Plain, assert_same_run, plug_in


@pytest.fixture
def listening():
    """This process takes SIGTERM as `bench` does; as before, afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    listen()
    yield
    signal.signal(signal.SIGTERM, before)
    with suppress(Terminated), to_its_end():
        pass  # what still waits is for no other test


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_outside_of_work_acts_at_once(listening):
    with pytest.raises(Terminated):
        terminate()


def test_sigterm_waits_for_the_end_of_the_outermost_work(listening):
    done = []
    with pytest.raises(Terminated), to_its_end():
        with to_its_end():
            terminate()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with to_its_end():
        done.append("later")
    assert done[2:] == ["later"]


def test_a_second_sigterm_does_not_wait(listening):
    done = []
    with pytest.raises(Terminated), to_its_end():
        terminate()
        done.append("first")
        terminate()
        done.append("second")
    assert done == ["first"]


def test_a_sigterm_waits_no_longer_than_the_outermost_work_is_given(listening):
    done, started = [], time.monotonic()
    with pytest.raises(Terminated), to_its_end(0.1), to_its_end():
        terminate()
        done.append("goes on")
        while time.monotonic() < started + 60:
            time.sleep(0.01)
        done.append("ends")
    assert done == ["goes on"]
    with pytest.raises(Terminated), to_its_end(0.1):
        terminate()
        done.append("ends in time")
    time.sleep(0.2)  # the limit is no longer of any work
    assert done == ["goes on", "ends in time"]
    with pytest.raises(Terminated), to_its_end(), to_its_end(0.05):
        terminate()
        time.sleep(0.1)
        done.append("the outermost has no limit")
    assert len(done) == 3


def test_an_error_in_work_is_not_hidden_by_a_waiting_sigterm(listening):
    with pytest.raises(ZeroDivisionError), to_its_end():
        terminate()
        raise ZeroDivisionError
    with pytest.raises(Terminated), to_its_end():
        pass


class Doomed(Plain):
    """Plain training that gets a SIGTERM in the second batch of the second epoch, once."""

    updates: ClassVar[list[int]] = []
    armed: ClassVar[list[bool]] = []

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        if self.armed and context.epoch == 1 and len(self.updates) == 4:
            self.armed.clear()
            terminate()
        return {"loss": functional.cross_entropy(model(images), labels)}

    def update(self, *arguments: Any) -> dict[str, Any]:
        terms = super().update(*arguments)
        self.updates.append(len(self.updates))
        return terms


def test_training_finishes_its_batch_and_goes_on_to_the_same_bits(listening, tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "doomed", Doomed)

    def request(name):
        protocol = {"epochs": 2, "batch_size": 32}
        return TrainingRequest("doomed", blobs, "cnn-small", protocol=protocol, runs=tmp_path / name)

    Doomed.updates.clear()
    whole = train(request("whole"), quiet=True)
    Doomed.updates.clear()
    Doomed.armed.append(True)
    with pytest.raises(Terminated):
        train(request("stopped"), quiet=True)
    assert len(Doomed.updates) == 5, "three batches an epoch: the second of the second epoch was finished"
    folder = request("stopped").run_folder
    assert len(load_training_state(folder / "training_state.pt")["history"]) == 1
    assert_same_run(whole, train(request("stopped"), resume=True, quiet=True))


def test_a_sigterm_while_an_epoch_is_saved_loses_nothing(listening, tmp_path, blobs, monkeypatch):
    original = run_folder.save_training_state

    def terminated(path, state, **options):
        terminate()
        original(path, state, **options)

    monkeypatch.setattr(run_folder, "save_training_state", terminated)
    for save_every, saved in ((0.0, 1), (30.0, 2)):
        folder, protocol = tmp_path / str(saved), {"epochs": 2, "batch_size": 32}
        request = TrainingRequest("st", blobs, "cnn-small", protocol=protocol, folder=folder, save_every=save_every)
        with pytest.raises(Terminated):
            train(request, quiet=True)
        assert load_checkpoint(folder).config["epoch"] == saved
        assert len(load_training_state(folder / "training_state.pt")["history"]) == saved


def test_an_evaluation_finishes_its_block_and_does_not_repeat_it(listening, digits_run, tmp_path, monkeypatch):
    def request(name):
        path = tmp_path / name
        return EvaluationRequest("linf", checkpoint=digits_run, limit=12, batch_size=4, probes=0, out=path)

    whole, _ = evaluate(request("whole.h5"))
    original, blocks = engine.GroupRun.run_block, []

    def run_block(run, block):
        blocks.append(tuple(block))
        if len(blocks) == 3:
            terminate()
        return original(run, block)

    monkeypatch.setattr(engine.GroupRun, "run_block", run_block)
    with pytest.raises(Terminated):
        evaluate(request("stopped.h5"))
    assert len(blocks) == 3
    assert len(list(tmp_path.glob(".stopped.h5.*.parts/00*"))) == 3
    result, _ = evaluate(request("stopped.h5"))
    right = int((whole.clean_prediction == whole.label).sum())
    assert len(blocks) == 3 * -(-right // 4), "every block of the three groups once"
    assert content_digest(result) == content_digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.h5", "whole.h5"]


@pytest.mark.parametrize(("error", "how"), [(Terminated, "terminate"), (KeyboardInterrupt, "kill")])
def test_a_stop_ends_the_processes_that_share_the_work(monkeypatch, error, how):
    class Started:
        def __init__(self, command, **options):
            self.calls = []
            started.append(self)

        def terminate(self):
            self.calls.append("terminate")

        def kill(self):
            self.calls.append("kill")

        def wait(self):
            self.calls.append("wait")

    started = []
    monkeypatch.setattr(sharing.subprocess, "Popen", Started)

    with pytest.raises(error):
        share(EvaluationRequest("quick"), 3, raising(error))
    assert [other.calls for other in started] == [[how, "wait"]] * 2


STOPPED = {
    "train": (TrainingRun, "step", ["train", "--defense", "st", "--dataset", "{blobs}", "--epochs", "1"]),
    "eval": (engine.GroupRun, "run_block", ["eval", "{run}", "--limit", "10", "--out", "r.h5"]),
    "sweep": (sweep, "train", ["sweep", "--defenses", "st", "--dataset", "{blobs}", "--suite", "clean"]),
    "corrupt": (PartStore, "put", ["data", "corrupt", "--dataset", "digits", "--limit", "2", "--out", "c"]),
    "leaderboard": (results.SealedFormat, "read", ["leaderboard", "{result}", "--out", "board.html"]),
    "compare": (results.SealedFormat, "read", ["compare", "{result}", "{result}"]),
    "verify": (results.SealedFormat, "read", ["verify", "{result}"]),
    "trust": (results.SealedFormat, "read", ["trust", "{result}"]),
}


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize(("error", "code", "word"), [(KeyboardInterrupt, 130, "interr"), (Terminated, 143, "termin")])
def test_every_command_answers_with_one_line(name, error, code, word, tmp_path, blobs, digits_run, monkeypatch):
    owner, attribute, arguments = STOPPED[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(owner, attribute, raising(error))
    stored = ROOT / "tests" / "goldens" / "result-v1.h5"
    found, output = bench(*(text.format(blobs=blobs, run=digits_run, result=stored) for text in arguments))
    assert found == code
    errors = [line for line in output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and errors[0].startswith(f"Error: {word}")
    assert output.endswith(errors[0] + "\n")
    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if name == ".lock" or name.endswith(".tmp")]


def test_ctrl_c_as_a_temporary_file_appears_leaves_none(tmp_path, monkeypatch):
    opened = Path.open

    def interrupted(path, *arguments):
        opened(path, *arguments).close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "open", interrupted)
        write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


def command(name, blobs, run, folder):
    if name == "train":
        options = ["--dataset", blobs, "--classes", 3, "--backbone", "cnn-small", "--epochs", 500, "--out", folder]
        return ["train", "--defense", "at", "--save-every", 0, *options], "training_state.pt"
    options = ["--suite", "full", "--batch-size", 5, "--probes", 0, "--out", folder / "r.h5"]
    return ["eval", run, *options], ".r.h5.*.parts/000-*.npz"


@pytest.fixture
def ended():
    """Processes that are over after the test, also after one that fails."""
    with ExitStack() as stack:
        yield stack


def test_signals_to_the_processes(blobs, tmp_path, ended):
    """Both at once, because each takes seconds to import torch."""
    protocol = {"epochs": 3, "batch_size": 32}
    run = train(TrainingRequest("st", blobs, "cnn-small", protocol=protocol, runs=tmp_path / "runs"), quiet=True)
    cases = [("train", signal.SIGINT, 130), ("eval", signal.SIGTERM, 143)]
    started = []
    for number, (name, _, _) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments, begun = command(name, blobs, run, folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs, and what they start, ignore Ctrl-C.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        ended.enter_context(process)
        ended.callback(process.kill)
        started.append((process, folder, begun))
    for (process, folder, begun), (name, sent, code) in zip(started, cases, strict=True):
        deadline = time.monotonic() + 600
        while not list(folder.glob(begun)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(sent)
        shown, told = process.communicate(timeout=600)
        assert (process.returncode, shown) == (code, ""), told
        progress = ("epoch ", "Recipe ")
        lines = [line for line in told.splitlines() if not line.startswith(progress) and " stand  (" not in line]
        assert len(lines) == 1 and "goes on" in lines[0] and "Traceback" not in told
        assert not [path for path in folder.rglob("*") if path.name == ".lock" or path.name.endswith(".tmp")]
        for path in folder.glob(".r.h5.*.parts/*.npz"):
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[key] is not None for key in arrays.files)
        if name == "train":
            assert load_training_state(folder / "training_state.pt")["history"]
