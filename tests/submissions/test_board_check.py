"""A bundle is confirmed as it was made; whatever is changed in it, by whoever knows how, is refused by name."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.catalogue.recipes import load_recipe
from bench.data.datasets import load_dataset
from bench.engine.adversarials import adversarials_path, read_adversarials, write_adversarials
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.leaderboard.render.markdown import render_row
from bench.leaderboard.tables.build import build_table
from bench.models.checkpoints import load_checkpoint, save_checkpoint
from bench.results.board_rows import read_row, row_files
from bench.results.file import content_digest, read_result, write_result
from bench.results.findings import finding
from bench.results.metrics import worst_case
from bench.submissions import board_check, bundle
from bench.submissions.board_check import accept, check, chosen_again, conclusion
from bench.submissions.bundle import open_bundle, write_bundle
from bench.system import budgets
from bench.trust.verification import VerificationRequest
from tests.support.command import bench as command
from tests.support.command import refused
from tests.support.example_results import with_attack, with_run
from tests.support.refusals import refusal

SUITE = {
    "name": "weak",
    "version": 1,
    "cells": [
        {"label": "PGD-2", "attack": "pgd", "parameters": {"steps": 2}},
        {"label": "half", "attack": "fgsm", "epsilon": "eps/2"},
    ],
}
"""Under it much stands that is not robust."""
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def row(digits_run, tmp_path_factory):
    """A result with images, of forty digits."""
    folder = tmp_path_factory.mktemp("row")
    (folder / "weak.json").write_text(json.dumps(SUITE))
    asked = {"limit": 40, "probes": 0, "save_adversarials": True, "out": folder / "at.h5"}
    return evaluate(EvaluationRequest(str(folder / "weak.json"), checkpoint=digits_run, **asked))[1]


@pytest.fixture(scope="module")
def original(row, digits_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sent") / "bundle"
    send(row, digits_run, folder)
    return folder


@pytest.fixture
def sent(original, tmp_path):
    """A bundle that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def send(row, run, folder):
    write_bundle(row, folder, render_row(read_result(row)), None, run, "A. Person", "https://example.org")


def checks(folder, board=None, seed=0, **options):
    found = check(VerificationRequest(folder / bundle.RESULT, **options), board, seed, render_row)
    return {verdict.name: verdict for verdict in found}


def refuted(folder, board=None):
    return {name: one.text for name, one in checks(folder, board).items() if one.status == "refuted"}


def listed(folder):
    """List the files as they are now, as a forger would."""
    content = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "bundle.json"}
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}
    content = {"format": "bench-bundle", "version": 1, "files": files}
    (folder / "bundle.json").write_text(json.dumps(content))


