"""Same seed, same bits: also after a kill in the middle of an epoch. What a run folder holds, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.catalogue import plugins as registry
from bench.errors import BenchError
from bench.interfaces import Defense
from bench.models.checkpoints import load_checkpoint, load_training_state
from bench.system.progress import TrainingProgress
from bench.system.randomness import seeded
from bench.training import loop
from bench.training import request as requested
from bench.training import train as training
from bench.training.averages import Averages
from bench.training.request import TrainingRequest
from bench.training.run import TrainingRun, epoch_seed
from bench.training.run_folder import RunFolder
from bench.training.train import prepare_run, train
from tests import ROOT


def request(runs, **options):
    options.setdefault("protocol", {"epochs": 2, "batch_size": 32})
    options.setdefault("backbone", "cnn-small")
    return TrainingRequest(options.pop("defense", "at"), options.pop("dataset", "digits"), runs=runs, **options)


def weights(folder):
    return load_checkpoint(folder).weights


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path, blobs):
    same = [weights(train(request(tmp_path / name, dataset=blobs), quiet=True)) for name in "ab"]
    other = weights(train(request(tmp_path, dataset=blobs, seed=1), quiet=True))
    assert_same_bits(*same)
    assert not all(torch.equal(same[0][name], other[name]) for name in other)


@pytest.mark.parametrize("defense", ["at", "adv-dpnp"])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits(tmp_path, defense):
    options = ["--dataset", "digits", "--epochs", "4", "--batch-size", "16", "--limit-train", "300"]
    command = [sys.executable, "-m", "bench", "train", "--defense", defense, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    protocol = {"epochs": 4, "batch_size": 16}
    whole = train(request(tmp_path / "whole", defense=defense, protocol=protocol, limit_train=300), quiet=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(killed)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (killed / "training_state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = len(load_training_state(killed / "training_state.pt")["history"])
    assert 1 <= finished < 4
    subprocess.run([*command, "--out", str(killed), "--resume"], cwd=ROOT, env=environment, check=True)
    assert_same_bits(weights(whole), weights(killed))
    assert (whole / "history.jsonl").read_text() == (killed / "history.jsonl").read_text()


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
def test_an_unfinished_model_without_its_training_state_is_not_overwritten(tmp_path, blobs, monkeypatch, resume):
    wanted = request(tmp_path, dataset=blobs, folder=tmp_path / "run")
    monkeypatch.setattr(loop, "train_epoch", _stop_after(loop.train_epoch, 1))
    with pytest.raises(KeyboardInterrupt):
        train(wanted, quiet=True)
    monkeypatch.undo()
    before = _without_state(wanted.folder)
    with pytest.raises(BenchError, match="holds epoch 1 of 2 of this run, and its training state is missing: delete"):
        train(wanted, resume=resume, quiet=True)
    assert _without_state(wanted.folder) == before


def test_a_finished_model_without_its_training_state_is_left_alone(tmp_path, blobs):
    wanted = request(tmp_path, dataset=blobs, folder=tmp_path / "run")
    before = _without_state(train(wanted, quiet=True))
    for resume in (False, True):
        assert train(wanted, resume=resume, quiet=True) == wanted.folder
        with pytest.raises(BenchError, match=r"holds another run \(different seed\)"):
            train(replace(wanted, seed=1), resume=resume, quiet=True)
    assert _without_state(wanted.folder) == before


def test_an_unfinished_run_is_not_overwritten_without_resume(tmp_path, blobs, monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", _stop_after(loop.train_epoch, 1))
    with pytest.raises(KeyboardInterrupt):
        train(request(tmp_path, dataset=blobs), quiet=True)
    monkeypatch.undo()
    with pytest.raises(BenchError, match="holds 1 of 2 epochs of this run: add --resume"):
        train(request(tmp_path, dataset=blobs), quiet=True)
    folder = train(request(tmp_path, dataset=blobs), resume=True, quiet=True)
    assert_same_bits(weights(folder), weights(train(request(tmp_path / "whole", dataset=blobs), quiet=True)))


def _stop_after(train_epoch, epochs):
    def stopping(run, epoch, *rest):
        if epoch == epochs:
            raise KeyboardInterrupt
        return train_epoch(run, epoch, *rest)

    return stopping


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
    assert_same_bits(weights(whole), weights(folder))
    assert (whole / "history.jsonl").read_text() == (folder / "history.jsonl").read_text()


def test_a_folder_with_another_run_is_refused(tmp_path, blobs):
    train(request(tmp_path, dataset=blobs, folder=tmp_path / "run"), quiet=True)
    with pytest.raises(BenchError, match=r"holds another run \(different seed\)"):
        train(request(tmp_path, dataset=blobs, folder=tmp_path / "run", seed=1), resume=True, quiet=True)
    with pytest.raises(BenchError, match=r"different protocol"):
        train(request(tmp_path, dataset=blobs, folder=tmp_path / "run", protocol={"epochs": 3}), quiet=True)


def test_a_run_that_does_not_say_what_its_defense_was_like_is_continued(tmp_path, blobs, monkeypatch):
    wanted = request(tmp_path, dataset=blobs)
    whole = train(request(tmp_path / "whole", dataset=blobs), quiet=True)
    describe, fit_epoch = training.describe, loop.train_epoch

    def older(*arguments):
        config = describe(*arguments)
        return {name: value for name, value in config.items() if name != "defense_sha256"}

    def stops(run, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return fit_epoch(run, epoch, *rest)

    monkeypatch.setattr(training, "describe", older)
    monkeypatch.setattr(loop, "train_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, quiet=True)
    monkeypatch.undo()
    folder = train(wanted, resume=True, quiet=True)
    assert_same_bits(weights(whole), weights(folder))


def test_what_a_resumed_run_was_trained_with_before_is_kept(tmp_path, blobs, monkeypatch):
    wanted = request(tmp_path, dataset=blobs, protocol={"epochs": 5, "batch_size": 48})

    def stop_after(epochs, device):
        with monkeypatch.context() as patched:
            patched.setattr(requested, "describe_environment", lambda ignored: {"device": device, "versions": {}})
            patched.setattr(loop, "train_epoch", _stop_after(loop.train_epoch, epochs))
            with pytest.raises(KeyboardInterrupt) if epochs < 5 else nullcontext():
                train(wanted, resume=True, quiet=True)
        config = load_checkpoint(wanted.run_folder).config
        earlier = config.get("earlier_environments", [])
        return config["environment"]["device"], [(row["until_epoch"], row["device"]) for row in earlier]

    assert stop_after(1, "one") == ("one", [])
    assert stop_after(2, "one") == ("one", [])
    assert stop_after(4, "two") == ("two", [(2, "one")])
    assert stop_after(5, "one") == ("one", [(2, "one"), (4, "two")])
    (wanted.run_folder / "last" / "model.safetensors").unlink()
    assert stop_after(5, "three") == ("one", [(2, "one"), (4, "two")])


def test_history_and_config_record_the_run(tmp_path, blobs):
    folder = train(request(tmp_path, dataset=blobs, protocol={"epochs": 11, "batch_size": 96}), quiet=True)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 12))
    assert [round(row["learning_rate"], 6) for row in rows] == [0.1] * 10 + [0.001]
    assert rows[-1]["adversarial"] < rows[0]["adversarial"]
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
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    scores = [row["held_out_pgd"] for row in rows]
    best = load_checkpoint(folder / "best").config["epoch"]
    assert best == max(epoch for epoch, score in enumerate(scores, 1) if score == max(scores))
    with pytest.raises(BenchError, match="holdout 96 leaves nothing to train on"):
        train(request(tmp_path / "none", dataset=blobs, protocol={"holdout": 96}), quiet=True)


def test_the_last_incomplete_batch_is_trained_on(tmp_path, blobs, monkeypatch):
    sizes = []
    original = TrainingRun.batches

    def counted(run, generator):
        for images, labels in original(run, generator):
            sizes.append(len(labels))
            yield images, labels

    monkeypatch.setattr(TrainingRun, "batches", counted)
    train(request(tmp_path, dataset=blobs, protocol={"epochs": 1, "batch_size": 40}), quiet=True)
    assert sizes == [40, 40, 16]


@dataclass(frozen=True)
class Explodes(Defense):
    paper: ClassVar[str] = "none"

    def losses(self, model, images, labels, context):
        loss = functional.cross_entropy(model(images), labels)
        return {"fine": loss, "broken": loss * (float("nan") if context.epoch == 1 else 1.0)}


@pytest.mark.parametrize(("due", "step"), [(True, 1), (False, 3)])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_what_is_left(tmp_path, blobs, monkeypatch, due, step):
    """At the step at which the loop may wait for the device; at the latest, at the epoch's end."""
    monkeypatch.setitem(registry._plugins, ("defense", "explodes"), Explodes)
    monkeypatch.setattr(TrainingProgress, "step", lambda *arguments: due)
    message = rf"not finite in epoch 2, by step {step}: .*broken = nan; the checkpoint of epoch 1"
    with pytest.raises(BenchError, match=message):
        train(request(tmp_path, dataset=blobs, defense="explodes"), quiet=True)
    folder = request(tmp_path, dataset=blobs, defense="explodes").run_folder
    assert load_checkpoint(folder).config["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())


def returning(make, method="losses"):
    """A defense called Mine whose losses are `make(per_example)`, or whose update returns them."""

    @dataclass(frozen=True)
    class Mine(Defense):
        paper: ClassVar[str] = "none"

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
        (lambda loss: {"a": loss}, "shape (32,) for 'a': reduce it to one number, e.g. with .mean()."),
        (lambda loss: {"fine": loss.mean(), "a": loss[:1]}, "shape (1,) for 'a': reduce it to one number"),
        (lambda loss: loss.mean(), 'a Tensor: return a dictionary of named loss terms, such as {"loss": loss}.'),
        (lambda loss: loss, "a Tensor: return a dictionary"),
        (lambda loss: None, "a NoneType: return a dictionary"),
        (lambda loss: {}, "no terms: return a dictionary"),
        (lambda loss: {"a": loss.mean().item()}, "a float for 'a': it must be a tensor; leave out .item()."),
        (lambda loss: {0: loss.mean()}, "the name 0, which is not text."),
    ],
)
@pytest.mark.parametrize("method", ["losses", "update"])
def test_what_is_no_loss_is_refused_at_the_first_step(tmp_path, blobs, monkeypatch, method, make, message):
    monkeypatch.setitem(registry._plugins, ("defense", "mine"), returning(make, method))
    asked = request(tmp_path, dataset=blobs, defense="mine")
    steps = []
    monkeypatch.setattr(TrainingProgress, "step", lambda *arguments: steps.append(arguments))
    with pytest.raises(BenchError) as caught:
        train(asked, quiet=True)
    assert str(caught.value).startswith(f"{method}() of Mine returned {message}")
    assert steps == []


