"""FAB, the fast adaptive boundary attack (Croce & Hein 2020, https://arxiv.org/abs/1907.02044, Algorithm 1).

It looks for the nearest adversarial image by projecting onto the linearised decision boundary, inside the box.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attacks._ascent import usable
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
    random_point,
    rival,
)
from bench.interfaces import Images, Labels, Logits, PerExample, Problem, fooled, runs_ahead

MOST, ENOUGH = 100, 16
"""Newton steps of `level`: at most, and where asking who still moves would wait for the device. On heavy-tailed normals
of 3,072 pixels 14 were the most."""
OVERSHOOT = 1.05
"""eta of the paper: how far beyond the linearised boundary an image is put."""
RETURN = 0.9
"""beta of the paper: where an adversarial image goes on, from 0 at the clean image to 1 at the adversarial one."""
PULL = 0.1
"""alpha_max of the paper: the largest weight of the projection of the clean image."""

Flat = Float[Tensor, "batch pixels"]


def fab(problem: Problem, steps: int, targets: int, restarts: int, stage: str) -> Images:
    """Targeted FAB, once for each of the `targets` likeliest wrong classes of the clean image.

    Returns each sample's first adversarial image (of any class) inside the threat model, else its clean image.
    """
    problem = replace(problem, objective=None)

    def attempt(rank: int, restart: int) -> Callable[[Problem, Logits], Attempt]:
        def run(part: Problem, logits: Logits) -> Attempt:
            radius = part.threat.radius
            key = f"{stage}/target {rank}/restart {restart}"
            start = random_point(part, radius / 2, key) if restart else part.images
            images, distance = nearest(part, rival(logits, part.labels, rank), start, steps)
            inside = distance <= radius
            return Attempt(torch.where(column(inside), images, part.images), -distance, inside)

        return run

    return first_success(problem, (attempt(rank, restart) for rank in range(targets) for restart in range(restarts)))


@dataclass
class Walk(WorkingSet):
    """The state of FAB; the best image is the nearest adversarial one, at the distance -`highest`."""

    clean: Tensor
    labels: Tensor
    targets: Tensor
    images: Tensor


def nearest(problem: Problem, targets: Labels, start: Images, steps: int) -> tuple[Images, PerExample]:
    """The nearest adversarial image found for each sample, and its distance in the threat model's norm.

    Where none is found: the clean image, at infinity. A sample stops once it is within the threat model's radius.
    """
    norm, radius = problem.threat.norm, problem.threat.radius
    rows, none = torch.arange(len(start), device=start.device), torch.full_like(start[:, 0, 0, 0], -torch.inf)
    found = Attempt(problem.images.clone(), none.clone(), torch.zeros_like(rows, dtype=torch.bool))
    run = Walk(rows, found.fooled.clone(), problem.images, none, problem.images, problem.labels, targets, start)
    for step in range(steps):
        if looks(step, start):
            run = leave(run, found)
            if not len(run.rows):
                break
        run.images = approach(problem, run)
        adversarial = fooled(run.images, classify(problem.model, run.images), run.labels) & ~run.done
        change = run.images - run.clean
        length = lengths(change, norm)
        run.keep(adversarial & (-length > run.highest), run.images, -length)
        run.images = torch.where(column(adversarial), run.clean + change * RETURN, run.images)
        run.done = -run.highest <= radius
    run.note(found)
    return found.images, -found.value


def approach(problem: Problem, run: Walk) -> Images:
    """One step across the linearised boundary: the present image's projection, pulled towards the clean one's."""
    norm = problem.threat.norm
    with torch.enable_grad():
        leaf = run.images.detach().requires_grad_()
        logits = logits_of(problem.model, leaf)
        lead = (logits.gather(1, run.targets[:, None]) - logits.gather(1, run.labels[:, None])).squeeze(1)
        (gradient,) = torch.autograd.grad(lead.sum(), leaf)
    normal, present, clean = usable(gradient).flatten(1), run.images.flatten(1), run.clean.flatten(1)
    lead = usable(lead.detach().to(present.dtype))
    step = project(present, normal, lead, norm)
    clean_step = project(clean, normal, lead + torch.linalg.vecdot(normal, clean - present), norm)
    length, clean_length = lengths(step, norm).clamp_min(1e-8), lengths(clean_step, norm).clamp_min(1e-8)
    pull = (length / (length + clean_length)).clamp_max(PULL)[:, None]
    moved = (present + OVERSHOOT * step) * (1 - pull) + (clean + OVERSHOOT * clean_step) * pull
    return moved.clamp(0.0, 1.0).view_as(run.images)


def project(points: Flat, normal: Flat, value: PerExample, norm: str) -> Flat:
    """The shortest step in `norm` to where value + normal . step is 0, inside [0, 1] (section 2.2).

    Where the box does not reach that far: the step to the corner that comes nearest.

    Args:
        points: in [0, 1].
        normal: gradient of a linear function.
        value: that function at `points`.
        norm: linf, l2 or l1.
    """
    weight = normal.abs()
    direction = normal.sign() * torch.where(value >= 0, -1.0, 1.0).to(normal.dtype)[:, None]
    room = 0.5 - direction * (points - 0.5)
    if norm == "l1":
        return direction * greedy(weight, room, value.abs())
    growth = weight if norm == "l2" else torch.ones_like(value)[:, None]
    return direction * torch.minimum(level(weight, growth, room, value.abs())[:, None] * growth, room)


def level(weight: Flat, growth: Tensor, room: Flat, amount: PerExample) -> PerExample:
    """The smallest t >= 0 with sum_i weight_i min(t growth_i, room_i) = amount; a huge number where there is none.

    The sum is concave and piecewise linear in t. Newton's method from 0 therefore never passes the root, and ends on
    the root's own piece: no sorting.
    """
    slope, filled = weight * growth, weight * room
    missing = amount - filled.sum(1)
    level = torch.zeros_like(amount)
    # Masks are of the images' own type: on a CPU, bool ones cost five times as much.
    unfilled = torch.empty_like(room)
    ahead = runs_ahead(amount.device)
    for _ in range(ENOUGH if ahead else MOST):
        torch.gt(room, level[:, None] * growth, out=unfilled)
        steepness = torch.linalg.vecdot(slope, unfilled)
        following = (missing + torch.linalg.vecdot(filled, unfilled)) / steepness
        following = torch.where(steepness > 0, following, torch.inf).clamp_max(torch.finfo(amount.dtype).max)
        if not ahead and not (following > level).any():
            break
        level = torch.maximum(level, following)
    return level


def greedy(weight: Flat, room: Flat, amount: PerExample) -> Flat:
    """The cheapest steps of 0 <= step <= room with weight . step = amount: heaviest coordinates first."""
    order = weight.argsort(dim=1, descending=True)
    ordered, ordered_room = weight.gather(1, order), room.gather(1, order)
    gain = ordered * ordered_room
    missing = (amount[:, None] - (gain.cumsum(1) - gain)).clamp_min(0.0)
    step = torch.minimum(missing / ordered.clamp_min(torch.finfo(weight.dtype).tiny), ordered_room)
    return torch.zeros_like(step).scatter(1, order, step)
