"""CPU time of a training step against plain published-style loops, in one interleaved run.

    python -m benchmarks.training [--backbone resnet18] [--batch 32] [--rounds 2] [--defenses trades at]

The contestants, on the same images, with PGD-10 crafted in eval mode and SGD with momentum:

* TRADES as published: NCHW, float32, the clean prediction made again in each of ten steps, gradients by autograd.grad.
* AT with autograd.grad; AT with loss.backward() while crafting, which computes weight gradients and throws them away.
* ours, in fp32 and in bf16: `TrainingRun.step`, as `bench train` runs it.

Time is process CPU time on one thread (set OMP_WAIT_POLICY=PASSIVE); rounds alternate between the contestants, one step
each after a warm-up, and medians are shown. Images are noise: the work is the same. The gates are for resnet18.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from bench.catalogue.names import built_in
from bench.catalogue.plugins import make_defense
from bench.catalogue.recipes import protocol_for
from bench.data.splits import Dataset, Split
from bench.models.checkpoints import build_model
from bench.training.averages import Averages
from bench.training.run import TrainingRun

STEPS, STEP, RADIUS = 10, 2 / 255, 8 / 255
GATES = {"trades": {"ours, fp32": 1.5, "ours, bf16": 2.5}, "at": {"ours, fp32": 1.1, "ours, bf16": 2.0}}


def plain_trades(model, optimizer, images, labels):
    """TRADES as its authors' script does it."""
    divergence = torch.nn.KLDivLoss(reduction="sum")
    model.eval()
    perturbed = images + 0.001 * torch.randn(images.shape)
    for _ in range(STEPS):
        perturbed.requires_grad_()
        loss = divergence(functional.log_softmax(model(perturbed), 1), functional.softmax(model(images), 1))
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = projected(perturbed.detach() + STEP * gradient.sign(), images)
    model.train()
    optimizer.zero_grad()
    natural = functional.cross_entropy(model(images), labels)
    robust = divergence(functional.log_softmax(model(perturbed), 1), functional.softmax(model(images), 1)) / len(images)
    (natural + 6.0 * robust).backward()
    optimizer.step()


def plain_at(model, optimizer, images, labels, backward=False):
    """PGD adversarial training; `backward` crafts with loss.backward()."""
    model.eval()
    perturbed = projected(images + RADIUS * (2 * torch.rand(images.shape) - 1), images)
    for _ in range(STEPS):
        perturbed.requires_grad_()
        loss = functional.cross_entropy(model(perturbed), labels)
        if backward:
            loss.backward()
            gradient = perturbed.grad
        else:
            (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = projected(perturbed.detach() + STEP * gradient.sign(), images)
    model.train()
    optimizer.zero_grad()
    functional.cross_entropy(model(perturbed), labels).backward()
    optimizer.step()


def projected(perturbed, images):
    """Onto the linf ball and the box."""
    return torch.minimum(torch.maximum(perturbed, images - RADIUS), images + RADIUS).clamp(0, 1)


def noise_dataset(batch):
    """Random pixels in CIFAR-10's form."""
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.arange(batch) % 10)
    return Dataset("noise", 10, split, split, {"linf": "8/255"}, 4, True, "")


def noise_protocol(images, given):
    """Random pixels in CIFAR-10's form, and the default protocol for them."""
    dataset = noise_dataset(images)
    return dataset, protocol_for("cifar10", dataset.epsilons, dataset.crop_padding, dataset.flip, given)


def plain(name, chosen, step):
    """A step of a plain loop on a model of its own."""
    description = {"image_shape": (3, 32, 32), "num_classes": 10}
    model = build_model(make_defense(name, "cifar10", {}), chosen.backbone, description)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    split = noise_dataset(chosen.batch).train
    images = split.images(slice(None))
    return partial(step, model, optimizer, images, split.labels)


def ours(name, chosen, precision):
    """A step of `bench train`."""
    given = {"batch_size": chosen.batch, "learning_rate": 0.01}
    dataset, protocol = noise_protocol(chosen.batch, given)
    description = {"name": "noise", "num_classes": 10, "image_shape": list(dataset.image_shape)}
    config = {"seed": 0, "backbone": chosen.backbone, "dataset": description, "precision": precision}
    defense = make_defense(name, "cifar10", {})
    run = TrainingRun(defense, protocol, dataset, torch.device("cpu"), config, {})
    run.model.train()
    context = run.context(0, Averages())

    def step():
        for images, labels in run.batches(context.generator):
            run.step(images, labels, context)

    return step


def measured(contestants, rounds):
    """Median CPU seconds of each, in rounds that alternate, after one that does not count."""
    seconds = {name: [] for name in contestants}
    for count in range(rounds + 1):
        for name, run in contestants.items():
            before = time.process_time()
            run()
            if count:
                seconds[name].append(time.process_time() - before)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main():
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18", choices=built_in("backbone"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--defenses", nargs="+", default=["trades", "at"], choices=list(GATES))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    published = {
        "trades": {"plain, as published": plain_trades},
        "at": {"plain, autograd.grad": plain_at, "plain, loss.backward()": partial(plain_at, backward=True)},
    }
    print(f"{chosen.backbone}, batch {chosen.batch}, one thread, {chosen.rounds} rounds")  # noqa: T201
    for name in chosen.defenses:
        contestants = {title: plain(name, chosen, step) for title, step in published[name].items()}
        contestants |= {f"ours, {precision}": ours(name, chosen, precision) for precision in ("fp32", "bf16")}
        seconds = measured(contestants, chosen.rounds)
        baseline = next(iter(seconds.values()))
        print(f"\n{name:26} {'CPU s/step':>10} {'ratio':>7} {'gate':>6}")  # noqa: T201
        for title, value in seconds.items():
            gate = GATES[name].get(title) if chosen.backbone == "resnet18" else None
            verdict = "" if gate is None else f"{gate:6.1f} {'reached' if baseline / value >= gate else 'MISSED'}"
            print(f"{title:26} {value:10.3f} {baseline / value:7.2f} {verdict}")  # noqa: T201


if __name__ == "__main__":
    main()
