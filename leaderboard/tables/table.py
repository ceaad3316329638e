"""A table before it has a form: its columns, and its rows of cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from bench.errors import unknown_name
from bench.leaderboard.tables.ranking import Ranks
from bench.results.metrics import PerSample

Number: TypeAlias = PerSample | float
"""A cell of one seed: outcomes of its samples, or a number that no samples are stored of."""
Trust: TypeAlias = Literal["error", "warning", "passed", "unchecked"]
"""`unchecked`: the file holds no trust report."""


@dataclass(frozen=True)
class Cell:
    """One number: an accuracy in percent, an angle in degrees, or a ratio."""

    value: float
    interval: tuple[float, float] | None
    """Of 95 %: over samples; of a mean over seeds, over both. None: it has no samples."""
    spread: float | None = None
    """Standard deviation over training seeds, where `value` is their mean."""

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    cells: Mapping[str, Cell]
    """By column title."""
    trust: Trust
    """The worst finding of its trust report, or reports."""
    results: tuple[int, ...]
    """Places of the results it is made of among those the table was built from."""
    notes: tuple[int, ...] = ()
    """Numbers of this row's notes, from 1; a row with notes carries a dagger."""
    ranks: Mapping[str, Ranks | None] = field(default_factory=dict)
    """By column that is tested, what `leaderboard.tables.ranking` says; of a row that is not ranked: nothing."""

    @property
    def ranked(self) -> bool:
        """False where a finding says that the numbers cannot be believed: last, and never best."""
        return self.trust != "error"


@dataclass(frozen=True)
class ColumnFormat:
    """How the numbers of a column are read."""

    decimals: int = 1
    lower_is_better: bool = False
    compares: bool = True
    """False where rows were attacked by losses of their own: then no best is marked."""


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of board, the numbers in them, and what is said of them."""

    title: str
    rank_by: str
    """Title of the column that puts rows in order unless another does."""
    formats: Mapping[str, ColumnFormat]
    """By column title."""
    numbers: Sequence[Mapping[str, Number]]
    """Of each result, by column title."""
    notes: tuple[str, ...]
    measure: str = "Accuracy in percent"


@dataclass(frozen=True)
class LeaderboardTable:
    """A table that a renderer shows."""

    title: str
    rank_by: str
    """Title of the column that puts rows in order, and ranks them where it is tested."""
    columns: Mapping[str, ColumnFormat]
    """Those that are shown, by title; a row may have cells of more."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    ranking: str
    """A line on what the ranks mean, or that there are none."""
    measure: str


def with_columns(table: LeaderboardTable, titles: Sequence[str]) -> LeaderboardTable:
    """The table with these columns only, in this order. Rows, their order, ranks and notes stay.

    Raises:
        BenchError: a title that no column has.
    """
    for title in titles:
        if title not in table.columns:
            raise unknown_name("column", title, table.columns)
    return replace(table, columns={title: table.columns[title] for title in titles})
