"""Suites of corruptions and of features: outcomes equal a direct loop, and a stopped evaluation goes on to the same."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from bench.attacks.pgd import PGD
from bench.catalogue.suites import load_suite
from bench.data.corruptions import corrupt
from bench.data.corruptions.generating import GenerationRequest, generate, whole_levels
from bench.data.datasets import load_dataset
from bench.engine.group_run import GroupRun
from bench.engine.search import Trajectory
from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate
from bench.evaluation.features import FeatureAccumulator
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import Draws, Problem, ThreatModel
from bench.models.checkpoints import load_checkpoint
from bench.results.file import content_digest, read_result
from bench.results.metrics import corruption_columns
from bench.system.blocks import PartStore

FEW = ("fog", "contrast")
COUNT = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty digits under two corruptions."""
    out = tmp_path_factory.mktemp("data") / "digits-C"
    generate(GenerationRequest("digits", out, limit=COUNT, corruptions=FEW, seed=1))
    return out


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suites") / "few.json"
    path.write_text(json.dumps({"name": "few", "version": 1, "kind": "corruptions", "corruptions": FEW}))
    return str(path)


@pytest.fixture(scope="module")
def request_for(digits_run, folder, suite):
    def make(out, **options):
        options = {"suite": suite, "limit": COUNT, "corruptions": folder, "probes": 0, "batch_size": 7, **options}
        return EvaluationRequest(checkpoint=digits_run, out=out, **options)

    return make


@pytest.fixture(scope="module")
def model(digits_run):
    return load_checkpoint(digits_run).build()


# ------------------------------------------------------------------------------------------- corruptions


def test_predictions_are_those_of_a_plain_loop(request_for, model, tmp_path):
    result, path = evaluate(request_for(tmp_path / "r.h5"))
    clean = load_dataset("digits", tmp_path).test.take(COUNT)
    labels = clean.labels.numpy()
    accuracies = []
    assert list(result.corruptions) == [f"{name}-{severity}" for name in FEW for severity in range(1, 6)]
    for shown in result.corruptions.values():
        pixels = corrupt(whole_levels(clean), shown.corruption, shown.severity, seed=1)
        with torch.no_grad():
            images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)) / 255
            expected = model(images).argmax(1).numpy()
        np.testing.assert_array_equal(shown.prediction, expected)
        accuracies.append(np.mean(expected == labels))
    assert np.mean(next(iter(corruption_columns(result).values()))) == pytest.approx(np.mean(accuracies))
    assert len(set(accuracies)) > 2
    np.testing.assert_array_equal(result.label, labels)
    assert content_digest(read_result(path)) == content_digest(result)


def test_the_record_says_which_images_and_that_they_were_generated(request_for, tmp_path):
    facts = evaluate(request_for(tmp_path / "r.h5"))[0].run["corruptions"]
    assert (facts["name"], facts["generated"]) == ("digits-C-gen1", True)
    assert (facts["generator"]["seed"], facts["generator"]["version"]) == (1, 1)
    fewer = evaluate(request_for(tmp_path / "few.h5", limit=20))[0].run["corruptions"]
    assert len({facts["digest"], fewer["digest"]}) == 2
    assert {len(facts["digest"]), len(fewer["digest"])} == {64}


@contextmanager
def computed(stop_at=None):
    """The severities that are computed and kept meanwhile, in order; the evaluation is stopped before one is kept."""
    put, names = PartStore.put, []

    def counting(store, name, arrays):
        if name.partition("-")[0] in FEW:
            names.append(name)
            if len(names) == stop_at:
                raise KeyboardInterrupt
        put(store, name, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartStore, "put", counting)
        yield names


def test_a_stopped_evaluation_goes_on_to_the_same_file(request_for, tmp_path):
    whole, _ = evaluate(request_for(tmp_path / "whole.h5"))
    with computed(stop_at=4), pytest.raises(KeyboardInterrupt):
        evaluate(request_for(tmp_path / "stopped.h5"))
    with computed() as rest:
        evaluate(request_for(tmp_path / "stopped.h5"))
    assert len(rest) == 10 - 3
    assert content_digest(read_result(tmp_path / "stopped.h5")) == content_digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.h5", "whole.h5"]


def test_shards_share_the_severities(request_for, tmp_path):
    whole, _ = evaluate(request_for(tmp_path / "whole.h5"))
    evaluate(request_for(tmp_path / "shared.h5", shard=(1, 2)))
    with computed() as rest:
        shared, _ = evaluate(request_for(tmp_path / "shared.h5"))
    assert len(rest) == 5
    assert content_digest(shared) == content_digest(whole)


