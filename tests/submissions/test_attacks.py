"""Images that others found lower what is best known of a row; on a linear model, to the closed form."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bench.data.datasets import load_dataset
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interop.subjects import ModelReference
from bench.leaderboard.render.board_data import board_data
from bench.leaderboard.render.files import board_text
from bench.leaderboard.render.html import render_html
from bench.leaderboard.render.json_csv import render_csv
from bench.leaderboard.tables.build import build_table
from bench.results.board_rows import ATTACK_FILE, BoardRow, Found, best_known, found_since, read_row, row_files
from bench.results.file import content_digest, read_result, write_result
from bench.submissions.attack_bundle import open_attack_bundle, write_attack_bundle
from bench.submissions.attacks import submit_attack
from bench.trust.verification import VerificationRequest, verify
from tests.support.example_results import LABEL, example, predictions, with_attack, with_run
from tests.support.html_pages import Elements
from tests.support.refusals import refusal

EPSILON = "0.195"
WEAK = {"label": "PGD-1", "attack": "pgd", "epsilon": EPSILON, "parameters": {"steps": 1, "step_size": "eps/50"}}
MODEL = """\
import torch
from torch import nn


class Bands(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 64))
        for band in range(3):
            self.weight.data[band].view(8, 8)[:, 2 * band : 2 * band + 3] = 1 / 24

    def forward(self, images):
        return images.flatten(1) @ self.weight.T
"""
"""The logit of a class is the mean of its band of pixels, which those of `blobs` make brighter."""


@pytest.fixture(scope="module")
def board(blobs, tmp_path_factory):
    """A board with the row of the linear model under a weak attack, in which all sixty images stand."""
    folder = tmp_path_factory.mktemp("linear")
    (folder / "bands.py").write_text(MODEL)
    (folder / "weak.json").write_text(json.dumps({"name": "weak", "version": 1, "cells": [WEAK]}))
    asked = {"dataset": blobs, "probes": 0, "save_adversarials": True, "out": folder / "board" / "bands.h5"}
    evaluate(EvaluationRequest(str(folder / "weak.json"), model=named(folder).model, **asked))
    return folder / "board"


def named(folder):
    return ModelReference(model=f"{folder / 'bands.py'}:Bands")


@pytest.fixture
def row(board, tmp_path):
    return Path(shutil.copytree(board, tmp_path / "board")) / "bands.h5"


@pytest.fixture
def attacked(board, row):
    """The row's attack bundle, opened, and its folder."""
    folder = row.parent.parent / "bands-attack"
    write_attack_bundle(VerificationRequest(row, model=named(board.parent).model), folder)
    return open_attack_bundle(folder, named(board.parent)), folder


@pytest.fixture(scope="module")
def optimal(blobs):
    """The best images in the ball, and which of them break: no pixel is near 0 or 1, so that the box is far."""
    split = load_dataset(blobs, Path()).test
    images, labels = split.images(slice(None)).double(), split.labels
    weight = torch.zeros(3, 8, 8, dtype=torch.float64)
    for band in range(3):
        weight[band, :, 2 * band : 2 * band + 3] = 1 / 24
    radius = float(EPSILON)
    margins = torch.stack([((weight[labels] - weight[other]) * images[:, 0]).flatten(1).sum(1) for other in range(3)])
    lengths = torch.stack([(weight[labels] - weight[other]).abs().flatten(1).sum(1) for other in range(3)])
    left = margins - radius * lengths
    left[labels, torch.arange(60)] = torch.inf
    nearest, other = left.min(0)
    assert nearest.abs().min() > 1e-5 and 10 < (nearest < 0).sum() < 50
    direction = (weight[labels] - weight[other]).sign()[:, None]
    found = images - radius * direction
    assert found.min() > 0 and found.max() < 1
    return found.float(), (nearest < 0).numpy()


def sent(folder, index, images):
    np.savez(folder / "found.npz", index=index, images=images.numpy())
    return folder / "found.npz"


# --------------------------------------------------------------------------------------------------- replay


def test_the_bundle_is_the_row(attacked, blobs):
    bundle, folder = attacked
    test = load_dataset(blobs, Path()).test
    assert torch.equal(bundle.images, test.images(slice(None))) and torch.equal(bundle.labels, test.labels)
    assert (bundle.threat.norm, bundle.threat.epsilon) == ("linf", EPSILON)
    assert bundle.standing.all() and bundle.index.tolist() == list(range(60))
    images = bundle.images.requires_grad_()
    bundle.forward(images)[:, 0].sum().backward()
    assert images.grad[0, 0, :, :3].allclose(torch.tensor(1 / 24)) and not images.grad[0, 0, :, 3:].any()
    assert "60 of 60 images still stand under linf 0.195" in (folder / "README.md").read_text()


