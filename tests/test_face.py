"""The public face: what `import bench` costs, and that its functions do what the commands do."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench import face
from bench.results.file import content_digest
from tests import ROOT
from tests.support.command import bench as command
from tests.support.refusals import refusal

FUNCTIONS = [face.train, face.evaluate, face.load_dataset, face.load_checkpoint, face.read_result]


def test_importing_it_imports_nothing_and_changes_nothing():
    look = "import sys; before, finders = set(sys.modules), list(sys.meta_path); import bench; bench.__version__; "
    look += "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
    shown = look + "print(new - sys.stdlib_module_names, sys.meta_path == finders)"
    output = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True).stdout
    assert output == "{'bench'} True\n"


def test_commands_that_only_tell_import_no_torch():
    program = "import sys; from bench.cli import group\n"
    program += "for words in (['--help'], ['train', '--help'], ['list'], ['list', 'suites']):\n"
    program += "    group.main(words, standalone_mode=False)\n"
    program += "heavy = {'torch', 'h5py', 'pandas', 'sklearn', 'torchvision', 'scipy'}\n"
    program += "print(sorted(heavy & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    commands = ("train", "eval", "leaderboard", "compare", "trust", "verify", "list", "data", "demo", "doctor", "sweep")
    assert [name for name in (*commands, "figure", "reproduce", "export") if f"\n  {name} " not in shown] == []
    assert shown.count("Usage: ") == 2 and "adv-dpnp" in shown
    assert shown.splitlines()[-1] == "[]"


def test_every_name_is_there_and_no_other():
    assert [name for name in bench.__all__ if not callable(getattr(bench, name))] == []
    assert {*bench.__all__} <= {*dir(bench)}
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'evalute'"):
        bench.evalute  # noqa: B018


@pytest.mark.parametrize("function", [*FUNCTIONS, type(bench.leaderboard).__call__], ids=lambda one: one.__name__)
def test_its_example_is_right(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder(recurse=False).find(function, globs={"bench": bench, "torch": torch})
    assert [test for test in examples if test.examples]
    runner = doctest.DocTestRunner()
    for test in examples:
        runner.run(test)
    assert runner.failures == 0


def test_the_page_about_python_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert (failed, tried > 10) == (0, True)


def test_a_result_is_that_of_the_command(digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bench.evaluate(digits_run, suite="quick", limit=8, probes=2, out="face.h5", quiet=True)
    code, output = command("eval", digits_run, "--suite", "quick", "--limit", 8, "--probes", 2, "--out", "command.h5")
    assert code == 0, output
    assert content_digest(bench.read_result("command.h5")) == content_digest(result)
    assert content_digest(bench.read_result("face.h5")) == content_digest(result)


def test_a_module_and_tensors_are_evaluated_as_the_same_model_by_name(digits_run, tmp_path, monkeypatch):
    """A trained network, given as a module with its test images, has the outcomes of the run folder."""
    monkeypatch.chdir(tmp_path)
    test = bench.load_dataset("digits").test.take(12)
    pixels = (test.pixels.double() * 255 / 16).round().to(torch.uint8)
    model = bench.load_checkpoint(digits_run).build()
    given = [(pixels, test.labels), (pixels.float() / 255, test.labels)]
    results = [
        bench.evaluate(model, data, "quick", classes=10, epsilon="0.1", probes=2, out=f"{number}.h5", quiet=True)
        for number, data in enumerate(given)
    ]
    expected = model(pixels.float() / 255).argmax(1).numpy()
    for result in results:
        np.testing.assert_array_equal(result.clean_prediction, expected)
        assert result.run["source"] == f"python:{type(model).__name__}"
        assert {one.epsilon for one in result.attacks.values()} == {"0.1"}
    assert len({content_digest(result) for result in results}) == 1


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (torch.randn(4, 1, 8, 8), torch.zeros(4).long(), ("neither uint8 nor floats k/255", "(255 * images)")),
        (torch.zeros(4, 8, 8), torch.zeros(4).long(), ("images of shape (4, 8, 8) ", "give (count, channel,")),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3).long(), ("labels of shape (3,) do not fit",)),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4), ("labels of type torch.float32 are not whole numbers",)),
        (torch.zeros(4, 1, 8, 8), -torch.ones(4).long(), ("are not whole numbers from 0",)),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), 40_000), ("y_test in memory holds labels 40000 to 40000",)),
    ],
)
def test_tensors_that_are_no_images_are_refused_with_the_way_out(images, labels, told):
    refusal(lambda: bench.evaluate(nn.Flatten(), (images, labels), "clean", quiet=True), *told)


@pytest.mark.parametrize("classes", [[3, 7], "3,7", ("7", "3")])
def test_some_classes_of_a_dataset_and_of_tensors_are_kept(tmp_path, monkeypatch, classes):
    monkeypatch.chdir(tmp_path)
    test = bench.load_dataset("digits").test
    wanted = (test.labels == 3) | (test.labels == 7)
    kept = bench.load_dataset("digits", classes=classes).test
    assert torch.equal(kept.labels, (test.labels[wanted] == 7).long())

    class Sevens(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :2] * 0 + torch.tensor([0.0, 1.0])

    black = torch.zeros(len(test), 1, 8, 8, dtype=torch.uint8)
    for number, data in enumerate(("digits", (black, test.labels))):
        out = tmp_path / f"{number}.h5"
        result = bench.evaluate(Sevens(), data, "clean", name="sevens", classes=classes, probes=0, out=out, quiet=True)
        np.testing.assert_array_equal(result.label, kept.labels.numpy())
        assert (result.clean_prediction == 1).all()


def test_fewer_classes_than_the_labels_name_are_refused():
    told = "3 classes do not fit memory, where y_test holds the label 9: give 10 to"
    data = (torch.zeros(10, 1, 8, 8), torch.arange(10))
    refusal(lambda: bench.evaluate(nn.Flatten(), data, "clean", classes=3, quiet=True), told)


def test_what_is_in_memory_is_evaluated_by_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    given = {"limit": 4, "probes": 0, "quiet": True, "processes": 2}
    told = "in memory is evaluated by one process: leave out processes"
    refusal(lambda: bench.evaluate(model, "digits", "clean", **given), told)
    refusal(lambda: bench.load_dataset("tensors:0123456789ab"), "give its images again, as an npz:PATH")
