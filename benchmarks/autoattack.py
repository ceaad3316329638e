"""CPU time of our AutoAttack parts against pyautoattack's, stage by stage, with the robust sets side by side.

    python -m benchmarks.autoattack --model FILE.py:factory --data DIR
    python -m benchmarks.autoattack --model weights.npz --data DIR
    python -m benchmarks.autoattack --model RUN --data DIR --norm linf l2 l1 --images 20 --again 3

Both cascades run on the same images, each stage on what its own cascade left standing, in rounds that alternate. Time
is process CPU time on one thread. Of several norms, the images that stand in all are compared at last, as suite `union`
counts them. Images on which the two disagree are attacked `--again` that often by both, with other seeds: where chance
decides, each leaves them standing sometimes.

`--data` holds CIFAR-10 as `cifar-10-batches-py`. A folder is a run of `bench train`, such as those in
leaderboard/checkpoints. An .npz holds the arrays of a torch.nn.Sequential (`0.weight`, `0.bias`, ...; convolutions of
stride 2 and padding 1, ReLU between all layers) and is normalised by mean (0.485, 0.456, 0.406) and deviation 0.225;
`FILE.py:factory` makes any module on images in [0, 1].
"""

import argparse
import importlib.util
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyautoattack
import torch
from torch import nn

from bench.attacks._survivors import classify, restrict
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.fab import FAB
from bench.attacks.square import Square
from bench.data.datasets import DATASET_PROTOCOLS, load_dataset
from bench.interfaces import Draws, Problem, ThreatModel, classes, fooled
from bench.models.checkpoints import load_checkpoint

STAGES = {"apgd-ce": APGDCE(), "apgd-t": APGDT(), "fab-t": FAB(), "square": Square()}
# The standard version's budgets under l1 (https://github.com/fra31/auto-attack).
STAGES_L1 = {**STAGES, "apgd-ce": APGDCE(restarts=5), "apgd-t": APGDT(targets=5)}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Normalised(nn.Module):
    """A network behind a fixed normalisation."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))

    def forward(self, images):
        return self.network((images - self.mean) / 0.225)


def load_npz(path):
    """A Sequential of the arrays in a file: 4-d weights are convolutions, 2-d weights linear layers."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    layers, flat = [], False
    for name in sorted({key.rsplit(".", 1)[0] for key in arrays}, key=lambda key: int(key.split(".")[-1])):
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        if weight.ndim == 4:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride=2, padding=1)
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layers += [] if flat else [nn.Flatten()]
            flat = True
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return Normalised(nn.Sequential(*layers[:-1]))


