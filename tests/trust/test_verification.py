"""What broke a sample can be shown again: a true pair of files is confirmed, and every forgery is refuted by name."""

import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bench.catalogue.names import suite_names
from bench.catalogue.suites import AttackCell, Suite, load_suite
from bench.data.datasets import load_dataset
from bench.engine import run as engine
from bench.engine.adversarials import adversarials_path, decode, encode, joined, read_adversarials, write_adversarials
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import ThreatModel
from bench.models.checkpoints import load_checkpoint, save_checkpoint
from bench.results.file import EvaluationResult, content_digest, read_result, write_result
from bench.trust.verification import VerificationRequest, conclusion, verify
from tests.support.example_results import example, record, with_attack

SHAPE = (1, 8, 8)
CELLS = [
    {"label": "FGSM", "attack": "fgsm"},
    {"label": "PGD-8", "attack": "pgd", "parameters": {"steps": 8}},
    {"label": "PGD-8x3", "attack": "pgd", "parameters": {"steps": 8, "restarts": 3}},
    {"label": "PGD-4 loss", "attack": "pgd", "parameters": {"steps": 4}, "measure_loss": True},
    {"label": "PGD l1", "attack": "pgd", "norm": "l1", "epsilon": "5*eps", "parameters": {"steps": "6"}},
    {"label": "DeepFool", "attack": "deepfool", "norm": "l2"},
    {"label": "APGD", "attack": "apgd-ce", "parameters": {"steps": 8}},
]


@pytest.fixture(scope="module")
def request_(digits_run, tmp_path_factory):
    """An evaluation that keeps images, with every kind of cell."""
    folder = tmp_path_factory.mktemp("verified")
    (folder / "suite.json").write_text(json.dumps({"name": "mine", "version": 1, "cells": CELLS}))
    asked = {"limit": 60, "probes": 0, "save_adversarials": True, "out": folder / "r.h5"}
    return EvaluationRequest(str(folder / "suite.json"), checkpoint=digits_run, **asked)


@pytest.fixture(scope="module")
def original(request_):
    evaluate(request_)
    return request_.out


@pytest.fixture
def pair(original, tmp_path):
    """Copies of result and images: (path, result, images by label, which are read from the original)."""
    path = Path(shutil.copy(original, tmp_path / "r.h5"))
    shutil.copy(adversarials_path(original), tmp_path)
    result = read_result(path)
    return path, result, read_adversarials(adversarials_path(original), result, SHAPE)


@pytest.fixture(scope="module")
def test_split():
    return load_dataset("digits", Path()).test.take(60)


def forge(path, result, images):
    """Write a pair with right seals and digests, as a forger would."""
    write_result(result, path)
    write_adversarials(images, content_digest(result), adversarials_path(path))


def checks(path, run, **options):
    return {check.name: check for check in verify(VerificationRequest(path, checkpoint=run, **options))}


def refuted(path, run, **options):
    return {name: check.text for name, check in checks(path, run, **options).items() if check.status == "refuted"}


def broken_rows(result, label):
    right = result.clean_prediction == result.label
    return np.flatnonzero(right & (result.attacks[label].prediction != result.label))


# ------------------------------------------------------------------------------------------------- a true pair


def test_a_true_pair_is_confirmed(pair, digits_run):
    path, result, images = pair
    found = checks(path, digits_run)
    expected = ["result file", "columns", "suite", "model", "samples", "clean predictions", *result.attacks]
    assert list(found) == [*expected, "samples still standing"]
    assert {name for name, check in found.items() if check.status != "confirmed"} == {
        "suite",
        "samples still standing",
    }
    for label in result.attacks:
        count = len(broken_rows(result, label))
        assert count > 0
        assert found[label].text == f"{count} broken samples, each by its image"
        np.testing.assert_array_equal(np.sort(images[label].rows), broken_rows(result, label))
    # Minimal perturbations end next to the boundary: some lose their verdict in eight bits and are kept exactly.
    assert len(images["DeepFool"].exact_row) > 0
    assert sum(len(kept.exact_row) for kept in images.values()) < sum(len(kept.row) for kept in images.values()) / 4
    assert conclusion(list(found.values())).startswith("Confirmed: ")


