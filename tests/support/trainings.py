"""Small trainings: of a defense that a test writes, stopped after an epoch, damaged, and compared bit by bit."""

import json

import pytest
import torch
from torch.nn import functional

from bench.catalogue import plugins
from bench.interfaces import Defense
from bench.models.checkpoints import load_checkpoint
from bench.training import loop
from bench.training.train import train


class Plain(Defense):
    """Cross-entropy on clean images; what a test needs of a defense is added or replaced."""

    paper = "none"

    def losses(self, model, images, labels, context):
        return {"clean": functional.cross_entropy(model(images), labels)}


def plug_in(patch, name, owner, kind="defense"):
    """Find `owner` under a name, until the patch is undone."""
    patch.setitem(plugins.added, (kind, name), owner)


def stop_after(patch, epochs):
    """Interrupt every training after so many epochs, until the patch is undone."""
    original = loop.train_epoch

    def train_epoch(run, epoch, *rest):
        if epoch == epochs:
            raise KeyboardInterrupt
        return original(run, epoch, *rest)

    patch.setattr(loop, "train_epoch", train_epoch)


def train_and_stop(request, epochs):
    """A training that is interrupted after so many epochs; returns its folder."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, epochs)
        train(request, quiet=True)
    return request.run_folder


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_same_run(first, second):
    """Bit by bit: the weights of two run folders, and their histories."""
    assert_same_weights(load_checkpoint(first).weights, load_checkpoint(second).weights)
    assert (first / "history.jsonl").read_text() == (second / "history.jsonl").read_text()


def rows(folder):
    """Of the history of a run."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def damage(path, how):
    """A flipped bit, a file that is cut or torn at its end, empty or missing."""
    content = path.read_bytes()
    # The middle of the file is a tensor's: bytes of the container may flip without a meaning.
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :]
    path.unlink()  # a state and its older copy may be one file
    if how != "missing":
        path.write_bytes({"flipped": flipped, "cut": content[:middle], "torn": content[:-9], "empty": b""}[how])
