"""The cost of an evaluation, from a short measurement."""

import time

import torch
from torch import nn

from bench.catalogue.plugins import make_attack
from bench.engine.groups import plan
from bench.engine.target import Target
from bench.evaluation.prepare import prepare, refuse_existing
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import Images, Labels
from bench.system.devices import full_float32


def estimate(request: EvaluationRequest) -> list[tuple[str, int, float]]:
    """The cost of an evaluation, at most: name, gradients and seconds of each group of cells.

    Measured on one block: its accuracy, and the time of a forward pass and of a gradient. Refuses as `evaluate` does.
    """
    prepared = prepare(request)
    refuse_existing(request, prepared.path)
    target = prepared.target
    with full_float32():
        part = target.split.take(min(target.room or 64, 64, len(target.split)))
        images, labels = part.images(slice(None)), part.labels
        share = float((target.predict(images) == labels).float().mean())
        forward, gradient = _seconds_per_image(target, images, labels)
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in prepared.suite.cells}
    costs = []
    for group in plan(prepared.suite.cells, attacks):
        attacked = len(target.split) * (1.0 if target.attacks_all(group.cell) else share)
        gradients, forwards = group.counts
        # Of a random model, what was measured is the mean of its draws.
        draws = prepared.suite.draws or {"search": 1, "verdict": 0}
        verdicts = len(group.cells) * draws["verdict"] / draws["search"] * forward
        seconds = attacked * (gradients * gradient + forwards * forward + verdicts)
        costs.append((group.name, round(attacked * gradients * draws["search"]), seconds))
    if prepared.corrupted is not None:
        costs.append(("corruptions", 0, len(prepared.corrupted) * len(target.split) * forward))
    return costs


def _seconds_per_image(target: Target, images: Images, labels: Labels) -> tuple[float, float]:
    """Of a forward pass, and of a forward pass with the gradient of the images."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        target.judge(images).sum().item()
        middle = time.perf_counter()
        leaf = images.detach().requires_grad_()
        view = target.search_view().eval()
        with target.searching():
            torch.autograd.grad(nn.functional.cross_entropy(view(leaf), labels, reduction="sum"), leaf)[0].sum().item()
        times.append((middle - started, time.perf_counter() - middle))
    forward, gradient = (min(column) / len(images) for column in zip(*times, strict=True))
    return forward, gradient
