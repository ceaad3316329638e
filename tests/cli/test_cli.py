"""The command line from end to end, and one line for everything a person can get wrong."""

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data.datasets import load_dataset
from bench.evaluation import evaluate as evaluation
from bench.models.checkpoints import load_checkpoint
from bench.results.file import content_digest, read_result
from tests import ROOT
from tests.support.command import refused
from tests.support.refusals import raising


def everything_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_train_evaluate_and_rank(bench, tmp_path, blobs):
    for defense in ("st", "at"):
        options = ["--dataset", blobs, "--backbone", "cnn-small", "--epochs", 3, "--batch-size", 16]
        code, output = bench("train", "--defense", defense, *options, "--learning-rate", 0.05)
        assert code == 0, output
        run = f"runs/npz-blobs/cnn-small/{defense}/seed-0"
        code, output = bench("eval", run, "--suite", "linf", "--eps", "16/255", "--limit", 12, "--probes", 0)
        assert code == 0, output
    results = sorted(tmp_path.rglob("*.h5"))
    code, narrow = bench("leaderboard", *results, "--columns", "PGD-20, Clean")
    assert code == 0, narrow
    titles = [cell.strip() for cell in narrow.splitlines()[2].split("|")[1:-1]]
    assert titles == ["Rank", "Model", "Trust", "PGD-20", "Clean"]
    code, output = bench("leaderboard", *results, "--out", "board.md")
    assert code == 0
    columns = ("Clean", "FGSM", "PGD-20", "PGD-100", "C&W-30", "Ensemble", "Worst case")
    for text in ("linf 16/255", "suite linf version 1", "12 samples", *columns):
        assert text in output
    assert html.unescape((tmp_path / "board.md").read_text()).strip() == output.strip()
    result = read_result(results[0])
    assert result.run["defense"] == "at"
    assert result.run["protocol"]["epochs"] == 3
    assert result.attacks["PGD-20"].parameters["steps"] == 20
    assert result.attacks["PGD-20"].epsilon == "16/255"


def test_the_same_seed_gives_the_same_result_file_content(bench, digits_run):
    results = []
    for number, options in enumerate([(), (), ("--seed", 1)]):
        words = ("eval", digits_run, "--limit", 12, "--suite", "quick", "--out", f"{number}.h5")
        code, output = bench(*words, "--probes", 0 if options else 2, *options)
        assert code == 0, output
        results.append(read_result(f"{number}.h5"))
    assert content_digest(results[0]) == content_digest(results[1])
    # Another seed is another start, so another place in the ball.
    assert (results[0].attacks["PGD-20"].distance != results[2].attacks["PGD-20"].distance).any()
    assert results[0].run["evaluation"]["environment"]["threads"] == torch.get_num_threads()


MODEL = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
    def forward(self, images):
        return self.how(images.flatten(1)[:, :10])

def sound():
    return Scaled(lambda x: 7 * x - 2)

def softmax():
    return Scaled(lambda x: x.softmax(1))

def noisy():
    return Scaled(lambda x: x + torch.rand_like(x))

def numpy():
    return Scaled(lambda x: torch.from_numpy(x.numpy()))

def few():
    return Scaled(lambda x: x[:, :3])