def test_images_by_the_format_alone_break_the_model(pair, digits_run, test_split):
    """Read and decoded as FORMAT.md says, without the program."""
    path, result, _ = pair
    clean = test_split.pixels.numpy().astype(np.float32) / np.float32(16)
    model = load_checkpoint(digits_run).build()
    with h5py.File(adversarials_path(path)) as file:
        assert file.attrs["format"] == "bench-adversarials"
        assert file.attrs["result_digest"] == content_digest(result)
        for name in ("000-fgsm", "001-pgd-8", "002-pgd-8x3", "006-apgd"):
            kept = {key: values[...] for key, values in file[f"attacks/{name}"].items()}
            base = clean[kept["row"]]
            decoded = base + kept["scale"][:, None, None, None] * kept["code"]
            decoded = np.clip(np.clip(decoded, base - 0.15, base + 0.15), 0, 1).astype(np.float32)
            rows = np.concatenate([kept["row"], kept["exact_row"]])
            with torch.no_grad():
                answers = model(torch.from_numpy(np.concatenate([decoded, kept["exact"]]))).argmax(1).numpy()
            record = result.attacks[file[f"attacks/{name}"].attrs["label"]]
            np.testing.assert_array_equal(answers, record.prediction[rows])
            assert (answers != result.label[rows]).all()


def test_transferred_images_and_the_final_convention(request_, digits_run, tmp_path):
    other = replace(request_, out=tmp_path / "r.h5", transfer=(digits_run,), convention="final", limit=30)
    result, path = evaluate(other)
    assert len(broken_rows(result, f"PGD-8 from {digits_run}")) > 0
    found = checks(path, digits_run)
    assert {check.status for check in found.values()} == {"confirmed", "noted", "not provable"}


# -------------------------------------------------------------------------------------------------- forgeries


def claiming(result, label, row, value):
    """The result with another prediction of one sample under an attack."""
    prediction = result.attacks[label].prediction.copy()
    prediction[row] = value
    return with_attack(result, label, prediction=prediction)


def test_a_standing_sample_called_broken_is_refuted(pair, digits_run):
    path, result, images = pair
    standing = (result.attacks["FGSM"].prediction == result.label).nonzero()[0][3]
    forge(path, claiming(result, "FGSM", standing, (result.label[standing] + 1) % 10), images)
    assert refuted(path, digits_run) == {
        "FGSM": f"samples marked broken, without an image: 1, the first is sample {standing}"
    }


def test_a_broken_sample_called_standing_is_refuted(pair, digits_run):
    path, result, images = pair
    row = broken_rows(result, "APGD")[2]
    changed = claiming(result, "APGD", row, result.label[row])
    forge(path, changed, images)
    text = refuted(path, digits_run)["APGD"]
    assert text.startswith(f"samples with an image, not marked broken: 1, the first is sample {row}; ")
    assert text.endswith(f"classifies otherwise than recorded: 1, the first is sample {row}")
    # With its image gone as well, nothing contradicts the claim: that a sample stands is never proved.
    kept = images["APGD"]
    stay = kept.row != row
    assert not stay.all()
    less = replace(kept, row=kept.row[stay], scale=kept.scale[stay], code=kept.code[stay])
    forge(path, changed, {**images, "APGD": less})
    found = checks(path, digits_run)
    assert found["APGD"].status == "confirmed"
    assert found["samples still standing"].status == "not provable"


def test_another_wrong_class_is_refuted(pair, digits_run):
    path, result, images = pair
    row = broken_rows(result, "PGD-8")[0]
    shown = (result.attacks["PGD-8"].prediction[row], result.label[row])
    forge(path, claiming(result, "PGD-8", row, next(k for k in range(10) if k not in shown)), images)
    assert refuted(path, digits_run) == {
        "PGD-8": f"samples whose image the model classifies otherwise than recorded: 1, the first is sample {row}"
    }


def test_a_false_clean_prediction_is_refuted(pair, digits_run):
    path, result, images = pair
    clean = result.clean_prediction.copy()
    row = np.flatnonzero(clean != result.label)[0]
    clean[row] = result.label[row]
    forge(path, replace(result, clean_prediction=clean), images)
    assert refuted(path, digits_run)["clean predictions"] == (
        f"the model answers differently: 1, the first is sample {row}"
    )


