"""The first training steps of every defense on real data: is each loss finite, and does it fall?

    python benchmarks/first_steps.py --data DIR [--backbone resnet18] [--steps 20] [--batch 128] [--precision bf16]

Prints one line per defense: the mean loss of the first and of the last quarter of the steps, the largest in between,
seconds per step, and a digest of the model after the last one. Two versions of the code that print the same digests on
one machine train to the same bits (--dataset digits --backbone cnn-small --batch 64 takes a minute for all defenses).
At the protocol's rate of 0.1 some defenses overshoot in their first steps and come back (the largest loss shows it);
--learning-rate 0.01 tells such a start from a wrong gradient.
Defenses that need another trained model get an untrained one of the same kind: only the arithmetic is looked at.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import torch
from torch import nn

from bench.catalogue.plugins import make_defense, names
from bench.catalogue.recipes import protocol_for
from bench.data.datasets import load_dataset
from bench.models.checkpoints import build_model
from bench.system.files import content_digest
from bench.system.randomness import seeded
from bench.training.averages import Averages
from bench.training.run import TrainingRun

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--dataset", default="cifar10")
parser.add_argument("--backbone", default="resnet18")
parser.add_argument("--defenses", default="all")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--learning-rate", type=float, default=0.1)
parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is about twice as fast")
options = parser.parse_args()

dataset = load_dataset(options.dataset, options.data)
dataset = dataclasses.replace(dataset, train=dataset.train.take(options.steps * options.batch))
protocol = protocol_for(
    options.dataset,
    dataset.epsilons,
    dataset.crop_padding,
    dataset.flip,
    {"batch_size": options.batch, "learning_rate": options.learning_rate},
)
described = {"name": options.dataset, "num_classes": dataset.num_classes, "image_shape": list(dataset.image_shape)}


def untrained(name: str) -> nn.Module:
    """A freshly initialised model, the same in every call."""
    with seeded(0):
        return build_model(make_defense(name, options.dataset, {}), options.backbone, described).eval()


for name in names("defense") if options.defenses == "all" else options.defenses.split(","):
    defense = make_defense(name, options.dataset, {})
    config = {"seed": 0, "backbone": options.backbone, "dataset": described, "precision": options.precision}
    needed = {other: untrained(other) for other in type(defense).requires}
    run = TrainingRun(defense, protocol, dataset, torch.device("cpu"), config, needed)
    context = run.context(0, Averages())
    run.model.train()
    defense.begin_epoch(run.model, context)
    losses = []
    started = time.perf_counter()
    for images, labels in run.batches(context.generator):
        terms = run.step(images, labels, context)
        losses.append(float(sum(float(term.detach()) for term in terms.values())))
    seconds = (time.perf_counter() - started) / len(losses)
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    verdict = "not finite" if not all(map(math.isfinite, losses)) else "falls" if last < first else "does not fall"
    changes = f"{first:10.4f} -> {last:10.4f}  (largest {max(losses):.4f})"
    digest = content_digest(dict(run.model.state_dict()))[:12]
    print(f"{name:10} {changes}  {verdict:14} {seconds:6.1f} s/step  {digest}", flush=True)  # noqa: T201
