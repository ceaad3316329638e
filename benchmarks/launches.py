"""Operations that a training step launches one by one, and those that make it wait for the device.

    python -m benchmarks.launches [--backbone resnet18] [--defenses at adv-dpnp trades]

Counted are the operations that reach the dispatcher: on CUDA each is a kernel or a few. Views launch nothing. Neither
depends on the batch, so it is of two images; convolutions are run as on CUDA, not by minimal filtering. A recorded step
(`bench/training/recorded_steps.py`) is one launch, and one for each tensor that is copied to its place, for the
learning rate, and for what draws the batch.
"""

import argparse
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.catalogue.names import built_in
from bench.catalogue.plugins import find, make_defense, names
from bench.models import winograd
from bench.models.checkpoints import build_model
from bench.training.averages import Averages
from bench.training.run import TrainingRun
from benchmarks.training import noise_protocol

READING = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
METHODS = ("tolist", "numpy", "cpu")
"""Of tensors; on a processor they are no operations."""


class Launches(TorchDispatchMode):
    """Counts the kernels of what runs inside, and lists what makes the processor wait for a device, by name."""

    def __init__(self):
        super().__init__()
        self.kernels, self.waits = 0, []
        self.patches = []

    def __enter__(self):
        for name in METHODS:
            self.patches.append(patch.object(torch.Tensor, name, self.counted(name)))
            self.patches[-1].start()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        while self.patches:
            self.patches.pop().stop()

    def counted(self, name):
        """The method, which counts as a wait."""
        method = getattr(torch.Tensor, name)

        def counting(tensor, *given, **options):
            self.waits.append(name)
            return method(tensor, *given, **options)

        return counting

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        result = function(*arguments, **(options or {}))
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in function._schema.returns)
        self.kernels += not view
        masked = name in INDEXING and any(part is not None and part.dtype == torch.bool for part in arguments[1])
        # Numbers of Python; a single one stays with the processor.
        given = name == "lift_fresh" and arguments[0].numel() > 1
        if name in READING or masked or given:
            self.waits.append(name)
        return result


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
        print(f"{name:10} {step.kernels:8} {drawing.kernels:8} {waits:6} {1 + 5 + 1 + drawing.kernels:9}")  # noqa: T201


if __name__ == "__main__":
    main()
