"""Result files: what is written is read, and whatever is not exactly that is refused in one line."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bench.results.file import CorruptionRecord, EvaluationResult, content_digest, read_result, write_result
from tests import GOLDENS, ROOT
from tests.support.example_results import (
    corrupted,
    example,
    featured,
    predictions,
    record,
    single,
    with_attack,
    with_run,
)
from tests.support.refusals import refusal

ARCHIVED = GOLDENS / "result-v1.h5"
ARCHIVED_DIGEST = "f4e84c98e6bc0df711ebc1612504a2d0f47fd29d7f609ccc9cd64cacd40765dd"


def everything(result: EvaluationResult) -> list[Any]:
    """All that a result holds, times included, in a form that compares."""
    arrays = [result.label, result.index, result.clean_prediction]
    cells = []
    for one in result.attacks.values():
        cells.append([one.label, one.attack, dict(one.parameters), one.norm, one.epsilon, one.objective, one.seconds])
        arrays += [one.prediction, one.final_prediction, one.distance]
    stored = [(str(values.dtype), values.tolist()) for values in arrays]
    return [result.run, result.suite, list(result.findings), cells, stored]


def reseal(body: bytes, version: int = 1) -> bytes:
    """A seal made from FORMAT.md alone."""
    return f"bench-result {version} {hashlib.sha256(body).hexdigest()}\n".encode().ljust(512, b"\0") + body


def unread(path: Path) -> str:
    """The one line in which a file is refused."""
    return refusal(lambda: read_result(path), str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The example, written."""
    write_result(example(), tmp_path / "result.h5")
    return tmp_path / "result.h5"


def edit(path: Path, change: Callable[[Any], object], version: int = 1) -> Path:
    """Change a file through h5py, and seal it again."""
    buffer = io.BytesIO(path.read_bytes())
    with h5py.File(buffer, "r+") as file:
        change(file)
    path.write_bytes(reseal(buffer.getvalue()[512:], version))
    return path


def labelled(*labels: str) -> EvaluationResult:
    return example(attacks={label: record(label, "pgd", (), ()) for label in labels})


NONE = np.zeros(0, dtype=np.int16)
HOSTILE = ("../../up", "/root", ".", "samples/label", "∞ C&W", "x" * 300)


@pytest.mark.parametrize(
    "result",
    [
        *(example(), single(True), EvaluationResult({}, {}, NONE, np.zeros(0, dtype=np.int64), NONE, {})),
        *(labelled(*(f"Z {12 - order}" for order in range(12))), labelled(*HOSTILE)),
    ],
    ids=["example", "no attacks", "no samples", "order", "labels"],
)
def test_what_is_written_is_read(tmp_path: Path, result: EvaluationResult) -> None:
    write_result(result, tmp_path / "result.h5")
    found = read_result(tmp_path / "result.h5")
    assert everything(found) == everything(result)
    assert list(found.attacks) == list(result.attacks)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.h5"]


def test_labels_never_become_paths(tmp_path: Path) -> None:
    write_result(labelled(*HOSTILE), tmp_path / "result.h5")
    with h5py.File(tmp_path / "result.h5") as file:
        assert sorted(file) == ["attacks", "samples"]
        assert list(file["attacks"])[:4] == ["000-up", "001-root", "002-", "003-samples-label"]


def test_layout_is_the_documented_one(path: Path) -> None:
    data = path.read_bytes()
    assert data == reseal(data[512:])
    with h5py.File(path) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("bench-result", 1)
        assert json.loads(file.attrs["run"])["model"] == "AT"
        assert file.attrs["digest"] == content_digest(example())
        group = file["attacks/001-pgd-20"]
        assert json.loads(group.attrs["parameters"]) == {"steps": 20, "step_size": "2/255"}
        stored = group["prediction"]
        assert (stored.dtype, stored.compression, stored.shuffle, stored.fletcher32) == ("<i2", "gzip", True, True)


def test_archived_file_reads_forever(tmp_path: Path) -> None:
    result = read_result(ARCHIVED)
    assert everything(result) == everything(example())
    assert content_digest(result) == ARCHIVED_DIGEST
    write_result(result, tmp_path / "again.h5")
    assert everything(read_result(tmp_path / "again.h5")) == everything(result)


