"""No file that is read runs code, writes outside its folder, or becomes a path by what it calls itself."""

import ast
import io
import itertools
import pickle
import tarfile

import numpy as np
import pytest
import torch
from torchvision import datasets as archives

from bench.data.datasets import fetch_dataset, load_dataset
from bench.interop.state_dicts import load_weights
from bench.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from bench.results.file import write_result
from bench.system.blocks import PartStore
from tests import ROOT
from tests.data.test_datasets import md5
from tests.support.command import bench, refused
from tests.support.example_results import example, with_run
from tests.support.fake_cifar import write_cifar10
from tests.support.refusals import refusal

SHIPPED = [
    path
    for folder in ("attacks", "bench", "benchmarks", "defenses", "examples", "leaderboard")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
RUNS_NAMED_FILES = {
    "bench/catalogue/plugins.py": "loader.exec_module(module)",
    "bench/interop/kinds/torchscript.py": "torch.jit.load(str(path), map_location='cpu')",
    "benchmarks/autoattack.py": "specification.loader.exec_module(module)",
}
"""Where programs that a person names are run, and how: Python files of --model, --plugin, --adaptive; TorchScript."""
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load"}


def dangerous(tree):
    """Calls that could run what a file holds, as text."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            refused = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
            yield from (str(module) for module in modules if str(module).partition(".")[0] in refused)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            yield ast.unparse(node)
        if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            yield ast.unparse(node)
        if name in RUNS_TEXT:
            yield ast.unparse(node)
        if name.startswith("pickle.") or name.endswith((".exec_module", ".read_pickle", ".Unpickler")):
            yield ast.unparse(node)
        if options.get("shell") == "True" or options.get("allow_pickle") == "True":
            yield ast.unparse(node)


def test_no_call_runs_what_a_file_holds():
    found = {path.relative_to(ROOT).as_posix(): list(dangerous(ast.parse(path.read_text()))) for path in SHIPPED}
    assert {name: calls for name, calls in found.items() if calls} == {
        name: [call] for name, call in RUNS_NAMED_FILES.items()
    }


def test_the_search_for_dangerous_calls_finds_them():
    bad = [
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)", "pandas.read_pickle(path)"),
        *("np.load(path, allow_pickle=True)", "eval(text)", "exec(text)", "pickle.load(file)", "pickle.loads(text)"),
        *("import yaml", "subprocess.run(text, shell=True)"),
    ]
    assert [line for line in bad if not list(dangerous(ast.parse(line)))] == []
    good = "torch.load(path, weights_only=True); np.load(path, allow_pickle=False); model.eval(); re.compile(text)"
    assert list(dangerous(ast.parse(good))) == []


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


def test_pickles_in_parts_datasets_weights_and_zoo_files_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()], dtype=object)
    parts = PartStore(tmp_path / "r.h5", {})
    parts.put("clean", {"prediction": np.zeros(1)})
    np.savez(next(parts.folder.iterdir()), prediction=bomb)
    assert parts.get("clean") is None
    np.savez(tmp_path / "mine.npz", x_train=bomb, y_train=bomb, x_test=bomb, y_test=bomb)
    refusal(lambda: load_dataset("npz:mine.npz", tmp_path), "cannot be read as an archive of plain arrays")
    torch.save({"state_dict": Bomb()}, tmp_path / "evil.pt")
    told = ("evil.pt", "nothing in it was executed")
    refusal(lambda: load_weights(torch.nn.Linear(1, 1), tmp_path / "evil.pt"), *told)
    zoo = tmp_path / "models" / "cifar10" / "Linf"
    zoo.mkdir(parents=True)
    torch.save({"state_dict": Bomb()}, zoo / "Standard.pt")
    line = refused("eval", "--model", "robustbench:Standard", "--dataset", "cifar10")
    assert "cannot be loaded as RobustBench's Standard (UnpicklingError" in line
    assert not (tmp_path / "exploded").exists()


def test_cifar_files_are_unpickled_only_after_their_md5_sum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path, monkeypatch, np.zeros((2, 3, 32, 32), np.uint8), [0, 1])
    load_dataset("cifar10", tmp_path)
    (tmp_path / archives.CIFAR10.base_folder / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    refusal(lambda: load_dataset("cifar10", tmp_path), "its files are unreadable or not the published ones")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("labels", [[0, -1], [10, 0], [2**40, 1]])
def test_cifar_labels_out_of_range_are_refused(labels, tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch, np.zeros((2, 3, 32, 32), np.uint8), labels)
    refusal(lambda: load_dataset("cifar10", tmp_path), "cifar10 is damaged in")


def archive(path, name, kind=tarfile.REGTYPE, link=""):
    """A tar file with one member."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    with tarfile.open(path, "w:gz") as file:
        file.addfile(member, io.BytesIO(b"evil"))
    return md5(path)


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python's tarfile has no filters")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("../../evil", {}),
        ("cifar-10-batches-py/../../../evil", {}),
        ("{outside}/evil", {}),
        ("link", {"kind": tarfile.SYMTYPE, "link": "../../evil"}),
        ("link", {"kind": tarfile.LNKTYPE, "link": "../../evil"}),
        ("device", {"kind": tarfile.CHRTYPE}),
    ],
)
def test_an_archive_cannot_write_outside_its_folder_even_with_the_right_sum(name, options, tmp_path, monkeypatch):
    data, outside = tmp_path / "a" / "b" / "data", tmp_path / "outside"
    for folder in (data, outside):
        folder.mkdir(parents=True)
    source = data / archives.CIFAR10.filename
    monkeypatch.setattr(archives.CIFAR10, "tgz_md5", archive(source, name.format(outside=outside), **options))
    before = tarfile.TarFile.extraction_filter
    refusal(lambda: fetch_dataset("cifar10", data), "cifar10 could not be downloaded")
    assert tarfile.TarFile.extraction_filter is before
    # An absolute path is taken for one in the folder; nothing appears elsewhere.
    assert [path for path in tmp_path.rglob("*") if not path.is_dir() and data not in path.parents] == []


