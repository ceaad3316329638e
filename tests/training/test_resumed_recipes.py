"""Every setting of a recipe resumes to the same bits, and runs of earlier versions go on."""

import dataclasses

import pytest
import torch

from bench.catalogue.protocol import LATER
from bench.errors import BenchError
from bench.models.checkpoints import load_checkpoint, load_training_state, save_training_state
from bench.results.trainings import recorded_start
from bench.system.files import content_digest
from bench.training.request import TrainingRequest
from bench.training.train import prepare_run, train
from tests.support.trainings import train_and_stop

ADAMW = {"optimizer": "adamw", "learning_rate": 0.002}


def asked(blobs, runs, **protocol):
    given = {"epochs": 3, "batch_size": 32, "attack_steps": 2, **protocol}
    backbone = "cnn-small-bn" if "average" in protocol else "cnn-small"
    return TrainingRequest("at", blobs, backbone, protocol=given, runs=runs, device="cpu")


def contents(folder):
    """All that a run leaves behind."""
    state = load_training_state(folder / "training_state.pt")
    return {
        "history": (folder / "history.jsonl").read_text(),
        "state": content_digest({name: value for name, value in state.items() if name != "config"}),
        **{path.parent.name: weights(path.parent) for path in folder.glob("*/model.safetensors")},
    }


def weights(place):
    return content_digest(dict(load_checkpoint(place).weights))


@pytest.mark.parametrize(
    "protocol",
    [
        {"schedule": "one-cycle", "schedule_by": "step", "momentum_peak": 0.8, "warm_up": 0.2},
        {**ADAMW, "schedule": "one-cycle", "schedule_by": "step", "average": "ema", "average_decay": 0.9, "awp": 0.01},
        {**ADAMW, "average": "swa", "average_from": 0.4},
        {"average": "ema", "average_decay": 0.9, "average_from": 0.2},
        {"average": "swa", "average_from": 0.4},
        {"awp": 0.01, "label_smoothing": 0.2},
    ],
    ids=["one-cycle", "adamw, one-cycle, ema, awp", "adamw, swa", "ema", "swa", "awp"],
)
def test_a_resumed_run_ends_at_the_same_bits(protocol, blobs, tmp_path):
    whole = train(asked(blobs, tmp_path / "whole", **protocol), quiet=True)
    request = asked(blobs, tmp_path, **protocol)
    train_and_stop(request, 2)
    assert contents(train(request, resume=True, quiet=True)) == contents(whole)


def test_a_run_of_a_version_without_recipes_goes_on(blobs, tmp_path):
    whole = train(asked(blobs, tmp_path / "whole"), quiet=True)
    request = asked(blobs, tmp_path)
    state = train_and_stop(request, 2) / "training_state.pt"
    content = load_training_state(state)
    del content["config"]["recipe"]
    for name in LATER:
        del content["config"]["protocol"][name]
    save_training_state(state, content)
    assert contents(train(request, resume=True, quiet=True)) == contents(whole)


def test_adamw_is_torchs(blobs, tmp_path):
    given = {"optimizer": "adamw", "momentum": 0.8, "weight_decay": 0.3, "learning_rate": 0.01, "epochs": 1}
    state = load_training_state(train(asked(blobs, tmp_path, **given), quiet=True) / "training_state.pt")
    (group,) = state["optimizer"]["param_groups"]
    assert (tuple(group["betas"]), group["weight_decay"], group["lr"]) == ((0.8, 0.999), 0.3, 0.01)
    assert set(state["optimizer"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert torch.equal(state["optimizer"]["state"][0]["step"], torch.tensor(3.0))


def test_a_training_starts_with_the_weights_of_another(blobs, tmp_path):
    first = train(asked(blobs, tmp_path / "first", epochs=1), quiet=True)
    request = dataclasses.replace(asked(blobs, tmp_path, epochs=1), start=first, seed=3)
    start = prepare_run(request, quiet=True).model.state_dict()
    assert content_digest({name: value.contiguous() for name, value in start.items()}) == weights(first)
    config = load_checkpoint(train(request, quiet=True)).config
    named = {"defense": "at", "dataset": blobs, "digest": load_checkpoint(first).digest, "path": str(first)}
    assert config["start"] == named
    assert recorded_start(config) == f"at on {blobs} ({named['digest'][:8]})"
    assert "start" not in load_checkpoint(first).config
    with pytest.raises(BenchError, match="holds another run \\(different start\\)"):
        train(dataclasses.replace(request, start=None), quiet=True)
    other = dataclasses.replace(request, backbone="cnn-small-bn", runs=tmp_path / "other")
    with pytest.raises(BenchError, match="do not fit at on cnn-small-bn") as caught:
        train(other, quiet=True)
    assert "\n" not in str(caught.value)
