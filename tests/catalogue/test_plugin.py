"""A stranger's defense, one file outside the repository: from training to the leaderboard by command line alone."""

import hashlib
import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from bench import cli
from bench.catalogue import plugins as registry
from bench.errors import BenchError
from bench.models.checkpoints import load_checkpoint
from bench.training.request import TrainingRequest, dataset_and_protocol, is_finished
from tests import ROOT

EXAMPLE = ROOT / "examples" / "clean_and_adversarial.py"
BACKBONE = ROOT / "examples" / "two_convolutions.py"
NAME = "clean-and-adversarial"
ATTACK = "from bench.interfaces import Attack\n\n\nclass Mine(Attack):\n    paper = 'none'\n"


@pytest.fixture
def bench(monkeypatch, capsys):
    """The command line in this process: exit code, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def plugin(tmp_path):
    """The example, where a stranger would have it."""
    return Path(shutil.copy(EXAMPLE, tmp_path))


def test_from_a_file_to_the_leaderboard(bench, plugin, tmp_path):
    runs = tmp_path / "runs"
    size = ["--dataset", "digits", "--epochs", "1", "--limit-train", "128"]
    arguments = ["--plugin", plugin, "--defense", NAME, "--set", "clean_share=0.25", *size, "--runs", runs]
    code, printed, errors = bench("train", *arguments, "--device", "cpu")
    assert code == 0, errors
    folder = Path(printed.strip())
    assert folder == runs / "digits" / "cnn-small" / NAME / "seed-0"
    code, verdict, errors = bench("eval", folder, "--plugin", plugin, "--suite", "quick", "--limit", "20")
    assert code == 0, errors
    result = folder / "results" / "quick-v1-first20.h5"
    assert result.is_file()
    assert errors.splitlines()[-3:] == ["Next:", f"  bench trust {result}", f"  bench leaderboard {result}"]
    code, board, errors = bench("leaderboard", result)
    assert code == 0, errors
    assert verdict.startswith(f"{NAME}: digits, linf 0.15, suite quick version 1, 20 samples")
    assert [line for line in board.splitlines() if line.startswith("|") and NAME in line]
    registry.added.clear()
    code, printed, errors = bench("eval", folder, "--suite", "quick", "--limit", "20", "--overwrite")
    assert_one_line(code, printed, errors, f"unknown defense '{NAME}'")


def test_a_backbone_of_ones_own_is_trained_and_evaluated(bench, tmp_path):
    file = Path(shutil.copy(BACKBONE, tmp_path))
    size = ["--defense", "at", "--dataset", "digits", "--epochs", 1, "--limit-train", 64, "--device", "cpu"]
    arguments = ["train", "--backbone", file, *size, "--runs", tmp_path / "runs"]
    code, printed, errors = bench(*arguments)
    assert code == 0, errors
    folder = tmp_path / "runs" / "digits" / "two-convolutions" / "at" / "seed-0"
    assert printed.strip() == str(folder)
    config = load_checkpoint(folder).config
    assert (config["backbone"], config["backbone_sha256"]) == ("two-convolutions", sha256(file.read_bytes()))
    original = file.read_text()
    file.write_text(original + "# a comment\n")
    assert_one_line(*bench(*arguments), f"was trained with another version of {file}: undo the edit")
    file.write_text(original.replace("map_channels = 32", "map_channels = 64"))
    assert_one_line(*bench(*arguments), "maps two images of 1x8x8 to (2, 32, 2, 2)", "says map_channels=64")
    file.write_text(original.replace("image_size: tuple[int, int], ", ""))
    assert_one_line(*bench(*arguments), "'two-convolutions' cannot be made for images of 1x8x8: TypeError")
    file.write_text(original.replace("smallest = 4", "smallest = 9"))
    assert_one_line(*bench(*arguments), "'two-convolutions' needs images of at least 9x9", "cnn-small")
    registry.added.clear()
    with pytest.raises(BenchError, match="unknown backbone 'two-convolutions'"):
        load_checkpoint(folder).build()
    file.write_text(original)
    assert "two-convolutions" in bench("list", "backbones", "--plugin", file)[1]
    assert load_checkpoint(folder).build()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_file_that_is_edited_within_a_second_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    for number in (1, 2):
        file.write_text(f"NUMBER = {number}\n")
        os.utime(file, (1e9, 1e9))
        assert number == registry.load_python_file(file).NUMBER


def test_an_edited_file_does_not_continue_what_another_began(bench, plugin, tmp_path):
    size = ["--dataset", "digits", "--epochs", 1, "--limit-train", 128, "--backbone", "cnn-small", "--device", "cpu"]
    arguments = ["--plugin", plugin, "--defense", NAME, *size]
    code, _, errors = bench("train", *arguments, "--out", tmp_path / "run")
    assert code == 0, errors
    original = plugin.read_bytes()
    plugin.write_bytes(original + b"# a comment\n")
    expected = f"was trained with another version of {plugin}: undo the edit, or choose another folder with --out"
    assert_one_line(*bench("train", *arguments, "--out", tmp_path / "run", "--resume"), expected)
    # A sweep asks the same when it looks at what is finished.
    request = TrainingRequest(
        NAME, "digits", "cnn-small", protocol={"epochs": 1}, limit_train=128, folder=tmp_path / "run"
    )
    with pytest.raises(BenchError, match="another version of"):
        is_finished(request, *dataset_and_protocol(request))
    plugin.write_bytes(original)
    assert bench("train", *arguments, "--out", tmp_path / "run", "--resume")[0] == 0
    assert is_finished(request, *dataset_and_protocol(request))
    digest = load_checkpoint(tmp_path / "run").config["defense_sha256"]
    assert digest == hashlib.sha256(original).hexdigest()


def digest_of(monkeypatch, path):
    """As in a process that imports the file, and what is beside it, for the first time."""
    monkeypatch.setattr(registry, "added", {})
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(path.parent)):
            monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    name = registry.add_plugin(path)
    return registry.imported_digest(registry.find("defense", name))


def sha256(*texts):
    return hashlib.sha256(b"".join(texts)).hexdigest()


def test_the_digest_of_a_plugin_is_of_its_file_and_of_what_it_imports_from_its_folder(monkeypatch, plugin):
    alone, folder = plugin.read_bytes(), plugin.parent
    (folder / "unused.py").write_bytes(b"1 / 0")
    # What is named like the standard library, or is this program, is not the folder's.
    for name in ("dataclasses", "bench", "torch"):
        (folder / f"{name}.py").write_bytes(b"1 / 0")
    assert digest_of(monkeypatch, plugin) == sha256(alone)
    own = alone + b"\nimport mylosses, json\nfrom mypackage.inner import two\nimport os.path\n"
    texts = {
        "mylosses.py": b"from mysteps import STEPS\nimport mylosses\n",
        "mypackage/__init__.py": b"",
        "mypackage/inner.py": b"from .outer import *\ntwo = 2\n",
        "mypackage/outer.py": b"three = 3\n",
        "mysteps.py": b"STEPS = 10\n",
    }
    (folder / "mypackage").mkdir()
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    plugin.write_bytes(own)
    expected = sha256(own, *(part for name, text in texts.items() for part in (f"{name}\n".encode(), text)))
    assert digest_of(monkeypatch, plugin) == expected
    for name, text in texts.items():
        (folder / name).write_bytes(text + b"# an edit\n")
        assert digest_of(monkeypatch, plugin) != expected, name
        (folder / name).write_bytes(text)


def test_the_digest_of_a_built_in_defense_is_of_its_file():
    for name in registry.names("defense"):
        file = ROOT / "defenses" / f"{name.replace('-', '_')}.py"
        assert registry.imported_digest(registry.find("defense", name)) == sha256(file.read_bytes())


def test_an_edited_neighbour_does_not_continue_what_another_began(bench, plugin, tmp_path, monkeypatch):
    (tmp_path / "myshare.py").write_text("SHARE = 0.5\n")
    plugin.write_text(plugin.read_text().replace("hyperparameter(0.5", "hyperparameter(SHARE"))
    plugin.write_text(plugin.read_text().replace("from typing", "from myshare import SHARE\nfrom typing"))
    arguments = ["--plugin", plugin, "--defense", NAME, "--dataset", "digits", "--epochs", 1, "--limit-train", 64]
    arguments += ["--backbone", "cnn-small", "--device", "cpu", "--out", tmp_path / "run", "--resume"]
    assert bench("train", *arguments)[0] == 0
    (tmp_path / "myshare.py").write_text("SHARE = 0.5  # as in the paper\n")
    monkeypatch.delitem(sys.modules, "myshare")
    assert_one_line(*bench("train", *arguments), f"was trained with another version of {plugin}: undo the edit")


def test_list_shows_its_hyperparameter(bench, plugin):
    code, printed, _ = bench("list", "defenses", "--plugin", plugin)
    assert code == 0
    entry = printed.split(NAME)[1].partition("\n\n")[0].splitlines()
    assert "Cross-entropy on clean and on PGD images." in entry[0]
    assert "    clean_share = 0.5 (paper)  weight of the clean images, in [0, 1]" in entry
    registry.added.clear()
    assert NAME not in bench("list", "defenses")[1]


def assert_one_line(code, printed, errors, *words):
    assert code == 2
    assert printed == ""
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert word in errors


def test_its_hyperparameter_is_checked(bench, plugin):
    train = ["train", "--plugin", plugin, "--defense", NAME, "--dataset", "digits"]
    assert_one_line(*bench(*train, "--set", "clean_share=2"), "clean_share=2.0 is not in [0, 1]")
    assert_one_line(*bench(*train, "--set", "clean_shore=0.5"), "'clean_shore'", "Did you mean 'clean_share'?")
    assert_one_line(*bench(*train, "--set", "clean_share=half"), "clean_share='half' is not a number")


def test_a_file_named_like_a_builtin_is_refused(bench, tmp_path):
    taken = registry.names("defense")[0]
    path = Path(shutil.copy(EXAMPLE, tmp_path / f"{taken.replace('-', '_')}.py"))
    assert_one_line(*bench("list", "defenses", "--plugin", path), f"'{taken}'", "another name")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            EXAMPLE.read_text().replace("def losses", "def loss"),
            ("mine.py: CleanAndAdversarial does not define losses,",),
        ),
        (ATTACK, ("mine.py: Mine does not define perturb, which every attack must; see bench/interfaces.",)),
        (
            "answer = 42\n",
            ("mine.py", "defines no subclass of bench.interfaces.Defense or Attack or Backbone or Augmentation"),
        ),
        ("from bench.interfaces import Defense\n", ("mine.py", "no subclass")),
        ("raise RuntimeError('not today')\n", ("cannot be run: RuntimeError: not today (mine.py:1)",)),
        ("import no_such_module_anywhere\n", ("mine.py", "no_such_module_anywhere")),
        ("def broken(:\n", ("mine.py", "SyntaxError")),
        (EXAMPLE.read_text() + "\n\nclass Second(CleanAndAdversarial):\n    pass\n", ("2 subclasses", "exactly one")),
    ],
    ids=["no-losses", "no-perturb", "nothing", "imported-only", "raises", "import", "syntax", "two-defenses"],
)
def test_a_file_that_is_no_plugin_is_a_one_line_error(bench, tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert_one_line(*bench("list", "defenses", "--plugin", path), *words)


def test_a_missing_file_is_a_one_line_error(bench, tmp_path):
    assert_one_line(*bench("list", "defenses", "--plugin", tmp_path / "absent.py"), "no Python file at", "absent.py")
    assert_one_line(*bench("list", "defenses", "--plugin", tmp_path), "no Python file at")


def test_the_example_is_short_enough_to_print():
    assert len(EXAMPLE.read_text().splitlines()) < 60
