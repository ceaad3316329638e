"""Square Attack (Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049): random search with square windows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bench.attacks._survivors import (
    ORDER,
    Attempt,
    WorkingSet,
    classify,
    column,
    first_success,
    leave,
    lengths,
    looks,
    redirect,
)
from bench.interfaces import Draws, Images, Labels, Logits, PerExample, Problem, ThreatModel, fooled

FRACTIONS = ((10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256))
"""Up to this query, the window covers 0.8 of the image divided by this; later by 512 (section 5)."""
BLOCK = 500
"""Queries whose signs are drawn at once: one generator per sample and query would cost as much as the network."""


def square(problem: Problem, queries: int, restarts: int, stage: str) -> Images:
    """Square Attack: each sample's first adversarial image, else its image of smallest margin. No gradients."""

    def attempt(restart: int) -> Callable[[Problem, Logits], Attempt]:
        def run(part: Problem, logits: Logits) -> Attempt:
            return random_search(part, Moves(part.draws, part.images, queries, f"{stage}/restart {restart}"), queries)

        return run

    return first_success(replace(problem, objective=None), (attempt(restart) for restart in range(restarts)))


class Moves:
    """The random numbers of one run.

    Where windows lie is drawn for each query and shared by all samples, as in the authors' code: one slice then
    serves the whole batch. It depends on the query alone, and so does not depend on the batch either.
    """

    def __init__(self, draws: Draws, images: Images, queries: int, key: str) -> None:
        self.draws, self.images, self.key = draws, images, key
        self.everyone = redirect(draws, np.array([-1]))
        shape = (1, queries, 5 + images.shape[1])
        # Windows are slices, which the processor cuts; colours are in place before the first query.
        numbers = self.everyone.uniform(torch.empty(shape), f"{key}/windows")[0]
        self.table: list[list[float]] = numbers.tolist()
        self.painted = sign(numbers[:, 2 : 2 + images.shape[1], None, None]).to(images)
        self.block, self.numbers = -1, images

    def shared(self, query: int, count: int) -> list[float]:
        """Up to 5 numbers in [0, 1) for one query, the same for every sample."""
        return self.table[query][:count]

    def colours(self, query: int) -> Tensor:
        """-1 or 1 for one query, of shape (channels, 1, 1), the same for every sample."""
        return self.painted[query]

    def signs(self, query: int, rows: Tensor) -> Tensor:
        """-1 or 1 for one query, of shape (rows, channels, 1, 1)."""
        if query // BLOCK != self.block:
            self.block = query // BLOCK
            shape = (len(self.images), BLOCK, self.images.shape[1])
            self.numbers = self.draws.uniform(self.images.new_empty(shape), f"{self.key}/signs/{self.block}")
        return sign(self.numbers[rows, query % BLOCK])[:, :, None, None]

    def stripes(self) -> Tensor:
        """-1 or 1, of shape (samples, channels, 1, width)."""
        return sign(self.draws.uniform(self.images[:, :, :1], f"{self.key}/stripes"))

    def tile(self, number: int) -> tuple[float, Tensor]:
        """For one tile of the start: a number in [0, 1) that all samples share, and signs (samples, channels, 1, 1)."""
        (turn,) = self.everyone.uniform(torch.empty(1), f"{self.key}/turn/{number}").tolist()
        return turn, sign(self.draws.uniform(self.images[:, :, :1, :1], f"{self.key}/tile/{number}"))


def sign(numbers: Tensor) -> Tensor:
    """-1 below one half, else 1."""
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers.dtype)


@dataclass
class Search(WorkingSet):
    """The state of the search; the best image is the one of smallest margin, -`highest`."""

    clean: Tensor
    labels: Tensor

    def decide(self, margin: PerExample, fooled: Tensor) -> Tensor:
        """Mask of the proposals that are kept; their margins are noted."""
        kept = (fooled | (-margin > self.highest)) & ~self.done
        self.highest, self.done = torch.where(kept, -margin, self.highest), self.done | fooled
        return kept


def random_search(problem: Problem, moves: Moves, queries: int) -> Attempt:
    """One run: a proposed window is kept where it lowers the margin z_y - max_{j != y} z_j or fools the model."""
    threat, clean = problem.threat, problem.images
    best = stripes(clean, threat, moves) if threat.norm == "linf" else tiles(clean, threat, moves)
    margin, fooled = judge(problem, best, problem.labels)
    found = Attempt(best.clone(), -margin, fooled.clone())
    run = Search(torch.arange(len(clean), device=clean.device), fooled, best, -margin, clean, problem.labels)
    propose = paint if threat.norm == "linf" else shift
    for query in range(queries):
        if looks(query, clean):
            run = leave(run, found)
            if not len(run.rows):
                return found
        propose(problem, run, moves, query)
    run.note(found)
    return found


def judge(problem: Problem, images: Images, labels: Labels) -> tuple[PerExample, Tensor]:
    """z_y - max_{j != y} z_j, infinite where logits are not finite, and whether the model is fooled."""
    logits = classify(problem.model, images)
    true = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return torch.where(logits.isfinite().all(1), true - other, torch.inf), fooled(images, logits, labels)


def side(query: int, images: Images, norm: str) -> int:
    """Side of the window at a query (from 0), in pixels; odd and at least 3 under l2 and l1."""
    height, width = images.shape[2:]
    divisor = next((divisor for last, divisor in FRACTIONS if query <= last), 512)
    length = max(round(math.sqrt(0.8 / divisor * height * width)), 1 if norm == "linf" else 3)
    if norm != "linf" and length % 2 == 0:
        length += 1
    return min(length, height, width)


