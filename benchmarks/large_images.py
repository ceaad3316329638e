"""Speed and memory of evaluations on images of 224 x 224.

    python -m benchmarks.large_images speed [--model resnet18] [--images 8] [--rounds 2] [--radius 4/255]
    python -m benchmarks.large_images memory FOLDER [--images 2000] [--remembered 1024] [--probes 8]

`speed`: images a second of PGD-20 on a network of timm with random weights, by the engine (convention `final`, so that
no image leaves early) with and without folding, and by a plain loop, eager, NCHW. Labels are the network's own answers,
so that every image is attacked. What is broken on the way is judged once more by the network itself, eight rows at a
time at least, which with few images is much: at `--radius 0.000004` nothing is. Time is process CPU time on one thread;
rounds alternate, medians are shown.

`memory`: writes FOLDER, an ImageFolder of noise on ten colours in ten classes, and evaluates a network of 1,000 classes
on it, ten of which the adapter `classes` keeps, with saved images and probes, then verifies and tabulates the result.
Prints what this process took at most: fresh, it takes about 500 MiB, most of which is torch.
"""

import argparse
import json
import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from bench.catalogue.suites import AttackCell, Suite
from bench.data import stored_images
from bench.data.splits import Split
from bench.engine.adversarials import adversarials_path
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import ThreatModel
from bench.leaderboard.render.files import write_leaderboard
from bench.models.folding import folded
from bench.results.file import read_result
from bench.trust.verification import VerificationRequest, conclusion, verify

SIDE, CLASSES, STEPS = 224, 10, 20
CELLS = [{"label": "FGSM", "attack": "fgsm"}]
"""The network is so small that an attack's own arithmetic is what takes time: one step per image."""
KEPT = ("classes=" + ",".join(str(100 * k) for k in range(CLASSES)),)
"""Adapters: the network's outputs that are classes of the images."""
MODEL = """
import torch
from torch import nn


class Colours(nn.Module):
    '''A tiny network of 1,000 classes, of which every hundredth is the nearest of ten colours.'''

    def __init__(self):
        super().__init__()
        colours = torch.tensor([[(k + 1) * factor % 11 for factor in (3, 5, 7)] for k in range(10)]) / 11
        self.patches, self.head = nn.Conv2d(3, 16, 16, 16), nn.Linear(16, 1000)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.patches.weight[:3] = torch.eye(3)[:, :, None, None] / 256
            self.head.weight[::100, :3] = 20 * colours
            self.head.bias[::100] = -10 * colours.square().sum(1)

    def forward(self, images):
        return self.head(self.patches(images).mean((2, 3)))
"""


# ---------------------------------------------------------------------------------------------------- speed