def test_other_images_are_never_continued_with(request_for, folder, tmp_path):
    copy = tmp_path / "C"
    shutil.copytree(folder, copy)
    with computed(stop_at=2), pytest.raises(KeyboardInterrupt):
        evaluate(request_for(tmp_path / "r.h5", corruptions=copy))
    shutil.rmtree(copy)
    generate(GenerationRequest("digits", copy, limit=COUNT, corruptions=FEW, seed=2))
    with computed() as all_again:
        evaluate(request_for(tmp_path / "r.h5", corruptions=copy))
    assert len(all_again) == 10


def test_the_standard_folder_is_found_and_its_absence_explained(request_for, folder, tmp_path):
    found, _ = evaluate(request_for(tmp_path / "r.h5", corruptions=None, data=folder.parent))
    assert found.run["corruptions"]["name"] == "digits-C-gen1"
    with pytest.raises(BenchError) as caught:
        evaluate(request_for(tmp_path / "none.h5", corruptions=None, data=tmp_path))
    place = tmp_path / "digits-C"
    assert f"bench data corrupt --dataset digits --data {tmp_path} --out {place}" in str(caught.value)
    assert "\n" not in str(caught.value)


def altered(folder, copy, **changes):
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "generated.json").read_text())
    (copy / "generated.json").write_text(json.dumps({**manifest, **changes}))
    return copy


def test_a_folder_that_does_not_fit_is_one_line(request_for, folder, tmp_path):
    with pytest.raises(BenchError, match=r"30 images .*40.*--limit 30"):
        evaluate(request_for(tmp_path / "r.h5", limit=40))
    other = altered(folder, tmp_path / "other", samples="0" * 64)
    with pytest.raises(BenchError, match=r"not made from .* digits"):
        evaluate(request_for(tmp_path / "r.h5", corruptions=other))
    with pytest.raises(BenchError, match=r"has no gaussian_noise\.npy"):
        evaluate(request_for(tmp_path / "r.h5", suite="corruptions"))
    assert not (tmp_path / "r.h5").exists()


def test_published_images_with_labels_of_another_order_are_refused(request_for, folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "generated.json").unlink()
    result, _ = evaluate(request_for(tmp_path / "r.h5", corruptions=bare))
    assert (result.run["corruptions"]["name"], result.run["corruptions"]["generated"]) == ("digits-C", False)
    np.save(bare / "labels.npy", (np.load(bare / "labels.npy") + 1) % 10)
    with pytest.raises(BenchError, match=r"not made from .* digits"):
        evaluate(request_for(tmp_path / "s.h5", corruptions=bare))


def test_the_commands(bench, digits_run, folder, suite):
    given = ("eval", digits_run, "--suite", suite, "--limit", COUNT, "--probes", 0, "--corruptions-dir", folder)
    code, output = bench(*given, "--out", "r.h5")
    assert code == 0, output
    result = read_result("r.h5")
    mean = np.mean(next(iter(corruption_columns(result).values())))
    assert re.search(rf"^Corrupted +{100 * mean:.1f} %", output, re.M), output
    assert "digits-C-gen1 (generated), suite few version 1, 30 samples" in output
    code, output = bench(*given, "--dry-run")
    assert "corruptions" in output
    code, output = bench("verify", "r.h5", "--checkpoint", digits_run)
    assert code == 0
    assert "corruptions: not replayable (evaluate again with --suite corruptions" in output
    code, output = bench("compare", "r.h5", "r.h5")
    assert (code, output.count("\n")) == (2, 1)
    code, output = bench("list", "suites")
    assert "corruptions  (version 1)" in output
    assert "severities 1 to 5 of gaussian_noise, shot_noise" in output
    assert "features  (version 1)" in output


# ---------------------------------------------------------------------------------------------- features


