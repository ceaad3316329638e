"""The numbers that the Adv-DPNP paper printed (https://arxiv.org/abs/2504.03782, Tables 1 to 8)."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent.parent / "published" / "adv-dpnp.csv"


@dataclass(frozen=True)
class PublishedFigure:
    """One number of a table."""

    table: int
    dataset: str
    backbone: str
    defense: str
    """Under our name: `at-he` for AT_HE."""
    column: str
    text: str
    """As printed; accuracies in percent, angles in degrees."""

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)

    @property
    def decimals(self) -> int:
        """How many were printed."""
        return len(self.text.partition(".")[2])


@cache
def published_figures() -> tuple[PublishedFigure, ...]:
    """Every number, in the paper's order."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            PublishedFigure(
                table=int(row["table"]),
                dataset=row["dataset"],
                backbone=row["backbone"],
                defense=row["defense"].lower().replace("_", "-"),
                column=row["column"],
                text=row["value"],
            )
            for row in csv.DictReader(file)
        )


def published(table: int, dataset: str, backbone: str) -> dict[tuple[str, str], PublishedFigure]:
    """The numbers of one block of a table, by defense and column; none where the paper has no such block."""
    block = (table, dataset, backbone)
    return {
        (figure.defense, figure.column): figure
        for figure in published_figures()
        if (figure.table, figure.dataset, figure.backbone) == block
    }
