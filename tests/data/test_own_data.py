"""Data of one's own: classes that they do not show, files sorted by class, and parts of them, from end to end.

The model is linear and the labels are its own answers, so that it is right on every clean image.
"""

import json

import numpy as np
import pytest
import torch

from bench.data.corruptions.sets import load_corrupted
from bench.data.datasets import load_dataset
from bench.data.sampling import evenly_chosen
from bench.evaluation import evaluate as evaluation
from bench.evaluation.pictures import class_name
from bench.leaderboard.render.commands import commands
from bench.results.file import read_result
from tests.support.command import refused
from tests.support.example_results import with_run

CLASSES, COUNT = 4, 48
MODEL = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(64, outputs)
    def forward(self, images):
        return self.layer(images.flatten(1))

def four():
    model = Linear(4)
    model.load_state_dict(torch.load("four.pt"))
    return model

def many():
    return Linear(2**15 + 1)

def thousand():
    '''The same, and 996 classes that it never names.'''
    model, small = Linear(1000), four()
    with torch.no_grad():
        model.layer.weight.zero_()[:4] = small.layer.weight
        model.layer.bias.fill_(-100)[:4] = small.layer.bias
    return model

def three():
    model, small = Linear(3), four()
    with torch.no_grad():
        model.layer.weight.copy_(small.layer.weight[:3])
        model.layer.bias.copy_(small.layer.bias[:3])
    return model
"""


def images_and_labels():
    """Twelve images of each class, sorted by class."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CLASSES, 64)).astype(np.float32)
    pixels = rng.integers(80, 176, (2000, 8, 8)).astype(np.uint8)
    flat = pixels.reshape(len(pixels), 64) / np.float32(255)
    bias = -(flat.mean(0) @ weight.T)
    logits = flat @ weight.T + bias
    sure = np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0] > 0.05
    labels = logits.argmax(1)
    rows = np.concatenate([np.flatnonzero(sure & (labels == label))[: COUNT // CLASSES] for label in range(CLASSES)])
    return pixels[rows], labels[rows], weight, bias


@pytest.fixture
def here(bench, tmp_path):
    """The command, in a folder with a model and `mine.npz`."""
    pixels, labels, weight, bias = images_and_labels()
    torch.save({"layer.weight": torch.tensor(weight), "layer.bias": torch.tensor(bias)}, tmp_path / "four.pt")
    (tmp_path / "mine.py").write_text(MODEL)
    np.savez(tmp_path / "mine.npz", x_test=pixels, y_test=labels)
    return bench


def evaluated(bench, model, *options, dataset="npz:mine.npz"):
    words = ("--model", f"mine.py:{model}", "--dataset", dataset, "--out", "r.h5", "--overwrite", "--probes", 0)
    code, output = bench("eval", *words, *options)
    assert code == 0, output
    return read_result("r.h5"), output


def save(**arrays):
    with np.load("mine.npz") as archive:
        np.savez("mine.npz", **{**archive, **arrays})


@pytest.mark.parametrize(("model", "outputs", "guessing"), [("four", 4, 25.0), ("thousand", 1000, 0.1)])
def test_a_model_says_how_many_classes_there_are_where_the_labels_do_not(here, model, outputs, guessing):
    pixels, labels, *_ = images_and_labels()
    save(x_test=pixels[labels < 3], y_test=labels[labels < 3])
    result, _ = evaluated(here, model, "--suite", "clean")
    assert (result.run["num_classes"], result.run["classes_from"]) == (outputs, "model")
    (chance,) = [one["message"] for one in result.findings if one["name"] == "near-chance"]
    assert chance == f"clean accuracy is 100.0 %, guessing gives {guessing} %"
    code, output = here("verify", "r.h5", "--model", f"mine.py:{model}")
    assert code == 0, output


def test_a_model_with_fewer_outputs_than_the_labels_take_is_refused(here):
    words = ("eval", "--model", "mine.py:three", "--dataset", "npz:mine.npz", "--suite", "clean")
    for given, told in (
        (words, "returns 3 classes; the dataset's labels go up to 3, which takes 4 or more"),
        ((*words[:2], "mine.py:many", *words[3:]), "returns 32769 classes; give one of at most 32768"),
        ((*words, "--classes", 3), "3 classes do not fit mine.npz, where y_test holds the label 3: give 4 to 32768"),
        ((*words, "--classes", 7), "the model returns 3 classes; the dataset has 7"),
        ((*words[:3], "--dataset", "digits", "--classes", 3), "digits has 10 classes, not 3: leave out --classes"),
    ):
        assert told in refused(*given)


def test_classes_can_be_stated_as_an_option_or_in_the_file(here):
    result, _ = evaluated(here, "thousand", "--suite", "clean", "--classes", 1000)
    assert (result.run["num_classes"], result.run["classes_from"]) == (1000, "option")
    save(num_classes=np.int64(1000))
    result, _ = evaluated(here, "thousand", "--suite", "clean")
    assert (result.run["num_classes"], result.run["classes_from"]) == (1000, "dataset")
    words = ("eval", "--model", "mine.py:four", "--dataset", "npz:mine.npz")
    assert "the model returns 4 classes; the dataset has 1000" in refused(*words)
    assert "npz:mine.npz has 1000 classes, as it says itself, not 4: leave out" in refused(*words, "--classes", 4)


def test_the_command_that_a_board_shows_states_the_classes(here):
    result, _ = evaluated(here, "four", "--suite", "clean", "--classes", 4)
    words = "bench eval --model mine.py:four --dataset npz:mine.npz --classes 4"
    assert commands(with_run(result, command=f"{words} --out r.h5")) == [words]


def test_classes_have_the_names_of_the_file_and_nan_is_none(here, tmp_path):
    save(class_names=np.array(["a", "b", "c", "d"]))
    dataset = load_dataset("npz:mine.npz", tmp_path)
    assert (dataset.num_classes, dataset.classes_from) == (4, "dataset")
    assert [class_name(dataset, number) for number in (0, 3, 7, -1)] == ["a", "d", "7", "none"]


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"num_classes": 3}, "3 classes do not fit {}, where y_test holds the label 3: give 4 to 32768"),
        ({"num_classes": 2**15 + 1}, "32769 classes do not fit {}, where y_test holds the label 3: "),
        ({"num_classes": 4.0}, "num_classes in {} is not one integer: save it as num_classes=10"),
        ({"num_classes": [4, 4]}, "num_classes in {} is not one integer: save it as num_classes=10"),
        ({"class_names": ["a", "b", "c", "a"]}, "class_names in {} are not two or more different printable names"),
        ({"class_names": ["a", "b", "c", "\x1b"]}, "class_names in {} are not two or more different printable names"),
        ({"class_names": [1, 2, 3, 4]}, "class_names in {} are not two or more different printable names"),
        (
            {"class_names": ["a", "b", "c", "d"], "num_classes": 5},
            "{} holds 4 class_names, and num_classes 5: make them",
        ),
    ],
)
def test_what_a_file_says_of_its_classes_is_checked(here, arrays, fault):
    save(**arrays)
    line = refused("eval", "--model", "mine.py:four", "--dataset", "npz:mine.npz")
    assert line.startswith(fault.format("mine.npz"))


