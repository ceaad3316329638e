"""A training that is watched: what is measured, on which images, and that nothing else changes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench.catalogue.protocol import TrainingProtocol
from bench.data.datasets import load_dataset
from bench.data.splits import make_split
from bench.models.checkpoints import load_checkpoint
from bench.results.trainings import read_history
from bench.results.watched import watched_curve, watched_text
from bench.training.request import TrainingRequest, dataset_and_protocol, is_finished, needed_request
from bench.training.run_folder import best_epoch
from bench.training.train import train
from bench.training.watching import watching
from tests.support.command import bench as command
from tests.support.refusals import refusal
from tests.support.trainings import assert_same_run, assert_same_weights, train_and_stop

COUNT = 6
PROTOCOL = {"epochs": 2, "batch_size": 48, "holdout": 24, "average": "ema"}


class Valley(nn.Module):
    """Right about class 0 but where a pixel is within 0.05 of 0.6."""

    def forward(self, images):
        height = (images.flatten(1) - 0.6) ** 2 - 0.0025
        return torch.cat([height, torch.zeros_like(height)], dim=1)


def test_the_numbers_are_those_of_a_model_that_one_step_jumps_over():
    """From 0.5 a step of 0.2 ends at 0.7, beyond the valley; steps of 0.05 from anywhere around end in it."""

    def split(*pixels):
        return make_split(np.array(pixels, dtype=np.uint8).reshape(-1, 1, 1, 1), [0] * len(pixels))

    given = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    protocol = TrainingProtocol(**given, attack_steps=1, attack_step="eps", epsilon="0.2")
    near, far, wrong = 128, 25, 153
    watch = watching(split(near, far, wrong, wrong), split(far, far, near), 3, protocol, seed=0)
    right = [[[1, 1, 0], [1, 1, 0], [0, 1, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 0]]]
    row = watch.row(Valley())
    np.testing.assert_array_equal(watched_curve([{"epoch": 1, **row}], 1, 3)[0], right)
    assert row["watched_train_pgd_10"] == pytest.approx(100 / 3)
    assert row["watched_test_pgd_10"] == pytest.approx(200 / 3)


@pytest.fixture(scope="module")
def asked(blobs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return TrainingRequest("at", blobs, "cnn-small-bn", protocol=PROTOCOL, runs=runs, device="cpu")


@pytest.fixture(scope="module")
def plain(asked):
    return train(replace(asked, folder=asked.runs / "plain"), quiet=True)


@pytest.fixture(scope="module")
def watched(asked):
    """By the public function."""
    given = {"backbone": asked.backbone, "folder": asked.runs / "watched", "device": "cpu", "quiet": True}
    return bench.train(asked.defense, asked.dataset, watch=COUNT, **given, **PROTOCOL)


def test_watching_changes_nothing_but_the_record(plain, watched):
    for place in ("last", "best", "average"):
        assert_same_weights(*(load_checkpoint(run / place).weights for run in (plain, watched)))
    configs = [dict(load_checkpoint(run).config) for run in (plain, watched)]
    assert configs[1].pop("watch") == COUNT
    assert configs[0] == configs[1]
    bare = [{key: row[key] for key in row if not key.startswith("watched_")} for row in read_history(watched)]
    assert bare == read_history(plain)


def test_what_is_watched_are_the_live_weights_on_images_that_are_trained_on_and_test_images(asked, watched):
    """Clean, as the checkpoint of the last epoch answers them."""
    data = load_dataset(asked.dataset, asked.data)
    # Held out are the first 24 of the seed's order.
    kept = torch.randperm(96, generator=torch.Generator().manual_seed(0))[24:]
    train_split = replace(data.train, pixels=data.train.pixels[kept], labels=data.train.labels[kept])
    model = load_checkpoint(watched / "last").build()
    curve = watched_curve(read_history(watched), 2, COUNT)
    for seen, split in zip(curve[-1], (train_split.take(COUNT), data.test.take(COUNT)), strict=True):
        right = model(split.images(slice(None))).argmax(1) == split.labels
        np.testing.assert_array_equal(seen[0], right.numpy())


def test_a_resumed_run_goes_on_with_the_same_numbers(asked, watched):
    request = replace(asked, watch=COUNT, folder=asked.runs / "stopped")
    train_and_stop(request, 1)
    assert len(read_history(request.folder)) == 1
    for other in (None, COUNT + 1):
        told = "was trained with --watch 6: do the same, or choose another folder"
        refusal(lambda: train(replace(request, watch=other), resume=True, quiet=True), told)  # noqa: B023
    assert_same_run(train(request, resume=True, quiet=True), watched)


def test_a_finished_run_does_for_whoever_does_not_ask_to_watch_it(asked, plain, watched):
    done = replace(asked, folder=watched)
    assert train(done, quiet=True) == watched
    assert is_finished(done, *dataset_and_protocol(done))
    late = replace(asked, folder=plain, watch=COUNT)
    refusal(lambda: train(late, quiet=True), f"{plain} was trained without --watch: do the same")
    assert needed_request(replace(asked, watch=COUNT), "st").watch is None


@pytest.mark.parametrize(("watch", "limit", "told"), [(61, None, "60"), (0, None, "60"), (31, 54, "30")])
def test_more_images_than_there_are_are_refused(asked, watch, limit, told):
    request = replace(asked, watch=watch, limit_train=limit, folder=asked.runs / "refused")
    refusal(lambda: train(request, quiet=True), f"--watch {watch} does not fit: ", f"Give 1 to {told}.")
    assert not request.folder.exists()


def test_the_best_epoch_is_that_of_held_out_images_whatever_test_images_say():
    rows = [{"held_out_pgd": held, "watched_test_pgd_10": test} for held, test in ((30.0, 0.0), (20.0, 90.0))]
    assert best_epoch(rows) == 1


def test_an_epochs_line_is_short_and_an_evaluation_and_a_figure_know_the_course(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--backbone", "cnn-small-bn", "--epochs", 1, "--batch-size", 96, "--watch", COUNT, "--out", "run"]
    code, output = command("train", "--defense", "st", "--dataset", asked.dataset, *given)
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("epoch")]
    (row,) = read_history(tmp_path / "run")
    assert f"  watched {watched_text(row)}  " in line
    assert "watched_" not in line
    assert command("figure", "training", "run", "--out", "course")[0] == 0
    checks = {"catastrophic-overfitting", "robust-overfitting"}
    shutil.copytree("run/last", "copied")
    for number, (place, expected) in enumerate([("run", checks), ("run/last", checks), ("copied", set())]):
        found = bench.evaluate(place, suite="clean", limit=9, probes=0, out=f"{number}.h5", quiet=True).findings
        assert {one["name"] for one in found} & checks == expected