def test_terms_that_are_all_cut_from_the_model_are_refused(tmp_path, blobs, monkeypatch):
    asked = request(tmp_path, dataset=blobs, defense="mine")
    monkeypatch.setitem(registry._plugins, ("defense", "mine"), returning(lambda loss: {"a": loss.mean().detach()}))
    with pytest.raises(BenchError, match=r"^losses\(\) of Mine returned a without a gradient: leave out"):
        train(asked, quiet=True)
    # One that is switched off for a while is a constant.
    warming_up = returning(lambda loss: {"a": loss.mean(), "b": torch.zeros(())})
    monkeypatch.setitem(registry._plugins, ("defense", "mine"), warming_up)
    assert train(asked, quiet=True).is_dir()


@dataclass(frozen=True)
class NeedsAnother(Defense):
    paper: ClassVar[str] = "none"
    requires: ClassVar[tuple[str, ...]] = ("st",)

    def losses(self, model, images, labels, context):
        teacher = context.requirements["st"]
        assert not teacher.training
        return {"match": functional.mse_loss(model(images), teacher(images).detach())}


def test_a_required_model_is_trained_first_and_recorded(tmp_path, blobs, monkeypatch):
    monkeypatch.setitem(registry._plugins, ("defense", "needs-another"), NeedsAnother)
    wanted = request(tmp_path, dataset=blobs, defense="needs-another")
    folder = train(wanted, quiet=True)
    needed = replace(wanted, defense="st").run_folder
    assert load_checkpoint(folder).config["requirements"] == {"st": load_checkpoint(needed).digest}


