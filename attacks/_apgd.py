"""Auto-PGD (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, section 3; l1: 2021, https://arxiv.org/abs/2103.01208)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from bench.attacks._ascent import usable
from bench.attacks._objectives import cross_entropy, full_precision
from bench.attacks._survivors import (
    Attempt,
    WorkingSet,
    classify,
    column,
    first_success,
    leave,
    lengths,
    logits_of,
    looks,
    noise,
    random_point,
    rival,
)
from bench.interfaces import (
    Images,
    Labels,
    Logits,
    PerExample,
    Problem,
    ThreatModel,
    fooled,
)

Loss: TypeAlias = Callable[[Logits, Labels, Labels], PerExample]
"""Logits, labels and target classes in, one value per sample out (larger is worse for the model)."""


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
