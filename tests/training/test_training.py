"""Same seed, same bits: also after a kill in the middle of an epoch. What a run folder holds, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.launching import program
from bench.models.checkpoints import load_checkpoint, load_training_state
from bench.system.progress import TrainingProgress
from bench.system.randomness import seeded
from bench.training import request as requested
from bench.training import train as training
from bench.training.averages import Averages
from bench.training.request import TrainingRequest
from bench.training.run import TrainingRun, epoch_seed
from bench.training.run_folder import RunFolder
from bench.training.train import prepare_run, train
from tests.support.refusals import refusal
from tests.support.trainings import (
    Plain,
    assert_same_run,
    assert_same_weights,
    plug_in,
    rows,
    stop_after,
    train_and_stop,
)


def request(runs, **options):
    options.setdefault("protocol", {"epochs": 2, "batch_size": 32})
    options.setdefault("backbone", "cnn-small")
    return TrainingRequest(options.pop("defense", "at"), options.pop("dataset", "digits"), runs=runs, **options)


def weights(folder):
    return load_checkpoint(folder).weights


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path, blobs):
    same = [weights(train(request(tmp_path / name, dataset=blobs), quiet=True)) for name in "ab"]
    other = weights(train(request(tmp_path, dataset=blobs, seed=1), quiet=True))
    assert_same_weights(*same)
    assert not all(torch.equal(same[0][name], other[name]) for name in other)


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits(tmp_path, blobs):
    """Of a model with centres, and random starts."""
    given = {"defense": "adv-dpnp", "dataset": blobs, "protocol": {"epochs": 4, "batch_size": 8}}
    options = ["--backbone", "cnn-small", "--epochs", "4", "--batch-size", "8", "--out", str(tmp_path / "killed")]
    options += ["--save-every", "0"]
    command = [*program(), "train", "--defense", "adv-dpnp", "--dataset", blobs, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    state = tmp_path / "killed" / "training_state.pt"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(load_training_state(state)["history"]) < 4
    whole, killed = (request(tmp_path, folder=tmp_path / name, **given) for name in ("whole", "killed"))
    assert_same_run(train(whole, quiet=True), train(killed, resume=True, quiet=True))


def test_a_finished_run_is_left_alone(tmp_path, blobs, capsys):
    folder = train(request(tmp_path, dataset=blobs), quiet=True)
    before = (folder / "last" / "model.safetensors").stat().st_mtime_ns
    assert train(request(tmp_path, dataset=blobs), quiet=True) == folder
    assert capsys.readouterr() == ("", "")
    assert train(request(tmp_path, dataset=blobs)) == folder
    assert capsys.readouterr() == ("", f"{folder} is already finished: nothing to do.\n")
    assert (folder / "last" / "model.safetensors").stat().st_mtime_ns == before


def _without_state(folder):
    for state in folder.glob("training_state*"):
        state.unlink()
    return (folder / "last" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("resume", [False, True])
def test_an_unfinished_model_without_its_training_state_is_not_overwritten(tmp_path, blobs, resume):
    wanted = request(tmp_path, dataset=blobs, folder=tmp_path / "run")
    before = _without_state(train_and_stop(wanted, 1))
    told = ("holds epoch 1 of 2 of this run", "its training state is missing: delete")
    refusal(lambda: train(wanted, resume=resume, quiet=True), *told)
    assert _without_state(wanted.folder) == before


def test_a_finished_model_without_its_training_state_is_left_alone(tmp_path, blobs):
    wanted = request(tmp_path, dataset=blobs, folder=tmp_path / "run")
    before = _without_state(train(wanted, quiet=True))
    for resume in (False, True):
        assert train(wanted, resume=resume, quiet=True) == wanted.folder
        other = replace(wanted, seed=1)
        refusal(lambda: train(other, resume=resume, quiet=True), "holds another run (different seed)")  # noqa: B023
    assert _without_state(wanted.folder) == before


def test_an_unfinished_run_is_not_overwritten_without_resume(tmp_path, blobs):
    wanted = request(tmp_path, dataset=blobs)
    train_and_stop(wanted, 1)
    refusal(lambda: train(wanted, quiet=True), "holds 1 of 2 epochs of this run: add --resume")
    folder = train(wanted, resume=True, quiet=True)
    assert_same_run(folder, train(request(tmp_path / "whole", dataset=blobs), quiet=True))


def test_a_kill_between_state_and_export_is_mended(tmp_path, blobs, monkeypatch):
    whole = train(request(tmp_path / "whole", dataset=blobs), quiet=True)
    original = RunFolder.export

    def killed(folder):
        if folder.finished == 2:
            raise KeyboardInterrupt
        original(folder)

    monkeypatch.setattr(RunFolder, "export", killed)
    with pytest.raises(KeyboardInterrupt):
        train(request(tmp_path, dataset=blobs), quiet=True)
    monkeypatch.undo()
    folder = train(request(tmp_path, dataset=blobs), resume=True, quiet=True)
    assert load_checkpoint(folder).config["epoch"] == 2
    assert_same_run(whole, folder)


def test_a_folder_with_another_run_is_refused(tmp_path, blobs):
    wanted = request(tmp_path, dataset=blobs, folder=tmp_path / "run")
    train(wanted, quiet=True)
    refusal(lambda: train(replace(wanted, seed=1), resume=True, quiet=True), "holds another run (different seed)")
    refusal(lambda: train(replace(wanted, protocol={"epochs": 3}), quiet=True), "different protocol")


def test_a_run_that_does_not_say_what_its_defense_was_like_is_continued(tmp_path, blobs, monkeypatch):
    wanted = request(tmp_path, dataset=blobs)
    describe = training.describe

    def older(*arguments):
        return {name: value for name, value in describe(*arguments).items() if name != "defense_sha256"}

    with monkeypatch.context() as patch:
        patch.setattr(training, "describe", older)
        train_and_stop(wanted, 1)
    whole = train(request(tmp_path / "whole", dataset=blobs), quiet=True)
    assert_same_weights(weights(whole), weights(train(wanted, resume=True, quiet=True)))


def test_what_a_resumed_run_was_trained_with_before_is_kept(tmp_path, blobs, monkeypatch):
    wanted = request(tmp_path, dataset=blobs, protocol={"epochs": 5, "batch_size": 48})

    def stopped(epochs, device):
        with monkeypatch.context() as patched:
            patched.setattr(requested, "describe_environment", lambda ignored: {"device": device, "versions": {}})
            stop_after(patched, epochs)
            with pytest.raises(KeyboardInterrupt) if epochs < 5 else nullcontext():
                train(wanted, resume=True, quiet=True)
        config = load_checkpoint(wanted.run_folder).config
        earlier = config.get("earlier_environments", [])
        return config["environment"]["device"], [(row["until_epoch"], row["device"]) for row in earlier]

    assert stopped(1, "one") == ("one", [])
    assert stopped(2, "one") == ("one", [])
    assert stopped(4, "two") == ("two", [(2, "one")])
    assert stopped(5, "one") == ("one", [(2, "one"), (4, "two")])
    (wanted.run_folder / "last" / "model.safetensors").unlink()
    assert stopped(5, "three") == ("one", [(2, "one"), (4, "two")])


def test_history_and_config_record_the_run(tmp_path, blobs):
    folder = train(request(tmp_path, dataset=blobs, protocol={"epochs": 11, "batch_size": 96}), quiet=True)
    history = rows(folder)
    assert [row["epoch"] for row in history] == list(range(1, 12))
    assert [round(row["learning_rate"], 6) for row in history] == [0.1] * 10 + [0.001]
    assert history[-1]["adversarial"] < history[0]["adversarial"]
    config = json.loads((folder / "last" / "config.json").read_text())
    assert config["protocol"]["epochs"] == 11
    assert config["protocol_given"] == {"epochs": 11, "batch_size": 96}
    assert config["epoch"] == 11
    assert len(config["dataset"]["train_digest"]) == 64
    assert "torch" in config["environment"]["versions"]
    assert config["environment"]["threads"] == torch.get_num_threads()


def test_best_is_chosen_on_held_out_training_images(tmp_path, blobs):
    protocol = {"epochs": 3, "batch_size": 32, "holdout": 24}
    folder = train(request(tmp_path, dataset=blobs, protocol=protocol), quiet=True)
    history = rows(folder)
    scores = [row["held_out_pgd"] for row in history]
    best = load_checkpoint(folder / "best").config["epoch"]
    assert best == max(epoch for epoch, score in enumerate(scores, 1) if score == max(scores))
    all_held_out = request(tmp_path / "none", dataset=blobs, protocol={"holdout": 96})
    refusal(lambda: train(all_held_out, quiet=True), "holdout 96 leaves nothing to train on")


def test_the_last_incomplete_batch_is_trained_on(tmp_path, blobs, monkeypatch):
    sizes = []
    original = TrainingRun.step

    def counted(run, images, labels, context):
        sizes.append(len(labels))
        return original(run, images, labels, context)

    monkeypatch.setattr(TrainingRun, "step", counted)
    train(request(tmp_path, dataset=blobs, protocol={"epochs": 1, "batch_size": 40}), quiet=True)
    assert sizes == [40, 40, 16]


class Explodes(Plain):
    def losses(self, model, images, labels, context):
        loss = functional.cross_entropy(model(images), labels)
        return {"fine": loss, "broken": loss * (float("nan") if context.epoch == 1 else 1.0)}


@pytest.mark.parametrize(("due", "step"), [(True, 1), (False, 3)])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_what_is_left(tmp_path, blobs, monkeypatch, due, step):
    """At the step at which the loop may wait for the device; at the latest, at the epoch's end."""
    plug_in(monkeypatch, "explodes", Explodes)
    monkeypatch.setattr(TrainingProgress, "step", lambda *arguments: due)
    wanted = request(tmp_path, dataset=blobs, defense="explodes")
    told = (f"not finite in epoch 2, by step {step}: ", "broken = nan", "the checkpoint of epoch 1")
    refusal(lambda: train(wanted, quiet=True), *told)
    folder = wanted.run_folder
    assert load_checkpoint(folder).config["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())


def returning(make, method="losses"):
    """A defense called Mine whose losses are `make(per_example)`, or whose update returns them."""

    class Mine(Plain):
        def losses(self, model, images, labels, context):
            loss = functional.cross_entropy(model(images), labels, reduction="none")
            return make(loss) if method == "losses" else {"a": loss.mean()}

        if method == "update":

            def update(self, model, optimizer, images, labels, context):
                super().update(model, optimizer, images, labels, context)
                return make(functional.cross_entropy(model(images), labels, reduction="none"))

    return Mine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda loss: {"a": loss}, "shape (32,) for 'a': reduce it to one number"),
        (lambda loss: {"fine": loss.mean(), "a": loss[:1]}, "shape (1,) for 'a': reduce it to one number"),
        (lambda loss: loss.mean(), "a Tensor: return a dictionary of named loss terms"),
        (lambda loss: None, "a NoneType: return a dictionary"),
        (lambda loss: {}, "no terms: return a dictionary"),
        (lambda loss: {"a": loss.mean().item()}, "a float for 'a': it must be a tensor; leave out .item()"),
        (lambda loss: {0: loss.mean()}, "the name 0, which is not text."),
    ],
)
@pytest.mark.parametrize("method", ["losses", "update"])
def test_what_is_no_loss_is_refused_at_the_first_step(tmp_path, blobs, monkeypatch, method, make, message):
    plug_in(monkeypatch, "mine", returning(make, method))
    asked = request(tmp_path, dataset=blobs, defense="mine")
    steps = []
    monkeypatch.setattr(TrainingProgress, "step", lambda *arguments: steps.append(arguments))
    refusal(lambda: train(asked, quiet=True), f"{method}() of Mine returned {message}")
    assert steps == []