def test_what_does_not_count_is_refused_by_its_index(attacked, board, row, optimal):
    bundle, folder = attacked
    found, breaks = optimal
    first, second = np.flatnonzero(breaks)[:2]
    robust = np.flatnonzero(~breaks)[0]
    clean = bundle.images
    far = clean[first] + 2.5 * (found[first] - clean[first])
    nowhere = torch.full_like(far, torch.nan)
    images = torch.stack([found[first], found[second], found[first], found[robust], far, nowhere])
    index = np.array([first, 99, first, robust, second, second + 1])
    reasons = bundle.replay(index, images)
    assert reasons == [
        None,
        "the row has no such sample",
        "a second image of this sample",
        f"the model is right: class {int(bundle.labels[robust])}",
        "outside linf 0.195 or [0, 1]",
        "outside linf 0.195 or [0, 1]",
    ]
    came = submit_attack(sent(folder, index, images), row, "E. Xternal", reference=named(board.parent))
    assert came.refused == {place: f"sample {index[place]}: {reason}" for place, reason in enumerate(reasons) if reason}
    assert (came.new, came.known) == (1, 0)
    assert np.flatnonzero(~best_known(read_row(row))).tolist() == [first]
    refusal(lambda: bundle.replay(index, images[:, :, :4]), "give one number and one float image of shape (1, 8, 8)")


def test_the_best_attack_lowers_the_row_to_the_closed_form(attacked, board, row, optimal):
    bundle, folder = attacked
    found, breaks = optimal
    assert [reason is None for reason in bundle.replay(bundle.index, found)] == breaks.tolist()
    half = np.arange(60) < 30
    some = sent(folder, bundle.index[half], found[torch.from_numpy(half)])
    digest = content_digest(read_row(row))
    came = submit_attack(some, row.parent, "First", "closed form", "https://example.org", named(board.parent))
    assert (came.before, came.after) == (100.0, pytest.approx(100 * (1 - breaks[half].sum() / 60)))
    # Who comes later is credited with what is new alone.
    came = submit_attack(sent(folder, bundle.index, found), row.parent, "Second", reference=named(board.parent))
    assert (came.new, came.known) == (breaks[~half].sum(), breaks[half].sum())
    result = read_row(row)
    np.testing.assert_array_equal(best_known(result), ~breaks)
    assert content_digest(result) == digest
    assert [(one.by, one.method, one.link) for one in found_since(result)] in (
        [("First", "closed form", "https://example.org"), ("Second", "", "")],
        [("Second", "", ""), ("First", "closed form", "https://example.org")],
    )
    again = submit_attack(sent(folder, bundle.index, found), row.parent, "Third", reference=named(board.parent))
    assert (again.file, again.new, again.known) == (None, 0, breaks.sum())
    assert len(list(row.parent.glob("*.attack"))) == 2
    # Whoever verifies the row replays these images too.
    checks = {one.name: one for one in verify(VerificationRequest(row, model=named(board.parent).model))}
    assert checks["found by First"].status == checks["found by Second"].status == "confirmed"
    assert checks["found by First"].text == f"{breaks[half].sum()} broken samples, each by its image"


def test_a_forged_attack_file_is_refuted_and_a_strange_one_refused(attacked, board, row, optimal):
    bundle, folder = attacked
    found, _ = optimal
    file = submit_attack(sent(folder, bundle.index, found), row, "E. Xternal", reference=named(board.parent)).file

    def rewritten(**changes):
        """The file with other values, and a right seal."""
        with h5py.File(file) as opened:
            values = {**opened.attrs, **{name: opened[name][...] for name in opened}, **changes}

        def fill(target):
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    target[name] = value
                elif name not in ("format", "format_version"):
                    target.attrs[name] = value

        return fill

    with h5py.File(file) as opened:
        prediction, rows = opened["prediction"][...], opened["row"][...]
    whole = file.read_bytes()
    for changes, expected in (
        ({"result_digest": "0" * 64}, "found for another result"),
        ({"epsilon": "0.3"}, "names samples or a radius that the row does not have"),
        ({"epsilon": "wide"}, "names samples or a radius that the row does not have"),
        ({"norm": "l2"}, "names samples or a radius that the row does not have"),
        ({"row": rows + 60}, "names samples or a radius that the row does not have"),
        ({"row": np.zeros_like(rows)}, "names samples or a radius that the row does not have"),
        ({"prediction": prediction[1:]}, "has shape"),
    ):
        file.write_bytes(whole)
        ATTACK_FILE.write(file, rewritten(**changes))
        refusal(lambda: read_row(row), str(file), expected)
    file.write_bytes(whole[:-9])
    refusal(lambda: read_row(row), str(file), "altered or damaged")
    file.write_bytes(whole)
    ATTACK_FILE.write(file, rewritten(code=np.zeros_like(h5py.File(file)["code"][...])))
    checks = {one.name: one for one in verify(VerificationRequest(row, model=named(board.parent).model))}
    assert checks["found by E. Xternal"].status == "refuted"
    assert f"classifies otherwise than recorded: {len(rows)}" in checks["found by E. Xternal"].text


