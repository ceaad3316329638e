"""Which cells of a suite share a search: they differ only in how many steps and restarts they take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.catalogue.suites import AttackCell
from bench.interfaces import Attack, IterativeAttack, ThreatModel

_GRADIENT = 3


@dataclass(frozen=True)
class Group:
    """Cells that are answered by one run."""

    cells: tuple[AttackCell, ...]
    attacks: tuple[Attack, ...]

    @property
    def cell(self) -> AttackCell:
        """The first cell; the others are like it but for label, steps and restarts."""
        return self.cells[0]

    @property
    def threat(self) -> ThreatModel:
        """The cells' threat model."""
        return ThreatModel(self.cell.norm, str(self.cell.epsilon))

    @property
    def iterative(self) -> bool:
        """True if the harness takes the steps."""
        return isinstance(self.attacks[0], IterativeAttack) and self.cell.source is None

    @property
    def name(self) -> str:
        """The labels, for a progress bar."""
        others = len(self.cells) - 1
        return f"{self.cell.label} and {others} more" if others else self.cell.label

    @property
    def counts(self) -> tuple[int, int]:
        """Gradients and plain forward passes of an image, at most."""
        gradients, forwards = zip(*(attack.passes() for attack in self.attacks), strict=True)
        return max(gradients), max(forwards)

    @property
    def passes(self) -> int:
        """The same in forward passes; one with the gradient of the images is about three."""
        gradients, forwards = self.counts
        return _GRADIENT * gradients + forwards

    @property
    def stream(self) -> str:
        """The key of the draws, besides the sample: cells of one attack and norm start from the same noise."""
        return f"{self.cell.attack}/{self.cell.norm}"


def plan(cells: Sequence[AttackCell], attacks: Mapping[str, Attack]) -> list[Group]:
    """Groups in the order of their first cell; `attacks` are by label."""
    groups: dict[tuple[Any, ...], list[AttackCell]] = {}
    for cell in cells:
        attack = attacks[cell.label]
        threat = ThreatModel(cell.norm, str(cell.epsilon))
        family = attack.family(threat) if isinstance(attack, IterativeAttack) and cell.source is None else cell.label
        key = (family, threat.norm, threat.radius, cell.objective, cell.measure_loss)
        groups.setdefault(key, []).append(cell)
    return [Group(tuple(members), tuple(attacks[cell.label] for cell in members)) for members in groups.values()]
