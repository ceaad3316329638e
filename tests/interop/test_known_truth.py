"""The ResNet-18 inside pyautoattack, right on 9,422 of CIFAR-10's 10,000 test images, brought in five ways."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.catalogue.plugins import make_defense
from bench.data.datasets import load_dataset
from bench.interop.subjects import ModelReference
from bench.models.checkpoints import Checkpoint, build_model, save_checkpoint

CPU = torch.device("cpu")
COUNT, ATTACKED, STEPS = 100, 8, 3
RIGHT = 94
"""Of the first 100."""


def plain_pgd(model, images, labels):
    """Whether each image stands PGD of a few steps, without a random start."""
    perturbed = images
    for _ in range(STEPS):
        leaf = perturbed.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
        moved = perturbed + 1 / 255 * gradient.sign()
        perturbed = (images + (moved - images).clamp(-2 / 255, 2 / 255)).clamp(0, 1)
    with torch.no_grad():
        return model(perturbed).argmax(1) == labels


def ways(folder):
    """Name and reference of each way, of files that are written to a folder."""
    package = pytest.importorskip("pyautoattack")
    examples = Path(package.__file__).parent / "examples"
    factory, weights = f"{examples / 'resnet.py'}:ResNet18", examples / "model_test.pt"
    yield "factory", ModelReference(model=factory, weights=weights)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    torch.save({"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}}, folder / "l.ckpt")
    yield "prefixes", ModelReference(model=factory, weights=folder / "l.ckpt")
    network = ModelReference(model=factory, weights=weights).load(CPU, None).model
    one = torch.zeros(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, one), folder / "net.pt")
    yield "TorchScript", ModelReference(model=f"torchscript:{folder / 'net.pt'}")
    yield "exported folder", ModelReference(checkpoint=exported(state, folder / "exported"))
    pytest.importorskip("onnx2pytorch")
    named = {"input_names": ["images"], "output_names": ["logits"], "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = {"images": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(network, (one,), str(folder / "net.onnx"), dynamic_axes=sizes, **named)
    yield "ONNX", ModelReference(model=f"onnx:{folder / 'net.onnx'}")


def exported(state, folder):
    """The weights as a checkpoint of ours: both networks are He et al.'s, with their tensors in one order."""
    config = {
        **{"defense": "st", "hyperparameters": {}, "backbone": "resnet18", "seed": 0, "epoch": 1, "environment": {}},
        "dataset": {"name": "cifar10", "num_classes": 10, "image_shape": [3, 32, 32]},
        "protocol": {"norm": "linf", "epochs": 1},
        "hyperparameters_given": {},
    }
    ours = build_model(make_defense("st", "cifar10", {}), "resnet18", config["dataset"]).state_dict()
    weights = dict(zip(ours, state.values(), strict=True))
    assert [value.shape for value in ours.values()] == [value.shape for value in weights.values()]
    save_checkpoint(Checkpoint(config, weights), folder)
    return folder


@pytest.fixture(scope="module")
def cifar():
    if "BENCH_DATA" not in os.environ:
        pytest.skip("set BENCH_DATA to a data folder with the real files")
    test = load_dataset("cifar10", Path(os.environ["BENCH_DATA"])).test
    return test.images(slice(0, COUNT)), test.labels[:COUNT]


def test_five_ways_give_the_same_right_answers_and_the_same_verdicts(cifar, tmp_path):
    images, labels = cifar
    predictions, verdicts = {}, {}
    for name, reference in ways(tmp_path):
        model = reference.load(CPU, None).model
        with torch.no_grad():
            predictions[name] = model(images).argmax(1)
        verdicts[name] = plain_pgd(model, images[:ATTACKED], labels[:ATTACKED])
    assert {name: int((found == labels).sum()) for name, found in predictions.items()} == dict.fromkeys(
        predictions, RIGHT
    )
    for name in predictions:
        np.testing.assert_array_equal(predictions[name], predictions["factory"])
        np.testing.assert_array_equal(verdicts[name], verdicts["factory"])