def test_what_is_no_attack_bundle_or_no_file_of_images_is_refused(attacked, board, row, optimal):
    bundle, folder = attacked
    found, _ = optimal
    file = sent(folder, bundle.index, found)
    reference = named(board.parent)
    refusal(lambda: submit_attack(file, row, "  ", reference=reference), "give a name")
    refusal(lambda: submit_attack(file, row, "E.", "m" * 201), "--method has 201 characters: give at most 200")
    refusal(lambda: submit_attack(folder / "none.npz", row, "E."), "no file at ")
    refusal(lambda: submit_attack(file, row, "E."), "holds no model: name the row's")
    refusal(lambda: submit_attack(file, folder, "E.", reference=reference), "does not have the row")
    stray = shutil.copy(file, folder.parent)
    refusal(lambda: submit_attack(Path(stray), row, "E."), "was not written by `bench attack-bundle`")
    np.savez(file, index=bundle.index)
    refusal(lambda: submit_attack(file, row, "E."), "holds no images")
    np.savez(file, index=bundle.index, images=(255 * found.numpy()).astype(np.uint8))
    refusal(lambda: submit_attack(file, row, "E."), "give whole numbers (k,) and floats")
    with np.load(folder / "images.npz") as whole:
        np.savez(folder / "images.npz", **{**whole, "pixels": whole["pixels"] // 2})
    refusal(lambda: open_attack_bundle(folder, reference), "holds other images than those of the row")


# ------------------------------------------------------------------------------------------------- the board


def found_by(name, *broken, file="x"):
    """Somebody's images of these samples of the example."""
    prediction = predictions(*set(range(10)) - set(broken))
    return Found(name, "", "", "2026-01-02T00:00:00+00:00", "linf", "8/255", prediction, Path(file))


def on_board(result, *found):
    return BoardRow(**{**vars(result), "found": found})


def test_the_column_is_there_where_there_is_something_to_show():
    """Of the example, samples 0 and 1 stand in the worst case; somebody broke sample 1."""
    lowered = on_board(example(), found_by("E. Xternal", 1))
    other = with_run(example(), model="Other", checkpoint_digest="e" * 64)
    table = build_table([other, lowered])
    assert list(table.columns)[-1] == "Best known"
    assert {row.name: row.cells["Best known"].value for row in table.rows} == {"AT": 10.0, "Other": 20.0}
    assert "AT: best known: 1 more broken by images of E. Xternal, 2026-01-02 (note)" in table.notes
    about = "Column Best known: per image, under every attack inside linf 8/255, and under images that others found"
    assert about in table.notes
    ranked = build_table([other, lowered], rank_by="Best known", columns=["Best known"])
    assert [row.name for row in ranked.rows] == ["Other", "AT"]
    page = Elements(render_html(board_data([other, lowered])))
    assert page.rows[0][-1] == "Best known" and {row[-1][:4] for row in page.rows[1:]} == {"10.0", "20.0"}
    assert "Best known" in render_csv(board_data([other, lowered], rank_by="Best known"))
    # Without it, a board is what it was, to the byte.
    for form in (".md", ".html", ".json", ".csv"):
        assert board_text([other, on_board(example())], form) == board_text([other, example()], form)


def test_other_radii_and_several_finders():
    """An attack beyond the main radius tells nothing of it; what two people found counts once."""
    wide = with_attack(example(), "AA", epsilon="16/255")
    row = on_board(wide, found_by("A", 0, 2), found_by("B", 2))
    # Right clean and under FGSM and PGD-20: 0 to 3.
    assert np.flatnonzero(best_known(on_board(wide))).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(best_known(row)).tolist() == [1, 3]
    assert LABEL.shape == best_known(row).shape


def test_a_suite_with_such_a_column_of_its_own_is_refused():
    row = on_board(example(), found_by("A", 1))
    named_so = replace(row, suite={**row.suite, "derived": [{"label": "Best known", "worst_of": ["FGSM"]}]})
    refusal(lambda: build_table([named_so]), "a column 'Best known' of its own")


def test_bundles_in_a_board_folder_are_no_rows_of_it(tmp_path):
    write_result(example(), tmp_path / "at.h5")
    for name in ("sent", "sent/deeper"):
        write_result(example(), tmp_path / name / "result.h5")
    (tmp_path / "sent" / "bundle.json").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in row_files(tmp_path)] == ["at.h5", "sent/deeper/result.h5"]


def test_a_record_that_says_nothing_is_refused(tmp_path):
    write_result(example(), tmp_path / "at.h5")
    record = {"format": "bench-checked", "version": 1, "row": content_digest(example()), "checks": [], "again": []}
    for content, expected in (
        ("{", "does not say who checked what"),
        (json.dumps({**record, "by": "A"}), "does not say who checked what"),
        (json.dumps({**record, "by": ["A"], "created": ""}), "does not say who checked what"),
        (json.dumps({**record, "by": "A", "created": "", "row": "0"}), "is of another row"),
    ):
        (tmp_path / "at.checked.json").write_text(content)
        refusal(lambda: read_row(tmp_path / "at.h5"), "at.checked.json", expected)
    (tmp_path / "at.checked.json").write_text(json.dumps({**record, "by": "A", "created": "2026"}))
    assert read_row(tmp_path / "at.h5").checked["by"] == "A"


# ------------------------------------------------------------------------------------------ by the command line


def test_from_a_row_to_a_lower_one(digits_run, bench, tmp_path):
    """Made, checked, accepted, attacked as README.md in the attack bundle shows, and shown."""
    suite = {"name": "weak", "version": 1, "cells": [{**WEAK, "epsilon": "eps"}]}
    (tmp_path / "weak.json").write_text(json.dumps(suite))
    run = shutil.copytree(digits_run, tmp_path / "run")
    asked = ("--suite", "weak.json", "--limit", 40, "--probes", 0, "--save-adversarials", "--out", "run/results/r.h5")
    assert bench("eval", run, *asked)[0] == 0
    code, output = bench("submit", "run/results/r.h5", "--by", "A. Person", "--out", "sent")
    assert (code, output) == (0, "sent\n")
    code, output = bench("board", "check", "sent", "--board", "board", "--accept", "--by", "M. Aintainer")
    assert code == 0 and "\nConfirmed: the row may go on the board." in output, output
    row = Path(output.splitlines()[-1])
    code, output = bench("attack-bundle", row, "--checkpoint", "sent", "--out", "a")
    assert (code, output) == (0, "a\n")
    program = re.search("```python\n(.*?)```", Path("a/README.md").read_text(), re.DOTALL)[1]
    exec(compile(program, "README.md", "exec"), {})
    before = best_known(read_row(row)).mean()
    code, output = bench("submit-attack", "a/found.npz", "board", "--by", "E. Xternal", "--method", "FGSM")
    *_, told, file = output.splitlines()
    assert code == 0 and Path(file).is_file(), output
    after = best_known(read_row(row)).mean()
    result = read_result(row)
    stood = (result.clean_prediction == result.label) & (result.attacks["PGD-1"].prediction == result.label)
    assert after < before == stood.mean()
    assert told.endswith(f"best known {100 * before:.1f} -> {100 * after:.1f}")
    code, output = bench("submit-attack", "a/found.npz", "board", "--by", "E.")
    assert code == 2 and "nothing is new: of 40 images " in output.splitlines()[-1]
    code, output = bench("leaderboard", "board", "--out", "board.html")
    assert code == 0 and "Best known" in output and "by images of E. Xternal (FGSM)" in output
    page = Path("board.html").read_text()
    assert Elements(page).rows[1][-1].startswith(f"{100 * after:.1f}")
    assert "checked by M. Aintainer" in page
    code, output = bench("verify", row, "--board", "board.html", "--checkpoint", "sent")
    assert code == 0 and "found by E. Xternal: confirmed" in output and "board: confirmed" in output