def place(numbers: list[float], images: Images, length: int) -> list[tuple[slice, slice, slice, slice]]:
    """A window for each pair of numbers in [0, 1).

    As in the authors' code no window reaches the last row or column, which stay as the start left them.
    """
    every, rooms = slice(None), [size - length for size in images.shape[2:]]
    corners = [int(room * number) for room, number in zip(rooms * (len(numbers) // 2), numbers, strict=True)]
    spans = [slice(corner, corner + length) for corner in corners]
    return [(every, every, *pair) for pair in zip(spans[::2], spans[1::2], strict=True)]


# ------------------------------------------------------------------------------------------------------ linf


def stripes(clean: Images, threat: ThreatModel, moves: Moves) -> Images:
    """The start under linf: vertical stripes of full radius, one sign per channel and column."""
    return (clean + threat.radius * moves.stripes()).clamp(0.0, 1.0)


def paint(problem: Problem, run: Search, moves: Moves, query: int) -> None:
    """Propose a window moved to one face of the ball, one sign per channel.

    Only the window is written, and written back where the proposal fails: the rest of the image is never touched.
    """
    radius = problem.threat.radius
    (window,) = place(moves.shared(query, 2), run.clean, side(query, run.clean, "linf"))
    part, centre = run.best[window], run.clean[window]
    before = part.clone()
    moved = before + 2.0 * radius * moves.colours(query)
    part.copy_(torch.minimum(torch.maximum(moved, centre - radius), centre + radius).clamp_(0.0, 1.0))
    margin, fooled = judge(problem, run.best, run.labels)
    kept = run.decide(margin, fooled)
    part.copy_(torch.where(column(kept), part, before))


# ---------------------------------------------------------------------------------------------------- l2, l1


def tiles(clean: Images, threat: ThreatModel, moves: Moves) -> Images:
    """The start under l2 and l1: a grid of bumps of random sign and orientation, of full radius."""
    height, width = clean.shape[2:]
    length = max(height // 5, 1)
    first = (height - 5 * length) // 2
    change = torch.zeros_like(clean)
    for number in range((height // length) * (width // length)):
        top, left = (first + length * index for index in divmod(number, width // length))
        turn, signs = moves.tile(number)
        window = change[:, :, top : top + length, left : left + length]
        rows, columns = window.shape[2:]
        window += (turned(length, threat.norm, turn > 0.5, clean.dtype, clean.device) * signs)[:, :, :rows, :columns]
    return settle(clean, change, threat)


def settle(clean: Images, change: Images, threat: ThreatModel) -> Images:
    """Images of full radius in the direction of `change` (l2), or the nearest ones in the ball (l1)."""
    if threat.norm == "l1":
        return threat.project(clean + change, clean)
    return (clean + threat.radius * change / column(lengths(change, "l2") + 1e-12)).clamp(0.0, 1.0)


@cache
def bump(length: int, norm: str) -> Tensor:
    """A positive hill above a negative one, of length 1 in `norm` (Algorithm 3)."""
    half = length // 2
    shape = torch.cat([hill(half, length, norm), -hill(length - half, length, norm)])
    return shape / shape.norm(p=ORDER[norm])


def hill(rows: int, columns: int, norm: str) -> Tensor:
    """A sum of nested squares, the k-th of height 1 / k^2 (l2) or 1 / k^4 (l1), of length 1 in `norm`."""
    heights = torch.zeros(rows, columns, dtype=torch.float64)
    top, left = rows // 2, columns // 2
    for ring in range(max(top, left) + 1):
        rings = tuple(slice(max(centre - ring, 0), centre + ring + 1) for centre in (top, left))
        heights[rings] += (ring + 1.0) ** (-2 if norm == "l2" else -4)
    return heights / heights.norm(p=ORDER[norm]).clamp_min(1e-300)


@cache
def turned(length: int, norm: str, aside: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A bump, or one on its side, where it is needed: copied there once."""
    shape = bump(length, norm)
    return (shape.T if aside else shape).to(device, dtype)


def shift(problem: Problem, run: Search, moves: Moves, query: int) -> None:
    """Propose to gather the change of two windows as a bump in the first (Algorithm 3)."""
    threat, change = problem.threat, run.best - run.clean
    power, channels = ORDER[threat.norm], change.shape[1]
    length = side(query, run.clean, threat.norm)
    *numbers, turn = moves.shared(query, 5)
    here, there = place(numbers, run.clean, length)

    def mass(part: Tensor) -> Tensor:
        return part.abs().pow(power).sum((2, 3), keepdim=True)

    unused = (threat.radius**power - mass(change).sum(1, keepdim=True)).clamp_min(0.0)
    old, old_mass = change[here].clone(), mass(change[here])
    change[here] = 0.0
    freed = old_mass + mass(change[there])
    change[there] = 0.0
    new = turned(length, threat.norm, turn > 0.5, change.dtype, change.device) * moves.signs(query, run.rows)
    new = new + old / (old_mass.pow(1 / power) + 1e-12)
    # Under l1 the authors' code takes this share once for each channel; the projection takes the surplus away again.
    share = (unused / channels + freed).pow(1 / power) * (channels if threat.norm == "l1" else 1)
    change[here] = new / (mass(new).pow(1 / power) + 1e-12) * share
    proposed = settle(run.clean, change, threat)
    kept = run.decide(*judge(problem, proposed, run.labels))
    run.best = torch.where(column(kept), proposed, run.best)