@pytest.mark.parametrize(("label", "ball"), [("DeepFool", "l2 0.35"), ("FGSM", "linf 0.15"), ("PGD l1", "l1 4")])
def test_an_image_outside_the_ball_is_refuted(pair, digits_run, test_split, label, ball):
    path, result, images = pair
    kept = images[label]
    threat = ThreatModel(*ball.split())
    farthest = result.attacks[label].distance[kept.row].argmax()
    rows, shown = list(kept.images(test_split, threat, 1))[farthest]
    clean = test_split.images(rows)
    # Farther in the same direction, inside [0, 1]: still adversarial, and not allowed.
    far = (clean + 2.5 * (shown - clean)).clamp(0, 1).numpy()
    pushed = replace(
        kept,
        row=np.delete(kept.row, farthest),
        scale=np.delete(kept.scale, farthest),
        code=np.delete(kept.code, farthest, 0),
        exact_row=np.concatenate([kept.exact_row, rows.numpy()]),
        exact=np.concatenate([kept.exact, far]),
    )
    forge(path, result, {**images, label: pushed})
    text = refuted(path, digits_run)
    assert list(text) == [label]
    assert text[label].startswith(
        f"samples whose image is outside {ball} or [0, 1]: 1, the first is sample {int(rows[0])}"
    )


def test_codes_cannot_leave_the_ball(test_split):
    """A forger who raises the scale gets an image that is brought inside."""
    clean = test_split.images(slice(0, 4))
    code = torch.full((4, *SHAPE), 127, dtype=torch.int8)
    for norm, radius in (("linf", "0.15"), ("l2", "0.35"), ("l1", "0.8")):
        threat = ThreatModel(norm, radius)
        decoded = decode(code, torch.full((4,), 1e6), clean, threat)
        assert (threat.distance(decoded, clean) <= threat.radius + 1e-6).all()
        assert decoded.min() >= 0 and decoded.max() <= 1
        assert torch.equal(decode(code, torch.full((4,), torch.nan), clean, threat), clean)


def test_another_checkpoint_is_refuted(pair, digits_run, tmp_path):
    path, *_ = pair
    checkpoint = load_checkpoint(digits_run)
    name = next(name for name, tensor in checkpoint.weights.items() if tensor.is_floating_point())
    other = replace(checkpoint, weights={**checkpoint.weights, name: checkpoint.weights[name] + 1e-3})
    save_checkpoint(other, tmp_path / "run" / "last")
    found = checks(path, tmp_path / "run")
    assert list(found) == ["result file", "columns", "suite", "model", "samples"]
    assert found["model"].status == "refuted"
    assert checkpoint.digest[:16] in found["model"].text and other.digest[:16] in found["model"].text
    assert conclusion(list(found.values())) == "Refuted: 1 of 5 checks failed."


def test_another_order_of_the_samples_is_refuted(pair, digits_run):
    path, result, images = pair
    label = result.label
    unlike = np.flatnonzero(label != label[0])[0]
    alike = np.flatnonzero(label == label[0])[1]
    for partner, expected in (
        (unlike, "labels differ from the dataset's: 2, the first is sample"),
        (alike, "images, or their order, are not those of the result"),
    ):
        index = result.index.copy()
        index[[0, partner]] = index[[partner, 0]]
        forge(path, replace(result, index=index), images)
        found = refuted(path, digits_run)
        assert list(found) == ["samples"]
        assert found["samples"].startswith(expected)
    for index in (result.index + 450, np.zeros_like(result.index), result.index - 1):
        forge(path, replace(result, index=index), images)
        assert refuted(path, digits_run)["samples"] == "positions are not 60 different ones of the 500 test images"


def test_a_radius_that_is_not_the_suites_is_refuted(pair, digits_run):
    path, result, images = pair
    for changes, expected in (
        ({"epsilon": "0.3"}, "PGD-8 has epsilon '0.3', not '0.15'"),
        ({"parameters": {**result.attacks["PGD-8"].parameters, "steps": 80}}, "PGD-8 has steps 80, not 8"),
    ):
        forge(path, with_attack(result, "PGD-8", **changes), images)
        assert refuted(path, digits_run)["columns"] == expected


@pytest.mark.parametrize("cells", [[], [{}], [{"label": "FGSM"}], [{"label": cell["label"]} for cell in CELLS]])
def test_a_suite_of_other_cells_is_refuted(pair, digits_run, cells):
    path, result, images = pair
    forge(path, replace(result, suite={**result.suite, "cells": cells}), images)
    assert list(refuted(path, digits_run)) == ["columns"]


