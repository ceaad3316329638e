"""What a training step of each defense costs: passes through the network for an image, and CPU time beside AT's.

    python -m benchmarks.step_costs [--backbone cnn-small-bn] [--batch 64] [--rounds 3] [--only at trades ...]

Counted, not declared: of every backbone that a step uses, teachers included, an image that goes through is a forward
pass of that image, and a gradient that reaches its feature map a backward pass, whether weights or pixels want it. A
gradient that is differentiated again comes back twice. The epoch is the last one of the protocol, four batches long,
so that what grows over epochs, begins late or is made every other step is in force; PGD has ten steps.

Time is process CPU time of an epoch on one thread (set OMP_WAIT_POLICY=PASSIVE), the least of rounds that go through
all defenses in turn, over that of `at`: what else runs on a machine only adds to it. Images are noise: the work is the
same. The time of an optimiser, of Python and of everything else a step does is in it, so a small network shows more
than passes.
"""

import argparse
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import NamedTuple

import torch

from bench.catalogue.names import built_in
from bench.catalogue.plugins import family_of, make_defense, names
from bench.interfaces import Backbone
from bench.models.checkpoints import build_model
from bench.training.averages import Averages
from bench.training.run import TrainingRun
from benchmarks.training import noise_protocol

BATCHES = 4
REFERENCE = "at"


class Passes(NamedTuple):
    """Forward and backward passes through backbones, for each image of a step."""

    forward: float
    backward: float


class Epochs:
    """The last epoch of a defense's training on noise, over and over."""

    def __init__(self, name, backbone="cnn-small-bn", batch=64):
        dataset, protocol = noise_protocol(BATCHES * batch, {"batch_size": batch, "learning_rate": 0.001})
        description = {"name": "noise", "num_classes": 10, "image_shape": list(dataset.image_shape)}
        config = {"seed": 0, "backbone": backbone, "dataset": description, "precision": "fp32"}
        defense = make_defense(name, "cifar10", {})
        teachers = {
            needed: build_model(make_defense(needed, "cifar10", {}), backbone, description).eval()
            for needed in defense.requires
        }
        self.images = BATCHES * batch * defense.views
        self.run = TrainingRun(defense, protocol, dataset, torch.device("cpu"), config, teachers)
        self.run.model.train()
        self.context = self.run.context(protocol.epochs - 1, Averages())

    def take(self):
        """One epoch."""
        self.run.defense.begin_epoch(self.run.model, self.context)
        for images, labels, told in self.run.steps(self.context):
            self.run.step(images, labels, told)

    def passes(self):
        """Those of one epoch, after one that does not count, because folding is prepared in it."""
        self.take()
        extractor = next(module for module in self.run.model.modules() if isinstance(module, Backbone))
        with counted(type(extractor)) as found:
            self.take()
        return Passes(found["forward"] / self.images, found["backward"] / self.images)


@contextmanager
def counted(kind):
    """Images that go through backbones of this class until exit, and that gradients come back for."""
    found, feature_map = defaultdict(int), kind.feature_map

    def watched(self, images):
        features = feature_map(self, images)
        found["forward"] += len(images)
        if features.requires_grad:
            features.register_hook(returned)
        return features

    def returned(gradient):
        found["backward"] += len(gradient)

    kind.feature_map = watched
    try:
        yield found
    finally:
        kind.feature_map = feature_map


def seconds(epochs, rounds):
    """The least CPU seconds of an epoch of each."""
    found = dict.fromkeys(epochs, float("inf"))
    for _ in range(rounds):
        for name, one in epochs.items():
            before = time.process_time()
            one.take()
            found[name] = min(found[name], time.process_time() - before)
    return found


def table(passes, ratios):
    """Markdown, a row for each defense by family and cost, and one for each family that has several."""
    lines = ["| Family | Defense | Forward | Backward | CPU time / at |", "|:--|:--|--:|--:|--:|"]
    families = defaultdict(list)
    for name in passes:
        families[family_of(name) or "other"].append(name)
    for family, members in families.items():
        for name in sorted(members, key=ratios.__getitem__):
            forward, backward = passes[name]
            lines.append(f"| {family} | {name} | {forward:.2f} | {backward:.2f} | {ratios[name]:.2f} |")
        if len(members) > 1:
            low, high = (choose(ratios[name] for name in members) for choose in (min, max))
            lines.append(f"| **{family}** | {len(members)} |  |  | **{low:.2f} to {high:.2f}** |")
    return "\n".join(lines)


def main(arguments=None):
    """Count, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="cnn-small-bn", choices=built_in("backbone"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=names("defense"), choices=names("defense"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = [REFERENCE, *(name for name in chosen.only if name != REFERENCE)]
    epochs = {name: Epochs(name, chosen.backbone, chosen.batch) for name in wanted}
    passes = {name: one.passes() for name, one in epochs.items()}
    spent = seconds(epochs, chosen.rounds)
    print(f"{chosen.backbone}, batches of {chosen.batch}, {chosen.rounds} rounds")  # noqa: T201
    print(f"{REFERENCE}: {1000 * spent[REFERENCE] / BATCHES:.0f} ms of CPU time a step\n")  # noqa: T201
    print(table(passes, {name: value / spent[REFERENCE] for name, value in spent.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
