"""What bfloat16 may cost and what it may not: the inner maximum stays as strong, losses stay in float32."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from bench import registry
from bench.attacks import craft, cross_entropy, divergence, gaussian_start, uniform_start
from bench.checkpoints import load_checkpoint
from bench.datasets import Split, load_dataset
from bench.errors import BenchError
from bench.folding import FoldedView
from bench.interfaces import Defense, ThreatModel, TrainingContext
from bench.models import from_checkpoint
from bench.precision import check_precision, tensor_floats
from bench.training import TrainingRequest, train

THREAT = ThreatModel("linf", "0.08")


@pytest.fixture(scope="module")
def bright():
    """A trained net of one hidden layer, and images it was not trained on: dark strokes on white, between 1/2 and 1.

    There TRADES' noise is smaller than a step of bfloat16, and so few sums pass that many logits do not move at all.
    """
    digits = load_dataset("digits", Path("data"))

    def images_of(split):
        return Split(32 - split.pixels, split.labels, levels=32).images(slice(None))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        cross_entropy(model(images_of(digits.train)), digits.train.labels).mean().backward()
        optimizer.step()
    return model.eval(), images_of(digits.test)[:256], digits.test.labels[:256]


def context_for(model, images, half):
    return TrainingContext(
        THREAT, 10, THREAT.radius / 4, torch.Generator().manual_seed(0), half=half, view=FoldedView(model, images, half)
    )


def inner_loss(model, images, half, naive=False):
    """The divergence, in float32, that ten steps reach; naively all of them in bfloat16."""
    context = context_for(model, images, half)
    with context.crafting(model) as view:
        with torch.no_grad(), context.rounding(half=True) if naive else nullcontext():
            reference = view(images).float()
        start = gaussian_start(images, context)
        perturbed = craft(
            lambda view, x: divergence(reference, view(x)), view, start, images, context, flat_start=not naive
        )
    with torch.no_grad():
        return divergence(model(images), model(perturbed)).mean().item()


def test_a_divergence_is_ascended_in_bfloat16_as_far_as_in_float32(bright):
    model, images, _ = bright
    full = inner_loss(model, images, half=False)
    assert full > 4
    assert inner_loss(model, images, half=True, naive=True) < 0.97 * full
    assert inner_loss(model, images, half=True) >= 0.98 * full


def test_cross_entropy_needs_no_step_in_float32(bright):
    model, images, labels = bright
    reached = []
    for half in (False, True):
        context = context_for(model, images, half)
        with context.crafting(model) as view:
            start = uniform_start(images, context)
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels), view, start, images, context, flat_start=False
            )
        with torch.no_grad():
            reached.append(cross_entropy(model(perturbed), labels).mean().item())
    assert reached[1] >= 0.98 * reached[0]


def flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@dataclass(frozen=True)
class Looks(Defense):
    """Writes down how it is run."""

    paper: ClassVar[str] = "none"
    seen: ClassVar[list] = []

    def losses(self, model, images, labels, context):
        with context.crafting(model) as view:
            crafted = view(images).dtype
        logits = model(images)
        self.seen.append((crafted, logits.dtype, flags(), images.is_contiguous(memory_format=torch.channels_last)))
        return {"loss": cross_entropy(logits, labels).mean()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_computes_as_asked_and_records_it(tmp_path, blobs, monkeypatch, precision):
    monkeypatch.setitem(registry._plugins, ("defense", "looks"), Looks)
    Looks.seen.clear()
    before = flags()
    request = TrainingRequest(
        "looks", blobs, "cnn-small-bn", protocol={"epochs": 1}, runs=tmp_path, device="cpu", precision=precision
    )
    folder = train(request, quiet=True)
    outside = torch.bfloat16 if precision == "bf16" else torch.float32
    assert Looks.seen == [(torch.float32, outside, (False, False), True)]
    assert flags() == before
    assert load_checkpoint(folder).config["precision"] == precision
    assert from_checkpoint(folder, torch.device("cpu")).description["precision"] == precision
    assert json.loads((folder / "last" / "config.json").read_text())["precision"] == precision


def test_another_precision_is_another_run(tmp_path, blobs):
    options = {"backbone": "cnn-small", "protocol": {"epochs": 1}, "folder": tmp_path, "device": "cpu"}
    train(TrainingRequest("st", blobs, **options), quiet=True)
    with pytest.raises(BenchError, match=r"another run \(different precision\)"):
        train(TrainingRequest("st", blobs, precision="bf16", **options), quiet=True)


def test_precisions_that_do_not_exist_are_refused():
    with pytest.raises(BenchError, match=r"unknown precision 'fp8'. Choose from: fp32, tf32, bf16."):
        check_precision("fp8", torch.device("cpu"))
    with pytest.raises(BenchError, match="tf32 exists on CUDA devices only, not on cpu"):
        check_precision("tf32", torch.device("cpu"))


def test_tensor_floats_are_switched_and_put_back():
    before = flags()
    for allowed in (True, False):
        with tensor_floats(allowed):
            assert flags() == (allowed, allowed)
        assert flags() == before