def test_digest_ignores_times_and_command_only() -> None:
    digest = content_digest(example())
    assert content_digest(with_attack(example(), "AA", seconds=99.0)) == digest
    assert content_digest(with_run(example(), created="later", command="other", seconds=3.0)) == digest
    assert content_digest(with_attack(example(), "PGD-20", parameters={"step_size": "2/255", "steps": 20})) == digest
    different = [
        with_run(example(), seed=1),
        with_attack(example(), "AA", prediction=predictions(0, 1)),
        with_attack(example(), "AA", final_prediction=predictions(0, 1)),
        with_attack(example(), "AA", distance=np.zeros(10, dtype=np.float32)),
        with_attack(example(), "AA", epsilon="4/255"),
        with_attack(example(), "AA", objective="adaptive"),
        with_attack(example(), "PGD-20", parameters={"step_size": "2/255", "steps": 21}),
        example(clean_prediction=predictions(*range(9))),
        example(index=np.arange(10)),
        example(findings=()),
        example(attacks=dict(reversed(example().attacks.items()))),
    ]
    assert len({digest, *map(content_digest, different)}) == len(different) + 1


def test_every_flipped_byte_and_truncation_is_refused(path: Path) -> None:
    data, generator = path.read_bytes(), np.random.default_rng(0)
    for place in [*range(120), *generator.integers(len(data), size=250).tolist()]:
        damaged = bytearray(data)
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        unread(path)
    for length in [0, 1, 511, 512, 513, 520, *generator.integers(len(data), size=60).tolist()]:
        path.write_bytes(data[:length])
        unread(path)
    for content in (data[:-1], data + b"\0"):
        path.write_bytes(content)
        assert "altered or damaged" in unread(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    assert "No such file" in unread(path)
    path.write_text("accuracy: 99 %")
    assert "not an HDF5 file" in unread(path)
    with h5py.File(path, "w") as file:
        file["weights"] = [1.0]
    assert "not of format bench-result" in unread(path)
    assert "directory" in unread(tmp_path).lower()
    refusal(lambda: read_result("a\0b"), "not a usable path")


def test_unknown_version_is_named(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"bench-result 1 ", b"bench-result 7 ", 1))
    assert "unknown format_version 7. This program reads: 1, 2, 3." in unread(path)
    path.write_bytes(data)
    stated = edit(path, lambda file: file.attrs.update(format_version=2))
    assert "its seal is of version 1, its format_version 2" in unread(stated)


def replaced(name: str, values: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


def linked(file: Any) -> None:
    del file["samples/label"]
    file["samples/label"] = h5py.ExternalLink("elsewhere.h5", "/samples/label")


def kept_outside(file: Any) -> None:
    del file["samples/label"]
    file["samples"].create_dataset("label", (10,), "<i2", external=[("elsewhere.raw", 0, 20)])


def inflated(file: Any) -> None:
    del file["samples/label"]
    file["samples"].create_dataset("label", (2**40,), "<i2", chunks=(2**20,))


def copied_attack(file: Any) -> None:
    file.copy("attacks/000-fgsm", "attacks/009-fgsm")
    file["attacks/009-fgsm"].attrs["order"] = 9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replaced("samples/label", None), "'/samples/label' is missing"),
        (replaced("samples", None), "group 'samples' is missing"),
        (replaced("attacks", None), "group 'attacks' is missing"),
        (replaced("attacks/002-aa/distance", None), "'/attacks/002-aa/distance' is missing"),
        (replaced("attacks/002-aa", 3), "group '002-aa' is missing"),
        (replaced("samples/index", np.arange(9)), "'/samples/index' has shape (9,)"),
        (replaced("samples/label", np.zeros((2, 5), np.int16)), "'/samples/label' has shape (2, 5)"),
        (replaced("samples/label", np.int16(3)), "'/samples/label' has shape ()"),
        (replaced("samples/label", np.arange(10)), "'/samples/label' has type int64, not int16"),
        (replaced("samples/label", ["a"] * 10), "'/samples/label' has type object"),
        (linked, "kept in another file"),
        (kept_outside, "kept in another file"),
        (inflated, "claims 2199023255552 bytes"),
        (copied_attack, "same label or order"),
        (lambda file: file.attrs.update(format="other"), "not of format bench-result"),
        (lambda file: file.attrs.update(run="{"), "'run' of '/' is not the JSON"),
        (lambda file: file.attrs.update(run="[" * 100_000), "'run' of '/' is not the JSON"),
        (lambda file: file.attrs.update(suite="[]"), "'suite' of '/' is not the JSON"),
        (lambda file: file.attrs.update(findings="[1]"), "'findings' of '/' is not the JSON"),
        (lambda file: file.attrs.update(run=1.0), "'run' of '/' is missing or of the wrong type"),
        (lambda file: file.attrs.pop("digest"), "'digest' of '/' is missing or of the wrong type"),
        (lambda file: file["attacks/002-aa"].attrs.pop("order"), "'order' of '/attacks/002-aa' is missing"),
        (lambda file: file["attacks/002-aa"].attrs.update(label="\n"), "printable"),
        (lambda file: file["samples/label"].write_direct(np.ones(10, np.int16)), "altered or damaged"),
        (lambda file: file["attacks/002-aa"].attrs.update(epsilon="1/255"), "altered or damaged"),
    ],
)
def test_a_wrong_tree_is_refused_even_with_a_right_seal(
    path: Path, change: Callable[[Any], object], expected: str
) -> None:
    assert expected in unread(edit(path, change))


