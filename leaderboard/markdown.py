"""A table as GitHub Markdown."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.leaderboard.intervals import bounds_legend, error_text
from bench.leaderboard.marks import MARKS, trust_legend
from bench.leaderboard.ranking import BOLD, leading, rank_text
from bench.leaderboard.tables import ColumnFormat, LeaderboardTable, Row
from bench.system.files import write_text
from bench.text import escape as escape


def render(table: LeaderboardTable, shown: Callable[[str], str] = escape) -> str:
    """The whole board: title, table, legend and numbered notes.

    `shown` makes names and notes fit to show: nothing in them acts as Markdown or HTML by `escape`, or, on a terminal,
    which knows neither, as a control character by `text.one_line`.
    """
    notes = "".join(f"{number}. {shown(note)}\n" for number, note in enumerate(table.notes, start=1))
    heading = f"## {shown(table.title)}\n\n{table_lines(table, shown)}\n\n"
    bold = f" **Bold**: {BOLD}." if any(row.ranks for row in table.rows) else ""
    return (
        f"{heading}{measured(table)}.{bold} A dagger refers to the notes. {trust_legend()} {shown(table.ranking)}\n"
        + (f"\n{notes}" if notes else "")
    )


def measured(table: LeaderboardTable) -> str:
    """What the numbers of a table are, what follows `±` and what is in brackets."""
    cells = [cell for row in table.rows for cell in row.cells]
    found = [(cell.percent, cell.interval) for cell in cells if cell.interval is not None]
    merged = any(cell.spread is not None for cell in cells)
    over = ", over training seeds and test images" if merged else ""
    error = f", ± half the width of its 95 % interval{over}{bounds_legend(found)}" if found else ""
    return f"{table.measure}{error}{'; in brackets the standard deviation over seeds' if merged else ''}"


def table_lines(table: LeaderboardTable, shown: Callable[[str], str] = escape) -> str:
    """The table alone."""
    import pandas

    scales = table.scales or (ColumnFormat(),) * (len(table.headers) - 1)
    bold = [leading([row.ranks.get(title) for row in table.rows]) for title in table.headers[1:]]
    body = [
        [
            rank_text(row.ranks.get(table.rank_by)),
            _name(row, shown),
            MARKS[row.trust],
            *_cells(row, [column[number] for column in bold], scales),
        ]
        for number, row in enumerate(table.rows)
    ]
    name, *titles = map(shown, table.headers)
    frame = pandas.DataFrame(body, columns=["Rank", name, "Trust", *titles])
    alignment = ("right", "left", "center", *["right"] * len(scales))
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


def _cells(row: Row, bold: Sequence[bool], scales: Sequence[ColumnFormat]) -> list[str]:
    texts = []
    for cell, leads, scale in zip(row.cells, bold, scales, strict=True):
        places = scale.decimals
        number = f"{cell.percent:.{places}f}"
        number += "" if cell.interval is None else f" {error_text(cell.percent, cell.interval)}"
        number += "" if cell.spread is None else f" ({cell.spread:.{places}f})"
        texts.append(f"**{number}**" if leads else number)
    return texts
