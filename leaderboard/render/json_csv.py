"""Boards for programs and spreadsheets: JSON and CSV."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.text import cell

if TYPE_CHECKING:
    import pandas

_FACTS = ("dataset", "suite", "suite_version", "threat", "samples")
_NUMBERS = ("percent", "value")
_ROW_FACTS = ("name", "defense", "backbone", "trust")


def render_json(data: Mapping[str, Any]) -> str:
    """The data of `leaderboard.render.board_data`, indented."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def render_csv(data: Mapping[str, Any]) -> str:
    """The frame as CSV. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    found = frame(data)
    lines = [list(map(cell, line)) for line in found.itertuples(index=False, name=None)]
    # As objects: pandas would make a column of whole numbers with gaps one of floats.
    safe = type(found)(lines, columns=list(map(cell, found)), dtype=object)
    return str(safe.to_csv(index=False, lineterminator="\n"))


def frame(data: Mapping[str, Any]) -> "pandas.DataFrame":
    """One line per row of every board: facts, each number with its interval or deviation, the row's notes, digests.

    Accuracies are in percent; each corruption at each severity is a number of its own, without its interval. A column
    that a board does not have is None in its lines.
    """
    import pandas

    lines = [_line(data, board, row) for board in data["boards"] for row in board["rows"]]
    measured = dict.fromkeys(title for line in lines for title in line)
    last = ("notes", "results", "digests")
    titles = [*(title for title in measured if title not in last), *last]
    return pandas.DataFrame([[line.get(title) for title in titles] for line in lines], columns=titles, dtype=object)


def _line(data: Mapping[str, Any], board: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    line = {name: board[name] for name in _FACTS}
    line |= {"convention": data["convention"], "rank by": board["rank_by"]}
    line |= dict(zip(("rank low", "rank high"), row["rank"] or (None, None), strict=True))  # 1-4 would become a date
    line |= {name: row[name] for name in _ROW_FACTS}
    for title, number in {**row["accuracies"], **row.get("features", {})}.items():
        line |= {title if name in _NUMBERS else f"{title} {name}": value for name, value in number.items()}
    line |= {label: accuracy["percent"] for label, accuracy in row.get("corruptions", {}).items()}
    digests = " ".join(result["digest"] for result in row["results"])
    notes = "; ".join(board["notes"][number - 1] for number in row["notes"])
    return {**line, "notes": notes, "results": len(row["results"]), "digests": digests}
