"""How far an evaluation is: blocks that are done of all, images a second, and the time that is left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from bench.catalogue.plugins import make_attack
from bench.engine.groups import plan
from bench.engine.outcomes import Report
from bench.evaluation.prepare import Prepared

Overall: TypeAlias = Callable[[int, int, float | None, float | None], None]
"""Called with blocks done, blocks in all, images a second and seconds left at most; None: not known."""


@dataclass
class Piece:
    """A group of cells, or the corruptions: a piece of the work that is reported under a name of its own."""

    images: int
    """At most, until the clean predictions are known."""
    block: int
    cost: int
    """Of an image, at most, in forward passes."""
    takes_all: bool
    """True if it is of every image, also of those that are wrong already."""

    @property
    def blocks(self) -> int:
        """How many it is done in."""
        return ceil(self.images / self.block)


def pieces_of(prepared: Prepared) -> dict[str, Piece]:
    """The pieces of an evaluation by name, in their order; the trust report's probes are not counted."""
    target = prepared.target
    count, size = len(target.split), target.batch_size
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in prepared.suite.cells}
    pieces = {}
    for group in plan(prepared.suite.cells, attacks):
        block = group.attacks[0].fixed_batch or size
        pieces[group.name] = Piece(count, block, group.passes, target.attacks_all(group.cell))
    if prepared.corrupted is not None:
        pieces["corruptions"] = Piece(count * len(prepared.corrupted), count, 1, True)
    return pieces


class Counting:
    """A report of progress, which also tells how far all of the evaluation is: a heartbeat, and whoever shows it."""

    def __init__(self, pieces: Mapping[str, Piece], report: Report, *tellers: Overall) -> None:
        self.pieces, self.report, self.tellers = pieces, report, tellers
        self.name, self.first, self.since = "", 0, 0.0
        self.seconds_per_cost: float | None = None
        for teller in tellers:
            teller(0, sum(piece.blocks for piece in pieces.values()), None, None)

    def __call__(self, name: str, done: int, total: int, standing: int | None) -> None:
        """As every report: before each block that is run, and at the end of a piece."""
        if name in self.pieces:
            self.tell(name, done, total)
        self.report(name, done, total, standing)

    def tell(self, name: str, done: int, total: int) -> None:
        """Of a piece, so many of its images are done."""
        now, piece = time.monotonic(), self.pieces[name]
        for other in self.pieces.values():
            if not piece.takes_all and not other.takes_all:
                other.images = total  # those that are right clean
        if name != self.name:
            self.name, self.first, self.since = name, done, now
        passed, seconds = done - self.first, now - self.since
        rate = passed / seconds if passed and seconds > 0 else None
        if rate and piece.cost:
            self.seconds_per_cost = 1 / (rate * piece.cost)
        names = [*self.pieces]
        place = names.index(name)
        blocks = sum(self.pieces[other].blocks for other in names[:place]) + ceil(done / piece.block)
        after = [self.pieces[other] for other in names[place + 1 :]]
        cost = (total - done) * piece.cost + sum(other.images * other.cost for other in after)
        left = None if self.seconds_per_cost is None else cost * self.seconds_per_cost
        for teller in self.tellers:
            teller(blocks, sum(one.blocks for one in self.pieces.values()), rate, left)