def test_features_are_those_of_a_direct_attack(request_for, model, tmp_path):
    result, path = evaluate(request_for(tmp_path / "r.h5", suite="features", seed=3, batch_size=COUNT))
    split = load_dataset("digits", tmp_path).test.take(COUNT)
    images, threat = split.images(slice(None)), ThreatModel("linf", "0.15")
    draws = Draws(3, "pgd/linf", np.arange(COUNT))
    last = PGD(steps=20, step_size="eps/8").perturb(Problem(model, images, split.labels, threat, draws))
    gathered = FeatureAccumulator(model.class_centres())
    with torch.no_grad():
        gathered.add(model.features(images), model.features(last), split.labels)
        predicted = model(last).argmax(1).numpy()
    found, expected = result.features, gathered.finish()
    for view in ("clean", "adversarial"):
        for name in ("fdr", "afs", "scr"):
            value = getattr(getattr(expected, view), name)
            assert getattr(found, f"{name}_{view}") == pytest.approx(value, rel=1e-3)
    assert found.fdr_clean != pytest.approx(found.fdr_adversarial, rel=1e-2)
    separations = (expected.mean_separation, expected.min_separation)
    assert (found.mean_separation, found.min_separation) == pytest.approx(separations, rel=1e-12)
    assert (found.samples, found.classes, found.attack) == (COUNT, expected.classes, "PGD-20")
    assert found.centres == "class_centres of LinearClassifier, 10 x 128"
    np.testing.assert_array_equal(result.attacks["PGD-20"].final_prediction, predicted)
    assert result.attacks["PGD-20"].parameters["steps"] == 20
    assert read_result(path).features == found


def test_a_stopped_measurement_goes_on_to_the_same_file(request_for, tmp_path, monkeypatch):
    whole, _ = evaluate(request_for(tmp_path / "whole.h5", suite="features"))
    original, calls = GroupRun.run_block, []

    def stopping(run, block):
        calls.append(len(block))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(run, block)

    monkeypatch.setattr(GroupRun, "run_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(request_for(tmp_path / "stopped.h5", suite="features"))
    evaluate(request_for(tmp_path / "stopped.h5", suite="features"))
    assert calls == [7, 7, 7, 7, 7, 2]
    assert content_digest(read_result(tmp_path / "stopped.h5")) == content_digest(whole)


def test_samples_whose_state_repeats_keep_their_last_iterate(request_for, model, tmp_path, monkeypatch):
    """Twenty steps of a quarter of the radius end in a corner or between two images long before the last step."""
    found, repeating = [], Trajectory.repeating
    monkeypatch.setattr(Trajectory, "repeating", lambda *given: found.append(repeating(*given)) or found[-1])
    path = tmp_path / "corner.json"
    cell = {"label": "PGD-60", "attack": "pgd", "parameters": {"steps": 60, "step_size": "eps/4"}, "measure_loss": True}
    path.write_text(json.dumps({"name": "corner", "version": 1, "kind": "features", "cells": [cell]}))
    result, _ = evaluate(request_for(tmp_path / "r.h5", suite=str(path), batch_size=30))
    split = load_dataset("digits", tmp_path).test.take(COUNT)
    images, threat = split.images(slice(None)), ThreatModel("linf", "0.15")
    problem = Problem(model, images, split.labels, threat, Draws(0, "pgd/linf", np.arange(COUNT)))
    last = PGD(steps=60, step_size="eps/4").perturb(problem)
    gathered = FeatureAccumulator(model.class_centres())
    with torch.no_grad():
        gathered.add(model.features(images), model.features(last), split.labels)
    assert any(one is not None for one in found)
    assert result.features.fdr_adversarial == pytest.approx(gathered.finish().adversarial.fdr, rel=1e-3)


BARE = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_a_model_without_features_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(BARE)
    request = EvaluationRequest(
        "features", model=f"{tmp_path / 'mine.py'}:make", dataset="digits", limit=20, out=tmp_path / "r.h5"
    )
    with pytest.raises(BenchError, match=r"make has no features.*give a checkpoint") as caught:
        evaluate(request)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ suites


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "corruption", "corruptions": ["fog"]},
        {"kind": "corruptions"},
        {"kind": "corruptions", "corruptions": ["fog"], "cells": [{"label": "A", "attack": "fgsm"}]},
        {"corruptions": ["fog"]},
        {"kind": "features"},
        {"kind": "features", "cells": [{"label": "A", "attack": "pgd"}]},
    ],
)
def test_a_suite_of_no_kind_is_refused(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "version": 1, **content}))
    with pytest.raises(BenchError, match="is not a suite: kind"):
        load_suite(str(path))


def test_suites_of_attacks_are_described_as_before():
    assert set(load_suite("quick").describe()) == {"name", "version", "about", "cells", "worst_of", "derived"}
    assert load_suite("corruptions").describe()["kind"] == "corruptions"
