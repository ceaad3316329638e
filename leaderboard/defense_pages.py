"""A page for each defense: its method, deviations and hyperparameters, and our numbers beside the published ones.

A defense is described by plain data (`DefenseFacts`), because boards never import one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.leaderboard.intervals import bounds_legend, error_text
from bench.leaderboard.measured import table_of
from bench.leaderboard.published import PublishedFigure
from bench.leaderboard.ranking import rank_text
from bench.leaderboard.tables import Cell, ColumnFormat, LeaderboardTable, Row
from bench.results.file import EvaluationResult, read_result

Block = tuple[str, str]
"""Dataset and backbone of the paper."""

# Text in backticks and addresses stay as they are.
_VERBATIM = re.compile(r"(`[^`]*`|https?://[^\s)>]*[^\s)>,.;:])")
_SPECIAL = re.compile(r"[\\*<>|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


@dataclass(frozen=True)
class DefenseFacts:
    """What a page says of a defense apart from numbers."""

    name: str
    module: str
    """Its file, without folder and suffix."""
    docstring: str
    """Of the file."""
    about: str
    """One line."""
    paper: str
    requires: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]]
    """As `bench list defenses --json` describes them."""


@dataclass(frozen=True)
class Board:
    """A folder of result files and the table they make."""

    name: str
    results: tuple[EvaluationResult, ...]
    table: LeaderboardTable

    def rows(self, defense: str) -> list[Row]:
        """Those of a defense."""
        return [row for row in self.table.rows if row.name == defense or row.name.startswith(f"{defense} (")]

    def setting(self, defense: str) -> dict[str, str]:
        """Dataset, network, epochs, test images and seeds of a defense's results, as text."""
        runs = [result.run for result in self.results if result.run.get("defense") == defense]
        samples = len(self.results[0].label)
        everything = samples == runs[0].get("dataset_size")
        part = "the first " if runs[0].get("sampling", "first") == "first" else ""
        return {
            "dataset": _listed(run.get("dataset") for run in runs),
            "network": _listed(run.get("backbone") for run in runs),
            "epochs": _listed(run.get("protocol", {}).get("epochs") for run in runs),
            "test images": f"all {samples}" if everything else f"{part}{samples}",
            "seeds": _listed(run.get("seed") for run in runs),
        }


@dataclass(frozen=True)
class Published:
    """The paper's numbers of one defense."""

    epochs: int
    numbers: Mapping[Block, Mapping[str, Sequence[PublishedFigure]]]
    """By block, and by the title of our column that stands for the paper's."""


def read_boards(folder: Path) -> list[Board]:
    """Every folder of result files in `folder`, seeds merged where there are several.

    Raises:
        BenchError: a file is no result, or results of one folder do not compare.
    """
    boards = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        results = tuple(read_result(path) for path in sorted(place.glob("*.h5")))
        if not results:
            raise BenchError(f"the board {place} holds no result file. Add some, or delete the folder.")
        seeds = {result.run.get("seed") for result in results}
        boards.append(Board(place.name, results, table_of(results, merge_seeds=len(seeds) > 1)))
    return boards


def render_page(facts: DefenseFacts, boards: Sequence[Board], published: Published) -> str:
    """The page, to lie in docs/defenses."""
    needs = f" Needs a trained {', '.join(facts.requires)} of the same seed." if facts.requires else ""
    lines = [
        f"# {facts.name}",
        f"<!-- Written by docs/build.py from defenses/{facts.module}.py and leaderboard/boards. Do not edit. -->",
        f"{prose(facts.about)}{needs} File: [defenses/{facts.module}.py](../../defenses/{facts.module}.py).",
        "## Method",
        *map(_paragraph, _parts(facts.docstring)[0]),
        "## Deviations",
        deviations_of(facts.docstring) or "The file names none.",
        "## Hyperparameters",
        _hyperparameters(facts.parameters),
        "## Results",
        *_results(facts.name, boards, published),
    ]
    return "\n\n".join(lines) + "\n"


