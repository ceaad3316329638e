"""Processes that share an evaluation are started from its request, whoever starts them, and their exit codes count."""

import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch

from bench.catalogue import plugins
from bench.engine.group_run import GroupRun
from bench.errors import BenchError
from bench.evaluation import evaluate as evaluation
from bench.evaluation import sharing
from bench.evaluation.request import EvaluationRequest
from bench.evaluation.sharing import shard_command, share
from bench.launching import program
from bench.results.file import content_digest, read_result
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests.support.refusals import refusal

FILES = {"checkpoint": "-a run", "weights": "w.pt", "model_dir": "zoo", "data": "elsewhere"}
FILES |= {"corruptions": "C", "out": "r.h5"}
TEXTS = {"suite": "full", "model": "m.py:make", "threat_model": "L2", "name": "--name", "dataset": "npz:d.npz"}
TEXTS |= {
    "preprocessing": "Crop8",
    "sampling": "stratified",
    "convention": "final",
    "precision": "bf16",
    "adaptive": "loss.py:loss",
    "device": "cuda:7",
    "command": "said",
}
EVERY = EvaluationRequest(
    **TEXTS,
    **{name: Path(path) for name, path in FILES.items()},
    **{"classes": 7, "limit": 9, "seed": -3, "batch_size": 5, "probes": 0, "shard": (2, 3)},
    **{"epsilons": {"linf": "4/255", "l2": "0.5"}, "transfer": (Path("one"), Path("an other"))},
    **{"save_adversarials": True, "overwrite": True, "randomised": True, "download": True},
    **{"adapt": ("resize=8", "half")},
)


@pytest.fixture
def asked(monkeypatch):
    """The requests that `bench eval` makes; none is evaluated."""
    requests = []

    def stop(request, *others):
        requests.append(request)
        raise BenchError("enough")

    monkeypatch.setattr(evaluation, "evaluate", stop)
    return requests


@pytest.mark.parametrize(
    "request_",
    [EVERY, EvaluationRequest("corruptions", checkpoint=Path("run"), precision="bf16", shard=(1, 2))],
    ids=["every field", "options that would be idle"],
)
def test_the_command_of_a_share_makes_the_same_request(request_, asked, bench, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", "not-this")
    words = shard_command(request_)
    assert words[: len(program())] == program()
    code, output = bench(*words[len(program()) :])
    assert (code, output) == (2, "Error: enough\n")
    assert [replace(made, command=request_.command) for made in asked] == [request_]


def test_no_field_was_left_out_above():
    unset = [one.name for one in fields(EvaluationRequest) if getattr(EVERY, one.name) in (one.default, MISSING, {})]
    assert unset == ["module", "held"]  # in this process's memory: no other can be told


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

from bench.interfaces import Attack


@dataclass(frozen=True)
class Brighten(Attack):
    paper: ClassVar[str] = "none"
    gradients: ClassVar[bool] = False

    def perturb(self, problem):
        return problem.images + problem.threat.radius
"""
SUITE = """{"name": "own", "version": 1, "cells": [
    {"label": "Brighten", "attack": "brighten", "epsilon": "0.1"},
    {"label": "PGD-3", "attack": "pgd", "epsilon": "0.1", "parameters": {"steps": 3}}]}"""


def test_what_is_shared_from_python_is_the_file_of_one_process(blobs, tmp_path, monkeypatch):
    """The command line of this process is none of `bench`, as that of a script or notebook."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("brighten.py", PLUGIN), ("own.json", SUITE)):
        Path(name).write_text(text)
    plugins.add_plugin(Path("brighten.py"))
    run = train(TrainingRequest("st", blobs, "cnn-small", protocol={"epochs": 1}, runs=tmp_path), quiet=True)
    small = {"limit": 40, "batch_size": 4, "probes": 0, "command": "a script"}
    request = EvaluationRequest("own.json", checkpoint=run, out=Path("whole.h5"), **small)
    whole, _ = evaluation.evaluate(request)
    blocks, run_block = [], GroupRun.run_block
    monkeypatch.setattr(GroupRun, "run_block", lambda *given: blocks.append(0) or run_block(*given))
    shared, _ = evaluation.evaluate(replace(request, out=Path("shared.h5")), processes=2)
    assert shared.run["command"] == "a script"
    assert content_digest(read_result("shared.h5")) == content_digest(shared) == content_digest(whole)
    every = -(-int((whole.clean_prediction == whole.label).sum()) // 4)
    assert every > 1
    assert len(blocks) == 2 * -(-every // 2), "of both attacks; the other process computed every second block"
    assert not list(tmp_path.glob(".*.parts"))


def test_a_process_that_fails_is_named_and_no_block_is_lost(digits_run, tmp_path, monkeypatch):
    request = EvaluationRequest("quick", checkpoint=digits_run, limit=20, probes=0, out=tmp_path / "r.h5")
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "program", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
        told = ("2 of 2 processes", "exit code 3, 3", "blocks are kept")
        refusal(lambda: evaluation.evaluate(request, processes=3), *told)
    assert list(tmp_path.glob(".r.h5.*.parts/*.npz"))
    assert not (tmp_path / "r.h5").exists()


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 1, ["auto"] * 3), ("auto", 2, ["cuda:1", "cuda:0", "cuda:1"]), ("cpu", 2, ["cpu"] * 3)],
)
def test_each_further_process_is_one_command_with_its_share_and_its_gpu(device, gpus, expected, monkeypatch):
    commands = []

    class Started:
        def __init__(self, command, **options):
            commands.append(command)

        def wait(self):
            return 0

    monkeypatch.setattr(sharing.subprocess, "Popen", Started)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    share(EvaluationRequest("quick", checkpoint=Path("run"), device=device), 4, lambda: None)
    assert [[word for word in command if "--shard" in word or "--device" in word] for command in commands] == [
        [f"--shard={number}/4", f"--device={expected[number - 1]}"] for number in (1, 2, 3)
    ]