def test_terms_that_are_all_cut_from_the_model_are_refused(tmp_path, blobs, monkeypatch):
    asked = request(tmp_path, dataset=blobs, defense="mine")
    plug_in(monkeypatch, "mine", returning(lambda loss: {"a": loss.mean().detach()}))
    refusal(lambda: train(asked, quiet=True), "losses() of Mine returned a without a gradient: leave out")
    # One that is switched off for a while is a constant.
    warming_up = returning(lambda loss: {"a": loss.mean(), "b": torch.zeros(())})
    plug_in(monkeypatch, "mine", warming_up)
    assert train(asked, quiet=True).is_dir()


class NeedsAnother(Plain):
    requires = ("st",)

    def losses(self, model, images, labels, context):
        teacher = context.requirements["st"]
        assert not teacher.training
        return {"match": functional.mse_loss(model(images), teacher(images).detach())}


def test_a_required_model_is_trained_first_and_recorded(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "needs-another", NeedsAnother)
    wanted = request(tmp_path, dataset=blobs, defense="needs-another")
    folder = train(wanted, quiet=True)
    needed = replace(wanted, defense="st").run_folder
    assert load_checkpoint(folder).config["requirements"] == {"st": load_checkpoint(needed).digest}


def test_seeds_of_different_epochs_and_runs_differ():
    assert len({epoch_seed(seed, epoch) for seed in range(20) for epoch in range(200)}) == 4000