def render_index(facts: Sequence[DefenseFacts], boards: Sequence[Board]) -> str:
    """The page that links the others, with the ranks on those boards that have them."""
    ranked = [board for board in boards if any(row.ranks for row in board.table.rows)]
    rows = [
        [
            f"[{one.name}]({one.name}.md)",
            prose(one.about),
            prose(one.paper or "none: the baseline"),
            _ranks(one, ranked),
        ]
        for one in facts
    ]
    links = ", ".join(f"[{board.name}](../../leaderboard/boards/{board.name}.md)" for board in ranked)
    lines = [
        "# The defenses",
        "<!-- Written by docs/build.py. Do not edit. -->",
        "A page for each: what it minimises, where it departs from its paper, its hyperparameters, and our numbers "
        "beside those of the Adv-DPNP paper ([arXiv 2504.03782](https://arxiv.org/abs/2504.03782)). All are trained "
        "under the [shared protocol](../protocol.md).",
        markdown_table(["Defense", "What it does", "Source", "Rank"], rows),
        "Rank: every place that the defense may have there, all rows together with 95 % "
        f"([how](../protocol.md#ranks-and-intervals)), on {links}. `bench list defenses` prints the hyperparameters; "
        "[CONTRIBUTING.md](../../CONTRIBUTING.md) shows how to add one.",
    ]
    return "\n\n".join(lines) + "\n"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table without padding, so that a new row changes one line."""
    ruled = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def prose(text: str) -> str:
    """Plain text whose characters mean nothing to Markdown; `code` and addresses stay."""
    pieces = _VERBATIM.split(" ".join(text.split()))
    return "".join(piece if place % 2 else _SPECIAL.sub(r"\\\g<0>", piece) for place, piece in enumerate(pieces))


# ------------------------------------------------------------------------------------------- docstrings


def deviations_of(docstring: str) -> str:
    """What a docstring says of deviations, as Markdown; empty: nothing."""
    text = "\n\n".join(map(_paragraph, _parts(docstring)[1]))
    return re.sub(r"^Deviations?: (\w)", lambda found: found[1].upper(), text)


def _parts(docstring: str) -> tuple[list[str], list[str]]:
    """Paragraphs of the method, and those of its deviations: one that starts with that word, and a list after it."""
    method: list[str] = []
    deviations: list[str] = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        listed = bool(deviations) and paragraph.startswith("* ")
        (deviations if paragraph.startswith("Deviation") or listed else method).append(paragraph)
    return method, deviations


def _paragraph(text: str) -> str:
    """Equations, which are indented, as a block of text; lists and sentences as they are."""
    if text.startswith("    "):
        return "\n".join(["```text", *(line.removeprefix("    ").rstrip() for line in text.splitlines()), "```"])
    items = re.split(r"^\* ", text, flags=re.MULTILINE)
    if text.startswith("* "):
        return "\n".join(f"- {prose(item)}" for item in items[1:])
    head, *equations = re.split(r"\n(?=    )", text, maxsplit=1)
    return "\n\n".join([prose(head), *map(_paragraph, equations)])


def _hyperparameters(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    if not parameters:
        return "None."
    rows = []
    for name, details in parameters.items():
        published = "; ".join(f"{dataset}: `{value}`" for dataset, value in details["published"].items())
        choices = f" ({', '.join(map(str, details['choices']))})" if details["choices"] else ""
        rows.append(
            [f"`{name}`", f"`{details['default']}`", published, details["source"], prose(details["about"] + choices)]
        )
    return markdown_table(["Name", "Default", "Other values, by dataset", "Source", "About"], rows)


# ---------------------------------------------------------------------------------------------- results


def _results(name: str, boards: Sequence[Board], published: Published) -> Iterator[str]:
    present = [board for board in boards if board.rows(name)]
    for board in present:
        yield f"### {board.name}"
        yield _sentences(name, board, published)
        yield _beside(name, board, published)
        notes = [board.table.notes[number - 1] for row in board.rows(name) for number in row.notes]
        if notes:
            yield "\n".join(f"- {prose(note)}" for note in notes)
    titles = {title for board in present for title in board.table.headers[1:]}
    rest = {
        block: {title: found for title, found in numbers.items() if title not in titles}
        for block, numbers in published.numbers.items()
    }
    if any(rest.values()):
        yield "### Only in the paper"
        yield _table({}, {block: numbers for block, numbers in rest.items() if numbers})
    if not present:
        yield "No board holds it yet."
    if not published.numbers:
        yield "The Adv-DPNP paper has no numbers of this defense."


def _sentences(name: str, board: Board, published: Published) -> str:
    setting = board.setting(name)
    facts = ", ".join(f"{what} {value}" for what, value in setting.items())
    first = " ".join(
        filter(None, [f"Ours: {facts}; suite {_suite(board)}.", _standing(board.rows(name), board), _bracket(board)])
    )
    block = (setting["dataset"], setting["network"])
    if not published.numbers:
        return first
    if block not in published.numbers:
        paper = "; ".join(", ".join(one) for one in published.numbers)
        return f"{first} **Not comparable with the paper's numbers**: those are of other data and networks ({paper})."
    if setting["epochs"] != str(published.epochs) or not setting["test images"].startswith("all"):
        return (
            f"{first} **Not comparable with the paper's numbers**: the same data and network as its column "
            f"{', '.join(block)}, but it trained for {published.epochs} epochs and shows all test images."
        )
    return f"{first} The paper's column {', '.join(block)} has the same data, network and epochs."


def _beside(name: str, board: Board, published: Published) -> str:
    titles = board.table.headers[1:]
    scales = board.table.scales or (ColumnFormat(),) * len(titles)
    rows = board.rows(name)
    ours = {
        f"Ours: {board.setting(name)['dataset']}" if len(rows) == 1 else f"Ours: {row.name}": {
            title: _number(cell, scale) for title, cell, scale in zip(titles, row.cells, scales, strict=True)
        }
        for row in rows
    }
    shown = {
        block: {title: found for title, found in numbers.items() if title in titles}
        for block, numbers in published.numbers.items()
    }
    return _table(ours, {block: numbers for block, numbers in shown.items() if numbers})


def _table(
    ours: Mapping[str, Mapping[str, str]], paper: Mapping[Block, Mapping[str, Sequence[PublishedFigure]]]
) -> str:
    columns: dict[str, Mapping[str, str]] = dict(ours)
    for block, numbers in paper.items():
        columns[f"Paper: {', '.join(block)}"] = {title: _printed(found) for title, found in numbers.items()}
    titles = dict.fromkeys(title for numbers in columns.values() for title in numbers)
    rows = [[prose(title), *(numbers.get(title, "") for numbers in columns.values())] for title in titles]
    return markdown_table(["", *columns], rows)


def _printed(found: Sequence[PublishedFigure]) -> str:
    """The number; where tables print several, each with its tables."""
    tables: dict[str, list[str]] = {}
    for figure in found:
        tables.setdefault(figure.text, []).append(str(figure.table))
    if len(tables) == 1:
        return next(iter(tables))
    return "; ".join(f"{text} (Table {', '.join(numbers)})" for text, numbers in tables.items())


def _number(cell: Cell, scale: ColumnFormat) -> str:
    error = "" if cell.interval is None else f" {error_text(cell.percent, cell.interval)}"
    return f"{cell.percent:.{scale.decimals}f}{error}" + (
        "" if cell.spread is None else f" ({cell.spread:.{scale.decimals}f})"
    )


def _bracket(board: Board) -> str:
    cells = [cell for row in board.table.rows for cell in row.cells]
    shown = [(cell.percent, cell.interval) for cell in cells if cell.interval]
    merged = any(cell.spread is not None for cell in cells)
    error = f"±: half of the 95 % interval{bounds_legend(shown)}." if shown else ""
    return f"{error} In brackets: standard deviation over seeds." if merged else error


def _suite(board: Board) -> str:
    suite = board.results[0].suite
    return f"{suite.get('name')} version {suite.get('version')}"


def _standing(rows: Sequence[Row], board: Board) -> str:
    link = f"[whole board](../../leaderboard/boards/{board.name}.md)"
    if not any(row.ranks for row in board.table.rows):
        return f"The {link} has no ranks."
    found = ", ".join(f"{row.name} {_rank(row, board)}" for row in rows)
    return f"Rank by {board.table.rank_by}: {found} of {len(board.table.rows)} ({link})."


def _rank(row: Row, board: Board) -> str:
    ranks = row.ranks.get(board.table.rank_by)
    return f"is {rank_text(ranks)}" if ranks else "is not ranked"


def _ranks(facts: DefenseFacts, boards: Sequence[Board]) -> str:
    return "; ".join(
        f"{board.name}: {rank_text(row.ranks.get(board.table.rank_by))}"
        for board in boards
        for row in board.rows(facts.name)
    )


def _listed(values: Any) -> str:
    found = sorted({str(value) for value in values})
    return ", ".join(found)