def rewritten(folder, name, change):
    """Change the JSON in a file, and list it."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    listed(folder)


def images_of(row):
    return read_adversarials(adversarials_path(row), read_result(row), SHAPE)


def forged(row, run, folder, result, images):
    """A bundle of another result and images, with right seals, digests and papers."""
    path = folder / "forged.h5"
    write_result(result, path)
    write_adversarials(images, content_digest(result), adversarials_path(path))
    send(path, run, folder / "forged")
    return folder / "forged"


# ------------------------------------------------------------------------------------------------ a true bundle


def test_a_true_bundle_is_confirmed_and_accepted(sent, row, tmp_path):
    board = tmp_path / "board"
    found = checks(sent, board, seed=7)
    assert list(found) == [
        *("bundle", "provenance", "model card", "recipe", "duplicates", "result file", "columns", "suite", "model"),
        *("samples", "clean predictions", "PGD-2", "half", "samples still standing"),
        *("samples still standing, again", "trust report"),
    ]
    assert {one.status for one in found.values()} <= {"confirmed", "noted", "not provable"}
    assert conclusion(list(found.values())).startswith("Confirmed: ")
    result = read_result(row)
    standing = int(worst_case(result).sum())
    chosen = chosen_again(result, 7)
    assert len(chosen) == math.ceil(0.05 * standing) > 0 and worst_case(result)[chosen].all()
    assert found["samples still standing, again"].text == (
        f"{len(chosen)} of {standing} evaluated again (chosen by seed 7), and all still stand"
    )
    path = accept(VerificationRequest(sent / "result.h5"), board, list(found.values()), 7, "M. Aintainer")
    assert row_files(board) == [path]
    assert sorted(one.name for one in board.iterdir()) == [
        f"{path.stem}{end}" for end in (".adversarials.h5", ".checked.json", ".h5")
    ]
    record = read_row(path).checked
    assert record["by"] == "M. Aintainer" and record["submitted_by"] == "A. Person"
    assert [one["name"] for one in record["checks"]] == list(found)
    assert record["again"] == result.index[chosen].tolist() and record["bundle"] == open_bundle(sent).digest
    table = build_table([read_row(path)])
    told = f"at: checked by M. Aintainer, {record['created'][:10]}: every broken sample by its image, and "
    assert f"{told}{len(chosen)} of the others evaluated again (note)" in table.notes
    assert "Best known" not in table.columns
    # What stands beside the row changes no number of it, and a second copy of it is refused.
    assert content_digest(read_row(path)) == content_digest(result)
    assert refuted(sent, board) == {"duplicates": f"the same result is there: {path}"}
    with pytest.raises(bundle.BenchError, match="exists"):
        accept(VerificationRequest(sent / "result.h5"), board, list(found.values()), 7, "M. Aintainer")


def test_the_recipe_trains_as_the_row_was_trained(original, row):
    run = read_result(row).run
    settings = load_recipe(str(original / "recipe.json")).settings("digits")
    assert settings.pop("backbone") == run["backbone"]
    assert json.loads(json.dumps(settings)) == run["protocol"]


def test_a_bundle_without_a_model_is_checked_with_one_that_is_named(row, digits_run, tmp_path):
    write_bundle(row, tmp_path / "b", render_row(read_result(row)), None, None, "")
    assert not (tmp_path / "b" / "model.safetensors").exists()
    assert "# at\n" in (tmp_path / "b" / "README.md").read_text()
    found = checks(tmp_path / "b")
    assert found["predictions"].status == "not checked"
    assert conclusion(list(found.values())) == "Nothing is refuted, and this is left open: predictions."
    refusal(
        lambda: accept(
            VerificationRequest(tmp_path / "b" / "result.h5"), tmp_path / "c", list(found.values()), 0, "M."
        ),
        "the row is not accepted",
        "left open: predictions",
    )
    assert not (tmp_path / "c").exists()
    assert refuted(tmp_path / "b") == {}
    assert checks(tmp_path / "b", checkpoint=digits_run)["PGD-2"].status == "confirmed"


# ----------------------------------------------------------------------------- changed by who knows no digests


def flip(folder):
    path = folder / "result.adversarials.h5"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)


def link(folder):
    (folder / "README.md").rename(folder.parent / "elsewhere.md")
    (folder / "README.md").symlink_to(folder.parent / "elsewhere.md")


def outside(folder):
    content = json.loads((folder / "bundle.json").read_text())
    content["files"]["../../x"] = content["files"].pop("recipe.json")
    (folder / "bundle.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip, "result.adversarials.h5 is not the file that bundle.json lists: its size or digest differs"),
        (lambda folder: (folder / "result.adversarials.h5").unlink(), "result.adversarials.h5 is missing"),
        (lambda folder: (folder / "recipe.json").unlink(), "recipe.json is listed and not there"),
        (lambda folder: (folder / "evil.py").write_text("boom"), "'evil.py' is no file of a bundle. It holds: "),
        (link, "README.md is a link, a folder or a device, and no plain file"),
        (outside, "'../../x' is no file of a bundle"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "has no readable bundle.json"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 1, "version": 9, "files": {}}'), "is not of "),
        (lambda folder: (folder / "bundle.json").unlink(), "is no bundle"),
    ],
)
def test_a_file_that_is_not_the_listed_one_is_refused(sent, change, expected):
    change(sent)
    found = refuted(sent)
    assert list(found) == ["bundle"] and expected in found["bundle"]


def test_a_list_that_is_too_long_is_not_read(sent, monkeypatch):
    monkeypatch.setattr(budgets, "MOST_JSON", 100)
    assert "such a file may have 100" in refuted(sent)["bundle"]


# ------------------------------------------------------------------------------------ changed with right digests


def test_papers_that_say_something_else_are_refused(sent, original):
    card = (sent / "README.md").read_text()
    (sent / "README.md").write_text(card.replace("| at ", "| AT "))
    listed(sent)
    assert refuted(sent) == {"model card": "README.md does not say what the row says"}
    # Another version of the program writes other cards: nothing is said of its.
    rewritten(sent, "provenance.json", lambda content: content.update(program="9.9"))
    assert checks(sent)["model card"].status == "noted"
    for name, change, expected in (
        ("recipe.json", lambda content: content["settings"].update(epochs=300), {"recipe"}),
        ("provenance.json", lambda content: content.update(row="0" * 64), {"provenance"}),
        ("provenance.json", lambda content: content.update(submitted_by=["A"]), {"papers"}),
    ):
        shutil.rmtree(sent)
        shutil.copytree(original, sent)
        rewritten(sent, name, change)
        assert set(refuted(sent)) == expected


def test_another_model_is_refused(sent, digits_run):
    checkpoint = load_checkpoint(digits_run)
    name = next(name for name, tensor in checkpoint.weights.items() if tensor.is_floating_point())
    other = replace(checkpoint, weights={**checkpoint.weights, name: checkpoint.weights[name] + 1e-3})
    save_checkpoint(other, sent.parent / "other")
    shutil.copy(sent.parent / "other" / "model.safetensors", sent)
    listed(sent)
    found = refuted(sent)
    assert set(found) == {"model card", "model"} and other.digest[:16] in found["model"]


def test_an_image_outside_the_ball_is_refused(row, digits_run, tmp_path):
    result, images = read_result(row), images_of(row)
    kept = images["PGD-2"]
    place = int(kept.row[0])
    shown = load_dataset("digits", Path()).test.take(40).images(slice(place, place + 1)).numpy()
    exact = {"exact_row": np.append(kept.exact_row, place), "exact": np.append(kept.exact[:], 1 - shown, axis=0)}
    coded = {name: getattr(kept, name)[1:] for name in ("row", "scale", "code")}
    folder = forged(row, digits_run, tmp_path, result, {**images, "PGD-2": replace(kept, **coded, **exact)})
    found = refuted(folder)
    assert list(found) == ["PGD-2"]
    assert f"outside linf 0.15 or [0, 1]: 1, the first is sample {place}" in found["PGD-2"]


def test_a_standing_sample_called_broken_is_refused(row, digits_run, tmp_path):
    result = read_result(row)
    place = np.flatnonzero(worst_case(result))[0]
    prediction = result.attacks["half"].prediction.copy()
    prediction[place] = (result.label[place] + 1) % 10
    folder = forged(row, digits_run, tmp_path, with_attack(result, "half", prediction=prediction), images_of(row))
    assert refuted(folder) == {"half": f"samples marked broken, without an image: 1, the first is sample {place}"}


def test_broken_samples_called_standing_are_found_by_evaluating_again(row, digits_run, tmp_path, monkeypatch):
    """Their images are gone as well: nothing in the bundle contradicts the claim."""
    result, images = read_result(row), images_of(row)
    right = result.clean_prediction == result.label
    broken = int((right & ~worst_case(result)).sum())
    assert broken > 2
    better, none = result, {}
    for label, kept in images.items():
        better = with_attack(better, label, prediction=np.where(right, result.label, result.attacks[label].prediction))
        none[label] = replace(kept, **{name: getattr(kept, name)[:0] for name in vars(kept)})
    folder = forged(row, digits_run, tmp_path, better, none)
    monkeypatch.setattr(board_check, "SHARE", 1.0)
    found = refuted(folder)
    assert list(found) == ["samples still standing, again"]
    count = int(right.sum())
    assert found["samples still standing, again"].startswith(
        f"{count} of {count} evaluated again (chosen by seed 0), and {broken} break, the first is sample "
    )


MASKED = """\
import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).repeat_interleave(22, 1)[:, :64])

    def forward(self, images):
        return (16 * images).round().flatten(1) @ self.weight.T
