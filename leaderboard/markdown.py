"""A table as GitHub Markdown."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.files import write_text
from bench.leaderboard.intervals import bounds_legend, error_text
from bench.leaderboard.marks import MARKS, trust_legend
from bench.leaderboard.tables import LeaderboardTable, Row, Scale, best_two
from bench.text import escape as escape

_LEGEND = "{measure}{error}. Per column: **best**, <u>second</u>. A dagger refers to the notes."


def render(table: LeaderboardTable, shown: Callable[[str], str] = escape) -> str:
    """The whole board: title, table, legend and numbered notes.

    `shown` makes names and notes fit to show: nothing in them acts as Markdown or HTML by `escape`, or, on a terminal,
    which knows neither, as a control character by `text.one_line`.
    """
    notes = "".join(f"{number}. {shown(note)}\n" for number, note in enumerate(table.notes, start=1))
    measured = [(cell.percent, cell.interval) for row in table.rows for cell in row.cells if cell.interval is not None]
    error = f", ± half the width of its 95 % Wilson interval{bounds_legend(measured)}" if measured else ""
    legend = _LEGEND.format(measure=table.measure, error=error)
    return f"## {shown(table.title)}\n\n{table_lines(table, shown)}\n\n{legend} {trust_legend()} {table.ranking}\n" + (
        f"\n{notes}" if notes else ""
    )


def table_lines(table: LeaderboardTable, shown: Callable[[str], str] = escape) -> str:
    """The table alone."""
    import pandas

    scales = table.scales or (Scale(),) * (len(table.headers) - 1)
    marks = [_marks(table.rows, column, scale) for column, scale in enumerate(scales)]
    body = [
        ["-" if row.rank is None else str(row.rank), _name(row, shown), MARKS[row.trust], *_cells(row, marks, scales)]
        for row in table.rows
    ]
    name, *titles = map(shown, table.headers)
    frame = pandas.DataFrame(body, columns=["Rank", name, "Trust", *titles])
    alignment = ("right", "left", "center", *["right"] * len(marks))
    return str(frame.to_markdown(index=False, tablefmt="pipe", colalign=alignment, disable_numparse=True))


def write_board(text: str, path: str | Path) -> None:
    """Write a board at once; a reader sees the old one or the new one.

    Raises:
        BenchError: the path cannot be written.
    """
    write_text(Path(path), text)


def _name(row: Row, shown: Callable[[str], str]) -> str:
    numbers = ",".join(map(str, row.notes))
    return (shown(row.name) or "unnamed") + (f" †{numbers}" if numbers else "")


def _cells(row: Row, marks: Sequence[dict[float, str]], scales: Sequence[Scale]) -> list[str]:
    texts = []
    for cell, mark, scale in zip(row.cells, marks, scales, strict=True):
        places = scale.decimals
        number = f"{cell.percent:.{places}f}" + (
            "" if cell.interval is None else f" {error_text(cell.percent, cell.interval)}"
        )
        number += "" if cell.spread is None else f" ({cell.spread:.{places}f})"
        texts.append(mark.get(cell.percent, "{}").format(number) if row.ranked else number)
    return texts


def _marks(rows: Sequence[Row], column: int, scale: Scale) -> dict[float, str]:
    """How to set the best and the second value of a column, of the rows that are ranked."""
    values = best_two((row.cells[column].percent for row in rows if row.ranked), scale)
    return dict(zip(values, ["**{}**", "<u>{}</u>"], strict=False))
