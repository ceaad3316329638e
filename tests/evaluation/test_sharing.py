"""Processes that share an evaluation are started from its request, whoever starts them, and their exit codes count."""

import os
import subprocess
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch

from bench.errors import BenchError
from bench.evaluation import evaluate as evaluation
from bench.evaluation import sharing
from bench.evaluation.request import EvaluationRequest
from bench.evaluation.sharing import shard_command, share
from bench.launching import program
from bench.results.file import content_digest, read_result
from tests import ROOT

EVERY = EvaluationRequest(
    suite="full",
    checkpoint=Path("-a run"),
    model="m.py:make",
    weights=Path("w.pt"),
    threat_model="L2",
    model_dir=Path("zoo"),
    name="--name",
    dataset="npz:d.npz",
    classes=7,
    data=Path("elsewhere"),
    limit=9,
    epsilons={"linf": "4/255", "l2": "0.5"},
    seed=-3,
    batch_size=5,
    convention="final",
    precision="bf16",
    adaptive="loss.py:loss",
    transfer=(Path("one"), Path("an other")),
    corruptions=Path("C"),
    save_adversarials=True,
    shard=(2, 3),
    probes=0,
    device="cuda:7",
    out=Path("r.h5"),
    overwrite=True,
    command="said",
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


# ------------------------------------------------------------------------------------------- in processes


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
SCRIPT = """
import sys
from pathlib import Path

import torch

from bench.catalogue.plugins import add_plugin
from bench.engine.group_run import GroupRun
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest

blocks, run_block = [], GroupRun.run_block
GroupRun.run_block = lambda *arguments: blocks.append(0) or run_block(*arguments)
torch.set_num_threads(1)
add_plugin(Path("brighten.py"))
run, out, processes = sys.argv[1:]
asked = {"limit": 40, "batch_size": 4, "probes": 0, "command": "a script"}
evaluate(EvaluationRequest("own.json", checkpoint=Path(run), out=Path(out), **asked), processes=int(processes))
print(len(blocks))
"""


def test_a_script_that_shares_its_evaluation_gets_the_file_of_one_process(digits_run, tmp_path):
    for name, text in (("brighten.py", PLUGIN), ("own.json", SUITE), ("script.py", SCRIPT)):
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    blocks, digests = [], []
    for out, processes in (("whole.h5", "1"), ("shared.h5", "2")):
        command = [sys.executable, "script.py", str(digits_run), out, processes]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        result = read_result(tmp_path / out)
        assert result.run["command"] == "a script"
        blocks.append(int(ended.stdout))
        digests.append(content_digest(result))
    assert digests[0] == digests[1]
    every = -(-int((result.clean_prediction == result.label).sum()) // 4)
    assert every > 1
    assert blocks == [2 * every, 2 * -(-every // 2)], "of both attacks; the other process computed every second block"
    assert not list(tmp_path.glob(".*.parts"))


def test_a_process_that_fails_is_named_and_no_block_is_lost(digits_run, tmp_path, monkeypatch):
    request = EvaluationRequest("quick", checkpoint=digits_run, limit=20, probes=0, out=tmp_path / "r.h5")
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "program", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(BenchError, match=r"2 of 2 processes .*exit code 3, 3.*blocks are kept") as caught:
            evaluation.evaluate(request, processes=3)
    assert "\n" not in str(caught.value)
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