"""
"""Rounding has no gradient: attacks that follow one find nothing."""


def test_a_trust_report_that_hides_something_is_refused(blobs, tmp_path, monkeypatch):
    """The model is looked at once, and the findings are kept for the second check."""
    seen, look = [], board_check.probe
    monkeypatch.setattr(
        board_check, "probe", lambda *given, **named: seen or seen.extend(look(*given, **named)) or seen
    )
    (tmp_path / "masked.py").write_text(MASKED)
    (tmp_path / "weak.json").write_text(json.dumps(SUITE))
    model = f"{tmp_path / 'masked.py'}:Masked"
    asked = {"model": model, "dataset": blobs, "limit": 30, "probes": 0, "save_adversarials": True}
    result, path = evaluate(EvaluationRequest(str(tmp_path / "weak.json"), **asked, out=tmp_path / "row.h5"))
    result = with_run(result, evaluation={**result.run["evaluation"], "probes": 8})
    hiding = forged(path, None, tmp_path, replace(result, findings=()), images_of(path))
    assert (hiding / "README.md").read_text().startswith("# Masked\n") and not (hiding / "recipe.json").exists()
    hidden = checks(hiding, model=model)
    assert [name for name, one in hidden.items() if one.status == "refuted"] == ["trust report"]
    text = hidden["trust report"].text
    assert text.startswith("the row does not say: ") and "masked-gradients (error: " in text
    both = (*seen, finding("masked-gradients", "error", "several checks say so"))
    telling = forged(path, None, tmp_path / "second", replace(result, findings=both), images_of(path))
    told = checks(telling, model=model)["trust report"]
    assert told.status == "noted" and "masked-gradients (error)" in told.text
    assert told.text.startswith("made anew on 8 images, and nothing graver than the row says: ")


def test_the_same_model_and_a_copy_under_another_name_are_duplicates(row, tmp_path):
    board, result = tmp_path / "board", read_result(row)
    for name, other, expected in (
        ("again", with_run(result, model="mine"), "the same model is there, under the same suite on the same samples"),
        ("copy", with_run(result, checkpoint_digest="0" * 64), "a model with the same outcomes, sample by sample"),
        ("other", with_run(result, checkpoint_digest="0" * 64, dataset_digest="1" * 64), None),
    ):
        shutil.rmtree(board, ignore_errors=True)
        write_result(other, board / f"{name}.h5")
        (found,) = board_check.duplicates(result, board)
        assert found.status == ("refuted" if expected else "confirmed"), name
        assert (expected or "unlike the 1 rows") in found.text


# -------------------------------------------------------------------------------------------- what is not sent


def test_what_nobody_could_check_is_not_sent(row, digits_run, bench, tmp_path):
    alone = shutil.copy(row, tmp_path / "alone.h5")
    assert "Evaluate again with --save-adversarials" in refused("submit", alone)
    assert "no folder of rows at 'nowhere'" in refused("board", "check", "b", "--board", "nowhere")
    assert "--accept needs --board FOLDER" in refused("board", "check", "b", "--accept")
    assert "--by would change nothing" in refused("board", "check", "b", "--by", "me")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not empty" in refused("submit", row, "--out", tmp_path / "full")
    code, output = command("board", "check", tmp_path / "full")
    assert code == 1 and output.startswith("bundle: refuted: ") and output.endswith("\nRefuted: bundle.\n")
