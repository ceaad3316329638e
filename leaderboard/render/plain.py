"""A table as plain text for a terminal: aligned, and never wider than asked for."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from bench.leaderboard.render.markdown import cell_text, measured, row_label
from bench.leaderboard.tables.table import LeaderboardTable
from bench.leaderboard.wording.marks import MARKS, trust_legend
from bench.leaderboard.wording.ranks import rank_text
from bench.results.metrics import CLEAN
from bench.text import one_line

GAP = 2
"""Spaces between two columns."""
SHORTEST = 12
"""Characters that a name keeps, however narrow the terminal is."""
LEAVES_OUT = "bench leaderboard --columns A,B or --out board.md"


def render_plain(table: LeaderboardTable, width: int) -> str:
    """The whole board in lines of at most `width`: title, table, legend and numbered notes.

    Columns that do not fit are named by their number: Clean and the one that ranks are the last to go.
    """
    headers = ["Rank", "Model", "Trust", *map(one_line, table.columns)]
    rows = [
        [
            rank_text(row.ranks.get(table.rank_by)),
            row_label(row, one_line),
            MARKS[row.trust],
            *(cell_text(row.cells[title], column) for title, column in table.columns.items()),
        ]
        for row in table.rows
    ]
    first = [3 + place for place, title in enumerate(table.columns) if title in (CLEAN, table.rank_by)]
    lines = plain_table(headers, rows, width, left=(1, 2), first=(0, 1, 2, *first), others=LEAVES_OUT)
    legend = f"{measured(table)}. A dagger refers to the notes. {trust_legend()} {one_line(table.ranking)}"
    notes = [filled(f"{number}. {one_line(note)}", width, "   ") for number, note in enumerate(table.notes, start=1)]
    return "\n".join([filled(one_line(table.title), width), "", lines, "", filled(legend, width), *notes]) + "\n"


def plain_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    left: Sequence[int] = (0,),
    first: Sequence[int] = (0,),
    others: str = "",
) -> str:
    """Aligned columns below their headers, as many as fit, and a line on how many do not.

    Args:
        headers: of the columns.
        rows: of printable cells.
        width: that no line exceeds, unless nothing but the columns of `first` is left, their texts cut.
        left: places of the columns aligned to the left, the first of which is cut where there is too little room.
        first: places of the columns that stay whatever does not fit.
        others: what the last line says of the columns left out.
    """
    columns = [[header, *(row[place] for row in rows)] for place, header in enumerate(headers)]
    widths = [max(map(_cells, column)) for column in columns]
    excess = sum(widths[place] + GAP for place in first) - GAP - width
    if excess > 0:
        name = left[0]
        widths[name] = max(widths[name] - excess, min(SHORTEST, widths[name]))
        columns[name] = [_cut(text, widths[name]) for text in columns[name]]
    kept, taken = set(first), sum(widths[place] + GAP for place in first) - GAP
    for place in range(len(headers)):
        if place not in kept and taken + GAP + widths[place] <= width:
            kept.add(place)
            taken += GAP + widths[place]
    shown = [place for place in range(len(headers)) if place in kept]
    rule = ["-" * widths[place] for place in range(len(headers))]
    body = [[column[line] for column in columns] for line in range(len(rows) + 1)]
    lines = [_line(cells, widths, shown, left) for cells in (body[0], rule, *body[1:])]
    missing = len(headers) - len(shown)
    if missing:
        lines.append(filled(f"+{missing} more column{'s' * (missing > 1)}{': ' * bool(others)}{others}", width))
    return "\n".join(lines)


def filled(text: str, width: int, indent: str = "") -> str:
    """Prose in lines of at most `width`, broken between words only; lines after the first begin with `indent`."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _line(cells: Sequence[str], widths: Sequence[int], shown: Sequence[int], left: Sequence[int]) -> str:
    padded = []
    for place in shown:
        space = " " * (widths[place] - _cells(cells[place]))
        padded.append(cells[place] + space if place in left else space + cells[place])
    return (" " * GAP).join(padded).rstrip()


def _cut(text: str, width: int) -> str:
    """A text of at most `width`: what tells names apart stands at their ends, so the middle goes."""
    if _cells(text) <= width:
        return text
    head = "".join(_within(text, (width - 3) // 2))
    tail = "".join(_within(text[::-1], width - 3 - _cells(head)))[::-1]
    return f"{head}...{tail}"


def _within(text: str, width: int) -> Iterator[str]:
    """The marks that a text begins with, as many as fit."""
    for mark in text:
        width -= _cells(mark)
        if width < 0:
            return
        yield mark


def _cells(text: str) -> int:
    """The places that a text takes on a terminal: two for a wide mark, none for one that stands on another."""
    return sum(2 if unicodedata.east_asian_width(mark) in "WF" else not unicodedata.combining(mark) for mark in text)
