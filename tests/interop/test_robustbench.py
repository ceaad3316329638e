"""The installed RobustBench: its models here, our checkpoints there, and its own benchmark() beside our evaluation."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from bench.catalogue.plugins import make_defense, names
from bench.data.datasets import load_dataset
from bench.data.splits import Split
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import ThreatModel
from bench.interop import robustbench as robustbench_package
from bench.interop.model_info import read_model_info
from bench.interop.zoo import Shelf, export_checkpoint, export_path, load_zoo_model, register, untrained_model
from bench.models.checkpoints import Checkpoint, build_model, load_checkpoint, save_checkpoint
from bench.results.file import read_result
from bench.results.metrics import clean_accuracy, robust_accuracy
from tests.support.command import bench, refused
from tests.support.fake_cifar import write_cifar10, write_cifar10c
from tests.support.refusals import raising, refusal

CPU = torch.device("cpu")
COUNT = 24


@pytest.fixture(scope="module")
def cifar():
    """Noise, the labels that random weights give it (four are wrong), and a checkpoint of those weights."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 32)).astype(np.uint8)
    images = Split(torch.from_numpy(pixels), torch.zeros(COUNT, dtype=torch.int64)).images(slice(None))
    config = {
        **{"defense": "at", "hyperparameters": {}, "backbone": "cnn-small", "seed": 0, "epoch": 1, "environment": {}},
        "dataset": {"name": "cifar10", "num_classes": 10, "image_shape": [3, 32, 32]},
        "protocol": {"norm": "linf", "epochs": 1},
    }
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build_model(make_defense("at", "cifar10", {}), "cnn-small", config["dataset"]).eval()
        # Without this, random weights name one class for all images.
        model.head.bias -= model(images).mean(0)
        labels = model(images).argmax(1).numpy()
    labels[:4] = (labels[:4] + 1) % 10
    return pixels, labels, Checkpoint(config, model.state_dict())


