"""Auto-PGD (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, section 3; l1: 2021, https://arxiv.org/abs/2103.01208).

Also what the parts of AutoAttack share: a sample's search ends with its first adversarial image, and it leaves the
working set at the next look. Samples do not interact, so the others end where they would have ended anyway.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from bench.attacks._ascent import usable
from bench.attacks._objectives import cross_entropy, full_precision
from bench.errors import BenchError
from bench.interfaces import (
    Draws,
    Images,
    Labels,
    Logits,
    PerExample,
    Problem,
    ThreatModel,
    classes,
    fooled,
    runs_ahead,
)

LEAST_ROWS = 4
"""Kernels may round differently for fewer rows; a survivor's last bits must not depend on who is left."""
LOOK = 10
"""Steps between two looks at who is done, on a device that runs ahead: each look waits for it, and no step does."""
LEAST_SIZE = 16
"""Of a working set on such a device, which prepares kernels anew for every size that it meets."""
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}

Loss: TypeAlias = Callable[[Logits, Labels, Labels], PerExample]
"""Logits, labels and target classes in, one value per sample out (larger is worse for the model)."""


class Attempt(NamedTuple):
    """What one search found: an image each, how good it is, and whether it is adversarial inside the threat model."""

    images: Tensor
    value: Tensor
    fooled: Tensor


# ------------------------------------------------------------------------------------- what the parts share


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


# ---------------------------------------------------------------------------------------------------- losses


def untargeted_cross_entropy(logits: Logits, labels: Labels, targets: Labels) -> PerExample:
    """Cross-entropy; `targets` are not looked at."""
    return cross_entropy(logits, labels)


def dlr(logits: Logits, labels: Labels, targets: Labels) -> PerExample:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), z_(i) the i-th largest logit (eq. 6). `targets` are not looked at.

    Needs 3 classes.
    """
    logits = full_precision(logits)
    top = logits.topk(3, dim=1).values
    true = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return -(true - other) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Logits, labels: Labels, targets: Labels) -> PerExample:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), z_(i) the i-th largest logit (eq. 7). Needs 4 classes."""
    logits = full_precision(logits)
    top = logits.topk(4, dim=1).values
    true = logits.gather(1, labels[:, None]).squeeze(1)
    target = logits.gather(1, targets[:, None]).squeeze(1)
    return -(true - target) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


# ------------------------------------------------------------------------------------------------------ APGD


def apgd(problem: Problem, loss: Loss, steps: int, restarts: int, stage: str) -> Images:
    """Untargeted APGD: each sample's first adversarial image, else its image of largest loss.

    `problem.objective`, where given, is ascended instead of `loss`. `stage` keys the draws.
    """

    def attempt(restart: int) -> Callable[[Problem, Logits], Attempt]:
        return lambda part, logits: search_ball(part, loss, part.labels, steps, f"{stage}/restart {restart}")

    return first_success(problem, (attempt(restart) for restart in range(restarts)))


def targeted_apgd(problem: Problem, steps: int, targets: int, restarts: int, stage: str) -> Images:
    """APGD on targeted DLR, once for each of the `targets` likeliest wrong classes of the clean image.

    Returns each sample's first adversarial image, of any class, else its image of largest loss.
    """
    problem = replace(problem, objective=None)

    def attempt(rank: int, restart: int) -> Callable[[Problem, Logits], Attempt]:
        key = f"{stage}/target {rank}/restart {restart}"
        return lambda part, logits: search_ball(part, targeted_dlr, rival(logits, part.labels, rank), steps, key)

    return first_success(problem, (attempt(rank, restart) for rank in range(targets) for restart in range(restarts)))


def search_ball(problem: Problem, loss: Loss, targets: Labels, steps: int, key: str) -> Attempt:
    """One run of APGD from a random start.

    l1: 30 % of the steps in a ball of three times the radius and 30 % in one of twice, each from the best image of the
    one before; only what the last finds counts.
    """
    if problem.threat.norm != "l1":
        return climb(problem, loss, targets, steps, random_point(problem, problem.threat.radius, key))
    part = math.ceil(0.3 * steps)
    start = problem.images + noise(problem, key)
    for factor in (3, 2):
        wide = replace(problem, threat=enlarge(problem.threat, factor))
        start = wide.threat.project(start, problem.images)
        start = climb(wide, loss, targets, part, start, patient=True).images
    start = problem.threat.project(start, problem.images)
    return climb(problem, loss, targets, max(steps - 2 * part, 1), start)


def enlarge(threat: ThreatModel, factor: int) -> ThreatModel:
    """The threat model with a multiple of its radius."""
    return replace(threat, epsilon=str(factor * Fraction(threat.epsilon)))


@dataclass
class Climb(WorkingSet):
    """The state of APGD."""

    clean: Tensor
    labels: Tensor
    targets: Tensor
    images: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best_gradient: Tensor
    step: Tensor
    rises: Tensor
    """Steps since the last checkpoint that raised the loss."""
    earlier: Tensor
    """The highest loss at the last checkpoint."""
    reduced: Tensor
    """Whether the step was halved at the last checkpoint."""
    support: Tensor
    """Pixels that the best image changed, at the last checkpoint (l1)."""

    def observe(self, value: PerExample, gradient: Images, fooled: Tensor) -> None:
        """Note the loss and gradient of the present images; those that fool the model are the last ones noted."""
        better = (fooled | (value > self.highest)) & ~self.done
        self.rises += value > self.value
        self.gradient, self.value = gradient, value
        self.keep(better, self.images, value)
        self.best_gradient = torch.where(column(better), gradient, self.best_gradient)
        self.done = self.done | fooled

    def return_to_best(self, chosen: Tensor) -> None:
        """Go on from the best image."""
        self.images = torch.where(column(chosen), self.best, self.images)
        self.gradient = torch.where(column(chosen), self.best_gradient, self.gradient)


