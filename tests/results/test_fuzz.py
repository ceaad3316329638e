"""Whatever a file or an option holds: a `BenchError` of one line, a usage error, or exactly what was written.

Examples are drawn from a fixed seed and few, so that every run tests the same. HYPOTHESIS_EXAMPLES=5000 tries more.
"""

import hashlib
import io
import json
import os
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bench.catalogue.plugins import make_defense, names
from bench.catalogue.recipes import protocol_for, setting_help
from bench.catalogue.suites import load_suite
from bench.cli.trust import show_report
from bench.data.datasets import load_dataset
from bench.engine.adversarials import ADVERSARIALS_FILE, Adversarials, read_adversarials, write_adversarials
from bench.errors import BenchError
from bench.evaluation import evaluate as evaluation
from bench.evaluation.prepare import prepare
from bench.interfaces import ThreatModel
from bench.leaderboard.render.board_data import board_data
from bench.leaderboard.render.files import FORMS
from bench.leaderboard.render.markdown import render
from bench.leaderboard.tables.build import build_table
from bench.models.checkpoints import Checkpoint, load_checkpoint, load_training_state, save_checkpoint
from bench.results import file as results
from bench.results.comparison import refuse_mixture
from bench.results.file import RESULT_FILE, content_digest, read_result, write_result
from bench.results.forms import require_forms
from bench.training import train as training
from bench.trust.outcome_checks import reassessed
from bench.trust.verification import VerificationRequest, verify
from tests.support import example_results
from tests.support.command import bench
from tests.support.refusals import refusal

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "20"))


