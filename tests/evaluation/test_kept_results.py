"""A result is never replaced by another evaluation's, never lost to what comes after the attacks, or refused at once.

The model's logits are 20 times the means of an image's three columns, of which one is 60 levels brighter: under linf an
attacker moves the margin by twice the radius, so every image stands below 30/255 and none above.
"""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bench.catalogue.suites import load_suite
from bench.engine import run as engine
from bench.engine.adversarials import owner_of
from bench.errors import BenchError
from bench.evaluation import evaluate as evaluation
from bench.evaluation import probing, record
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest, result_path
from bench.experiments.sweep import Plan, run_plan
from bench.interfaces import Attack
from bench.results.file import content_digest, read_result
from bench.results.findings import finding
from bench.results.metrics import robust_accuracy
from bench.system import files
from bench.system.blocks import PartStore, is_finished, parts_folders
from bench.system.files import AlreadyThereError, clear_temporaries, require_writable, write_text, write_whole
from bench.training import train as training
from bench.training.request import TrainingRequest
from bench.training.run import TrainingRun
from bench.training.train import train
from bench.trust.report import examined
from tests import ROOT
from tests.support import command
from tests.support.refusals import raising, refusal
from tests.support.trainings import plug_in

MODEL = """
from torch import nn

class Columns(nn.Module):
    refused = ()
    def forward(self, images):
        if len(images) in self.refused:
            raise ValueError(f"not {len(images)} images")
        return 20 * images.mean((1, 2))

class NotEight(Columns):
    refused = (8,)

class NotFour(Columns):
    refused = (4,)

class NotTwo(Columns):
    refused = (2,)

class Squeezed(Columns):
    def forward(self, images):
        return super().forward(images).squeeze()
"""
COUNT = 24


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a model, its images, and a suite of one step; the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # tests look at all that the folder holds
    labels = np.arange(COUNT) % 3
    images = np.full((COUNT, 4, 3), 100, np.uint8)
    images[np.arange(COUNT), :, labels] = 160
    np.savez("d.npz", x_test=images, y_test=labels)
    (tmp_path / "m.py").write_text(MODEL)
    suite = {"name": "tiny", "version": 1, "cells": [{"label": "FGSM", "attack": "fgsm"}]}
    (tmp_path / "tiny.json").write_text(json.dumps(suite))
    return tmp_path


def asked(model="Columns", **options):
    options = {"epsilons": {"linf": "4/255"}, "batch_size": 10, "probes": 0, "dataset": "npz:d.npz", **options}
    return EvaluationRequest("tiny.json", model=f"m.py:{model}", **options)


@pytest.fixture
def no_attack(monkeypatch):
    """No block of an attack may run."""

    run_block = raising(AssertionError("an attack ran"))
    monkeypatch.setattr(engine.GroupRun, "run_block", run_block)


# ------------------------------------------------------------------------------------------ names of files


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "linf-v1"),
        ({"limit": 100}, "linf-v1-first100"),
        ({"epsilons": {"linf": "4/255"}, "seed": 1, "convention": "final"}, "linf-v1-eps4_255-seed1-final"),
        ({"epsilons": {"linf": "0.1", "l2": "1/2"}, "limit": 5}, "linf-v1-first5-l2-eps1_2-eps0.1"),
        ({"precision": "bf16"}, "linf-v1-bf16"),
        ({"adaptive": "my losses/a.py:margin"}, "linf-v1-loss-a-margin"),
        ({"transfer": (Path("/runs/st/seed-0"), Path("/runs/at/seed 1"))}, "linf-v1-from-st-seed-0-from-at-seed_1"),
        ({"checkpoint": Path("run/best")}, "linf-v1-best"),
        ({"checkpoint": Path("run/best"), "seed": 2}, "linf-v1-seed2-best"),
        ({"dataset": "npz:folder/d.npz"}, "linf-v1-on-npz-d"),
        ({"name": "a/b", "probes": 7, "batch_size": 3, "device": "cpu", "save_adversarials": True}, "linf-v1"),
    ],
)
def test_what_was_chosen_is_in_the_name_and_nothing_else(options, name):
    request = EvaluationRequest("linf", **{"checkpoint": Path("run"), **options})
    assert result_path(request, load_suite("linf")) == Path(f"run/results/{name}.h5")