@pytest.mark.parametrize("radius", ["1e999999999", "1/0", "-1", "nan", "8" * 50])
def test_a_radius_that_is_no_radius_is_no_result(pair, radius):
    _, result, _ = pair
    with pytest.raises(BenchError, match="is no radius"):
        with_attack(result, "FGSM", epsilon=radius)


def test_damaged_missing_and_foreign_images_are_refuted(pair, digits_run):
    path, result, images = pair
    sidecar = adversarials_path(path)
    whole = sidecar.read_bytes()
    for data, expected in (
        (whole[:-100], "altered or damaged"),
        (whole[:300], "not an HDF5 file, or cut short"),
        (path.read_bytes(), "not of format bench-adversarials (it is bench-result)"),
    ):
        sidecar.write_bytes(data)
        found = refuted(path, digits_run)
        assert list(found) == ["images"]
        assert expected in found["images"]
    write_adversarials(images, "0" * 64, sidecar)
    assert "the images belong to another result" in refuted(path, digits_run)["images"]
    write_adversarials(dict(list(images.items())[1:]), content_digest(result), sidecar)
    assert "are not those of the result" in refuted(path, digits_run)["images"]
    sidecar.unlink()
    assert "is missing" in refuted(path, digits_run)["images"]


def test_a_damaged_result_is_refuted(pair, digits_run):
    path, *_ = pair
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    found = checks(path, digits_run)
    assert list(found) == ["result file"]
    assert "do not match its seal" in found["result file"].text


def linked(file):
    del file["attacks/000-fgsm/code"]
    file["attacks/000-fgsm/code"] = h5py.ExternalLink("elsewhere.h5", "/code")


def inflated(file):
    count = len(file["attacks/000-fgsm/exact_row"])
    del file["attacks/000-fgsm/exact_row"], file["attacks/000-fgsm/exact"]
    file["attacks/000-fgsm"].create_dataset("exact_row", (2**40,), "<i8", chunks=(2**17,))
    assert count == 0


def replaced(name, change):
    def apply(file):
        values = change(file[name][...])
        del file[name]
        file[name] = values

    return apply


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (linked, "kept in another file"),
        (inflated, "claims 8796093022208 bytes"),
        (
            replaced("attacks/000-fgsm/code", lambda code: code[:, :, :4]),
            r"has shape \(\d+, 1, 4, 8\), not \d+ x 1 x 8",
        ),
        (replaced("attacks/000-fgsm/code", lambda code: code.astype("<i2")), "has type int16, not int8"),
        (replaced("attacks/000-fgsm/scale", lambda scale: scale[1:]), r"scale' has shape"),
        (replaced("attacks/000-fgsm/row", lambda row: row * 0), "names a sample twice"),
        (replaced("attacks/000-fgsm/row", lambda row: row + 60), "that the result does not have"),
        (lambda file: file["attacks/000-fgsm"].attrs.update(order=1), "same label or order"),
        (lambda file: file["attacks/000-fgsm"].attrs.pop("label"), "'label' of '/attacks/000-fgsm' is missing"),
        (lambda file: file.attrs.pop("result_digest"), "'result_digest' of '/' is missing"),
    ],
)
def test_a_wrong_tree_is_refused_even_with_a_right_seal(pair, change, expected):
    path, result, _ = pair
    sidecar = adversarials_path(path)
    buffer = io.BytesIO(sidecar.read_bytes())
    with h5py.File(buffer, "r+") as file:
        change(file)
    body = buffer.getvalue()[512:]
    seal = f"bench-adversarials 1 {hashlib.sha256(body).hexdigest()}\n".encode().ljust(512, b"\0")
    sidecar.write_bytes(seal + body)
    with pytest.raises(BenchError) as caught:
        read_adversarials(sidecar, result, SHAPE)
    assert re.search(expected, str(caught.value))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- encoding


def test_codes_and_scale_by_hand():
    clean = torch.full((2, 1, 2, 2), 0.5)
    images = clean + torch.tensor([[0.127, -0.064, 0.001, 0.0], [0.0, 0.0254, -0.0254, 0.0002]]).view(2, 1, 2, 2)
    threat = ThreatModel("linf", "0.2")
    kept = encode(images, clean, threat, torch.tensor([7, 9]), lambda decoded: torch.ones(2, dtype=torch.bool))
    assert kept.row.tolist() == [7, 9]
    np.testing.assert_allclose(kept.scale, [0.001, 0.0002], rtol=1e-5)
    assert kept.code.reshape(2, 4).tolist() == [[127, -64, 1, 0], [0, 127, -127, 1]]
    assert kept.exact.shape == (0, 1, 2, 2)
    decoded = decode(torch.from_numpy(kept.code), torch.from_numpy(kept.scale), clean, threat)
    torch.testing.assert_close(decoded, images, atol=1e-7, rtol=0)


