"""What bfloat16 may cost and what it may not: the inner maximum stays as strong, losses stay in float32."""

import json
import math
import os
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import nn

from bench.attacks import craft, cross_entropy, divergence, gaussian_start, uniform_start
from bench.interfaces import Backbone, LinearClassifier, ThreatModel, TrainingContext
from bench.interop.subjects import from_checkpoint
from bench.models.checkpoints import load_checkpoint
from bench.models.folding import FoldedView
from bench.system import devices as precision_module
from bench.system.devices import (
    PRECISIONS,
    bfloat16_slowness,
    tensor_floats,
    training_arithmetic,
    training_precision,
    warning_of_slow_bfloat16,
)
from bench.training.request import TrainingRequest, dataset_and_protocol, is_finished
from bench.training.train import train
from tests.support.refusals import refusal
from tests.support.trainings import Plain, plug_in, rows

THREAT = ThreatModel("linf", "0.08")


def context_for(model, images, half):
    return TrainingContext(
        THREAT, 10, THREAT.radius / 4, torch.Generator().manual_seed(0), half=half, view=FoldedView(model, images, half)
    )


def inner_divergence(model, images, half, naive=False):
    """The start, and per image the divergence, in float32, that ten steps reach; naively all of them in bfloat16."""
    context = context_for(model, images, half)
    with context.crafting(model) as view:
        with torch.no_grad(), context.rounding(half=True) if naive else nullcontext():
            reference = view(images).float()
        start = gaussian_start(images, context)
        perturbed = craft(
            lambda view, x: divergence(reference, view(x)), view, start, images, context, flat_start=not naive
        )
    with torch.no_grad():
        return start, divergence(model(images), model(perturbed))


def test_a_divergence_is_ascended_in_bfloat16_to_the_closed_form():
    """Logits (s, -s) with s = 0 on the clean image: every product is exact, in any order of summation.

    The divergence of (t, -t) from (0, 0) is log cosh t, with t = 0.08 * (8 + 8 + 8 + 8) at the ball's best corners, on
    either side. TRADES' noise is smaller than half a step of bfloat16 there, 2^-9, for 95 % of the pixels.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[8.0, -8.0, 8.0, -8.0], [-8.0, 8.0, -8.0, 8.0]]))
    images = torch.full((256, 1, 2, 2), 0.75)
    best = torch.full((256,), math.log(math.cosh(0.08 * 32)))
    for half in (False, True):
        torch.testing.assert_close(inner_divergence(model, images, half)[1], best, rtol=1e-5, atol=0)
    start, naive = inner_divergence(model, images, half=True, naive=True)
    still = (start.bfloat16() == 0.75).flatten(1).all(1)
    assert still.sum() > 128  # 0.95^4 of the images: 208
    assert (naive[still] < 0.01 * best[still]).all()


@pytest.mark.parametrize("seed", range(4))
def test_ten_steps_in_bfloat16_reach_what_they_reach_in_float32(seed):
    """Networks of fixed weights, of slopes as in a trained one: over sixteen of them the ratio is 1.000 +- 0.003."""
    numbers = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        for layer in (model[1], model[3]):
            layer.weight.copy_(3 * torch.randn(layer.weight.shape, generator=numbers) * (2 / 64) ** 0.5)
            layer.bias.zero_()
    images = 0.5 + 0.5 * torch.rand(256, 1, 8, 8, generator=numbers)
    labels = model(images).argmax(1)
    full, half = (inner_divergence(model, images, half)[1].mean().item() for half in (False, True))
    assert half == pytest.approx(full, rel=0.02)
    reached = []
    for in_bfloat16 in (False, True):
        context = context_for(model, images, in_bfloat16)
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        with torch.no_grad():
            reached.append(cross_entropy(model(perturbed), labels).mean().item())
    assert reached[1] == pytest.approx(reached[0], rel=0.02)


def flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


class Looks(Plain):
    """Writes down how it is run."""

    seen: ClassVar[list] = []

    def losses(self, model, images, labels, context):
        with context.crafting(model) as view:
            crafted = view(images).dtype
        features = model.features(images)
        logits = model.score(features)
        self.seen.append(
            (crafted, features.dtype, logits.dtype, flags(), images.is_contiguous(memory_format=torch.channels_last))
        )
        return {"loss": cross_entropy(logits, labels).mean()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_computes_as_asked_and_records_it(tmp_path, blobs, monkeypatch, precision):
    plug_in(monkeypatch, "looks", Looks)
    Looks.seen.clear()
    before = flags()
    request = TrainingRequest(
        "looks", blobs, "cnn-small-bn", protocol={"epochs": 1}, runs=tmp_path, device="cpu", precision=precision
    )
    folder = train(request, quiet=True)
    outside = torch.bfloat16 if precision == "bf16" else torch.float32
    # What stays float32 in a bfloat16 run may be TF32 where there is that.
    assert Looks.seen == [(torch.float32, outside, torch.float32, (precision == "bf16",) * 2, True)]
    assert flags() == before
    assert load_checkpoint(folder).config["precision"] == precision
    assert from_checkpoint(folder, torch.device("cpu")).description["precision"] == precision
    assert json.loads((folder / "last" / "config.json").read_text())["precision"] == precision


def test_another_precision_is_another_run(tmp_path, blobs):
    options = {"backbone": "cnn-small", "protocol": {"epochs": 1}, "folder": tmp_path, "device": "cpu"}
    train(TrainingRequest("st", blobs, **options), quiet=True)
    other = TrainingRequest("st", blobs, precision="bf16", **options)
    refusal(lambda: train(other, quiet=True), "another run (different precision)")


SLOW = "warning: bfloat16 takes 7.0 times as long as float32 on this processor"


@pytest.mark.parametrize(("times", "said"), [(7.0, 1), (1.4, 0)])
def test_bfloat16_without_instructions_for_it_is_said_once_before_starting(bench, blobs, monkeypatch, times, said):
    monkeypatch.setattr(precision_module, "bfloat16_slowness", lambda: times)
    options = ("--dataset", blobs, "--backbone", "cnn-small", "--epochs", 2, "--out", "run", "--device", "cpu")
    code, output = bench("train", "--defense", "st", *options, "--precision", "bf16")
    assert (code, output.count(SLOW)) == (0, said)
    assert not said or output.index(SLOW) < output.index("epoch 1/2")
    assert SLOW not in bench("train", "--defense", "st", *options, "--precision", "bf16")[1]  # nothing is left to do
    evaluation = ("eval", "run", "--suite", "quick", "--probes", 0, "--overwrite", "--device", "cpu")
    code, output = bench(*evaluation, "--precision", "bf16")
    assert (code, output.count(SLOW)) == (0, said)
    assert SLOW not in bench(*evaluation)[1]


class Reread(Backbone):
    """Its convolution's output is read twice: no BatchNorm of it can be folded."""

    feature_dim = map_channels = 16

    def __init__(self, in_channels, image_size, make_activation, final_activation):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 16, 3), nn.BatchNorm2d(16)

    def feature_map(self, images):
        hidden = self.conv(images)
        return self.norm(hidden) + hidden


