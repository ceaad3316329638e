"""Which cells of a suite share a search: they differ only in how many steps and restarts they take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.catalogue.suites import AttackCell
from bench.interfaces import Attack, IterativeAttack, ThreatModel


@dataclass(frozen=True)
class Group:
    """Cells that are answered by one run."""

    cells: tuple[AttackCell, ...]
    attacks: tuple[Attack, ...]

    @property
    def threat(self) -> ThreatModel:
        """The cells' threat model."""
        return ThreatModel(self.cells[0].norm, str(self.cells[0].epsilon))

    @property
    def objective(self) -> str:
        """The cells' objective."""
        return self.cells[0].objective

    @property
    def source(self) -> str | None:
        """The model that images are crafted against, where it is another one."""
        return self.cells[0].source

    @property
    def measures_loss(self) -> bool:
        """Whether the loss at the last iterate is asked for: then every sample is attacked, and to the end."""
        return self.cells[0].measure_loss

    @property
    def iterative(self) -> bool:
        """Whether the harness takes the steps."""
        return isinstance(self.attacks[0], IterativeAttack) and self.source is None

    @property
    def name(self) -> str:
        """The labels, for a progress bar."""
        labels = [cell.label for cell in self.cells]
        return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"

    @property
    def stream(self) -> str:
        """What the draws are keyed by, besides the sample: cells of one attack and norm start from the same noise."""
        return f"{self.cells[0].attack}/{self.cells[0].norm}"


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