def test_models_of_ones_own_have_names_like_that_and_no_suite_leads_out_of_the_folder(place):
    suite = load_suite("tiny.json")
    assert result_path(asked(epsilons={}), suite) == Path("results/Columns-tiny-v1.h5")
    assert result_path(asked(seed=3), suite) == Path("results/Columns-tiny-v1-eps4_255-seed3.h5")
    hostile, run = replace(suite, name="../../x y"), EvaluationRequest("tiny.json", checkpoint=Path("run"))
    assert result_path(asked(epsilons={}), hostile) == Path("results/Columns-_.._x_y-v1.h5")
    assert result_path(run, hostile) == Path("run/results/_.._x_y-v1.h5")


def test_a_sweep_knows_the_same_names():
    plan = Plan("digits", ("at",), "linf", convention="final", eval_precision="bf16", limit=9)
    (training,) = plan.trainings()
    assert plan.result(training) == training.run_folder / "results" / "linf-v1-first9-final-bf16.h5"


# ------------------------------------------------------------------------------- two evaluations at once


MEETING = """
import os, time
from pathlib import Path

def meet(name):
    '''Wait for the other process: both have seen by then that there is no result.'''
    Path(f"{name}.{os.getpid()}").touch()
    until = time.monotonic() + 120
    while len(list(Path().glob(f"{name}.*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)

def of_their_own():
    meet("own")
    return Columns()

def shared():
    meet("shared")
    return Columns()
"""
PAIR = """
import json, sys
from tests.evaluation.test_kept_results import pair
print(json.dumps(pair(sys.argv[1])))
"""


def pair(radius):
    """Evaluates twice, to the default path and to one that another process was given too."""
    words = ("--dataset", "npz:d.npz", "--suite", "tiny.json", "--eps", radius, "--probes", 0)
    own = command.bench("eval", "--model", "m.py:of_their_own", *words)
    return own, command.bench("eval", "--model", "m.py:shared", *words, "--out", "shared.h5")


def test_two_evaluations_of_other_radii_started_at_once_both_keep_their_results(place):
    """By this process and another."""
    (place / "m.py").write_text(MODEL + MEETING)
    radii = {"4/255": 1.0, "40/255": 0.0}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    other = [sys.executable, "-c", PAIR, "40/255"]
    with subprocess.Popen(other, env=environment, stdout=subprocess.PIPE, text=True) as process:
        outcomes = [pair("4/255"), json.loads(process.communicate(timeout=240)[0])]
    for (own, _), (radius, right) in zip(outcomes, radii.items(), strict=True):
        assert own[0] == 0, own[1]
        result = read_result(f"results/of_their_own-tiny-v1-eps{radius.replace('/', '_')}.h5")
        assert robust_accuracy(result, "FGSM") == right
        assert result.attacks["FGSM"].epsilon == radius
    assert sorted(code for _, (code, _) in outcomes) == [0, 2]
    (last,) = [number for number, (_, (code, _)) in enumerate(outcomes) if code]
    assert "shared.h5 was written by another evaluation meanwhile, and is left as it is." in outcomes[last][1][1]
    won, lost = list(radii)[1 - last], list(radii)[last]
    assert robust_accuracy(read_result("shared.h5"), "FGSM") == radii[won]
    Path("shared.h5").rename("won.h5")
    assert pair(lost)[1][0] == 0
    assert robust_accuracy(read_result("shared.h5"), "FGSM") == radii[lost]
    assert sorted(path.name for path in place.glob("*.h5")) == ["shared.h5", "won.h5"]
    assert not list(place.rglob(".*"))


def meanwhile(monkeypatch, act):
    """`act` happens once, when the attacks of the next evaluation have ended."""
    original = evaluation.run_suite
    waiting = [act]

    def run_suite(*arguments, **options):
        outcome = original(*arguments, **options)
        if waiting:
            waiting.pop()()
        return outcome

    monkeypatch.setattr(evaluation, "run_suite", run_suite)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_result_that_comes_meanwhile_is_left_and_the_work_is_kept(place, monkeypatch, links, overwrite):
    if not links:
        monkeypatch.setattr(os, "link", without_links)
    out = place / "r.h5"
    wide = asked(epsilons={"linf": "40/255"}, out=out, overwrite=overwrite)
    if overwrite:  # means the file that was there, not the one that comes
        evaluate(asked(out=out))
    meanwhile(monkeypatch, lambda: evaluate(asked(out=out, seed=5, overwrite=True)))
    told = (f"{out} was written by another evaluation meanwhile", "move that file or add --over")
    refusal(lambda: evaluate(wide), *told)
    assert read_result(out).run["evaluation"]["seed"] == 5
    monkeypatch.setattr(engine.GroupRun, "run_block", None)  # no block is repeated
    assert robust_accuracy(evaluate(replace(wide, overwrite=True))[0], "FGSM") == 0.0
    assert robust_accuracy(read_result(out), "FGSM") == 0.0
    assert not list(place.glob(".*"))