"""


def test_a_model_of_ones_own(bench, tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    words = ("--dataset", "digits", "--limit", 50, "--probes", 4)
    code, output = bench("eval", "--model", "mine.py:sound", *words, "--name", "my net")
    assert code == 0
    stages, shown, verdict = output.partition("my net: digits, linf 0.15, suite quick version 1, 50 samples, ")
    assert shown and [line.partition(":")[0] for line in stages.splitlines()] == ["FGSM", "PGD-20", "trust report"]
    # Seven of 50 are right clean, which is a note, and two under attack.
    assert "\nTrust: ✓ no error or warning (3 notes, " in output and "\n· near-chance " in output
    assert "\nClean        14.0 %  (" in output and "\nRobust        4.0 %  (" in output
    assert verdict.splitlines()[-1] == "  bench leaderboard results/sound-quick-v1-first50.h5"
    result = read_result(tmp_path / "results" / "sound-quick-v1-first50.h5")
    assert result.run["source"] == "mine.py:sound"
    for model, finding in (("softmax", "not negative and sum to 1"), ("noisy", "✗ not-deterministic")):
        assert finding in bench("eval", "--model", f"mine.py:{model}", *words, "--suite", "clean")[1]


def test_images_to_test_on_are_enough_to_evaluate(bench, digits_run):
    test = load_dataset("digits", Path("unused")).test
    np.savez("test.npz", x_test=test.pixels[:20, 0].numpy() * 15, y_test=test.labels[:20].numpy())
    code, output = bench("eval", digits_run, "--dataset", "npz:test.npz", "--suite", "clean", "--out", "r.h5")
    assert code == 0, output
    assert len(read_result("r.h5").label) == 20
    for command in (["train", "--defense", "at", "--holdout", 5], ["sweep", "--defenses", "at"]):
        line = refused(*command, "--dataset", "npz:test.npz", "--backbone", "cnn-small")
        assert "npz:test.npz has no array x_train, y_train" in line and "To train, add them" in line


def test_parts_of_another_evaluation_are_named(bench, digits_run, monkeypatch):
    arguments = ("eval", digits_run, "--limit", 20, "--suite", "clean", "--out", "r.h5")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "make_result", raising(KeyboardInterrupt))
        assert bench(*arguments, "--seed", 1)[0] == 130
    (left,) = Path().glob(".r.h5.*.parts")
    code, output = bench(*arguments)
    assert (code, output.count(".parts")) == (0, 1)
    last = output.splitlines()[-1]
    assert last.startswith(f"{left}: left by an evaluation of other settings") and "delete it if none runs" in last
    assert list(Path().glob(".*.parts")) == [left]
    code, output = bench(*arguments, "--seed", 1, "--overwrite")
    assert (code, output.count(".parts")) == (0, 0)


BAD = [
    (["train", "--defense", "adv-dnpn"], "Did you mean 'adv-dpnp'?"),
    (["train", "--defense", "at", "--dataset", "cifar"], "Did you mean 'cifar10'?"),
    (["train", "--defense", "at", "--backbone", "resnet8", "--dataset", "digits"], "Did you mean 'resnet18'?"),
    (["train", "--defense", "at", "--dataset", "digits", "--set", "beta=4"], "has no hyperparameters"),
    (["train", "--defense", "adv-dpnp", "--dataset", "digits", "--set", "alhpa=4"], "Did you mean 'alpha'?"),
    (["train", "--defense", "adv-dpnp", "--dataset", "digits", "--set", "alpha"], "is not NAME=VALUE"),
    (["train", "--defense", "adv-dpnp", "--dataset", "digits", "--set", "alpha=big"], "is not a number"),
    (["train", "--defense", "at", "--dataset", "digits", "--epsilon", "-1/255"], "below 0"),
    (["train", "--defense", "at", "--dataset", "digits", "--epochs", "0"], "must be 1 or more"),
    (["train", "--defense", "at", "--dataset", "digits", "--nesterov", "--momentum", "0"], "needs a momentum above 0"),
    (["leaderboard", "{run}/none.h5", "--out", "."], "cannot write a board to"),
    (["train", "--defense", "at", "--dataset", "digits", "--limit-train", "99999"], "99999"),
    (["train", "--defense", "at", "--dataset", "digits", "--device", "tpu"], "is not available here"),
    (["train", "--defense", "at"], "bench data fetch cifar10"),
    (["train", "--defense", "at", "--dataset", "npz:none.npz"], "none.npz"),
    (["train", "--defense", "at", "--dataset", "digits", "--plugin", "none.py"], "no Python file at none.py"),
    (["eval"], "name one model"),
    (["eval", "nowhere"], "no checkpoint at nowhere"),
    (["eval", "{run}/.."], "/../seed-0."),
    (["eval", "mine.pt"], "To evaluate weights of your own: bench eval --model FILE.py:FACTORY --weights mine.pt;"),
    (["eval", "{run}", "--suite", "ful"], "Did you mean 'full'?"),
    (["eval", "{run}", "--limit", "501"], "501"),
    (["eval", "{run}", "--limit", "0"], "0"),
    (["eval", "{run}", "--eps", "-0.1"], "below 0"),
    (["eval", "{run}", "--eps", "8"], "did you mean 8/255?"),
    (["eval", "{run}", "--eps", "254"], "did you mean 254/255?"),
    (["eval", "{run}", "--eps", "255"], "[0, 1]; 1 is the whole range: give less, such as 8/255."),
    (["eval", "{run}", "--eps", "1.5"], "[0, 1]; 1 is the whole range: give less, such as 8/255."),
    (["train", "--defense", "at", "--dataset", "digits", "--epsilon", "8"], "did you mean 8/255?"),
    (["train", "--defense", "at", "--dataset", "digits", "--epsilon", "255"], "1 is the whole range: give less"),
    (["eval", "{run}", "--eps", "l3=0.1"], "unknown norm 'l3'"),
    (["eval", "{run}", "--eps", "lots"], "is not a number"),
    (["eval", "{run}", "--batch-size", "0"], "below 1"),
    (["eval", "{run}", "--dataset", "cifar10"], "bench data fetch cifar10"),
    (["eval", "--model", "mine.py:sound"], "--dataset"),
    (["eval", "--model", "mine.py:few", "--dataset", "digits"], "returns 3 classes; the dataset has 10"),
    (["eval", "--model", "mine.py:numpy", "--dataset", "digits"], "the model cannot be differentiated: RuntimeError"),
    (["eval", "--model", "mine.py:none", "--dataset", "digits"], "has no function or class 'none'"),
    (["leaderboard", "nowhere.h5"], "nowhere.h5"),
    (["leaderboard", "nowhere.h5", "--columns", "Clean", "--out", "board.html"], "--columns is for the terminal"),
    (["data", "fetch", "mnits"], "Did you mean 'mnist'?"),
    (["lsit"], "Did you mean 'list'?"),
    (["sweep", "--defenses", "at,trade", "--dataset", "digits"], "Did you mean 'trades'?"),
    (["sweep", "--defenses", "at", "--dataset", "digits", "--engine", "rya"], "Choose from: local, ray, slurm."),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(bench, tmp_path, digits_run, arguments, message):
    (tmp_path / "mine.py").write_text(MODEL)
    torch.save({"weight": torch.ones(2)}, tmp_path / "mine.pt")
    before = everything_in(tmp_path), everything_in(digits_run)
    code, output = bench(*(argument.format(run=digits_run) for argument in arguments))
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert code == 2
    assert message in output
    errors = [line for line in output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert output.strip().endswith(errors[0])
    assert (everything_in(tmp_path), everything_in(digits_run)) == before


def test_an_unknown_attack_in_a_suite_of_ones_own(bench, tmp_path, digits_run):
    for cell, meant in (({"attack": "pdg"}, "pgd"), ({"attack": "pgd", "parameters": {"stpes": 3}}, "steps")):
        suite = {"name": "mine", "version": 1, "cells": [{"label": "A", **cell}]}
        (tmp_path / "mine.json").write_text(json.dumps(suite))
        assert f"Did you mean '{meant}'?" in refused("eval", digits_run, "--suite", "mine.json")


def test_the_cost_can_be_known_before_it_is_paid(bench, tmp_path, digits_run):
    test = load_dataset("digits", Path()).test.take(64)
    standing = int((load_checkpoint(digits_run).build()(test.images(slice(None))).argmax(1) == test.labels).sum())
    code, output = bench("eval", digits_run, "--suite", "full", "--limit", 64, "--dry-run")
    assert code == 0
    counts = {
        line.partition("at most")[0].strip(): line.split("at most")[1].split()[0] for line in output.splitlines()[:-1]
    }
    expected = {"FGSM": 1, "PGD-20 and 2 more": 100, "C&W-30": 30, "PGD l1": 100, "PGD l2": 20, "AutoAttack": 1900}
    expected |= {"APGD l1": 1000, "APGD l2": 1000}
    assert counts == {
        **{name: f"{count * standing:,}" for name, count in expected.items()},
        "in all": f"{sum(expected.values()) * standing:,}",
    }
    assert not list(digits_run.glob("results/*"))


def test_a_sweep_continues_where_it_stopped(bench, tmp_path, blobs):
    arguments = ["sweep", "--dataset", blobs, "--backbone", "cnn-small", "--suite", "clean", "--epochs", 1]
    arguments += ["--defenses", "hat,at", "--seeds", 2]
    code, output = bench(*arguments, "--board", "board.md")
    assert code == 0, output
    results = sorted(tmp_path.rglob("clean-v1.h5"))
    places = ["/".join(path.relative_to(tmp_path).parts[3:5]) for path in results]
    assert places == ["at/seed-0", "at/seed-1", "hat/seed-0", "hat/seed-1"]
    assert (tmp_path / "runs/npz-blobs/cnn-small/st/seed-1/last").is_dir()
    times = [path.stat().st_mtime_ns for path in results]
    results[2].unlink()
    code, again = bench(*arguments)
    assert code == 0
    assert [path.stat().st_mtime_ns for path in (results[0], results[1], results[3])] == [times[0], times[1], times[3]]
    assert html.unescape((tmp_path / "board.md").read_text()).strip() in again


BROKEN = """
from dataclasses import dataclass
from bench.interfaces import Defense