def test_a_training_says_how_many_classes_it_takes_there_to_be(bench, tmp_path, blobs):
    words = ("train", "--defense", "st", "--dataset", blobs, "--backbone", "cnn-small", "--epochs", 1)
    code, output = bench(*words, "--out", "guessed")
    assert code == 0
    assert f"{blobs} does not say how many classes there are: 3, 1 + its largest label. To say it: --classes" in output
    code, output = bench(*words, "--out", "stated", "--classes", 5)
    assert (code, "does not say" in output) == (0, False)
    for folder, count, source in (("guessed", 3, "labels"), ("stated", 5, "option")):
        about = json.loads((tmp_path / folder / "last" / "config.json").read_text())["dataset"]
        assert (about["num_classes"], about["classes_from"]) == (count, source)
        code, output = bench("eval", folder, "--suite", "clean", "--probes", 0, "--out", f"{folder}.h5")
        assert code == 0, output
        assert read_result(f"{folder}.h5").run["num_classes"] == count
    assert "--classes 5" in commands(read_result("stated.h5"))[0]
    assert "--classes" not in commands(read_result("guessed.h5"))[0]


def test_a_part_of_sorted_data_has_every_class_and_can_be_verified(here):
    _, labels, *_ = images_and_labels()
    words = ("--suite", "quick", "--eps", "0.02", "--limit", 10, "--save-adversarials")
    result, output = evaluated(here, "four", *words)
    assert result.index.tolist() == evenly_chosen(labels, 10).tolist() != list(range(10))
    assert (result.label == labels[result.index]).all()
    assert sorted(np.bincount(result.label)) == [2, 2, 3, 3]
    assert (result.run["sampling"], result.run["dataset_size"]) == ("stratified", COUNT)
    assert "10 of 48 test images: of each class its share, the same for everyone." in output
    (shares,) = [one for one in result.findings if one["name"] == "class-shares"]
    assert shares["severity"] == "passed"
    assert (result.attacks["PGD-20"].prediction != result.label).sum() > 0
    code, output = here("verify", "r.h5", "--model", "mine.py:four")
    assert code == 0, output
    assert "Confirmed" in output
    code, output = here("figure", "sheet", "r.h5", "--out", "sheet")
    assert code == 0, output
    evaluated(here, "thousand", *words, "--out", "s.h5")
    for command in ("compare", "leaderboard"):
        code, output = here(command, "r.h5", "s.h5")
        assert (code, "10 samples" in output) == (0, True), output