without_links = raising(OSError(errno.EPERM, "Operation not permitted"))


@pytest.mark.parametrize("images", [True, False])
def test_the_same_evaluation_twice_at_once_comes_to_one_end(place, monkeypatch, images):
    """The first to end clears the blocks that the other one has still to look for."""
    request = asked(out=place / "r.h5", save_adversarials=images, epsilons={"linf": "40/255"}, probes=3)
    written = []
    meanwhile(monkeypatch, lambda: written.append(evaluate(request)[0]))
    result, _ = evaluate(request)
    assert content_digest(result) == content_digest(written[0]) == content_digest(read_result(place / "r.h5"))
    names = ["r.adversarials.h5", "r.h5"] if images else ["r.h5"]
    assert sorted(path.name for path in place.glob("*r.*h5")) == names
    assert not images or owner_of(place / "r.adversarials.h5") == content_digest(result)
    assert not list(place.glob(".*"))


def test_blocks_can_be_kept_where_the_folder_vanishes_between(tmp_path, monkeypatch):
    parts = PartStore(tmp_path / "r.h5", {})
    original, calls = np.savez, []

    def savez(file, **arrays):
        calls.append(file.name)
        original(file, **arrays)
        if len(calls) == 1:
            PartStore(tmp_path / "r.h5", {}).clear()

    monkeypatch.setattr(np, "savez", savez)
    parts.put("one", {"values": np.arange(3)})
    assert len(calls) == 2
    assert parts.get("one")["values"].tolist() == [0, 1, 2]


