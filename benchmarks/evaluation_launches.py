"""Kernels and waits of one attack step, part by part: what decides how long AutoAttack takes on a GPU.

    python -m benchmarks.evaluation_launches [--backbone resnet18] [--batch 16]

A kernel is an operation that is no view. A wait is one that reads a value back, or copies numbers of Python to the
device: there the processor stops until all work in the queue is done. They are counted on a processor, where all
operations are the same; steps between two looks are compared with steps that look every time, as on a processor.
"""

import argparse
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from bench.attacks import _fab, _square
from bench.attacks._apgd import climb, targeted_dlr, untargeted_cross_entropy
from bench.attacks._survivors import random_point, rival
from bench.catalogue.names import built_in
from bench.catalogue.plugins import make_defense
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import Draws, Problem, ThreatModel, draws
from bench.models.checkpoints import build_model
from benchmarks.launches import Launches

SHORT, LONG = 12, 14
"""Steps that have the same looks: the difference is of steps between two."""


def searches(model, images, labels, epsilon="8/255"):
    """Each part of AutoAttack and PGD, as a function of its number of steps, on images that stay right."""
    parts = {}
    for norm in ("linf", "l2", "l1"):
        threat = ThreatModel(norm, epsilon if norm == "linf" else "0.0001")
        problem = Problem(model, images, labels, threat, Draws(0, "launches", np.arange(len(images))))
        start = random_point(problem, threat.radius, "start")
        with torch.no_grad():
            targets = rival(model(images), labels, 0)
        for name, loss in (("apgd-ce", untargeted_cross_entropy), ("apgd-t", targeted_dlr)):
            parts[f"{name} {norm}"] = partial(ascend, problem, loss, targets, start)
        # A radius of 0 lets FAB go on: it stops at the first image within.
        away = replace(problem, threat=ThreatModel(norm, "0"))
        parts[f"fab {norm}"] = partial(_fab.nearest, away, targets, images)
        parts[f"square {norm}"] = partial(square, problem)
    split = Split((255 * images).round().to(torch.uint8), labels)
    parts["pgd linf, by the engine"] = partial(pgd, model, split)
    return parts


def ascend(problem, loss, targets, start, steps):
    """APGD whose steps are all made; of other lengths, checkpoints would lie elsewhere."""
    with patch("bench.attacks._apgd.checkpoints", lambda count, norm: {3: 4}):
        return climb(problem, loss, targets, steps, start)


def square(problem, steps):
    """Square Attack with windows of the first queries, which are the same for any number of them."""
    return _square.random_search(problem, _square.Moves(problem.draws, problem.images, LONG, "key"), steps)


def pgd(model, split, steps):
    """PGD-N, whose last iterate is judged."""
    # Steps after the last look: the engine looks at every eighth and at the end.
    cell = AttackCell("PGD", "pgd", "linf", "1/25500", {"steps": steps - 10})
    return run_suite(Target(model, split), Suite("launches", 1, "", (cell,), {}), convention="final")


def counts(search, ahead):
    """Kernels and waits a step; `ahead`: on a device that the processor runs ahead of."""
    found = []
    for steps in (SHORT, LONG):
        with patch.object(draws, "ASYNCHRONOUS", {"cpu"} if ahead else set()), Launches() as launches:
            search(steps=steps)
        found.append((launches.kernels, len(launches.waits)))
    return tuple((late - early) / (LONG - SHORT) for early, late in zip(*found, strict=True))


def robust_model(backbone):
    """An untrained network in eval mode, whose largest logit stays the largest one."""
    torch.manual_seed(0)
    model = build_model(
        make_defense("at", "cifar10", {}), backbone, {"image_shape": (3, 32, 32), "num_classes": 10}
    ).eval()
    with torch.no_grad():
        model.head.weight.mul_(1e-3)
        model.head.bias.copy_(torch.linspace(9, 0, 10))
    return model.requires_grad_(False)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18", choices=built_in("backbone"))
    parser.add_argument("--batch", type=int, default=16)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = robust_model(chosen.backbone)
    images = torch.rand(chosen.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    print(f"{'a step of':26} {'kernels':>16} {'waits':>16}\n{'':26} {'between / with looks':>33}")  # noqa: T201
    for name, search in searches(model, images, torch.zeros(chosen.batch, dtype=torch.int64)).items():
        (kernels, waits), (looked_kernels, looks) = (counts(search, ahead) for ahead in (True, False))
        print(f"{name:26} {kernels:7.0f} / {looked_kernels:6.0f} {waits:7.1f} / {looks:6.1f}")  # noqa: T201


if __name__ == "__main__":
    main()