def test_what_does_not_hold_is_kept_exactly():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(5, 3, 4, 4, generator=generator)
    threat = ThreatModel("linf", "0.1")
    images = threat.project(clean + 0.2 * torch.rand(clean.shape, generator=generator) - 0.1, clean)
    holds = torch.tensor([True, False, True, False, True])
    kept = encode(images, clean, threat, torch.arange(5), lambda decoded: holds)
    assert (kept.row.tolist(), kept.exact_row.tolist()) == ([0, 2, 4], [1, 3])
    np.testing.assert_array_equal(kept.exact, images[[1, 3]].numpy())
    decoded = decode(torch.from_numpy(kept.code), torch.from_numpy(kept.scale), clean[[0, 2, 4]], threat)
    assert ((decoded - images[[0, 2, 4]]).abs() <= 0.5001 * 0.1 / 127).all()
    again = joined([kept.arrays(3), kept.arrays(3)], 3, (3, 4, 4))
    assert again.row.tolist() == [0, 2, 4, 0, 2, 4]
    np.testing.assert_array_equal(again.exact, np.concatenate([kept.exact, kept.exact]))


def test_a_prediction_within_rounding_of_a_tie_is_not_refuted(tmp_path):
    """A ten-thousandth of the largest logit, 10, is 0.001: class 1 is as good an answer as class 0, class 2 is none."""
    (tmp_path / "near.py").write_text(
        "import torch\nfrom torch import nn\nclass Near(nn.Module):\n    def forward(self, images):\n"
        "        return 0 * images.flatten(1)[:, :10] + torch.tensor([10, 9.9995, 9.998, *[0.0] * 7])\n"
    )
    model, path = f"{tmp_path}/near.py:Near", tmp_path / "r.h5"
    result, _ = evaluate(EvaluationRequest("clean", model=model, dataset="digits", limit=4, probes=0, out=path))
    assert result.clean_prediction.tolist() == [0] * 4
    for claimed, status in (([0, 1, 1, 0], "confirmed"), ([0, 2, 0, 0], "refuted"), ([0, 0, 0, -1], "refuted")):
        write_result(replace(result, clean_prediction=np.array(claimed, dtype=np.int16)), path)
        (check,) = [one for one in verify(VerificationRequest(path, model=model)) if one.name == "clean predictions"]
        assert str(check).startswith(f"clean predictions: {status}"), check


# ------------------------------------------------------------------------------------- stopped, split, shared


def assert_same_images(first, second):
    assert list(first) == list(second)
    for label, kept in first.items():
        for name, values in vars(kept).items():
            np.testing.assert_array_equal(values, getattr(second[label], name))


@pytest.mark.parametrize("convention", ["any", "final"])
def test_keeping_images_changes_no_verdict(digits_run, test_split, convention):
    suite = Suite("mine", 1, "", tuple(AttackCell(**cell) for cell in CELLS), {})
    suite = suite.resolve({"linf": "0.15", "l2": "0.35", "l1": "0.8"}, {})
    model = load_checkpoint(digits_run).build()
    plain, kept = (
        engine.run_suite(Target(model, test_split, batch_size=64, keeps_images=keeps), suite, convention=convention)
        for keeps in (False, True)
    )
    assert plain.adversarials == {}
    assert list(kept.adversarials) == list(plain.attacks)
    for label, attack in plain.attacks.items():
        for name in ("prediction", "final_prediction", "distance", "loss"):
            np.testing.assert_array_equal(getattr(attack, name), getattr(kept.attacks[label], name))


def test_a_stopped_and_shared_evaluation_keeps_the_same_images(request_, original, tmp_path, monkeypatch):
    small = replace(request_, out=tmp_path / "whole.h5", batch_size=16)
    whole, _ = evaluate(small)
    for label, attack in read_result(original).attacks.items():
        np.testing.assert_array_equal(attack.prediction, whole.attacks[label].prediction)
    calls = []
    run_block = engine.GroupRun.run_block

    def failing(run, block):
        calls.append(len(block))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return run_block(run, block)

    stopped = replace(small, out=tmp_path / "stopped.h5")
    monkeypatch.setattr(engine.GroupRun, "run_block", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped)
    evaluate(replace(stopped, shard=(1, 2)))
    blocks = len(calls)
    evaluate(stopped)
    assert len(calls) > blocks > 9
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("stopped.adversarials.h5", "stopped.h5", "whole.adversarials.h5", "whole.h5")
    ]
    assert content_digest(read_result(stopped.out)) == content_digest(whole)
    first, second = (read_adversarials(adversarials_path(path), whole, SHAPE) for path in (small.out, stopped.out))
    assert_same_images(first, second)