@pytest.fixture(scope="module")
def data(cifar, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield write_cifar10(tmp_path_factory.mktemp("cifar"), patch, *cifar[:2])


@pytest.fixture(scope="module")
def run(cifar, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(cifar[2], folder / "last")
    return folder


@pytest.fixture
def models(run, tmp_path):
    """RobustBench's model_dir with an export of the run; what is registered is forgotten afterwards."""
    checkpoint = load_checkpoint(run)
    for threat_model in ("Linf", "L2"):
        export_checkpoint(checkpoint, export_path(checkpoint, tmp_path / "models", "Mine2026Small", threat_model))
    yield tmp_path / "models"
    for threat_model in ("Linf", "L2"):
        Shelf("cifar10", threat_model).entries().pop("Mine2026Small", None)


@pytest.fixture
def seeded(monkeypatch):
    """benchmark() passes no seed, and without one the package takes the clock's time."""
    import pyautoattack

    monkeypatch.setattr(pyautoattack.AutoAttack, "get_seed", lambda self: 0)


def load_theirs(models, threat_model="Linf"):
    register(models)
    return robustbench_package.load().load_model(
        "Mine2026Small", model_dir=models, dataset="cifar10", threat_model=threat_model
    )


def test_their_load_model_gives_the_same_logits(models, run, data):
    images = load_dataset("cifar10", data).test.images(slice(None))
    model = load_theirs(models)
    assert torch.equal(model(images), load_checkpoint(run).build()(images))
    assert not model.training


@pytest.mark.parametrize(("norm", "threat_model", "epsilon"), [("linf", "Linf", "1/680"), ("l2", "L2", "0.06")])
def test_their_benchmark_counts_what_our_evaluation_counts(
    models, run, data, tmp_path, small_budget, seeded, norm, threat_model, epsilon
):
    cell = {"label": "AutoAttack", "attack": "autoattack", "norm": norm}
    suite = {"name": "mine", "version": 1, "about": "", "cells": [cell]}
    cell["parameters"] = {"implementation": "reference"}
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    given = {"checkpoint": run, "data": data, "epsilons": {norm: epsilon}, "probes": 0, "out": tmp_path / "result.h5"}
    request = EvaluationRequest(str(tmp_path / "suite.json"), **given)
    result, _ = evaluate(request)
    options = {"n_examples": COUNT, "dataset": "cifar10", "threat_model": threat_model, "data_dir": str(data)}
    options |= {"eps": ThreatModel(norm, epsilon).radius, "batch_size": 500}
    clean, robust = robustbench_package.load().benchmark(load_theirs(models, threat_model), **options)
    assert round(COUNT * clean) == COUNT * clean_accuracy(result) == COUNT - 4
    assert round(COUNT * robust) == COUNT * robust_accuracy(result, "AutoAttack")
    assert 1 < COUNT * robust < COUNT - 5


def test_their_benchmark_goes_on_from_a_state_file(models, data, tmp_path, small_budget, seeded, monkeypatch):
    from pyautoattack.square import SquareAttack

    package, model = robustbench_package.load(), load_theirs(models)
    options = {"n_examples": COUNT, "threat_model": "Linf", "eps": 1 / 680, "data_dir": str(data), "batch_size": 500}
    whole = package.benchmark(model, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SquareAttack, "perturb", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            package.benchmark(model, aa_state_path=tmp_path / "state.json", **options)
    assert package.benchmark(model, aa_state_path=tmp_path / "state.json", **options) == pytest.approx(whole)
    assert 0 < whole[1] < whole[0]


def test_names_survive_what_load_model_cuts_off(tmp_path):
    weights = {
        name: torch.ones(1) for name in ("model.a", "module.b", "feat_model.conv.w", "x.module.model.module.y", "z")
    }
    config = {"defense": "at", "dataset": {"name": "cifar10"}}
    export_checkpoint(Checkpoint(config, weights), tmp_path / "tricky.pt")
    package = robustbench_package.load()
    found = torch.load(tmp_path / "tricky.pt")["state_dict"]
    for text in ("module.", "model."):
        found = package.utils.rm_substr_from_state_dict(found, text)
    assert list(found) == list(weights)


@pytest.mark.parametrize("defense", names("defense"))
def test_every_defense_is_rebuilt_from_the_exported_configuration(defense, tmp_path):
    made = make_defense(defense, "cifar10", {})
    config = {"defense": defense, "hyperparameters": {}, "backbone": "cnn-small"}
    config["dataset"] = {"name": "cifar10", "num_classes": 10, "image_shape": [3, 32, 32]}
    export_checkpoint(Checkpoint(config, {"numbers": torch.zeros(2**20)}), tmp_path / "export.pt")
    model = untrained_model(config, tmp_path / "export.pt")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert made is not None


def test_an_export_does_not_take_the_place_of_one_of_their_models(run, tmp_path):
    checkpoint = load_checkpoint(run)
    export_checkpoint(checkpoint, export_path(checkpoint, tmp_path, "Wong2020Fast"))
    refusal(lambda: register(tmp_path), "RobustBench has a model 'Wong2020Fast' of its own: rename")


def test_what_robustbench_cannot_have_is_refused(run, digits_run, tmp_path):
    checkpoint = load_checkpoint(run)
    told = ("unknown RobustBench dataset 'digits'", "Choose from: cifar10, cifar100.")
    refusal(lambda: export_path(load_checkpoint(digits_run), tmp_path), *told)
    refusal(lambda: export_path(checkpoint, tmp_path, "../mine"), "is not a file name")
    config = {**checkpoint.config, "protocol": {**checkpoint.config["protocol"], "norm": "l1"}}
    refusal(lambda: export_path(Checkpoint(config, checkpoint.weights), tmp_path), "no threat model for l1")
    path = export_path(checkpoint, tmp_path)
    assert path == tmp_path / "cifar10" / "Linf" / "at_cnn-small_seed-0.pt"
    export_checkpoint(checkpoint, path)
    path.with_suffix(".json").write_text('{"format": "bench-robustbench-model", "config": {}}')
    refusal(lambda: register(tmp_path), "is damaged: export the checkpoint again")


def test_eval_takes_a_model_of_the_zoo(run, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = bench("export", "robustbench", run, "--name", "Mine2026Small")
    assert (code, output) == (0, "models/cifar10/Linf/Mine2026Small.pt\n")
    about, again = tmp_path / output.strip().replace(".pt", ".json"), ["export", "robustbench", run]
    again += ["--name", "Mine2026Small"]
    exported = about.read_text()
    assert bench(*again) == (0, output), "the same files are there"
    about.write_text("mine")
    assert "Mine2026Small.json exists: add --overwrite" in refused(*again)
    assert about.read_text() == "mine" and bench(*again, "--overwrite")[0] == 0 and about.read_text() == exported
    options = ["--data", data, "--suite", "clean", "--probes", 0]
    zoo = ["--model", "robustbench:Mine2026Small", "--threat-model", "Linf", "--dataset", "cifar10"]
    try:
        code, output = bench("eval", *zoo, *options)
        assert code == 0, output
        verified = bench("verify", "results/Mine2026Small-cifar10-Linf-clean-v1.h5", *zoo[:4], "--data", data)
        assert verified[0] == 0, verified[1]
    finally:
        Shelf("cifar10").entries().pop("Mine2026Small", None)
    theirs = read_result("results/Mine2026Small-cifar10-Linf-clean-v1.h5")
    assert bench("eval", run, *options, "--out", "ours.h5")[0] == 0
    assert theirs.clean_prediction.tolist() == read_result("ours.h5").clean_prediction.tolist()
    assert theirs.run["source"] == "robustbench:Mine2026Small"
    assert theirs.run["zoo"]["threat_model"] == "Linf"
    assert theirs.run["model"] == "Mine2026Small"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The list of CIFAR-10 Linf with two small models more: one file, and an ensemble of two."""
    shelf = Shelf("cifar10", "Linf", tmp_path)
    entry = {"model": lambda: nn.Linear(2, 2), "gdrive_id": "nowhere"}
    monkeypatch.setitem(shelf.entries(), "Tiny2026One", entry)
    monkeypatch.setitem(shelf.entries(), "Tiny2026Two", {**entry, "gdrive_id": ["nowhere", "nowhere"]})
    return shelf


offline = raising(ConnectionError("the network\nis unreachable"))


@pytest.mark.parametrize(("name", "file"), [("Tiny2026One", "Tiny2026One.pt"), ("Tiny2026Two", "Tiny2026Two.pt_m0.pt")])
def test_without_file_and_network_the_expected_path_is_said(shelf, monkeypatch, name, file):
    monkeypatch.setattr(robustbench_package.load().utils.gdown, "download", offline)
    told = (f"there is no {shelf.folder}/cifar10/Linf/{file}", "ConnectionError: the network is unreachable", "by hand")
    refusal(lambda: load_zoo_model(name, shelf), *told)


def test_a_local_file_is_loaded_without_network(shelf, monkeypatch):
    monkeypatch.setattr(robustbench_package.load().utils.gdown, "download", offline)
    shelf.file("Tiny2026One").parent.mkdir(parents=True)
    trained = nn.Linear(2, 2)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in trained.state_dict().items()}},
        shelf.file("Tiny2026One"),
    )
    assert torch.equal(load_zoo_model("Tiny2026One", shelf).weight, trained.weight)


def test_a_web_page_saved_as_weights_is_said(shelf):
    shelf.file("Tiny2026One").parent.mkdir(parents=True)
    shelf.file("Tiny2026One").write_text("<html>quota exceeded</html>")
    told = ("Tiny2026One.pt cannot be loaded as RobustBench's Tiny2026One", "delete it")
    refusal(lambda: load_zoo_model("Tiny2026One", shelf), *told)


@pytest.mark.parametrize(
    ("name", "threat_model", "hint"),
    [
        ("Rice2020Overfiting", "Linf", "Did you mean 'Rice2020Overfitting'"),
        (
            "Rice2020Overfitting",
            "corruptions",
            "there under --dataset cifar10 --threat-model Linf and --dataset cifar10",
        ),
    ],
)
def test_an_unknown_model_is_answered_with_the_nearest(tmp_path, name, threat_model, hint):
    words = ("--model", f"robustbench:{name}", "--threat-model", threat_model, "--dataset", "cifar10")
    assert hint in refused("eval", *words, "--model-dir", tmp_path, "--suite", "clean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("robustbench:X", "say which model robustbench:X is: --dataset cifar10 or cifar100"),
        ("robustbench:X --dataset digits", "unknown RobustBench dataset 'digits'"),
        ("robustbench:X --dataset cifar10 --threat-model l1", "Choose from: L2, Linf, corruptions"),
        ("robustbench:X --dataset cifar10 --weights w.pt", "--weights goes with --model FILE.py"),
        ("m.py:f --dataset cifar10 --threat-model L2", "--threat-model goes with --model robustb"),
    ],
)
def test_options_that_do_not_belong_together_are_one_line(options, message):
    assert message in refused("eval", "--model", *options.split(), "--suite", "clean")


class White(nn.Module):
    """Class 1 for images that are white, class 0 for others."""

    def forward(self, images):
        share = images.mean((1, 2, 3))
        return torch.stack([1 - share, share, *[torch.full_like(share, -1)] * 8], 1)


def bright(corruption, severity):
    return (corruption + severity) % 6


def test_their_benchmark_reports_plain_errors_on_corrupted_cifar(cifar, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = robustbench_package.load()
    write_cifar10c(tmp_path, package.data.CORRUPTIONS, bright)
    options = {"n_examples": 10, "threat_model": "corruptions", "data_dir": str(data), "to_disk": True}
    options |= {"corruptions_data_dir": str(tmp_path), "batch_size": 4}
    expected = 1 - sum(bright(c, s) for c in range(15) for s in range(1, 6)) / 750
    clean, corrupted = package.benchmark(White().eval(), model_name="Mine", **options)
    assert corrupted == pytest.approx(expected)
    written = read_model_info(tmp_path / "model_info" / "cifar10" / "corruptions" / "Mine.json")
    assert float(written.corruptions_acc) == pytest.approx(100 * expected, abs=0.005)
    assert float(written.corruptions_mce) == pytest.approx(100 - 100 * expected, abs=0.005)
    assert clean == np.mean((cifar[0][:10].mean((1, 2, 3)) > 127.5) == cifar[1][:10])
    # With a row of that name in its table, RobustBench divides by it, as it would without us.
    package.benchmark(White().eval(), model_name="AlexNet", **options)
    alexnet = json.loads((tmp_path / "model_info" / "cifar10" / "corruptions" / "AlexNet.json").read_text())
    assert alexnet["corruptions_mce"] == "100.0"


def test_a_repaired_release_is_left_alone():
    def load_images(n_examples, severity, prepr=None):
        raise AssertionError

    class Module:
        CORRUPTION_DATASET_LOADERS = {"cifar10": {"corruptions": load_images}}  # noqa: RUF012 - theirs is mutable

        @staticmethod
        def clean_accuracy():
            return 0.5

    def evaluation():
        return Module.clean_accuracy(), 1.5

    Module.corruptions_evaluation = staticmethod(evaluation)
    robustbench_package.repair(Module)
    once = Module.corruptions_evaluation
    robustbench_package.repair(Module)
    assert Module.corruptions_evaluation is once
    assert once() == (0.5, 1.5)
    assert Module.CORRUPTION_DATASET_LOADERS["cifar10"]["corruptions"] is load_images