def test_an_archive_with_another_sum_is_not_unpacked(tmp_path, monkeypatch):
    source = tmp_path / archives.CIFAR10.filename
    archive(source, "cifar-10-batches-py/data_batch_1")
    monkeypatch.setattr(archives.CIFAR10, "url", (tmp_path / "nowhere").as_uri())
    refusal(lambda: fetch_dataset("cifar10", tmp_path), "cifar10 could not be downloaded")
    assert not (tmp_path / "cifar-10-batches-py").exists()


def test_names_in_an_npz_are_names(tmp_path):
    arrays = {"x_train": np.zeros((2, 2, 2), np.uint8), "y_train": np.arange(2)}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"], "../../evil": np.arange(3)}
    path = tmp_path / "a" / "b" / "mine.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)
    assert len(load_dataset(f"npz:{path}", tmp_path).train) == 2
    assert [entry.name for entry in tmp_path.rglob("*") if entry.is_file()] == ["mine.npz"]


EVIL = ["../../x", "/tmp/../x", "..", "a/../../../x", "x\\..\\y", "~/x", "C:\\x", "con\x00trol"]


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A folder in folders; everything that appears elsewhere under the first one has escaped."""
    folder = tmp_path / "a" / "b" / "c" / "d"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    yield folder
    escaped = [path for path in tmp_path.rglob("*") if folder not in (path, *path.parents) and path.is_file()]
    assert escaped == []


def pairs(*keys):
    """The first name under every key, and every other one under one of them."""
    return [*itertools.product(keys, EVIL[:1]), *zip(itertools.cycle(keys), EVIL[1:], strict=False)]


@pytest.mark.parametrize(("key", "name"), pairs("defense", "backbone", "dataset"))
def test_a_checkpoint_that_calls_itself_a_path(key, name, deep, digits_run):
    loaded = load_checkpoint(digits_run)
    config = dict(loaded.config)
    config |= {"dataset": {**config["dataset"], "name": name}} if key == "dataset" else {key: name}
    save_checkpoint(Checkpoint(config, loaded.weights), deep / "last")
    before = sorted(deep.rglob("*"))
    refused("eval", deep, "--suite", "clean", "--limit", 5)
    refused("export", "robustbench", deep, "--out", "models")
    assert sorted(deep.rglob("*")) == before


@pytest.mark.parametrize(("key", "name"), pairs("model", "defense", "dataset", "backbone", "suite"))
def test_a_result_that_calls_itself_a_path(key, name, deep):
    result = with_run(example(), **{key: name}) if key != "suite" else example(suite={**example().suite, "name": name})
    write_result(result, deep / "r.h5")
    for arguments in (
        ["leaderboard", "r.h5", "--folder", "--out", "boards"],
        ["leaderboard", "r.h5", "--out", "board.html"],
        ["export", "model-info", "r.h5"],
    ):
        code, output = bench(*arguments)
        assert code == 0 or (code == 2 and output.count("\n") == 1), output
    pages = [path for path in (deep / "boards").iterdir() if path.name != "index.html"]
    assert len(pages) == 1 and set(pages[0].stem) <= set(map(chr, range(128))) - set("/\\~:\0")
    assert {path.name for path in deep.iterdir()} <= {"r.h5", "boards", "board.html", "model_info"}


def test_a_name_given_by_a_person_is_refused_before_a_folder_is_made(deep):
    for option, name in (("--defense", "../../x"), ("--backbone", "../../x"), ("--dataset", "../../x")):
        arguments = {"--defense": "st", "--dataset": "digits", option: name}
        assert "'../../x'" in refused("train", *(word for pair in arguments.items() for word in pair))
    assert list(deep.iterdir()) == []