def test_seeds_of_different_epochs_and_runs_differ():
    assert len({epoch_seed(seed, epoch) for seed in range(20) for epoch in range(200)}) == 4000


@dataclass(frozen=True)
class Draws(Defense):
    """Mixes images by numbers of every global stream, and so does its first model."""

    paper: ClassVar[str] = "none"

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
    monkeypatch.setitem(registry._plugins, ("defense", "draws"), Draws)
    wanted = request(tmp_path, dataset=blobs, defense="draws")
    whole = weights(train(replace(wanted, folder=tmp_path / "whole"), quiet=True))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "train_epoch", _stop_after(loop.train_epoch, 1))
        train(wanted, quiet=True)
    assert_same_bits(whole, weights(train(wanted, resume=True, quiet=True)))
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


@dataclass(frozen=True)
class OwnRates(Defense):
    """A still backbone, a head at the protocol's rate, and its bias at a tenth of it."""

    paper: ClassVar[str] = "none"

    def parameter_groups(self, model):
        still, slow = (
            {"params": list(model.backbone.parameters()), "lr": 0.0},
            {"params": [model.head.bias], "lr": 0.02},
        )
        return [still, slow, {"params": [model.head.weight]}]

    def losses(self, model, images, labels, context):
        return {"clean": functional.cross_entropy(model(images), labels)}

    def update(self, model, optimizer, images, labels, context):
        for name, group in zip(("still", "slow", "shared"), optimizer.param_groups, strict=True):
            context.record(name, group["lr"])
        return super().update(model, optimizer, images, labels, context)