def plain_loop(model, images, labels, radius):
    """Which images stand after PGD-20 from the clean image; a few lines as scripts have them."""
    epsilon = ThreatModel("linf", radius).radius
    perturbed = images.clone()
    for _ in range(STEPS):
        perturbed.requires_grad_()
        loss = functional.cross_entropy(model(perturbed), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = perturbed.detach() + gradient.sign() * epsilon / 4
        perturbed = torch.minimum(torch.maximum(perturbed, images - epsilon), images + epsilon).clamp(0, 1)
    with torch.no_grad():
        return (model(perturbed).argmax(1) == labels).numpy()


def engine(target, radius):
    """The same by the engine."""
    cell = AttackCell("PGD-20", "pgd", "linf", radius, {"steps": STEPS, "step_size": "eps/4", "random_start": False})
    outcome = run_suite(target, Suite("benchmark", 1, "", (cell,), {}), convention="final")
    return outcome.attacks["PGD-20"].final_prediction == outcome.label


def speed(chosen):
    """PGD-20 on a network of timm."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(chosen.model, pretrained=False).eval()
    pixels = torch.randint(0, 256, (chosen.images, 3, SIDE, SIDE), dtype=torch.uint8)
    images = pixels.float() / 255
    with torch.no_grad():
        labels = model(images).argmax(1)
    split = Split(pixels, labels)
    contestants = {
        "plain loop": partial(plain_loop, model, images, labels, chosen.radius),
        "engine, fp32": partial(engine, Target(model, split), chosen.radius),
        "engine, fp32-folded": partial(
            engine, Target(model, split, search_model=folded(model, images[:8])), chosen.radius
        ),
    }
    seconds, verdicts = {name: [] for name in contestants}, {}
    for _ in range(chosen.rounds):
        for name, run in contestants.items():
            before = time.process_time()
            verdicts[name] = run()
            seconds[name].append(time.process_time() - before)
    baseline = np.median(seconds["plain loop"])
    for name, values in seconds.items():
        middle = np.median(values)
        same = "equal" if (verdicts[name] == verdicts["plain loop"]).all() else "DIFFERENT"
        print(  # noqa: T201
            f"{name:22} {chosen.images / middle:7.3f} images/s  ratio {baseline / middle:5.2f}  "
            f"standing {int(verdicts[name].sum())} of {chosen.images}, verdicts {same}"
        )


# --------------------------------------------------------------------------------------------------- memory


def write_images(folder, count):
    """An ImageFolder: of each class as many JPEGs of one colour under noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        label = number % CLASSES
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        colour = np.array([(label + 1) * factor % 11 for factor in (3, 5, 7)]) / 11
        coarse = rng.normal(0, 0.1, (14, 14, 3)).repeat(16, 0).repeat(16, 1)
        pixels = (255 * (colour + coarse).clip(0, 1)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:05d}.jpg", quality=90)


def memory(chosen):
    """An evaluation from disk to a board."""
    folder = chosen.folder
    write_images(folder / "images", chosen.images)
    (folder / "colours.py").write_text(MODEL)
    (folder / "suite.json").write_text(json.dumps({"name": "short", "version": 1, "cells": CELLS}))
    model = f"{folder / 'colours.py'}:Colours"
    path = folder / "result.h5"
    stored_images.REMEMBERED = chosen.remembered * 2**20
    request = EvaluationRequest(
        str(folder / "suite.json"),
        model=model,
        adapt=KEPT,
        dataset=f"folder:{folder / 'images'}",
        out=path,
        overwrite=True,
        epsilons={"linf": "60/255"},
        probes=chosen.probes,
        save_adversarials=True,
        device="cpu",
    )
    told = {"before": _peak()}
    started = time.process_time()
    evaluate(request)
    told["evaluated"] = _peak()
    checks = list(verify(VerificationRequest(path, model=model, adapt=KEPT, device="cpu")))
    told["verified"] = _peak()
    write_leaderboard([read_result(path)], folder / "board.md")
    for name, value in told.items():
        print(f"{name:10} {value:7.0f} MiB at most")  # noqa: T201
    print(conclusion(checks))  # noqa: T201
    saved = adversarials_path(path).stat().st_size / 2**20
    print(f"{time.process_time() - started:.0f} CPU s, {saved:.0f} MiB of saved images")  # noqa: T201
    print((folder / "board.md").read_text().partition("\n\nAcc")[0])  # noqa: T201


def _peak():
    """What this process took at most so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    timed, measured = parts.add_parser("speed"), parts.add_parser("memory")
    measured.add_argument("folder", type=Path)
    measured.add_argument("--images", type=int, default=2000)
    measured.add_argument("--remembered", type=int, default=1024, help="MiB of decoded images that are remembered")
    measured.add_argument("--probes", type=int, default=8)
    timed.add_argument("--model", default="resnet18")
    timed.add_argument("--radius", default="4/255", help="of the attack")
    timed.add_argument("--images", type=int, default=8)
    timed.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    {"speed": speed, "memory": memory}[chosen.part](chosen)


if __name__ == "__main__":
    main()