def load_model(reference):
    """The module of a run folder, of an .npz or of FILE.py:factory."""
    if Path(reference).is_dir():
        return load_checkpoint(Path(reference)).build().eval()
    if reference.endswith(".npz"):
        return load_npz(reference).eval()
    path, _, factory = reference.rpartition(":")
    specification = importlib.util.spec_from_file_location("model_file", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return getattr(module, factory)().eval()


def load_images(folder, count):
    """The first CIFAR-10 test images in [0, 1], and their labels; read where md5 sums are checked."""
    test = load_dataset("cifar10", Path(folder)).test.take(count)
    return test.images(slice(None)), test.labels


def ours(stage, problem, seed):
    """Images of our attack of a stage."""
    return (STAGES_L1 if problem.threat.norm == "l1" else STAGES)[stage].perturb(problem)


def theirs(stage, problem, seed):
    """Images of pyautoattack's attack of a stage, with the parameters of its standard version."""
    adversary = pyautoattack.AutoAttack(
        problem.model, norm=NAMES[problem.threat.norm], eps=problem.threat.radius, seed=seed, version="standard"
    )
    attack = {
        "apgd-ce": adversary.apgd,
        "apgd-t": adversary.apgd_targeted,
        "fab-t": adversary.fab,
        "square": adversary.square,
    }[stage]
    attack.targeted = stage == "fab-t"
    with torch.no_grad():
        return attack.perturb(problem.images, problem.labels)


def cascade(attack, problem, stages, seed):
    """CPU seconds and surviving rows of each stage."""
    rows = (classes(classify(problem.model, problem.images)) == problem.labels).nonzero().flatten()
    outcome = {"clean": (0.0, rows.tolist())}
    for stage in stages:
        if len(rows):
            part = restrict(problem, rows)
            before = time.process_time()
            images = attack(stage, part, seed)
            seconds = time.process_time() - before
            rows = rows[~fooled(images, classify(part.model, images), part.labels)]
        else:
            seconds = 0.0
        outcome[stage] = (seconds, rows.tolist())
    return outcome


def compare(problem, stages, seed, rounds):
    """Print a table of both cascades; returns the rows that each leaves standing."""
    # The fixed batch of the comparison is the whole set, so that their draws do not depend on a batch size either.
    runs = [
        {name: cascade(attack, problem, stages, seed) for name, attack in CONTESTANTS.items()} for _ in range(rounds)
    ]
    print(f"{'stage':10} {'standing':>15} {'same set':>9} {'ours s':>9} {'theirs s':>9} {'ratio':>7}")  # noqa: T201
    totals = np.zeros(2)
    for stage in ["clean", *stages]:
        mine, other = (runs[0][name][stage][1] for name in CONTESTANTS)
        seconds = np.median([[entry[name][stage][0] for name in CONTESTANTS] for entry in runs], axis=0)
        totals += seconds
        standing, same = f"{len(mine)} / {len(other)}", "yes" if mine == other else "NO"
        ratio = f"{seconds[1] / seconds[0]:.2f}" if seconds[0] else ""
        print(f"{stage:10} {standing:>15} {same:>9} {seconds[0]:9.2f} {seconds[1]:9.2f} {ratio:>7}")  # noqa: T201
    print(f"{'whole':10} {'':>15} {'':>9} {totals[0]:9.2f} {totals[1]:9.2f} {totals[1] / totals[0]:7.2f}")  # noqa: T201
    return set(mine), set(other)


def attack_again(problem, rows, stages, seeds):
    """Print how often each leaves standing the images on which the two disagree, with other seeds."""
    counts = {name: dict.fromkeys(rows, 0) for name in CONTESTANTS}
    few = torch.tensor(rows)
    for seed in seeds:
        draws = Draws(seed, problem.draws.stream, problem.draws.indices)
        for name, attack in CONTESTANTS.items():
            part = restrict(replace(problem, draws=draws), few)
            for place in cascade(attack, part, stages, seed)[stages[-1]][1]:
                counts[name][rows[place]] += 1
    for row in rows:
        shown = ", ".join(f"{name} {count[row]}" for name, count in counts.items())
        print(f"image {row}: of {len(seeds)} other seeds it stands under {shown}")  # noqa: T201


CONTESTANTS = {"ours": ours, "theirs": theirs}


def main():
    """Run both cascades under each norm and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="weights.npz, FILE.py:factory or a run folder")
    parser.add_argument("--data", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--norm", nargs="+", default=["linf"], choices=list(NAMES))
    parser.add_argument("--epsilon", help="of one norm; by default the radii of CIFAR-10")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--again", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    chosen = parser.parse_args()
    if chosen.epsilon and len(chosen.norm) > 1:
        parser.error("--epsilon is the radius of one norm")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    model = load_model(chosen.model)
    images, labels = load_images(chosen.data, chosen.images)
    standing = []
    for norm in chosen.norm:
        threat = ThreatModel(norm, chosen.epsilon or DATASET_PROTOCOLS["cifar10"].epsilons[norm])
        print(f"{norm} {threat.epsilon}, {len(images)} images", flush=True)  # noqa: T201
        draws = Draws(chosen.seed, f"autoattack/{norm}", np.arange(len(images)))
        problem = Problem(model, images, labels, threat, draws)
        mine, other = compare(problem, chosen.stages, chosen.seed, chosen.rounds)
        standing.append((mine, other))
        if mine != other and chosen.again:
            seeds = range(chosen.seed + 1, chosen.seed + 1 + chosen.again)
            attack_again(problem, sorted(mine ^ other), chosen.stages, seeds)
    if len(standing) > 1:
        mine, other = (set.intersection(*sets) for sets in zip(*standing, strict=True))
        same = "the same" if mine == other else f"not the same: {sorted(mine ^ other)}"
        print(f"union: {len(mine)} / {len(other)} stand under all norms, {same}")  # noqa: T201


if __name__ == "__main__":
    main()
