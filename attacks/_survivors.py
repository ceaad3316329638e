"""What the parts of AutoAttack and their neighbours share: who is still at work, and how a model is asked.

A sample's search ends with its first adversarial image, and it leaves the working set at the next look. Samples do not
interact, so the others end where they would have ended anyway.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from bench.attacks._objectives import full_precision
from bench.errors import BenchError
from bench.interfaces import (
    Draws,
    Images,
    Labels,
    Logits,
    PerExample,
    Problem,
    classes,
    runs_ahead,
)

LEAST_ROWS = 4
"""Kernels may round differently for fewer rows; a survivor's last bits must not depend on who is left."""
LOOK = 10
"""Steps between two looks at who is done, on a device that runs ahead: each look waits for it, and no step does."""
LEAST_SIZE = 16
"""Of a working set on such a device, which prepares kernels anew for every size that it meets."""
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


class Attempt(NamedTuple):
    """What one search found: an image each, how good it is, and whether it is adversarial inside the threat model."""

    images: Tensor
    value: Tensor
    fooled: Tensor


@dataclass
class WorkingSet:
    """The samples that a search is at work on: tensors of one row each."""

    rows: Tensor
    """Which of the problem's samples they are."""
    done: Tensor
    """Mask of those with an adversarial image: their best one stays what it is."""
    best: Tensor
    highest: Tensor
    """How good the best image is."""

    def keep(self, better: Tensor, images: Images, value: PerExample) -> None:
        """Note better images, of the rows in a mask."""
        self.best = torch.where(column(better), images, self.best)
        self.highest = torch.where(better, value, self.highest)

    def note(self, found: Attempt) -> None:
        """Write down what the samples have come to."""
        found.images[self.rows], found.value[self.rows], found.fooled[self.rows] = self.best, self.highest, self.done


Run = TypeVar("Run", bound=WorkingSet)


def leave(run: Run, found: Attempt) -> Run:
    """What is left when samples that are done leave, noted; some stay, to fill the set up to a `usual` size."""
    size = len(run.done) - int(run.done.sum())
    if runs_ahead(run.done.device):
        size = min(usual(size), len(run.done))
    if size == len(run.done):
        return run
    order = run.done.byte().argsort(stable=True)
    choose(run, order[size:]).note(found)
    return choose(run, order[:size])


def choose(run: Run, places: Tensor) -> Run:
    """Some of the samples, in order."""
    return type(run)(**{field.name: getattr(run, field.name)[places] for field in fields(run)})


def looks(step: int, images: Images) -> bool:
    """True at a step (from 0) before which samples that are done leave."""
    return step % LOOK == 0 or not runs_ahead(images.device)


def usual(size: int) -> int:
    """The least of 0, 16, 32, 48, 64, 80, 96, 112, 128, 160, ... (four to a doubling) that is not below `size`."""
    step = max(LEAST_SIZE, 2 ** size.bit_length() // 8)
    return -(-size // step) * step


def first_success(problem: Problem, attempts: Iterable[Callable[[Problem, Logits], Attempt]]) -> Images:
    """Each sample's first adversarial image over attempts in turn, else its image of largest value.

    An attempt is given the part of the problem that still stands, and the clean logits of that part. A sample that
    the model gets wrong already stays as it is.
    """
    if not len(problem.images) or problem.threat.radius == 0:
        return problem.images
    logits = classify(problem.model, problem.images)
    best = problem.images.clone()
    highest = torch.full(problem.labels.shape, -torch.inf, dtype=torch.float64, device=best.device)
    rows = (classes(logits) == problem.labels).nonzero().flatten()
    for attempt in attempts:
        if not len(rows):
            break
        found = attempt(restrict(problem, rows), logits[rows])
        better = found.fooled | (found.value > highest[rows])
        best[rows[better]] = found.images[better]
        highest[rows[better]] = found.value[better].double()
        rows = rows[~found.fooled]
    return best


def restrict(problem: Problem, rows: Tensor) -> Problem:
    """The problem of some of the samples; their draws are the same as in the whole."""
    whole = problem.objective

    def objective(model: nn.Module, images: Images) -> PerExample:
        # An objective knows the labels of its whole batch, in order.
        return whole(model, problem.images.index_copy(0, rows, images))[rows]  # type: ignore[misc]

    return replace(
        problem,
        images=problem.images[rows],
        labels=problem.labels[rows],
        draws=redirect(problem.draws, problem.draws.indices[rows.cpu().numpy()]),
        objective=objective if whole else None,
    )


def redirect(draws: Draws, indices: np.ndarray) -> Draws:
    """The same source of random numbers for other samples."""
    other = copy.copy(draws)
    other.indices = indices
    return other


def logits_of(model: nn.Module, images: Images) -> Logits:
    """Logits, from a forward pass of at least `LEAST_ROWS` rows."""
    missing = LEAST_ROWS - len(images)
    if missing <= 0:
        return model(images)
    return model(torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]))[: len(images)]


@torch.no_grad()
def classify(model: nn.Module, images: Images) -> Logits:
    """Logits without a graph, in at least float32."""
    return full_precision(logits_of(model, images))


def rival(logits: Logits, labels: Labels, rank: int) -> Labels:
    """The class of rank `rank` (from 0) among the wrong ones, by logit."""
    return logits.scatter(1, labels[:, None], -torch.inf).topk(rank + 1, dim=1).indices[:, rank]


def count_targets(problem: Problem, targets: int, least: int, name: str) -> int:
    """How many wrong classes there are to aim at, `targets` at most.

    Raises:
        BenchError: the model has fewer than `least` classes.
    """
    classes = classify(problem.model, problem.images[:1]).shape[1] if len(problem.images) else least
    if classes < least:
        raise BenchError(f"{name} needs {least} or more classes, the model has K={classes}. Use apgd-ce or square.")
    return min(targets, classes - 1)


def check_counts(name: str, **counts: int) -> None:
    """Refuse a count below 1.

    Raises:
        BenchError: naming the first such count.
    """
    for what, count in counts.items():
        if count < 1:
            raise BenchError(f"{what}={count} of {name} is below 1. Give 1 or more.")


def lengths(difference: Tensor, norm: str) -> PerExample:
    """Length of each row in a norm, in the row's own precision."""
    flat = difference.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, ord=ORDER[norm], dim=1)


def column(values: Shaped[Tensor, " batch"]) -> Tensor:
    """One value per sample, ready to multiply images."""
    return values.view(-1, 1, 1, 1)


def random_point(problem: Problem, radius: float, key: str) -> Images:
    """A random image each at distance `radius` before it is clipped to [0, 1].

    linf: uniform noise scaled to its largest entry; l2, l1: Gaussian noise scaled to its length.
    """
    direction = noise(problem, key)
    length = lengths(direction, problem.threat.norm) + 1e-12
    return (problem.images + radius * (direction / column(length))).clamp(0.0, 1.0)


def noise(problem: Problem, key: str) -> Images:
    """Uniform in [-1, 1) under linf, else standard normal."""
    if problem.threat.norm == "linf":
        return 2 * problem.draws.uniform(problem.images, key) - 1
    return problem.draws.normal(problem.images, key)
