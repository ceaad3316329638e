"""Operations that a training step launches one by one, and those that make it wait for the device.

    python -m benchmarks.launches [--backbone resnet18] [--defenses at adv-dpnp trades]

Counted are the operations that reach the dispatcher: on CUDA each is a kernel or a few. Views launch nothing. Neither
depends on the batch, so it is of two images; convolutions are run as on CUDA, not by minimal filtering. A recorded step
(`bench/training/recorded_steps.py`) is one launch, and one for each tensor that is copied to its place, for the
learning rate, and for what draws the batch.
"""

import argparse

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.catalogue.names import built_in
from bench.catalogue.plugins import find, make_defense, names
from bench.models import winograd
from bench.models.checkpoints import build_model
from bench.training.averages import Averages
from bench.training.run import TrainingRun
from benchmarks.training import noise_protocol

VIEWS = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "t",
        "transpose",
        "permute",
        "expand",
        "as_strided",
        "unsqueeze",
        "squeeze",
        "alias",
        "slice",
        "select",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "split",
        "unbind",
        "unfold",
        "narrow",
        "diagonal",
        "lift_fresh",
    ]
)
WAITS = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"))


class Launches(TorchDispatchMode):
    """Counts operations, and lists those that make a program wait for a device: they read values, or sizes."""

    def __init__(self):
        super().__init__()
        self.count, self.waits = 0, []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else []
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        if masked or name in WAITS:
            self.waits.append(name)
        elif name.removesuffix("_") not in VIEWS:
            self.count += 1
        return function(*arguments, **(options or {}))


def counted(run, averages):
    """The counters of drawing a batch and of a step with it, after a step in which pairs of layers are found."""
    context = run.context(9, averages)
    run.model.train()
    run.defense.begin_epoch(run.model, context)
    steps = run.steps(context)
    run.step(*next(steps))
    with Launches() as drawing:
        images, labels, told = next(steps)
    with Launches() as step:
        averages.add(run.step(images, labels, told))
    return drawing, step


def new_run(name, backbone):
    """A run on noise, six images in batches of two."""
    dataset, protocol = noise_protocol(6, {"batch_size": 2, "learning_rate": 0.01})
    description = {"name": "noise", "num_classes": 10, "image_shape": list(dataset.image_shape)}
    config = {"seed": 0, "backbone": backbone, "dataset": description, "precision": "fp32"}
    needed = {
        other: build_model(make_defense(other, "cifar10", {}), backbone, description).eval()
        for other in find("defense", name).requires
    }
    return TrainingRun(make_defense(name, "cifar10", {}), protocol, dataset, torch.device("cpu"), config, needed)


def main():
    """Count what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18", choices=built_in("backbone"))
    parser.add_argument("--defenses", nargs="+", default=["at", "adv-dpnp", "trades"], choices=names("defense"))
    chosen = parser.parse_args()
    winograd.suits = lambda layer: False
    print(f"{'':10} {'a step':>8} {'a batch':>8} {'waits':>6} {'recorded':>9}")  # noqa: T201
    for name in chosen.defenses:
        drawing, step = counted(new_run(name, chosen.backbone), Averages())
        waits = len(drawing.waits) + len(step.waits)
        # A graph, five tensors of a batch, the rate.
        print(f"{name:10} {step.count:8} {drawing.count:8} {waits:6} {1 + 5 + 1 + drawing.count:9}")  # noqa: T201


if __name__ == "__main__":
    main()
