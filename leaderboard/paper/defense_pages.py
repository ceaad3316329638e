"""A page for each defense: its method, deviations and hyperparameters, and our numbers beside the published ones.

A defense is described by plain data (`DefenseFacts`), because boards never import one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.leaderboard.paper.boards import Board
from bench.leaderboard.paper.prose import deviations_of, method_of, prose
from bench.leaderboard.paper.published import PublishedFigure
from bench.leaderboard.render.markdown import bare_table, cell_text
from bench.leaderboard.tables.table import Row
from bench.leaderboard.wording.intervals import bounds_legend
from bench.leaderboard.wording.ranks import rank_text

Block = tuple[str, str]
"""Dataset and backbone of the paper."""


@dataclass(frozen=True)
class DefenseFacts:
    """All that a page says of a defense but numbers."""

    name: str
    module: str
    """Its file, without folder and suffix."""
    docstring: str
    """Of the file."""
    about: str
    """One line."""
    family: str
    paper: str
    requires: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]]
    """As `bench list defenses --json` describes them."""


@dataclass(frozen=True)
class Published:
    """The paper's numbers of one defense."""

    epochs: int
    numbers: Mapping[Block, Mapping[str, Sequence[PublishedFigure]]]
    """By block, and by the title of our column that stands for the paper's."""


def render_page(facts: DefenseFacts, boards: Sequence[Board], published: Published) -> str:
    """The page, to lie in docs/defenses."""
    needs = f" Needs a trained {', '.join(facts.requires)} of the same seed." if facts.requires else ""
    lines = [
        f"# {facts.name}",
        f"<!-- Written by docs/build.py from defenses/{facts.module}.py and leaderboard/boards. Do not edit. -->",
        f"{prose(facts.about)}{needs} Family: {facts.family}. "
        f"File: [defenses/{facts.module}.py](../../defenses/{facts.module}.py).",
        "## Method",
        method_of(facts.docstring),
        "## Deviations",
        deviations_of(facts.docstring) or "The file names none.",
        "## Hyperparameters",
        hyperparameters(facts.parameters),
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
            one.family,
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
        bare_table(["Defense", "Family", "What it does", "Source", "Rank"], rows),
        "Rank: every place that the defense may have there, all rows together with 95 % "
        f"([how](../protocol.md#ranks-and-intervals)), on {links}. `bench list NAME` prints such a page; "
        "[CONTRIBUTING.md](../../CONTRIBUTING.md) shows how to add one.",
    ]
    return "\n\n".join(lines) + "\n"


def hyperparameters(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of them, as `bench list --json` describes them."""
    if not parameters:
        return "None."
    rows = []
    for name, details in parameters.items():
        published = "; ".join(f"{dataset}: `{value}`" for dataset, value in details["published"].items())
        choices = f" ({', '.join(map(str, details['choices']))})" if details["choices"] else ""
        rows.append(
            [f"`{name}`", f"`{details['default']}`", published, details["source"], prose(details["about"] + choices)]
        )
    return bare_table(["Name", "Default", "Other values, by dataset", "Source", "About"], rows)


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
    titles = {title for board in present for title in board.table.columns}
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
    titles = board.table.columns
    rows = board.rows(name)
    ours = {
        f"Ours: {board.setting(name)['dataset']}" if len(rows) == 1 else f"Ours: {row.name}": {
            title: cell_text(row.cells[title], column) for title, column in titles.items()
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
    return bare_table(["", *columns], rows)


def _printed(found: Sequence[PublishedFigure]) -> str:
    """The number; where tables print several, each with its tables."""
    tables: dict[str, list[str]] = {}
    for figure in found:
        tables.setdefault(figure.text, []).append(str(figure.table))
    if len(tables) == 1:
        return next(iter(tables))
    return "; ".join(f"{text} (Table {', '.join(numbers)})" for text, numbers in tables.items())


def _bracket(board: Board) -> str:
    cells = [cell for row in board.table.rows for cell in row.cells.values()]
    shown = [(cell.value, cell.interval) for cell in cells if cell.interval]
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