def test_seconds_are_not_sealed_into_the_digest(path: Path) -> None:
    edit(path, lambda file: file["attacks/002-aa"].attrs.update(seconds=77.0))
    assert read_result(path).attacks["AA"].seconds == 77.0


def test_paths_that_cannot_be_written(path: Path) -> None:
    for target in (path.parent, path / "below.h5", "a\0b"):
        refusal(partial(write_result, example(), target), "cannot write")
    assert [entry.name for entry in path.parent.iterdir()] == ["result.h5"]


def test_corruptions_and_features_survive_and_make_it_version_2(tmp_path: Path) -> None:
    infinite = float("inf")
    for result in (
        corrupted({"fog": (3, 2), "a_b": (7, 0)}),
        featured((infinite, 2.5, 0.0, 1e-300, infinite, 0.1, 90.0, 0.0)),
    ):
        write_result(result, tmp_path / "result.h5")
        back = read_result(tmp_path / "result.h5")
        assert everything(back) == everything(result)
        assert back.features == result.features
        assert list(back.corruptions) == list(result.corruptions)
        for label, shown in result.corruptions.items():
            found = back.corruptions[label]
            assert (found.corruption, found.severity, found.seconds) == (shown.corruption, shown.severity, 0.5)
            np.testing.assert_array_equal(found.prediction, shown.prediction)
        assert content_digest(back) == content_digest(result)
        assert (tmp_path / "result.h5").read_bytes().startswith(b"bench-result 2 ")


def test_corruptions_and_features_are_in_the_digest() -> None:
    values = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    different = [
        example(attacks={}, suite={"name": "corruptions", "version": 1, "kind": "corruptions"}),
        corrupted({"fog": (3, 2)}),
        corrupted({"fog": (3, 3)}),
        corrupted({"frost": (3, 2)}),
        featured(values),
        featured((*values[:-1], float("inf"))),
        replace(featured(values), features=None),
    ]
    assert len({content_digest(result) for result in different}) == len(different)
    slower = {label: replace(one, seconds=9.0) for label, one in corrupted({"fog": (3, 2)}).corruptions.items()}
    assert content_digest(replace(corrupted({"fog": (3, 2)}), corruptions=slower)) == content_digest(different[1])