def test_parts_without_images_are_not_taken_for_parts_with_them(request_, digits_run, tmp_path, monkeypatch):
    without = replace(request_, out=tmp_path / "r.h5", save_adversarials=False, limit=20)
    evaluate(replace(without, shard=(1, 1000)))
    evaluate(replace(without, shard=(0, 1000)))
    result, path = evaluate(replace(without, save_adversarials=True))
    assert result.run["evaluation"]["adversarials"] is True
    assert not [name for name in refuted(path, digits_run)]


def test_a_replaced_result_takes_its_images_with_it(request_, tmp_path):
    asked = replace(request_, suite="quick", limit=10, out=tmp_path / "r.h5")
    evaluate(asked)
    assert adversarials_path(asked.out).exists()
    evaluate(replace(asked, save_adversarials=False, overwrite=True))
    assert not adversarials_path(asked.out).exists()
    adversarials_path(asked.out).write_bytes(b"mine")
    asked.out.unlink()
    with pytest.raises(BenchError, match=r"r\.adversarials\.h5 .*--overwrite"):
        evaluate(asked)


# ----------------------------------------------------------------------------------------------------- suites


def resolved(suite_name, given, **changes):
    """A result without samples, of a shipped suite."""
    suite = load_suite(suite_name).resolve({"linf": "8/255", "l2": "128/255", "l1": "2000/255"}, given).describe()
    suite = {**json.loads(json.dumps(suite)), **changes}
    none = np.zeros(0, dtype=np.int16)
    attacks = {}
    for cell in suite["cells"]:
        texts = {name: cell[name] for name in ("norm", "epsilon", "objective")}
        one = replace(record(cell["label"], cell["attack"], (), (), **cell["parameters"]), **texts)
        attacks[cell["label"]] = replace(one, prediction=none, final_prediction=None, distance=none.astype(np.float32))
    drawn = none if "draws" in suite else None
    attacks = {label: replace(one, right_draws=drawn) for label, one in attacks.items()}
    return EvaluationResult({}, suite, none, none.astype(np.int64), none, attacks, clean_right_draws=drawn)


def from_file(result, folder):
    """What is said of columns and suite of a file, without a model."""
    write_result(result, folder / "r.h5")
    _, columns, suite, _ = map(str, verify(VerificationRequest(folder / "r.h5")))
    return columns, suite


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_are_known_at_any_radius(name, tmp_path):
    for given in ({}, {"linf": "0.3", "l1": "7"}):
        result = resolved(name, given)
        columns, suite = from_file(result, tmp_path)
        assert columns.startswith("columns: confirmed")
        assert suite.startswith("suite: confirmed")
        for cell in result.suite["cells"]:
            assert str(Fraction(cell["epsilon"])) and cell["epsilon"] in suite
    for changed in ({"version": 99}, {"name": "other"}):
        assert from_file(resolved(name, {}, **changed), tmp_path)[1].startswith("suite: noted")


def test_a_shipped_suite_that_was_changed_is_noted(tmp_path):
    cells = resolved("quick", {}).suite["cells"]
    for changed in (
        [cells[0], {**cells[1], "parameters": {"steps": 1}}],
        [cells[0], {**cells[1], "epsilon": "4/255"}],
        [cells[0], {**cells[1], "attack": "fgsm"}],
        cells[:1],
    ):
        suite = from_file(resolved("quick", {}, cells=changed), tmp_path)[1]
        assert suite.startswith("suite: noted") and "not those" in suite


# ----------------------------------------------------------------------------------------------- command line