def test_a_refused_folding_is_said_and_recorded_and_auto_is_recorded_as_what_it_came_to(
    tmp_path, blobs, monkeypatch, capsys
):
    plug_in(monkeypatch, "reread", Reread, "backbone")
    protocol = {"epochs": 2, "batch_size": 48, "attack_steps": 1}
    request = TrainingRequest("at", blobs, "reread", protocol=protocol, limit_train=48, runs=tmp_path, device="cpu")
    folder = train(request)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Crafting sees")]
    assert told == ["Crafting sees the model unfolded: folded, its logits move by more than rounding."]
    assert [row["crafting_unfolded"] for row in rows(folder)] == [1.0, 1.0]
    assert load_checkpoint(folder).config["precision"] == "fp32"
    # Trained on CUDA the same request comes to tf32, and is done as well; in bfloat16 it is another one.
    assert [request.precision_like({"precision": name}) for name in PRECISIONS] == ["fp32", "tf32", "fp32"]
    assert is_finished(request, *dataset_and_protocol(request))


def test_bfloat16_is_timed_against_float32(monkeypatch):
    clock = [0.0]

    def convolution(images, weight, padding):
        clock[0] += 3.0 if images.dtype == torch.bfloat16 else 2.0
        return images * 1.0

    monkeypatch.setattr(precision_module.functional, "conv2d", convolution)
    monkeypatch.setattr(precision_module.time, "perf_counter", lambda: clock[0])
    assert bfloat16_slowness.__wrapped__() == 1.5
    assert warning_of_slow_bfloat16(torch.device("meta")) is None


def test_precisions_that_do_not_exist_are_refused():
    for name, told in (
        ("fp8", "unknown precision 'fp8'. Choose from: auto, fp32, tf32, bf16"),
        ("tf32", "CUDA devices only"),
    ):
        refusal(lambda name=name: training_precision(name, torch.device("cpu")), told)


def test_the_precision_of_a_training_is_that_of_its_device_and_what_stays_float32_is_tf32_where_it_may_be():
    assert [training_precision("auto", torch.device(kind)) for kind in ("cpu", "cuda")] == ["fp32", "tf32"]
    assert [training_precision(name, torch.device("cuda")) for name in PRECISIONS] == list(PRECISIONS)
    before = flags()
    for name, allowed in (("fp32", False), ("tf32", True), ("bf16", True)):
        with training_arithmetic(name):
            assert flags() == (allowed, allowed)
            assert torch.backends.cudnn.benchmark
    assert flags() == before
    assert not torch.backends.cudnn.benchmark


def test_deterministic_algorithms_are_asked_for_and_no_more_after(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError), training_arithmetic("fp32", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


class Constant(Backbone):
    """Its images are its features."""

    feature_dim = map_channels = 1

    def feature_map(self, images):
        return images


def test_a_linear_head_rounds_no_logit():
    """1 + 2^-12 is 1 in bfloat16."""
    classifier = LinearClassifier(Constant(), 2)
    with torch.no_grad():
        classifier.head.weight.fill_(1.0)
        classifier.head.bias.fill_(2**-12)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier.score(torch.tensor([[1.0]], dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[1 + 2**-12] * 2]


def test_tensor_floats_are_switched_and_put_back():
    before = flags()
    for allowed in (True, False):
        with tensor_floats(allowed):
            assert flags() == (allowed, allowed)
        assert flags() == before
