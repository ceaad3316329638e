"""A table as GitHub Markdown."""

from collections.abc import Callable, Sequence

from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.table import Cell, ColumnFormat, LeaderboardTable, Row
from bench.leaderboard.wording.intervals import bounds_legend, error_text
from bench.leaderboard.wording.marks import MARKS, trust_legend
from bench.leaderboard.wording.ranks import BOLD, leading, rank_text
from bench.results.file import EvaluationResult
from bench.text import escape


def render(table: LeaderboardTable, shown: Callable[[str], str] = escape) -> str:
    """The whole board: title, table, legend and numbered notes.

    `shown` makes names and notes fit to show: nothing in them acts as Markdown or HTML by `escape`, or, where Markdown
    is printed, as a control character by `bench.text.one_line`.
    """
    notes = "".join(f"{number}. {shown(note)}\n" for number, note in enumerate(table.notes, start=1))
    heading = f"## {shown(table.title)}\n\n{table_lines(table, shown)}\n\n"
    bold = f" **Bold**: {BOLD}." if any(row.ranks for row in table.rows) else ""
    return (
        f"{heading}{measured(table)}.{bold} A dagger refers to the notes. {trust_legend()} {shown(table.ranking)}\n"
        + (f"\n{notes}" if notes else "")
    )


def render_row(result: EvaluationResult) -> str:
    """A result as a board of its own, for a model card."""
    return render(build_table([result], kind="attacks"))


def table_lines(table: LeaderboardTable, shown: Callable[[str], str] = escape) -> str:
    """The table alone."""
    bold = {title: leading([row.ranks.get(title) for row in table.rows]) for title in table.columns}
    body = [
        [
            rank_text(row.ranks.get(table.rank_by)),
            row_label(row, shown),
            MARKS[row.trust],
            *(
                f"**{text}**" if bold[title][number] else text
                for title, column in table.columns.items()
                for text in [cell_text(row.cells[title], column)]
            ),
        ]
        for number, row in enumerate(table.rows)
    ]
    return padded_table(["Rank", "Model", "Trust", *map(shown, table.columns)], body, ("right", "left", "center"))


def cell_text(cell: Cell, column: ColumnFormat) -> str:
    """A number with its interval, and in brackets its standard deviation over seeds."""
    error = "" if cell.interval is None else f" {error_text(cell.value, cell.interval)}"
    spread = "" if cell.spread is None else f" ({cell.spread:.{column.decimals}f})"
    return f"{cell.value:.{column.decimals}f}{error}{spread}"


def padded_table(headers: Sequence[str], rows: Sequence[Sequence[str]], alignment: Sequence[str]) -> str:
    """A Markdown table whose columns stand below each other; those beyond `alignment` are aligned to the right."""
    from tabulate import tabulate

    sides = [*alignment, *["right"] * (len(headers) - len(alignment))]
    return str(tabulate(rows, headers, tablefmt="pipe", colalign=sides, disable_numparse=True))


def bare_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table without padding, so that a new row changes one line."""
    ruled = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def measured(table: LeaderboardTable) -> str:
    """A line on what the numbers are, what follows `±` and what is in brackets."""
    cells = [row.cells[title] for row in table.rows for title in table.columns]
    found = [(cell.value, cell.interval) for cell in cells if cell.interval is not None]
    merged = any(cell.spread is not None for cell in cells)
    over = ", over training seeds and test images" if merged else ""
    error = f", ± half the width of its 95 % interval{over}{bounds_legend(found)}" if found else ""
    return f"{table.measure}{error}{'; in brackets the standard deviation over seeds' if merged else ''}"


def row_label(row: Row, shown: Callable[[str], str]) -> str:
    """The name of a row, with a dagger and the numbers of its notes."""
    numbers = ",".join(map(str, row.notes))
    return (shown(row.name) or "unnamed") + (f" †{numbers}" if numbers else "")
