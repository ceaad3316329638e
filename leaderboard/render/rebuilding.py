"""A board on disk against its result files: rendered again in every way in which it can be, and compared."""

import csv
import html
import re
from collections.abc import Mapping, Sequence
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError
from bench.leaderboard.render.board_data import VERSION
from bench.leaderboard.render.files import board_text, form_version
from bench.results.board_rows import read_row
from bench.text import uncut

ROW: Mapping[str, str] = {
    ".md": r"^\| (?! *Rank \|)",
    ".html": r'^<tr\b.*<th scope="row" class="name">',
    ".csv": r"^(?!dataset,).",
    ".json": r'^ *"rank":',
}
"""The start of a board's row, by the suffix of its file."""


def compared(
    paths: Sequence[Path], board: Path, text: str
) -> tuple[Literal["confirmed", "refuted", "not checked"], str]:
    """The verdict on the text of a board that is to show these result files, and its reason.

    A board of another version says other things, and is neither confirmed nor refuted.
    """
    version = form_version(text, board.suffix)
    if version is not None and version != VERSION:
        told = (
            f"{board} was written by another version of bench (boards of version {version}; this one writes {VERSION})"
        )
        return "not checked", f"{told}: write it again with `bench leaderboard` to compare it"
    ways: Any = product(("any", "final"), (False, True), (None, *_rankings(text)))
    columns = shown_columns(text) if board.suffix == ".md" else []
    nearest, reasons = "", []
    try:
        results = [read_row(path) for path in paths]
    except BenchError as error:
        return "refuted", str(error)
    for convention, merge_seeds, rank_by in ways:
        try:
            computed = board_text(results, board.suffix, convention, merge_seeds, columns, rank_by)
        except BenchError as error:
            reasons.append(str(error))
            continue
        if not _differing(text, computed):
            return "confirmed", f"{_rows(board, text)} rows of {board}, computed again from {len(paths)} files"
        nearest = min(nearest, computed, key=lambda other: (not other, len(_differing(text, other))))
    return "refuted", _difference(board, text, nearest) if nearest else reasons[0]


def _rankings(text: str) -> list[str]:
    """Titles of the columns that a board says it is ranked by; in a CSV file, all that its rows name."""
    found = re.findall(r'(?:ranked by |"rank_by": ?")((?:\\.|[^"<\n\\])*)', text)
    header, *lines = list(csv.reader(text.splitlines())) or [[]]
    place = header.index("rank by") if "rank by" in header else None
    found += [] if place is None else [line[place] for line in lines if len(line) > place]
    return list(dict.fromkeys(html.unescape(one) for one in found))


def shown_columns(text: str) -> list[str]:
    """Titles of a Markdown board's columns, which may be some of all; those of Rank, Model and Trust left out."""
    header = next((line for line in text.splitlines() if line.startswith("|")), "")
    return [html.unescape(uncut(cell.strip())) for cell in header.split("|")[4:-1]]


def _differing(shown: str, computed: str) -> list[tuple[int, str, str]]:
    """Lines that are not the same: their number from 1, as shown and as computed."""
    pairs = zip_longest(shown.splitlines(), computed.splitlines(), fillvalue="")
    return [(number, *pair) for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1]]


def _rows(board: Path, text: str) -> int:
    return len(re.findall(ROW[board.suffix], text, re.MULTILINE))


def _difference(board: Path, shown: str, computed: str) -> str:
    """The number of rows where some are missing, and the first line that differs in more than a column's width."""
    different = _differing(shown, computed)
    narrow = [(number, _narrow(line), _narrow(other)) for number, line, other in different]
    number, line, other = next((found for found in narrow if found[1] != found[2]), different[0])
    same = next((place for place, pair in enumerate(zip(line, other, strict=False)) if len(set(pair)) > 1), 0)
    part = slice(max(0, same - 20), same + 60)
    rows = [_rows(board, text) for text in (shown, computed)]
    missing = f"the board has {rows[0]} rows, the files give {rows[1]}; " if rows[0] != rows[1] else ""
    return (
        f"other numbers or texts than the result files give: {missing}{len(different)} lines of {board}, the first is "
        f"line {number}: {line[part]!r} is shown, {other[part]!r} is computed"
    )


def _narrow(line: str) -> str:
    """A line of a Markdown table without what fills its columns."""
    return re.sub(r"([ -])+", r"\1", line)