def test_images_of_another_result_are_neither_replaced_nor_removed(place):
    """`r.h5` and `r.other` would keep their images in one file."""
    wide = {"epsilons": {"linf": "40/255"}}
    first, _ = evaluate(asked(out=place / "r.h5", save_adversarials=True, **wide))
    images = place / "r.adversarials.h5"
    refusal(lambda: evaluate(asked(out=place / "r.other")), f"{images} exists: add --overwrite")
    evaluate(asked(out=place / "r.other", overwrite=True))
    assert owner_of(images) == content_digest(first)
    evaluate(asked(out=place / "r.h5", overwrite=True))
    assert not images.exists(), "images go with the result that they are of"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_was_to_be_new_never_replaces_one(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", without_links)
    path = tmp_path / "file"
    write_whole(path, lambda temporary: temporary.write_text("first"), replace=False)
    with pytest.raises(AlreadyThereError, match="file exists"):
        write_whole(path, lambda temporary: temporary.write_text("second"), replace=False)
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------------- temporary files


WRITER = """
import sys, time
from pathlib import Path
from bench.system.files import write_whole

def write(temporary):
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(120)

write_whole(Path(sys.argv[1]), write)
"""


def test_what_a_live_process_writes_is_left_and_what_a_dead_one_left_is_cleared(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.h5")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        clear_temporaries(tmp_path, {"a.h5"})
        assert len(list(tmp_path.glob(".a.h5.*.tmp"))) == 1
        writer.kill()
        writer.wait()
    clear_temporaries(tmp_path, {"b.h5", "a"})
    assert len(list(tmp_path.glob(".a.h5.*.tmp"))) == 1
    clear_temporaries(tmp_path, {"a.h5"})
    assert not list(tmp_path.iterdir())


def test_an_evaluation_leaves_the_temporaries_of_files_that_begin_like_its_own(place):
    dead = [".a.h5.1a2b.tmp", ".a.adversarials.h5.1a2b.tmp"]
    others = [".a.eps4.h5.h5.1a2b.tmp", ".a.h5.h5.1a2b.tmp", ".a.tmp", ".b.h5.1a2b.tmp"]
    for name in (*dead, *others):
        (place / name).touch()

    def ends_while_another_writes(temporary):
        temporary.write_text("whole")
        evaluate(asked(out=place / "a.h5"))

    write_whole(place / "a.eps4.h5", ends_while_another_writes)
    assert (place / "a.eps4.h5").read_text() == "whole"
    assert sorted(path.name for path in place.glob(".*")) == sorted(others)


def test_a_training_leaves_what_others_write_into_its_folder(tmp_path, blobs):
    asked = TrainingRequest("st", blobs, "cnn-small", protocol={"epochs": 1, "batch_size": 48}, runs=tmp_path)

    def trains_meanwhile(temporary):
        temporary.write_text("whole")
        train(asked, quiet=True)

    write_whole(asked.run_folder / "r.h5", trains_meanwhile)
    assert (asked.run_folder / "r.h5").read_text() == "whole"


def test_without_locks_nothing_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks available")))
    (tmp_path / ".a.h5.1a2b.tmp").touch()
    clear_temporaries(tmp_path)
    write_text(tmp_path / "a.h5", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.h5.1a2b.tmp", "a.h5"]


def test_a_temporary_that_was_cleared_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    original, seen = files.fcntl.flock, []

    def flock(*arguments):
        if not seen:
            (found,) = tmp_path.glob(".*.tmp")
            found.unlink()
        seen.append(arguments)
        original(*arguments)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    write_text(tmp_path / "a", "whole")
    assert len(seen) == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "whole")]


def test_blocks_of_a_file_whose_name_begins_alike_are_anothers(tmp_path):
    other, own = PartStore(tmp_path / "a.h5", {}), PartStore(tmp_path / "a", {})
    other.finish_shard((0, 2), "checkpoint")
    assert parts_folders(tmp_path / "a.h5") == [other.folder]
    assert parts_folders(tmp_path / "a") == []
    assert not is_finished(tmp_path / "a", (0, 2), "checkpoint")
    own.finish_shard((0, 2), "checkpoint")
    own.clear()
    assert is_finished(tmp_path / "a.h5", (0, 2), "checkpoint")


# ----------------------------------------------------------------------------------------- the model's contract


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        ("Squeezed", {}, "returned (3,) for 1 image: it must return one row of logits each, whatever the batch size"),
        ("NotTwo", {}, "classify images of shape (2, 1, 4, 3): ValueError: not 2 images (m.py:8)"),
        ("NotEight", {"batch_size": 8}, "classify images of shape (8, 1, 4, 3): ValueError: not 8 images (m.py:8)"),
        ("NotFour", {"limit": 4}, "classify images of shape (4, 1, 4, 3): ValueError: not 4 images (m.py:8)"),
    ],
)
def test_a_batch_size_that_fails_is_named_before_any_attack(place, no_attack, model, options, line):
    refusal(lambda: evaluate(asked(model, out=place / "r.h5", **options)), line)
    assert not list(place.glob(".*")) and not (place / "r.h5").exists()


def test_a_batch_for_which_there_is_no_memory_is_no_fault_of_the_model(place):
    (place / "m.py").write_text(MODEL.replace("ValueError(f", "MemoryError(f").replace("(8,)", "range(9, 99)"))
    result, _ = evaluate(asked("NotEight", out=place / "r.h5"))
    assert robust_accuracy(result, "FGSM") == 1.0


# ------------------------------------------------------------------------------ what fails after the attacks


def unmeasured(result):
    """The message of the finding that something could not be looked at."""
    (found,) = [one for one in result.findings if one["name"] == "unmeasured"]
    assert found["severity"] == "error"
    return found["message"]


def test_a_probe_that_fails_is_a_finding_and_the_others_are_made(place):
    """The block is of all 24 images; eight are shown by two probes, by the attacks behind six others, and by any that
    drop what fell until eight stand.
    """
    sound, _ = evaluate(asked(out=place / "sound.h5", probes=9, batch_size=COUNT))
    result, path = evaluate(asked("NotEight", out=place / "r.h5", probes=9, batch_size=COUNT))
    assert unmeasured(read_result(path)) == "a check failed: ValueError: not 8 images (m.py:8)"
    np.testing.assert_array_equal(result.attacks["FGSM"].prediction, sound.attacks["FGSM"].prediction)
    names = [{one["name"] for one in found.findings} for found in (sound, result)]
    attacked = {"zero-radius", "unbounded-attack", "single-step", "monotone", "loss-gap", "random-search"}
    lost, always = names[0] - names[1], {"dynamic", "not-deterministic", *attacked}
    assert always <= lost <= always | {"worst-case", "unknown-images"}
    assert names[1] - names[0] == {"unmeasured"}