def test_the_layout_of_corruptions_and_features_is_the_documented_one(tmp_path: Path) -> None:
    write_result(corrupted({"fog": (3, 2)}), tmp_path / "result.h5")
    data = (tmp_path / "result.h5").read_bytes()
    assert data == reseal(data[512:], version=2)
    with h5py.File(tmp_path / "result.h5") as file:
        assert file.attrs["format_version"] == 2
        assert list(file["corruptions"]) == ["000-fog-1", "001-fog-2"]
        group = file["corruptions/001-fog-2"]
        facts = {name: group.attrs[name] for name in ("label", "corruption", "severity", "order")}
        assert facts == {"label": "fog-2", "corruption": "fog", "severity": 2, "order": 1}
        assert (group["prediction"].dtype, group["prediction"].shape) == (np.dtype("<i2"), (10,))
    write_result(featured((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)), tmp_path / "result.h5")
    with h5py.File(tmp_path / "result.h5") as file:
        attributes = dict(file["features"].attrs)
        assert (attributes["attack"], attributes["samples"], attributes["fdr_adversarial"]) == ("PGD-20", 10, 2.0)
        assert len(attributes) == 12


def test_a_version_1_file_has_no_corruptions_whatever_else_is_in_it(path: Path) -> None:
    def change(file: Any) -> None:
        file["corruptions/anything"] = [1]
        file["features"] = 3.0

    edit(path, change)
    assert everything(read_result(path)) == everything(example())
    assert (read_result(path).corruptions, read_result(path).features) == ({}, None)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: corrupted({"../up": (1, 1)}), "is not NAME-SEVERITY"),
        (
            lambda: example(corruptions={"fog-1": CorruptionRecord("fog", 1, predictions()[:9], 0.0)}),
            "/corruptions/000-fog-1/prediction has shape (9,)",
        ),
        (lambda: replace(featured((1.0,) * 8), attacks={}), "features are of 'PGD-20', which is no attack here"),
    ],
)
def test_inconsistent_corruptions_and_features_are_refused(make: Callable[[], object], expected: str) -> None:
    refusal(make, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda file: file["corruptions/000-fog-1"].attrs.pop("severity"), "'severity' of '/corruptions/000-fog-1'"),
        (replaced("corruptions/000-fog-1/prediction", None), "000-fog-1/prediction' is missing"),
        (replaced("corruptions/000-fog-1/prediction", np.zeros(9, np.int16)), "has shape (9,)"),
        (lambda file: file["corruptions/000-fog-1"].attrs.update(corruption="frost"), "altered or damaged"),
        (lambda file: file["corruptions/000-fog-1/prediction"].write_direct(np.ones(10, np.int16)), "altered"),
        (replaced("corruptions", None), "altered or damaged"),
    ],
)
def test_a_wrong_tree_of_corruptions_is_refused(tmp_path: Path, change: Callable[[Any], object], expected: str) -> None:
    path = tmp_path / "result.h5"
    write_result(corrupted({"fog": (3, 2)}), path)
    assert expected in unread(edit(path, change, version=2))


def test_the_archived_version_2_file_still_loads() -> None:
    result = read_result(ARCHIVED.with_name("result-v2.h5"))
    assert content_digest(result) == "53234d9606a799b464574124ba1dc9fe66e08d4abfd49cb27c3908aa3505dc7c"
    assert result.corruptions["fog-2"].prediction.tolist() == predictions(0, 1).tolist()
    assert result.features is not None
    assert result.features.fdr_adversarial == float("inf")


def test_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    result = with_run(example(), data=Path("data"))
    refusal(lambda: write_result(result, tmp_path / "result.h5"), "cannot be written as JSON: ", "Path is not")
    assert not list(tmp_path.iterdir())


def test_inconsistent_records_are_refused() -> None:
    one = record("PGD-20", "pgd", (), ())
    refusal(lambda: example(attacks={"PGD-10": one}), "its label as key")
    refusal(lambda: with_attack(example(), "AA", attack="a\0b"), "printable")
    arrays = ("prediction", "final_prediction", "distance")
    short = replace(one, **{name: getattr(one, name)[:9] for name in arrays})
    refusal(lambda: example(attacks={"PGD-20": short}), "/attacks/000-pgd-20/prediction has shape (9,)")


def test_importing_loads_no_heavy_library() -> None:
    program = (
        "import sys, bench.results.file, bench.results.metrics, leaderboard.render.files;"
        "print(sorted({'torch', 'h5py', 'scipy', 'pandas', 'tabulate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