def test_the_command_confirms_refutes_and_says_what_it_cannot_show(bench, digits_run):
    arguments = ("eval", digits_run, "--limit", 40, "--suite", "quick", "--probes", 0)
    assert bench(*arguments, "--save-adversarials", "--out", "kept.h5")[0] == 0
    assert bench(*arguments, "--out", "plain.h5")[0] == 0
    code, output = bench("verify", "kept.h5", "--checkpoint", digits_run)
    assert code == 0
    assert "\nsuite: confirmed (quick version 1 as this program has it; radii: linf 0.15)\n" in output
    assert re.search(r"\nPGD-20: confirmed \(\d+ broken samples, each by its image\)\n", output)
    assert output.splitlines()[-1].startswith("Confirmed: ")
    code, output = bench("verify", "plain.h5", "--checkpoint", digits_run)
    assert code == 0
    assert "\nPGD-20: not replayable (evaluated without --save-adversarials)\n" in output
    assert output.splitlines()[-1].startswith("Nothing is refuted. The verdicts of attacks are unproved")
    shutil.copy("kept.adversarials.h5", "plain.adversarials.h5")
    code, output = bench("verify", "plain.h5", "--checkpoint", digits_run)
    assert code == 1
    assert "\nimages: refuted: 'plain.adversarials.h5': the images belong to another result." in output
    assert output.splitlines()[-1] == "Refuted: 1 of 7 checks failed."
    code, output = bench("verify", "none.h5", "--checkpoint", digits_run)
    assert (code, output) == (2, "Error: no result file at none.h5.\n")
    code, output = bench("verify", "kept.h5", "--checkpoint", digits_run, "--weights", "w.pt")
    assert code == 2
    assert "--weights goes with --model" in output


def test_a_board_is_computed_again(bench, digits_run):
    for seed in (0, 1):
        options = ("--limit", 20, "--suite", "quick", "--convention", "final", "--probes", 0)
        options += ("--seed", seed, "--name", f"at {seed}")
        assert bench("eval", digits_run, *options, "--out", f"{seed}.h5")[0] == 0
    for options in (("--columns", "PGD-20,Clean"), (), ("--convention", "final")):
        assert bench("leaderboard", "0.h5", "1.h5", "--out", "board.md", *options)[0] == 0
        code, output = bench("verify", "1.h5", "0.h5", "--board", "board.md")
        assert code == 0, output
        assert "\nboard: confirmed (2 rows of board.md, computed again from 2 files)\n" in output
        assert output.splitlines()[-1] == "Nothing is refuted, and nothing was compared with a model."
    board = Path("board.md")
    lines = board.read_text().splitlines(keepends=True)
    number = next(place for place, line in enumerate(lines) if "at 0" in line)
    lines[number] = re.sub(r"\d\.\d ±", "9.9 ±", lines[number], count=1)
    board.write_text("".join(lines))
    code, output = bench("verify", "0.h5", "1.h5", "--board", "board.md")
    assert code == 1
    assert f": 1 lines of board.md, the first is line {number + 1}: '" in output
    shown, computed = re.search(r": '(.*)' is shown, '(.*)' is computed\n", output).groups()
    assert "9.9 ±" in shown and "9.9 ±" not in computed
    for name in ("none.md", "0.h5", "board.txt"):
        code, output = bench("verify", "0.h5", "--board", name)
        assert (code, output.count("\n"), output.startswith("Error: ")) == (2, 1, True)


def specified():
    """The example, with a suite that specifies its cells in full."""
    facts = ("label", "attack", "norm", "epsilon", "objective", "parameters")
    cells = [{fact: getattr(one, fact) for fact in facts} for one in example().attacks.values()]
    return example(suite={**example().suite, "cells": cells})


@pytest.mark.parametrize("form", ["html", "json", "csv", "md"])
def test_every_form_of_a_board_is_computed_again(bench, form):
    board = f"board.{form}"
    first = specified()
    second = replace(first, run={**first.run, "model": "B", "defense": "trades"})
    write_result(first, "0.h5")
    write_result(second, "1.h5")
    for options in ((), ("--merge-seeds",), ("--rank-by", "FGSM")):
        assert bench("leaderboard", "0.h5", "1.h5", "--out", board, *options)[0] == 0
        code, output = bench("verify", "0.h5", "1.h5", "--board", board)
        assert code == 0, output
        assert f"\nboard: confirmed (2 rows of {board}, computed again from 2 files)\n" in output
    code, output = bench("verify", "0.h5", "--board", board)
    assert code == 1
    assert (
        "\nboard: refuted: other numbers or texts than the result files give: the board has 2 rows, the files "
        in output
    )
    assert ", the files give 1; " in output
    assert re.search(rf"; \d+ lines of {board}, the first is line \d+: '.{{,100}}' is shown, '.{{,100}}' is ", output)


