"""What a step is told of its images and of the run; what is kept for each image; passes that are not counted."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.catalogue.plugins import load_python_file
from bench.interfaces import TrainingContext
from bench.models.checkpoints import load_training_state
from bench.system.files import content_digest
from bench.training.averages import Averages
from bench.training.processes import Processes
from bench.training.request import TrainingRequest
from bench.training.train import prepare_run, train
from tests import ROOT
from tests.support.refusals import refusal
from tests.support.trainings import Plain, assert_same_run, plug_in, rows, train_and_stop


class Pairs(Plain):
    views = 2


def asked(blobs, monkeypatch, kind=Plain, runs=Path("runs"), extra=None, **protocol):
    plug_in(monkeypatch, "mine", kind)
    protocol = {"epochs": 2, "batch_size": 32, "crop_padding": 1, "flip": True, "attack_steps": 1, **protocol}
    return TrainingRequest("mine", blobs, "cnn-small", protocol=protocol, runs=runs, extra=extra, device="cpu")


@pytest.fixture
def extra(tmp_path):
    """Ten images that no one else has."""
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8), np.uint8)
    np.savez(tmp_path / "extra.npz", x_train=images, y_train=np.arange(10) % 3)
    return f"npz:{tmp_path / 'extra.npz'}"


CASES = {
    "all": (Plain, {}, 96),
    "some held out": (Plain, {"holdout": 20}, 76),
    "extra": (Plain, {"extra_share": 0.25}, 106),
    "two views": (Pairs, {}, 96),
}


@pytest.mark.parametrize(("kind", "protocol", "count"), CASES.values(), ids=CASES)
def test_every_row_names_its_image_and_its_crop(blobs, monkeypatch, extra, kind, protocol, count):
    given = extra if "extra_share" in protocol else None
    run = prepare_run(asked(blobs, monkeypatch, kind, extra=given, **protocol), quiet=True, trial=True)
    images, labels = run.train_split.images(slice(None)), run.train_split.labels
    own = len(labels)
    if run.extra is not None:
        images = torch.cat([images, run.extra.images(slice(None))])
        labels = torch.cat([labels, run.extra.labels])
    context = run.context(1, Averages())
    for column, whole in zip(zip(*context.training_set(), strict=True), (images[:own], labels[:own]), strict=True):
        assert torch.equal(torch.cat(column), whole) and len(column) == run.steps_per_epoch
    untold = run.batches(run.context(1, Averages()).generator)
    seen = []
    for number, ((batch, named, told), (same, _)) in enumerate(zip(run.steps(context), untold, strict=True)):
        assert torch.equal(batch, told.placement.place(images[told.indices]))
        assert torch.equal(named, labels[told.indices])
        assert torch.equal(batch, same)
        assert (told.batch, told.batches_per_epoch, told.training_images) == (number, run.steps_per_epoch, count)
        assert told.progress == pytest.approx((1 + number / run.steps_per_epoch) / 2)
        seen += told.indices.tolist()[:: kind.views]
        assert torch.equal(told.indices, told.indices[: len(named) // kind.views].repeat(kind.views))
    assert number + 1 == run.steps_per_epoch
    assert len(images) == count
    if given is None and kind.views == 1:
        assert sorted(seen) == list(range(count))
    else:
        assert max(seen) < count and (given is None or max(seen) >= own)


def test_a_process_is_told_of_its_own_rows(blobs, monkeypatch):
    found = []

    class Tells(Plain):
        def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
            found.append((images, context))
            return {"clean": torch.zeros(())}

    run = prepare_run(asked(blobs, monkeypatch, Tells, batch_size=33), quiet=True, trial=True)
    run.processes = Processes(1, 2)
    everything = run.train_split.images(slice(None))
    for images, labels, told in run.steps(run.context(0, Averages())):
        run.step(images, labels, told)
        mine, context = found.pop()
        share = context.share
        assert (share.first, share.end) == (len(labels) // 2, len(labels))
        assert torch.equal(context.indices, told.indices[share.first :])
        assert torch.equal(mine, context.placement.place(everything[context.indices]))


# ------------------------------------------------------------------------------------------ tables


class Momentum(Plain):
    """Gradients of each image, averaged over epochs, move it; and how often, and when, it was seen."""

    def tables(self, image_shape: Any) -> Any:
        return {"momentum": image_shape, "seen": ()}

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        momentum, seen, rows = context.state["momentum"], context.state["seen"], context.indices
        moved = (images + 0.05 * context.placement.place(momentum[rows]).sign()).requires_grad_()
        loss = (1 + context.progress) * functional.cross_entropy(model(moved), labels)
        (gradient,) = torch.autograd.grad(loss, moved, retain_graph=True)
        momentum[rows] = context.placement.put_back(gradient, onto=momentum[rows]).lerp(momentum[rows], 0.5)
        seen[rows] += 1 + context.progress
        return {"clean": loss}

    def end_epoch(self, model: Any, context: Any) -> None:
        context.record("done", context.progress)


def kept(folder):
    return load_training_state(folder / "training_state.pt")["kept"]


@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_tables_are_what_was_written_and_resume_to_the_same_bits(blobs, monkeypatch, tmp_path, awp):
    """With perturbed weights losses are computed twice, and written once."""
    whole = train(asked(blobs, monkeypatch, Momentum, tmp_path / "whole", awp=awp), quiet=True)
    request = asked(blobs, monkeypatch, Momentum, tmp_path / "stopped", awp=awp)
    resumed = train(dataclasses.replace(request, folder=train_and_stop(request, 1)), resume=True, quiet=True)
    assert_same_run(whole, resumed)
    assert content_digest(kept(whole)) == content_digest(kept(resumed))
    assert [row["done"] for row in rows(resumed)] == [0.5, 1.0]
    run = prepare_run(request, quiet=True, trial=True)
    seen = torch.zeros(96)
    for epoch in range(2):
        for _, _, told in run.steps(run.context(epoch, Averages())):
            seen[told.indices] += 1 + (epoch + told.batch / 3) / 2
    assert torch.equal(kept(resumed)["seen"], seen)
    assert kept(resumed)["momentum"].shape == (96, 1, 8, 8)
    assert bool(kept(resumed)["momentum"].flatten(1).any(1).all())


@pytest.mark.parametrize(("epochs", "reset", "steps"), [(1, 10, 1), (2, 10, 2), (2, 1, 1)])
def test_the_example_goes_on_from_the_last_epoch(blobs, monkeypatch, tmp_path, epochs, reset, steps):
    example = load_python_file(ROOT / "examples" / "remembered_start.py").RememberedStart
    protocol = {"epochs": epochs, "epsilon": "0.3", "attack_step": "0.01"}
    request = asked(blobs, monkeypatch, example, tmp_path, crop_padding=0, **protocol)
    folder = train(dataclasses.replace(request, hyperparameters={"reset": reset}), quiet=True)
    perturbation = kept(folder)["perturbation"]
    assert float(perturbation.abs().amax()) == pytest.approx(0.01 * steps, abs=1e-6)
    assert bool((perturbation.abs().flatten(1).amax(1) > 0).all())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([3], "tables() of Asks returned no dictionary: return the shape of a row, by name"),
        ({0: ()}, "tables() of Asks returned no dictionary"),
        ({"loss": 3}, "tables() of Asks returned 3 for 'loss': it must be the shape of a row"),
        ({"loss": (3, 0)}, "tables() of Asks returned (3, 0) for 'loss'"),
        ({"steps": ()}, "state() and tables() of Asks both name steps: rename one of them"),
    ],
)
def test_what_is_no_table_is_refused(blobs, monkeypatch, returned, message):
    class Asks(Plain):
        def tables(self, image_shape: Any) -> Any:
            return returned

        def state(self, model: Any, optimizer: Any) -> Any:
            return {"steps": torch.zeros(())}

    refusal(lambda: prepare_run(asked(blobs, monkeypatch, Asks), quiet=True, trial=True), message)


def test_tables_are_refused_to_several_processes(blobs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = ("mine cannot be trained by 2 processes: its tables are changed by one process", "without torchrun")
    refusal(lambda: train(asked(blobs, monkeypatch, Momentum), quiet=True), *told)


# ------------------------------------------------------------------------------------------ passes that do not count


def statistics(norm):
    return norm.running_mean.item(), norm.running_var.item(), int(norm.num_batches_tracked)


def test_a_pass_without_statistics_moves_none_and_normalises_all_the_same():
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.1, eps=1e-12))
    first, second = (torch.tensor(values).view(2, 1, 1, 1) for values in ([0.0, 2.0], [4.0, 8.0]))
    model(first)  # mean 1, variance 2 with Bessel's correction
    once = statistics(model[0])
    assert once == pytest.approx((0.1, 0.9 + 0.1 * 2, 1))
    with pytest.raises(KeyError), TrainingContext.without_statistics(model) as shown:
        torch.testing.assert_close(shown(second).flatten(), torch.tensor([-1.0, 1.0]))
        model.eval()
        torch.testing.assert_close(shown(second), (second - once[0]) / once[1] ** 0.5)
        model.train()
        raise KeyError
    assert statistics(model[0]) == once
    model(second)  # mean 6, variance 8
    assert statistics(model[0]) == pytest.approx((0.9 * 0.1 + 0.1 * 6, 0.9 * 1.1 + 0.1 * 8, 2))