def test_what_a_look_found_before_it_failed_is_kept():
    sound = finding("dynamic", "passed", "forward computes no gradients of its own")

    def look():
        yield sound
        raise ValueError("two\nlines")

    first, second = examined(look)
    assert first == sound
    assert (second["name"], second["severity"]) == ("unmeasured", "error")
    assert second["message"].startswith("a check failed: ValueError: two lines (test_kept_results.py:")
    assert examined(lambda: sound) == [sound]


@pytest.mark.parametrize(("owner", "name"), [(probing, "probe"), (record, "file_findings"), (record, "feature_record")])
def test_whatever_fails_after_the_attacks_does_not_cost_them(place, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, raising(ZeroDivisionError("division by zero")))
    _, path = evaluate(asked(out=place / "r.h5", probes=2 * (name == "probe")))
    assert "ZeroDivisionError: division by zero" in unmeasured(read_result(path))
    assert robust_accuracy(read_result(path), "FGSM") == 1.0


def test_images_that_cannot_be_written_do_not_cost_the_result(place, monkeypatch):
    request = asked(out=place / "r.h5", save_adversarials=True, epsilons={"linf": "40/255"})
    with monkeypatch.context() as patch:
        patch.setattr(record, "write_adversarials", raising(BenchError("cannot write: No space left on device.")))
        refusal(lambda: evaluate(request), "No space left")
    assert robust_accuracy(read_result(place / "r.h5"), "FGSM") == 0.0
    monkeypatch.setattr(engine.GroupRun, "run_block", None)  # no block is repeated
    evaluate(replace(request, overwrite=True))
    assert owner_of(place / "r.adversarials.h5") == content_digest(read_result(place / "r.h5"))


def test_memory_that_runs_out_in_the_probes_asks_for_fewer_and_repeats_no_block(place, monkeypatch):
    request = asked(out=place / "r.h5", probes=9)
    with monkeypatch.context() as patch:
        patch.setattr(probing, "probe", raising(MemoryError))
        refusal(lambda: evaluate(request), "memory ran out", "take a smaller --probes")
    monkeypatch.setattr(engine.GroupRun, "run_block", None)
    assert robust_accuracy(evaluate(replace(request, probes=2))[0], "FGSM") == 1.0


def test_a_model_that_fails_under_attack_is_one_line_and_keeps_its_blocks(place):
    """A search fills blocks up to multiples of eight: those of 10, 10 and 4 images to 16, 16 and 8."""
    told = ("the evaluation failed: ValueError: not 8 images (m.py:8)", "finished blocks are kept")
    refusal(lambda: evaluate(asked("NotEight", out=place / "r.h5")), *told)
    kept = [path.name for path in place.glob(".r.h5.*.parts/000-*")]
    assert sorted(kept) == ["000-00000.npz", "000-00001.npz"]


def test_features_that_cannot_be_compared_are_refused_before_any_attack(digits_run, tmp_path, no_attack):
    request = EvaluationRequest("features", checkpoint=digits_run, limit=1, out=tmp_path / "r.h5")
    refusal(lambda: evaluate(request), "1 samples of 1 class: features are compared between classes")


# --------------------------------------------------------------------------- refused before, not after the work


@dataclass(frozen=True)
class Odd(Attack):
    """Returns the images."""

    paper: ClassVar[str] = "none"
    value: Any = None

    def perturb(self, problem: Any) -> Any:
        return problem.images