class Draws(Plain):
    """Mixes images by numbers of every global stream, and so does its first model."""

    def build(self, backbone, num_classes):
        model = super().build(backbone, num_classes)
        model.register_buffer("shares", torch.tensor([random.random(), np.random.rand()]))
        return model

    def losses(self, model, images, labels, context):
        share = (random.random() + np.random.beta(1, 1) + torch.rand(())) / 3
        mixed = model(share * images + (1 - share) * images.flip(0))
        ours, theirs = functional.cross_entropy(mixed, labels), functional.cross_entropy(mixed, labels.flip(0))
        return {"mixed": share * ours + (1 - share) * theirs}


def test_a_defense_that_draws_from_global_streams_resumes_to_the_same_bits(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "draws", Draws)
    wanted = request(tmp_path, dataset=blobs, defense="draws")
    whole = weights(train(replace(wanted, folder=tmp_path / "whole"), quiet=True))
    train_and_stop(wanted, 1)
    assert_same_weights(whole, weights(train(wanted, resume=True, quiet=True)))
    other = weights(train(replace(wanted, seed=1), quiet=True))
    assert not torch.equal(other["shares"], whole["shares"])


def test_seeded_draws_are_a_function_of_the_seed_and_the_streams_go_on_as_they_were():
    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [drawn(), drawn()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    found = [drawn()]
    with pytest.raises(KeyError), seeded(-3 * 10**12):
        first = drawn()
        raise KeyError
    found.append(drawn())
    assert found == expected
    with seeded(-3 * 10**12):
        assert drawn() == first


class OwnRates(Plain):
    """A still backbone, a head at the protocol's rate, and its bias at a tenth of it."""

    def parameter_groups(self, model):
        still, slow = (
            {"params": list(model.backbone.parameters()), "lr": 0.0},
            {"params": [model.head.bias], "lr": 0.02},
        )
        return [still, slow, {"params": [model.head.weight]}]

    def update(self, model, optimizer, images, labels, context):
        for name, group in zip(("still", "slow", "shared"), optimizer.param_groups, strict=True):
            context.record(name, group["lr"])
        return super().update(model, optimizer, images, labels, context)


def test_a_group_of_parameters_keeps_its_own_rate_which_the_schedule_multiplies(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "own-rates", OwnRates)
    protocol = {"epochs": 3, "batch_size": 48, "learning_rate": 0.2, "milestones": (1,)}
    wanted = request(tmp_path, dataset=blobs, defense="own-rates", protocol=protocol)
    first = prepare_run(wanted, quiet=True).model.state_dict()
    train_and_stop(wanted, 2)
    folder = train(wanted, resume=True, quiet=True)
    history = rows(folder)
    assert [row["still"] for row in history] == [0.0] * 3
    assert [row["slow"] for row in history] == pytest.approx([0.02, 0.002, 0.002])
    assert [row["shared"] for row in history] == pytest.approx([0.2, 0.02, 0.02])
    last = weights(folder)
    moved = {name for name in last if not torch.equal(last[name], first[name])}
    assert moved == {"head.weight", "head.bias"}


class Normalised(Plain):
    """Ends in BatchNorm of one value per image and channel."""

    def build(self, backbone, num_classes):
        model = super().build(backbone, num_classes)
        model.norm = nn.BatchNorm1d(num_classes)
        return model

    def losses(self, model, images, labels, context):
        return {"clean": functional.cross_entropy(model.norm(model(images)), labels)}


def test_a_batch_of_one_image_that_cannot_be_normalised_names_the_batch_size(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "normalised", Normalised)
    wanted = request(tmp_path, dataset=blobs, defense="normalised", limit_train=65)
    told = ("65 images in batches of 32 leave one image alone", "another --batch-size")
    refusal(lambda: train(wanted, quiet=True), *told)
    assert train(replace(wanted, protocol={"epochs": 1, "batch_size": 33}), quiet=True).is_dir()


class Repeats(Plain):
    """Shows what the two streams of an epoch begin with."""

    def begin_epoch(self, model, context):
        context.record("global", torch.rand(()))
        context.record("own", torch.rand((), generator=context.generator))


def test_the_global_stream_does_not_repeat_the_numbers_behind_order_and_crops(tmp_path, blobs, monkeypatch):
    plug_in(monkeypatch, "repeats", Repeats)
    folder = train(request(tmp_path, dataset=blobs, defense="repeats"), quiet=True)
    history = rows(folder)
    assert len({row[name] for row in history for name in ("global", "own")}) == 4


def test_averages():
    averages = Averages()
    averages.add({"a": torch.tensor(1.0), "b": 2.0})
    averages.add({"a": torch.tensor(3.0)})
    assert averages.means() == {"a": 2.0, "b": 2.0}
    assert averages.not_finite() == []
    averages.add({"b": torch.tensor(float("inf"))})
    assert averages.not_finite() == ["b = inf"]
    refusal(lambda: averages.add({"c": torch.ones(2)}), "'c' was recorded with shape (2,): reduce it to one number")