@dataclass(frozen=True)
class Broken(Defense):
    paper = "none"
    def losses(self, model, images, labels, context):
        raise RuntimeError("two\\nlines")
"""


@pytest.mark.parametrize("logs_are_writable", [True, False])
def test_a_sweep_goes_on_after_any_exception(bench, tmp_path, blobs, logs_are_writable):
    (tmp_path / "broken.py").write_text(BROKEN)
    if not logs_are_writable:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "logs").write_text("a file")
    arguments = ["sweep", "--dataset", blobs, "--backbone", "cnn-small", "--suite", "clean", "--epochs", 1]
    code, output = bench(*arguments, "--plugin", "broken.py", "--defenses", "broken,st")
    assert code == 2
    run, log = "runs/npz-blobs/cnn-small/broken/seed-0", Path("runs/logs/sweep-npz-blobs-cnn-small-broken-seed-0.log")
    reason = "RuntimeError: two lines (broken.py:9)" + f", see {log}" * logs_are_writable
    lines = output.splitlines()
    assert f"[1/2] {run} failed: {reason}" in lines
    assert lines[-1] == f"Error: 1 of 2 runs failed: {run}: {reason}"
    assert (tmp_path / "runs/npz-blobs/cnn-small/st/seed-0/results/clean-v1.h5").is_file()
    if logs_are_writable:
        assert log.read_text().startswith("Traceback (most recent call last):\n")
        assert log.read_text().endswith("RuntimeError: two\nlines\n")


def test_a_sweep_refuses_a_result_that_is_not_its_own(bench, blobs):
    arguments = ["sweep", "--dataset", blobs, "--backbone", "cnn-small", "--suite", "clean", "--defenses", "at"]
    assert bench(*arguments, "--epochs", 1)[0] == 0
    code, output = bench(*arguments, "--epochs", 2)
    assert (code, "holds another run (different protocol)" in output) == (2, True)
    run = "runs/npz-blobs/cnn-small/at/seed-0"
    path = f"{run}/results/clean-v1.h5"
    assert bench("eval", run, "--suite", "clean", "--seed", 5, "--overwrite", "--out", path)[0] == 0
    code, output = bench(*arguments, "--epochs", 1)
    assert (code, "is of another model or evaluation" in output) == (2, True)


def test_list_names_everything_for_people_and_machines(bench):
    code, output = bench("list")
    assert (code, "adv-dpnp" in output) == (0, True)
    catalogue = json.loads(bench("list", "--json")[1])
    kinds = {"defenses", "attacks", "suites", "recipes", "datasets", "models", "backbones", "augmentations", "checks"}
    assert set(catalogue) == kinds
    assert catalogue["defenses"]["adv-dpnp"]["parameters"]["lambda_dnp"]["published"] == {"cifar100": 3.0}
    assert catalogue["defenses"]["hat"]["requires"] == ["st"]
    code, output = bench("list", "defenses")
    assert "lambda_dnp = 0.1; cifar100: 3.0" in output
    kinds_of_defenses = [line.strip() for line in output.splitlines() if line.strip().endswith(":") and line[0] != " "]
    assert kinds_of_defenses[:4] == ["No adversarial training:", "Single-step:", "Multi-step:", "Prototype:"]
    lines = [line.partition(" ")[0] for line in output.splitlines()]
    order = [lines.index(one) for one in ("st", "Single-step:", "n-fgsm", "Multi-step:", "at", "Prototype:", "drp")]
    assert order == sorted(order)
    assert "family" not in catalogue["attacks"]["pgd"]
    for kind in kinds - {"defenses"}:
        assert bench("list", kind)[0] == 0


def test_training_and_evaluation_need_neither_pandas_nor_robustbench(tmp_path, blobs):
    blocked = ("pandas", "robustbench", "matplotlib", "tabulate", "pyautoattack", "beartype")
    program = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def without(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {blocked} else find(name, path, target)
PathFinder.find_spec = classmethod(without)
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.training.train import train
from bench.training.request import TrainingRequest
from pathlib import Path
asked = TrainingRequest("at", {blobs!r}, "cnn-small", protocol={{"epochs": 1}}, runs=Path("runs"))
run = train(asked, quiet=True)
result, path = evaluate(EvaluationRequest("quick", checkpoint=run, limit=4, probes=2))
print(len(result.label))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "4"


def test_doctor_is_content_here_and_names_the_mend_elsewhere(bench, monkeypatch):
    from bench.cli import doctor

    code, output = bench("doctor")
    assert code == 0
    assert output.startswith("ok: python")
    _, device, how, long = output.splitlines()
    assert device.startswith("device: cpu (") and "fp32, bf16 at " in device
    assert how == "training: fp32; steps run one by one; while crafting 20 BatchNorms of a ResNet-18 are folded"
    assert long.startswith("bench train --defense at, 110 epochs of CIFAR-10, ResNet-18: about ") and "hours" in long
    real = doctor.importlib.import_module

    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    code, output = bench("doctor")
    assert code == 2
    assert "pip install torch==2.11.0 torchvision==0.26.0" in output