def test_a_part_has_its_name_and_goes_on_after_a_stop_as_it_was(here, tmp_path, monkeypatch):
    words = ("eval", "--model", "mine.py:four", "--dataset", "npz:mine.npz", "--suite", "clean", "--limit", 10)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert here(*words)[0] == 130
    assert len(list((tmp_path / "results").glob(".*.parts"))) == 1
    assert here(*words)[0] == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["four-clean-v1-limit10.h5"]
    assert here(*words)[0] == 2


def test_the_first_images_are_said_to_be_the_convention(bench, digits_run):
    code, output = bench("eval", digits_run, "--suite", "clean", "--limit", 20, "--out", "r.h5", "--probes", 0)
    assert code == 0
    assert "20 of 500 test images: the first, as is the convention of digits." in output
    result = read_result("r.h5")
    assert (result.run["sampling"], result.index.tolist()) == ("first", list(range(20)))


def test_a_part_finds_its_own_among_corrupted_images_of_a_larger_part(here, tmp_path):
    """Draws are keyed by an image's place in its file, so parts of a file have the same corrupted images."""
    for limit, folder in ((30, "C30"), (COUNT, "C")):
        words = ("--limit", limit, "--corruptions", "contrast,gaussian_noise", "--out", folder)
        assert here("data", "corrupt", "--dataset", "npz:mine.npz", *words)[0] == 0
    _, labels, *_ = images_and_labels()
    rows = evenly_chosen(labels, 30)
    for key, part in load_corrupted(tmp_path / "C30", "npz:mine.npz", ("contrast", "gaussian_noise")).items():
        whole = load_corrupted(tmp_path / "C", "npz:mine.npz", ("contrast", "gaussian_noise"))[key]
        assert torch.equal(part.pixels, whole.pixels[torch.from_numpy(rows)])
    suite = {"name": "two", "version": 1, "kind": "corruptions", "corruptions": ["contrast", "gaussian_noise"]}
    (tmp_path / "two.json").write_text(json.dumps(suite))
    words = ("--suite", "two.json", "--limit", 10)
    few, _ = evaluated(here, "four", *words, "--corruptions-dir", "C30")
    same, _ = evaluated(here, "four", *words, "--corruptions-dir", "C")
    assert few.index.tolist() == evenly_chosen(labels, 10).tolist()
    for label, record in few.corruptions.items():
        assert record.prediction.tolist() == same.corruptions[label].prediction.tolist()
    assert few.run["corruptions"]["digest"] == same.run["corruptions"]["digest"]


def test_a_sweep_over_parts_is_not_repeated(bench, tmp_path, blobs):
    words = ("sweep", "--dataset", blobs, "--backbone", "cnn-small", "--defenses", "st", "--suite", "clean")
    words += ("--epochs", 1, "--limit", 10, "--limit-train", 31)
    code, output = bench(*words)
    assert code == 0, output
    (path,) = tmp_path.rglob("*.h5")
    assert path.name == "clean-v1-limit10.h5"
    time = path.stat().st_mtime_ns
    code, output = bench(*words)
    assert code == 0, output
    assert path.stat().st_mtime_ns == time
    result = read_result(path)
    assert sorted(np.bincount(result.label)) == [3, 3, 4]
    assert result.run["training_data"]["train_size"] == 31