FORMER = {
    "md": "## digits, linf 8/255, suite tiny version 1, 10 samples, convention any\n\n|   Rank | Model |  Trust  |\n",
    "html": '<script id="data">{"format":"bench-leaderboard","version":1,"convention":"any","boards":[]}</script>',
    "json": '{\n "format": "bench-leaderboard",\n "version": 1,\n "convention": "any"\n}\n',
    "csv": "dataset,suite,suite_version,threat,samples,convention,rank,name\ndigits,tiny,1,linf 8/255,10,any,1,AT\n",
}
"""Boards as version 0.1 wrote them, which had one rank for a row and did not say by which column."""


@pytest.mark.parametrize("form", FORMER)
def test_a_board_of_another_version_is_not_called_wrong(bench, form):
    write_result(specified(), "0.h5")
    Path(f"board.{form}").write_text(FORMER[form], encoding="utf-8")
    code, output = bench("verify", "0.h5", "--board", f"board.{form}")
    assert code == 0, output
    told = "was written by another version of bench (boards of version 1; this one writes 2)"
    assert f"\nboard: not checked (board.{form} {told}: write it again with `bench leaderboard`" in output
    # What is no board at all is still refuted.
    Path(f"board.{form}").write_text("nothing\n", encoding="utf-8")
    assert bench("verify", "0.h5", "--board", f"board.{form}")[0] == 1


def test_every_file_is_checked_and_named(bench):
    whole = specified()
    write_result(whole, "good.h5")
    content = bytearray(Path("good.h5").read_bytes())
    content[len(content) // 2] ^= 1
    Path("flip.h5").write_bytes(content)
    cells = [{**cell, "epsilon": "9/255"} for cell in whole.suite["cells"]]
    write_result(replace(whole, suite={**whole.suite, "cells": cells}), "false.h5")
    code, output = bench("verify", "good.h5", "false.h5", "flip.h5", "good.h5")
    lines = output.splitlines()
    assert code == 1
    assert lines[0] == lines[3]
    assert lines[0].startswith("good.h5: confirmed: result file, columns; noted: suite (")
    assert lines[0].endswith("); not checked: predictions")
    assert lines[1].startswith("false.h5: refuted: columns (FGSM has epsilon '8/255', not '9/255'); confirmed: result")
    assert lines[2].startswith("flip.h5: refuted: result file ('flip.h5': the file was altered or damaged")
    assert lines[4:] == ["Refuted: 2 of 11 checks failed."]
    code, output = bench("verify", "good.h5", "none.h5", "nor.h5")
    assert (code, output) == (2, "Error: no result file at none.h5, nor.h5.\n")


def test_every_file_is_compared_with_the_model(bench, digits_run):
    for suite, kept in (("quick", ("--save-adversarials",)), ("clean", ())):
        options = ("--suite", suite, "--limit", 20, "--probes", 0, *kept, "--out", f"{suite}.h5")
        assert bench("eval", digits_run, *options)[0] == 0
    result = read_result("clean.h5")
    write_result(replace(result, clean_prediction=(result.clean_prediction + 1) % 10), "clean.h5")
    code, output = bench("verify", *sorted(Path().glob("*.h5")), "--checkpoint", digits_run)
    lines = output.splitlines()
    assert (code, len(lines)) == (1, 3), output
    assert lines[0].startswith("clean.h5: refuted: clean predictions (the model answers differently: 20, ")
    assert lines[1].startswith("quick.h5: confirmed: result file, columns, suite, model, samples, clean predictions, ")


def test_a_model_of_ones_own_is_verified_by_its_weights(bench, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.save(linear.state_dict(), "one.pt")
    with torch.no_grad():
        linear[1].bias += 1
    torch.save(linear.state_dict(), "two.pt")
    given = ("--model", "mine.py:make", "--weights")
    options = ("--dataset", "digits", "--limit", 40, "--probes", 0, "--save-adversarials", "--out", "r.h5")
    assert bench("eval", *given, "one.pt", *options)[0] == 0
    code, output = bench("verify", "r.h5", *given, "one.pt")
    assert code == 0, output
    assert "\nmodel: confirmed (weights; its code is not part of the digest" in output
    code, output = bench("verify", "r.h5", *given, "two.pt")
    assert code == 1
    assert "\nmodel: refuted: the result is of sha256 " in output