def climb(problem: Problem, loss: Loss, targets: Labels, steps: int, start: Images, patient: bool = False) -> Attempt:
    """APGD from `start`. With `patient` no sample leaves before the end, and the image of largest loss is returned."""
    found = Attempt(start.clone(), start.new_zeros(len(start)), torch.zeros_like(problem.labels, dtype=torch.bool))
    run = begin(problem, loss, targets, start, patient)
    windows = checkpoints(steps, problem.threat.norm)
    for index in range(steps):
        if looks(index, start):
            run = leave(run, found)
            if not len(run.rows):
                return found
        if index - 1 in windows:
            adapt(run, problem.threat, windows[index - 1])
        moved = advance(run, problem.threat, inertia=0.25 if index else 0.0)
        run.images, run.previous = moved, run.images
        run.observe(*measure(problem, loss, run, patient))
    run.note(found)
    return found


def begin(problem: Problem, loss: Loss, targets: Labels, start: Images, patient: bool) -> Climb:
    """The state at the start."""
    count, norm = len(start), problem.threat.norm
    rows = torch.arange(count, device=start.device)
    step = start.new_full((count, 1, 1, 1), problem.threat.radius * (1.0 if norm == "l1" else 2.0))
    empty, false = start.new_zeros(count), torch.zeros_like(rows, dtype=torch.bool)
    run = Climb(
        rows, false, start, empty - torch.inf, problem.images, problem.labels, targets, start, start, start, empty,
        torch.zeros_like(start), step, torch.zeros_like(rows), empty, ~false,
        (start != problem.images).flatten(1).sum(1),
    )  # fmt: skip
    value, gradient, fooled = measure(problem, loss, run, patient)
    run.observe(value, gradient, fooled)
    run.earlier = run.highest
    # The authors' code compares the first step's loss with 0, not with the loss at the start.
    run.value, run.rises = torch.zeros_like(value), torch.zeros_like(rows)
    return run


def measure(problem: Problem, loss: Loss, run: Climb, patient: bool = False) -> tuple[PerExample, Images, Tensor]:
    """Loss and its gradient at the present images, and which of them fool the model; none does so with `patient`.

    The loss is lowest, -inf, where it or the logits are not finite: from there a search goes back.
    """
    with torch.enable_grad():
        leaf = run.images.detach().requires_grad_()
        if problem.objective is None:
            logits = logits_of(problem.model, leaf)
            value = loss(logits, run.labels, run.targets)
        else:
            value = problem.objective(problem.model, problem.images.index_copy(0, run.rows, leaf))[run.rows]
            logits = classify(problem.model, run.images)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    value = value.detach().to(leaf.dtype)
    known = value.isfinite() & logits.isfinite().all(1)
    fools = torch.zeros_like(known) if patient else fooled(run.images, logits, run.labels)
    return torch.where(known, value, -torch.inf), usable(gradient), fools


def checkpoints(steps: int, norm: str) -> dict[int, int]:
    """Steps (from 0) after which the step size adapts, and how many steps each looks back on (section 3.1)."""
    window = max(int((0.04 if norm == "l1" else 0.22) * steps), 1)
    shrink, least = (0, window) if norm == "l1" else (max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    windows, last = {}, window - 1
    while last < steps:
        windows[last] = window
        window = max(window - shrink, least)
        last += window
    return windows


def advance(run: Climb, threat: ThreatModel, inertia: float) -> Images:
    """The next images: a projected step, mixed with the step before (Algorithm 1, lines 7-8; l1: a sparse step)."""
    if threat.norm == "l1":
        return threat.project(run.images + run.step * sparse_direction(run), run.clean)
    if threat.norm == "linf":
        direction = run.gradient.sign()
    else:
        direction = run.gradient / column(lengths(run.gradient, "l2") + 1e-12)
    stepped = threat.project(run.images + run.step * direction, run.clean)
    mixed = run.images + (stepped - run.images) * (1 - inertia) + (run.images - run.previous) * inertia
    return threat.project(mixed, run.clean)


def sparse_direction(run: Climb) -> Images:
    """Signs of the largest gradient entries, of l1 length 1: two thirds as many as the best image changed."""
    flat = run.gradient.flatten(1)
    size, pixels = flat.abs(), flat.shape[1]
    kept = run.support.to(flat.dtype) / pixels / 1.5
    last = ((1 - kept) * pixels).clamp(0, pixels - 1).long()
    threshold = size.sort(1).values.gather(1, last[:, None])
    signs = torch.where(size >= threshold, flat.sign(), torch.zeros_like(flat))
    return (signs / (signs.abs().sum(1, keepdim=True) + 1e-10)).view_as(run.images)


def adapt(run: Climb, threat: ThreatModel, window: int) -> None:
    """At a checkpoint: halve the step of a sample that made too little progress and send it back to its best image.

    Too little: fewer than 75 % of the steps raised the loss, or the best loss stands since the last checkpoint
    without the step having been halved there. l1: the step grows back where the perturbation became sparser.
    """
    if threat.norm == "l1":
        support = (run.best != run.clean).flatten(1).sum(1)
        sparser = support / run.support < 0.95
        step = torch.where(column(sparser), torch.full_like(run.step, threat.radius), run.step / 1.5)
        run.step, run.support = step.clamp(threat.radius / 10, threat.radius), support
        run.return_to_best(sparser)
        return
    reduced = (run.rises <= 0.75 * window) | (~run.reduced & (run.earlier >= run.highest))
    run.step = torch.where(column(reduced), run.step / 2, run.step)
    run.return_to_best(reduced)
    run.reduced, run.earlier, run.rises = reduced, run.highest, torch.zeros_like(run.rises)
