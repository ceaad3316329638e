"""Averaged weights equal torch's and hand arithmetic; they are kept, evaluated by name, and never crafted against."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn, update_bn

from bench.catalogue.recipes import protocol_for
from bench.models.checkpoints import load_checkpoint
from bench.training.averaged_weights import AveragedWeights
from bench.training.request import TrainingRequest
from bench.training.run import TrainingRun
from bench.training.train import prepare_run, train


def of(model, **given):
    return AveragedWeights(model, protocol_for("cifar10", {}, 4, True, given))


def follow(averaged, model, values, per_epoch=1):
    """Averages after each of these weights; so many of them are an epoch."""
    found = []
    for number, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        done = number / len(values)
        averaged.after_step(done)
        if number % per_epoch == 0:
            averaged.after_epoch(done, [])
        found.append(averaged.average.module.weight.item())
    return found


def test_an_exponential_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    ema = {"average": "ema", "average_decay": 0.5}
    assert follow(of(model, **ema), model, [8, 4, 2, 1]) == [8, 6, 4, 2.5]
    # Half of the training is left out: until then it follows the weights, and the first ones after it stand alone.
    assert follow(of(model, **ema, average_from=0.5), model, [8, 4, 2, 1]) == [8, 4, 2, 1.5]


def test_an_even_average_over_ends_of_epochs_by_hand():
    model = nn.Linear(1, 1, bias=False)
    assert follow(of(model, average="swa"), model, [9, 2, 9, 4, 9, 9], per_epoch=2)[1::2] == pytest.approx([2, 3, 5])
    assert follow(of(model, average="swa", average_from=0.5), model, [8, 4, 2, 1]) == [8, 4, 2, 1.5]


def test_statistics_are_those_of_the_averaged_weights_on_the_images():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    averaged = of(model, average="swa")
    nn.init.constant_(model[0].weight, 3.0)
    before = copy.deepcopy(model.state_dict())
    # Batches of means 1 and 3, variance 2 each with Bessel's correction: of three times them, the mean over batches.
    batches = [torch.tensor([0.0, 2.0]).view(2, 1, 1, 1), torch.tensor([2.0, 4.0]).view(2, 1, 1, 1)]
    averaged.after_epoch(1.0, iter(batches))
    norm = averaged.average.module[1]
    assert (norm.running_mean.item(), norm.running_var.item()) == pytest.approx((6.0, 18.0))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


KINDS = {"ema": (get_ema_avg_fn(0.9), 1), "swa": (get_swa_avg_fn(), 3)}
"""Torch's function, and how many steps lie between two weights that count, of three steps an epoch."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_keeps_what_torch_averages(kind, blobs, tmp_path, monkeypatch):
    function, every = KINDS[kind]
    reference, images, shown = [], [], set()
    original = TrainingRun.step

    def stepping(run, *given):
        reference.append(reference[0] if reference else AveragedModel(run.model, avg_fn=function))
        terms = original(run, *given)
        if len(reference) % every == 0:
            reference[0].update_parameters(run.model)
        shown.update(run.view.shown)
        assert shown == {run.model}
        return terms

    def seen(original):
        def drawn(run, *given):
            images.append([])
            for batch in original(run, *given):
                images[-1].append(batch[0])
                yield batch

        return drawn

    monkeypatch.setattr(TrainingRun, "step", stepping)
    for name in ("steps", "batches"):  # of the training, and of the average's statistics
        monkeypatch.setattr(TrainingRun, name, seen(getattr(TrainingRun, name)))
    given = {"epochs": 2, "batch_size": 32, "attack_steps": 1, "average": kind}
    given |= {"average_decay": 0.9} if kind == "ema" else {}
    request = TrainingRequest("at", blobs, "cnn-small-bn", protocol=given, runs=tmp_path, device="cpu")
    folder = train(request, quiet=True)
    assert [len(epoch) for epoch in images] == [3, 3, 3, 3]
    update_bn(images[-1], reference[0].module)
    found, last = load_checkpoint(folder / "average"), load_checkpoint(folder / "last")
    for name, expected in reference[0].module.state_dict().items():
        assert torch.allclose(found.weights[name], expected, rtol=1e-6, atol=1e-7), name
    assert not torch.equal(found.weights["head.weight"], last.weights["head.weight"])
    assert (found.config["weights"], "weights" in last.config) == ("average", False)
    assert found.config["epoch"] == 2


def test_without_an_average_nothing_is_kept_and_nothing_drawn(blobs, tmp_path):
    run = prepare_run(TrainingRequest("at", blobs, "cnn-small", runs=tmp_path, device="cpu"), quiet=True)
    run.averaged.after_step(0.5)
    run.update_average(0)
    assert (run.averaged.average, run.averaged.state(), "average" in run.state()) == (None, {}, False)


def test_a_damaged_average_is_written_again_and_one_is_chosen_by_name(blobs, bench, tmp_path):
    given = ("--dataset", blobs, "--backbone", "cnn-small", "--epochs", 1, "--average", "ema", "--out", "run")
    assert bench("train", "--defense", "st", *given)[0] == 0
    kept = load_checkpoint(tmp_path / "run" / "average").digest
    shutil.rmtree("run/average")
    assert bench("train", "--defense", "st", *given)[0] == 0
    assert load_checkpoint(tmp_path / "run" / "average").digest == kept
    code, output = bench("eval", "run", "--checkpoint", "average", "--suite", "clean", "--limit", 20)
    assert code == 0
    assert "st (average)" in output
    assert (tmp_path / "run" / "results" / "clean-v1-limit20-average.h5").is_file()
    code, output = bench("eval", "run", "--checkpoint", "best", "--suite", "clean")
    assert code == 2
    assert "run has no checkpoint 'best', but last, average" in output


def test_a_sweep_evaluates_averages_and_refuses_those_that_are_not_kept(blobs, bench, tmp_path):
    given = ("--dataset", blobs, "--backbone", "cnn-small", "--epochs", 1, "--suite", "clean", "--defenses", "st")
    code, output = bench("sweep", *given, "--checkpoint", "average")
    assert code == 2
    assert "keep no checkpoint 'average'" in output
    for again in range(2):  # the second finds the first one's result, which is the plan's
        code, output = bench("sweep", *given, "--checkpoint", "average", "--average", "swa")
        assert (code, "st (average)" in output) == (0, True), again
    assert len(list(tmp_path.rglob("clean-v1-average.h5"))) == 1