def fuzzed(share=1.0):
    """Settings that draw the same examples everywhere; files and fixtures outlive an example."""
    return settings(
        max_examples=max(5, round(share * EXAMPLES)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(call):
    """What a call returns, or None where it refuses in one line."""
    try:
        return call()
    except BenchError as error:
        assert "\n" not in str(error) and str(error).strip()
        return None


def put(path, content, change, kind=RESULT_FILE):
    """Write the bytes of an HDF5 file to `path`, changed through h5py and sealed again."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        change(file)
    path.write_bytes(sealed(buffer.getvalue()[512:], kind))
    return path


def exchange(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


@st.composite
def edits(draw, content):
    """Bytes with some of them flipped, cut out, doubled, or put in; never the same as before."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "end"]))
        length = draw(st.integers(1, 40))
        if kind == "flip" and changed:
            changed[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "double":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=20))
        else:
            del changed[place:]
    if bytes(changed) == content:
        changed.append(0)
    return bytes(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


# ------------------------------------------------------------------------------------------- result files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are written over again and again."""
    return tmp_path_factory.mktemp("fuzz")


def sealed(body, kind=RESULT_FILE):
    # Version 1, as what is written here has no corruptions and no features.
    return f"{kind.name} 1 {hashlib.sha256(body).hexdigest()}\n".encode().ljust(512, b"\0") + body


RESULT = example_results.example()


def bytes_of(write, path):
    write(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def result_bytes(folder):
    return bytes_of(lambda path: write_result(RESULT, path), folder / "result.h5")


@fuzzed(3)
@given(data=st.data())
def test_an_edited_result_is_never_accepted(folder, result_bytes, data):
    path = folder / "edited.h5"
    path.write_bytes(data.draw(edits(result_bytes)))
    assert outcome(lambda: read_result(path)) is None


@fuzzed()
@given(content=st.binary(max_size=600), seal=st.booleans())
def test_bytes_that_are_no_result_are_refused(folder, content, seal):
    path = folder / "bytes.h5"
    path.write_bytes(sealed(content) if seal else content)
    assert outcome(lambda: read_result(path)) is None


@fuzzed(2)
@given(
    name=st.sampled_from(["run", "suite", "findings", "digest", "format_version", "format"]),
    value=st.text(max_size=30) | JSON.map(json.dumps) | st.integers(-9, 2**40) | st.floats() | st.binary(max_size=9),
)
def test_an_attribute_that_was_changed_and_sealed_again_is_never_accepted(folder, result_bytes, name, value):
    buffer = io.BytesIO(result_bytes)
    with h5py.File(buffer, "r+") as file, suppress(ValueError, TypeError, OSError):  # HDF5 cannot hold every text
        unchanged = file.attrs[name] == value
        file.attrs[name] = value
        path = folder / "attribute.h5"
        file.flush()
        path.write_bytes(sealed(buffer.getvalue()[512:]))
        assert unchanged or outcome(lambda: read_result(path)) is None


@pytest.mark.parametrize("value", [np.zeros(0), np.zeros(2), h5py.Empty("f8"), 1, "bench"])
def test_a_format_that_is_no_text_is_named(folder, result_bytes, value):
    path = put(folder / "format.h5", result_bytes, lambda file: file.attrs.update(format=value))
    refusal(lambda: read_result(path), "HDF5, but not of format bench-result")


@fuzzed()
@given(
    name=st.sampled_from(["samples/label", "samples/index", "attacks/000-fgsm/prediction", "attacks/002-aa/distance"]),
    kind=st.sampled_from(["<i2", "<i8", "<f4", ">i2", "|S4", "|b1", "<c8"]),
    shape=st.lists(st.integers(0, 11), max_size=3),
)
def test_an_array_that_was_changed_and_sealed_again_is_never_accepted(folder, result_bytes, name, kind, shape):
    path = put(folder / "array.h5", result_bytes, exchange(name, np.full(shape, 77).astype(kind)))
    assert outcome(lambda: read_result(path)) is None


@pytest.fixture(scope="module")
def images_bytes(folder):
    def write(path):
        codes, exact = np.ones((2, 1, 2, 2), np.int8), np.ones((1, 1, 2, 2), np.float32)
        kept = Adversarials(np.array([0, 3]), np.ones(2, np.float32), codes, np.array([5]), exact)
        write_adversarials(dict.fromkeys(RESULT.attacks, kept), content_digest(RESULT), path)

    return bytes_of(write, folder / "r.adversarials.h5")


@fuzzed(2)
@given(data=st.data())
def test_edited_images_are_never_accepted(folder, images_bytes, data):
    path = folder / "edited.adversarials.h5"
    path.write_bytes(images_bytes)
    assert outcome(lambda: read_adversarials(path, RESULT, (1, 2, 2))) is not None
    path.write_bytes(data.draw(edits(images_bytes)))
    assert outcome(lambda: read_adversarials(path, RESULT, (1, 2, 2))) is None


@fuzzed()
@given(
    name=st.sampled_from(["row", "scale", "code", "exact_row", "exact"]),
    kind=st.sampled_from(["<i8", "<f4", "|i1"]),
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    value=st.integers(-3, 40),
)
def test_images_that_were_changed_and_sealed_again_fit_the_result_or_are_refused(
    folder, images_bytes, name, kind, shape, value
):
    change = exchange(f"attacks/000-fgsm/{name}", np.full(shape, value).astype(kind))
    path = put(folder / "changed.adversarials.h5", images_bytes, change, ADVERSARIALS_FILE)
    found = outcome(lambda: read_adversarials(path, RESULT, (1, 2, 2)))
    if found is not None:
        kept = found["FGSM"]
        assert len(kept.rows) == len(set(kept.rows.tolist())) == len(kept.code) + len(kept.exact)
        assert set(kept.rows.tolist()) <= set(range(10))


# ------------------------------------------------------------------------------ what reads results shows them

DIGEST = "0" * 64
ENVIRONMENT = {"device": "cpu", "versions": {"torch": "2.11.0"}, "precision": {"matmul_tf32": False}}
COMPLETE = {
    **{"defense_sha256": DIGEST, "hyperparameters": {"beta": 6.0}, "hyperparameters_given": {"beta": 6.0}},
    **{"protocol_given": {"epochs": 9}, "requirements": {"st": DIGEST}, "precision": "fp32", "processes": 1},
    **{"epoch": 9, "named_by": ["beta"]},
    **{"finished": True, "training_environment": ENVIRONMENT, "checkpoint": "last", "dataset_size": 20},
    **{"num_classes": 10, "image_shape": [1, 8, 8], "seconds": 1.5, "source": "mine.py:make"},
    "earlier_environments": [{"until_epoch": 3, **ENVIRONMENT}],
    "training_data": {"name": "digits", "train_size": 100, "num_classes": 10},
    "evaluation": {"seed": 0, "batch_size": 9, "convention": "any", "precision": "fp32", "probes": 8}
    | {"adversarials": False, "environment": ENVIRONMENT},
}
CELL = {"label": "FGSM", "attack": "fgsm", "norm": "linf", "epsilon": "8/255", "objective": "default", "source": None}
CELL |= {"parameters": {}, "measure_loss": False}
FINDING = {"name": "budget", "severity": "warning", "message": "m", "meaning": "n", "advice": "a", "value": 1.0}
FINDING |= {"threshold": [0.0, 1.0]}
RECORDED = {name: value for name, value in RESULT.run.items() if name != "command"} | COMPLETE
SPECIFIED = {**RESULT.suite, "about": "x", "kind": "attacks", "corruptions": [], "cells": [CELL], "worst_of": {}}
PARAMETERS = {"steps": 20, "step_size": "2/255"}
SETTINGS = {"run": RECORDED, "suite": SPECIFIED, "findings": [FINDING], "parameters": PARAMETERS}


def places(value, path=()):
    """Paths of all members of a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [(kind, place) for kind in SETTINGS for place in places(SETTINGS[kind])]
DEEP = "deep"
"""Stands for five hundred arrays in one another, which can be read, and which no writer of ours gets through."""
STRANGE = (None, [], {}, "x", -1, float("nan"), True, "y" * 9999, 10**400, [None], "a\n\x1b[31m\ud800", DEEP)


def shown(path):
    """What the commands make of a file: text, or nothing where they refuse it in one line."""
    result = read_result(path)
    texts = [outcome(lambda merged=merged: render(build_table([result], "any", merged))) for merged in (False, True)]
    record = outcome(lambda: board_data([result]))
    texts += [form(record) for form in FORMS.values()] if record else []
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        show_report(reassessed(result), everything=True)
    texts += [str(check) for check in verify(VerificationRequest(path))]
    outcome(lambda: refuse_mixture(["a", "b"], [result, RESULT]))
    for text in texts:
        (text or "").encode()
    return texts


@fuzzed(4)
@given(where=st.sampled_from(PLACES), strange=st.sampled_from(STRANGE))
@example(where=("run", ("hyperparameters", "beta")), strange=DEEP)
@example(where=("suite", ("threat", "norm")), strange="x")
def test_whatever_a_record_holds_it_is_shown_or_refused_in_one_line(folder, result_bytes, where, strange):
    kind, place = where
    values = {**SETTINGS, kind: replaced(SETTINGS[kind], place, strange)}

    def change(file):
        for name, value in values.items():
            text = json.dumps(value).replace(json.dumps(DEEP), "[" * 500 + "]" * 500)
            (file["attacks/001-pgd-20"] if name == "parameters" else file).attrs[name] = text
        file.attrs["digest"] = "right"

    path = put(folder / "strange.h5", result_bytes, change)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "content_digest", lambda result: "right")
        found = outcome(lambda: shown(path))
    assert strange != DEEP or found is None


def test_the_record_whose_values_are_replaced_is_shown(folder):
    changed = {name: SETTINGS[name] for name in ("run", "suite")} | {"findings": (FINDING,)}
    write_result(replace(RESULT, **changed), folder / "complete.h5")
    assert all("budget" in text for text in shown(folder / "complete.h5")[:2])


@pytest.mark.parametrize(
    ("kind", "place", "strange", "expected"),
    [
        ("run", ("dataset_size",), "20", "run.dataset_size is not a whole number"),
        ("run", ("num_classes",), 10**400, "run.num_classes is not a whole number"),
        ("run", ("seed",), True, "run.seed is not a whole number"),
        ("run", ("evaluation", "environment"), [1], "run.evaluation.environment is not an object"),
        ("run", ("image_shape",), [1, None], "run.image_shape[1] is not a whole number"),
        ("run", ("checkpoint",), 3, "run.checkpoint is not a text or null"),
        ("run", ("seconds",), "1", "run.seconds is not a whole number or a number"),
        ("suite", ("derived",), {}, "suite.derived is not an array"),
        ("suite", ("cells", 0, "parameters"), [], "suite.cells[0].parameters is not an object"),
        ("findings", (0, "severity"), 1, "findings[0].severity is not a text"),
    ],
)
def test_a_value_of_another_type_is_named(kind, place, strange, expected):
    changed = replaced(SETTINGS[kind], place, strange)
    assert refusal(lambda: require_forms({kind: changed})).startswith(expected)


# -------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint(digits_run):
    return load_checkpoint(digits_run)


@fuzzed()
@given(data=st.data())
def test_an_edited_checkpoint_is_the_same_or_refused(folder, digits_run, checkpoint, data):
    good = (digits_run / "last" / "model.safetensors").read_bytes()
    header = int.from_bytes(good[:8], "little") + 8
    path = folder / "model.safetensors"
    # Mostly the header, which is small beside the weights.
    path.write_bytes(data.draw(edits(good[:header])) + good[header:] if data.draw(st.booleans()) else good[:-9])
    found = outcome(lambda: load_checkpoint(path))
    assert found is None or found.digest == checkpoint.digest


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@fuzzed(2)
@given(data=st.data())
def test_a_checkpoint_of_any_configuration_and_a_right_digest_is_a_model_or_refused(folder, checkpoint, data):
    config = json.loads(json.dumps(dict(checkpoint.config)))
    keys = ("defense", "hyperparameters", "backbone", "dataset", "protocol", "seed", "epoch")
    choices = [path for path in places(config) if not path or path[0] in keys]
    changed = replaced(config, data.draw(st.sampled_from(choices)), data.draw(JSON | st.integers(-2, 2**70)))
    path = folder / "any"
    try:
        save_checkpoint(Checkpoint(changed, checkpoint.weights), path)
    except (TypeError, ValueError, AttributeError):
        return  # no mapping: nothing that a checkpoint could carry
    found = outcome(lambda: load_checkpoint(path))
    if found is not None and outcome(found.build) is not None:
        assert found.config == changed


@fuzzed(0.5)
@given(metadata=st.dictionaries(st.sampled_from(["format", "format_version", "config", "sha256"]), st.text(max_size=9)))
def test_metadata_of_any_kind_is_refused(folder, metadata):
    path = folder / "other.safetensors"
    path.write_bytes(save({"weight": torch.ones(2)}, {"format": "bench-checkpoint", **metadata}))
    assert outcome(lambda: load_checkpoint(path)) is None


@fuzzed()
@given(data=st.data())
def test_an_edited_training_state_is_the_same_or_refused(folder, digits_run, data):
    good = (digits_run / "training_state.pt").read_bytes()
    path = folder / "training_state.pt"
    path.write_bytes(data.draw(edits(good[:6000])) + good[6000:])
    found = outcome(lambda: load_training_state(path))
    if found is not None:
        weights = load_training_state(digits_run / "training_state.pt")["model"]
        assert all(torch.equal(weights[name], found["model"][name]) for name in weights)


# ----------------------------------------------------------------------------------------------- datasets

ARRAYS = {"x_train": np.arange(64, dtype=np.uint8).reshape(4, 4, 4), "y_train": np.array([0, 1, 1, 0])}
ARRAYS |= {"x_test": ARRAYS["x_train"][:2], "y_test": np.array([1, 0])}


def npz(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return f"npz:{path}"


@fuzzed(2)
@given(data=st.data())
def test_an_edited_npz_is_the_same_or_refused(folder, data):
    path = folder / "edited.npz"
    name = npz(path, ARRAYS)
    path.write_bytes(data.draw(edits(path.read_bytes())))
    found = outcome(lambda: load_dataset(name, folder))
    if found is not None:
        assert np.array_equal(found.train.pixels.numpy()[:, 0], ARRAYS["x_train"])
        assert found.test.labels.tolist() == [1, 0]


@fuzzed(2)
@given(
    name=st.sampled_from(sorted(ARRAYS)),
    kind=st.sampled_from(["u1", "i1", "i8", ">u2", "u8", "f4", "b1", "U3", "M8[s]", "V4", "u1,f4"]),
    shape=st.lists(st.integers(0, 5), max_size=5),
    value=st.integers(-(2**63), 2**63 - 1),
)
@example(name="y_test", kind="u8", shape=[2], value=-1)
def test_arrays_of_any_type_and_shape_are_a_dataset_or_refused(folder, name, kind, shape, value):
    array = np.full(shape, value, np.int64).astype(kind) if "," not in kind else np.zeros(shape, kind)
    found = outcome(lambda: load_dataset(npz(folder / "any.npz", {**ARRAYS, name: array}), folder))
    if found is not None:
        for split in (found.train, found.test):
            assert len(split.pixels) == len(split.labels) > 0
            assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < found.num_classes


# ------------------------------------------------------------------------------------- options and suites

ODD = "nan inf -inf 1e999999999 1e-999999999 8/0 0x10 1_0 eps eps/0 l2= =8/255 linf=-0 -0 1e400 1e400*eps . 8/255/2"
ODD = [*ODD.split(), "1,,2", "", " ", "\x00", "\udcff", "9" * 5000]
ODD += ["\N{ARABIC-INDIC DIGIT ONE}/\N{ARABIC-INDIC DIGIT TWO}"]
TEXTS = st.sampled_from(ODD) | st.text(max_size=12) | st.text("0123456789.eE+-/*_ ,=infapls", max_size=12)


@fuzzed(4)
@given(text=TEXTS, radius=st.sampled_from(["8/255", "0", "1e100"]))
def test_a_radius_or_step_of_any_text_is_exact_or_refused(text, radius):
    threat = outcome(lambda: ThreatModel("linf", text))
    if threat is not None:
        assert threat.radius == float(Fraction(text)) >= 0
    length = outcome(lambda: ThreatModel("linf", radius).length(text))
    assert length is None or 0 <= length < float("inf")


@fuzzed(4)
@given(name=st.sampled_from(sorted(setting_help())), text=TEXTS)
def test_a_protocol_setting_of_any_text_is_in_its_range_or_refused(name, text):
    found = outcome(lambda: protocol_for("digits", {"linf": "0.15"}, 0, False, {name: text}))
    if found is not None:
        assert found.epochs >= 1 and found.batch_size >= 1 and found.attack_steps >= 1
        assert 0 < found.learning_rate < float("inf") and 0 < found.decay < float("inf")
        assert all(isinstance(milestone, int) for milestone in found.milestones)
        assert 0 <= found.step_size < float("inf")


@fuzzed(3)
@given(defense=st.sampled_from(names("defense")), data=st.data(), text=TEXTS)
def test_a_hyperparameter_of_any_text_is_a_value_or_refused(defense, data, text):
    fields = sorted(vars(make_defense(defense, "digits", {}))) or ["none"]
    found = outcome(lambda: make_defense(defense, "digits", {data.draw(st.sampled_from(fields)): text}))
    assert found is None or not [value for value in vars(found).values() if value != value]


@fuzzed()
@given(
    option=st.sampled_from(
        ["--eps", "--limit", "--seed", "--batch-size", "--dataset", "--suite", "--probes", "--shard"]
    ),
    text=TEXTS,
)
def test_an_option_of_eval_of_any_text_is_taken_or_refused_in_one_line(digits_run, folder, option, text):
    with pytest.MonkeyPatch.context() as patch:
        prepared = []

        def stop(request: Any, *others: Any) -> None:
            prepared.append(prepare(request))
            raise BenchError("enough")

        patch.setattr(evaluation, "evaluate", stop)
        code, output = bench("eval", digits_run, f"{option}={text}", "--out", folder / "never.h5")
    assert code == 2
    assert [line for line in output.splitlines() if line.startswith("Error: ")], output
    if option == "--eps" and prepared:
        radius = text.rpartition("=")[2]
        assert all(cell.epsilon == radius for cell in prepared[0].suite.cells if cell.norm == "linf") or "=" in text
    if option == "--limit" and prepared:
        assert len(prepared[0].target.split) == int(text)


@fuzzed()
@given(
    option=st.sampled_from(
        ["--set", "--epsilon", "--milestones", "--limit-train", "--seed", "--holdout", "--backbone"]
    ),
    text=TEXTS,
)
def test_an_option_of_train_of_any_text_is_taken_or_refused_in_one_line(blobs, folder, option, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", lambda *given: None)
        small = ["--dataset", blobs, "--backbone", "cnn-small", "--out", folder / "run"]
        code, output = bench("train", "--defense", "trades", *small, f"{option}={text}")
    assert code in (0, 2)
    assert code == 0 or [line for line in output.splitlines() if line.startswith("Error: ")], output
    assert not (folder / "run" / ".lock").exists()


@fuzzed(2)
@given(data=st.data())
def test_a_suite_file_of_any_content_is_a_suite_or_refused(folder, data):
    cell = {"label": "A", "attack": "pgd", "norm": "linf", "epsilon": "eps/4", "parameters": {"steps": 3}}
    content: Any = {"name": "mine", "version": 1, "cells": [cell], "worst_of": {"W": ["A"]}, "include": ["linf"]}
    content = replaced(content, data.draw(st.sampled_from(list(places(content)))), data.draw(JSON))
    path = Path(folder / "suite.json")
    path.write_text(json.dumps(content))
    suite = outcome(lambda: load_suite(str(path)))
    if suite is not None:
        resolved = outcome(lambda: suite.resolve({"linf": "8/255"}, {}))
        assert resolved is None or all(isinstance(cell.label, str) and cell.epsilon for cell in resolved.cells)