def nested(levels):
    return [nested(levels - 1)] if levels else []


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ({"label": "a\nb", "attack": "fgsm"}, "Use printable texts"),
        ({"label": " ", "attack": "fgsm"}, "Use printable texts"),
        ({"label": "A", "attack": "odd", "parameters": {"value": nested(40)}}, "is not the JSON it should be"),
        ({"label": "A", "attack": "unjson"}, "a parameter of A cannot be written as JSON: PosixPath"),
        ({"label": "A", "attack": "nowhere"}, "unknown attack 'nowhere'"),
    ],
)
@pytest.mark.parametrize("where", ["eval", "sweep"])
def test_a_suite_that_no_file_could_hold_is_refused(place, blobs, no_attack, monkeypatch, cell, line, where):
    unjson = dataclass(frozen=True)(type("Unjson", (Odd,), {"__annotations__": {"value": Any}, "value": Path("x")}))
    plug_in(monkeypatch, "odd", Odd, "attack")
    plug_in(monkeypatch, "unjson", unjson, "attack")
    monkeypatch.setattr(training, "fit", None)
    (place / "tiny.json").write_text(json.dumps({"name": "tiny", "version": 1, "cells": [cell]}))
    if where == "eval":
        refusal(lambda: evaluate(asked(out=place / "r.h5")), line)
    else:
        refusal(lambda: run_plan(Plan(blobs, ("st",), "tiny.json", backbone="cnn-small")), line)
    assert sorted(path.name for path in place.iterdir()) == ["d.npz", "m.py", "tiny.json"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"seed": 2**63}, "seed 9223372036854775808 is beyond the 64 bits of a result file. Give one below 2**63."),
        ({"seed": -(2**63)}, "seed -9223372036854775808 is beyond"),
        ({"out": Path("folder")}, "cannot write 'folder': Is a directory"),
        ({"out": Path("m.py/r.h5")}, "cannot write 'm.py/r.h5': "),
        ({"out": Path("taken.h5"), "save_adversarials": True}, "cannot write 'taken.adversarials.h5': Is a directory"),
        ({"out": Path("x" * 300)}, "File name too long. Give a shorter one."),
        ({"out": Path("x" * 240 + ".h5")}, "File name too long. Give a shorter one."),
        ({"out": Path("x" * 210 + ".h5"), "save_adversarials": True}, "File name too long. Give a shorter one."),
        ({"out": Path("r\0.h5")}, "not a usable path"),
        ({"out": Path("r.adversarials.h5")}, "r.adversarials.h5 has the name of a file of images (.adversarials.h5)"),
        ({"out": Path("/dev/null")}, "cannot write '/dev/null': File exists"),
    ],
)
def test_what_the_writer_would_refuse_is_refused_before_any_attack(place, no_attack, options, line, overwrite):
    for folder in ("folder", "taken.adversarials.h5"):
        (place / folder).mkdir()
    before = sorted(place.rglob("*"))
    refusal(lambda: evaluate(asked(**{"out": place / "r.h5", **options}, overwrite=overwrite)), line)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_only_a_file_is_ever_replaced(tmp_path, kind):
    """Whoever may write to /dev would have a file there instead of a device."""
    path = tmp_path / "board.md"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    inode = path.stat().st_ino
    for write in (lambda: write_text(path, "text"), lambda: require_writable(path)):
        refusal(write, f"cannot write {str(path)!r}: ")
    assert path.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["training_state.pt", "history.jsonl", "last/config.json", "last/model.safetensors"])
def test_a_training_that_could_not_be_saved_is_refused(tmp_path, blobs, monkeypatch, name):
    monkeypatch.setattr(training, "fit", None)
    asked = TrainingRequest("st", blobs, "cnn-small", folder=tmp_path / "run")
    (tmp_path / "run" / name / "in the way").mkdir(parents=True)
    refusal(lambda: train(asked, quiet=True), str(tmp_path / "run"))


def test_a_model_that_could_not_be_loaded_again_is_not_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingRun, "__init__", None)
    images, labels = np.zeros((3, 2049, 2048), np.uint8), np.arange(3)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    asked = TrainingRequest("st", f"npz:{tmp_path / 'd.npz'}", "cnn-small", runs=tmp_path)
    refusal(lambda: train(asked, quiet=True), "images of shape (1, 2049, 2048) could not be", "at most 4194304 values")


def test_a_sweep_whose_evaluations_lack_images_is_refused(tmp_path, blobs, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    plan = Plan(blobs, ("st",), "corruptions", backbone="cnn-small", data=tmp_path, runs=tmp_path / "runs")
    refusal(lambda: run_plan(plan), "no corrupted images of npz:", "bench data corrupt")


@pytest.mark.parametrize("jobs", [(), ("--jobs", 2)])
def test_a_sweep_into_a_folder_that_cannot_be_is_refused_once(bench, tmp_path, blobs, monkeypatch, jobs):
    monkeypatch.setattr(training, "fit", None)
    (tmp_path / "runs").write_text("a file")
    words = ("--dataset", blobs, "--backbone", "cnn-small", "--defenses", "st,at", "--suite", "clean")
    assert command.refused("sweep", *words, *jobs).startswith("cannot write 'runs")


def test_a_board_that_could_not_be_written_stops_a_sweep_at_its_start(bench, tmp_path, blobs, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    (tmp_path / "board.md").mkdir()
    words = ("--dataset", blobs, "--backbone", "cnn-small", "--defenses", "st", "--suite", "clean")
    line = command.refused("sweep", *words, "--board", "board.md")
    assert "cannot write 'board.md': Is a directory" in line and "writable folder" in line