def test_a_group_of_parameters_keeps_its_own_rate_which_the_schedule_multiplies(tmp_path, blobs, monkeypatch):
    monkeypatch.setitem(registry._plugins, ("defense", "own-rates"), OwnRates)
    protocol = {"epochs": 3, "batch_size": 48, "learning_rate": 0.2, "milestones": (1,)}
    wanted = request(tmp_path, dataset=blobs, defense="own-rates", protocol=protocol)
    first = prepare_run(wanted, quiet=True).model.state_dict()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "train_epoch", _stop_after(loop.train_epoch, 2))
        train(wanted, quiet=True)
    folder = train(wanted, resume=True, quiet=True)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["still"] for row in rows] == [0.0] * 3
    assert [row["slow"] for row in rows] == pytest.approx([0.02, 0.002, 0.002])
    assert [row["shared"] for row in rows] == pytest.approx([0.2, 0.02, 0.02])
    last = weights(folder)
    moved = {name for name in last if not torch.equal(last[name], first[name])}
    assert moved == {"head.weight", "head.bias"}


@dataclass(frozen=True)
class Normalised(Defense):
    """Ends in BatchNorm of one value per image and channel."""

    paper: ClassVar[str] = "none"

    def build(self, backbone, num_classes):
        model = super().build(backbone, num_classes)
        model.norm = nn.BatchNorm1d(num_classes)
        return model

    def losses(self, model, images, labels, context):
        return {"clean": functional.cross_entropy(model.norm(model(images)), labels)}


def test_a_batch_of_one_image_that_cannot_be_normalised_names_the_batch_size(tmp_path, blobs, monkeypatch):
    monkeypatch.setitem(registry._plugins, ("defense", "normalised"), Normalised)
    wanted = request(tmp_path, dataset=blobs, defense="normalised", limit_train=65)
    with pytest.raises(BenchError, match=r"65 images in batches of 32 leave one image alone, .* another --batch-size"):
        train(wanted, quiet=True)
    assert train(replace(wanted, protocol={"epochs": 1, "batch_size": 33}), quiet=True).is_dir()


@dataclass(frozen=True)
class Repeats(Defense):
    """Shows what the two streams of an epoch begin with."""

    paper: ClassVar[str] = "none"

    def begin_epoch(self, model, context):
        context.record("global", torch.rand(()))
        context.record("own", torch.rand((), generator=context.generator))

    def losses(self, model, images, labels, context):
        return {"clean": functional.cross_entropy(model(images), labels)}


def test_the_global_stream_does_not_repeat_the_numbers_behind_order_and_crops(tmp_path, blobs, monkeypatch):
    monkeypatch.setitem(registry._plugins, ("defense", "repeats"), Repeats)
    folder = train(request(tmp_path, dataset=blobs, defense="repeats"), quiet=True)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert len({row[name] for row in rows for name in ("global", "own")}) == 4


def test_averages():
    averages = Averages()
    averages.add({"a": torch.tensor(1.0), "b": 2.0})
    averages.add({"a": torch.tensor(3.0)})
    assert averages.means() == {"a": 2.0, "b": 2.0}
    assert averages.not_finite() == []
    averages.add({"b": torch.tensor(float("inf"))})
    assert averages.not_finite() == ["b = inf"]
    with pytest.raises(BenchError, match=r"'c' was recorded with shape \(2,\): reduce it to one number"):
        averages.add({"c": torch.ones(2)})
