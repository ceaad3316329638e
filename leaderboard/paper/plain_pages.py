"""The page of a defense or an attack for a terminal: its method, deviations, hyperparameters, and committed rows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.leaderboard.paper.prose import parts
from bench.leaderboard.render.plain import filled, plain_table
from bench.results.metrics import CLEAN

_ABSENT = "None are beside the program: its source holds boards, and `bench leaderboard` shows results of yours."
_WIDER = "a wider terminal shows them"
_ROWS = ("Board", "Rank", CLEAN, "Worst case", "AutoAttack")


def plain_page(name: str, entry: Mapping[str, Any], rows: Sequence[Mapping[str, str]] | None, width: int) -> str:
    """The page in lines of at most `width`, but for what the file itself wrote in longer ones.

    Args:
        name: of the plug-in.
        entry: what `bench list --json` says of it.
        rows: of written boards (`leaderboard.paper.boards.written_rows`); None: it can have none.
        width: of the terminal.
    """
    method, deviations = parts(entry["text"])
    facts = [
        f"{label}: {', '.join(value) if isinstance(value, list) else value}"
        for label, value in (
            ("Family", entry.get("family")),
            ("Source", entry["paper"]),
            ("Needs a trained", entry["requires"]),
            ("File", entry["file"]),
            ("Suites", entry.get("suites")),
        )
        if value
    ]
    parameters = _hyperparameters(entry["parameters"], width)
    sections = {
        "Method": "\n\n".join(method),
        "Deviations": re.sub(r"^Deviations?: ", "", "\n\n".join(deviations)),
        "Hyperparameters": parameters,
    }
    if rows is not None:
        sections["Committed rows"] = _rows(rows, width)
    head = "\n".join([filled(f"{name}: {entry['about']}", width), *(filled(fact, width, "  ") for fact in facts)])
    shown = [f"{title.upper()}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join([head, *shown])


def _hyperparameters(parameters: Mapping[str, Mapping[str, Any]], width: int) -> str:
    lines = []
    for name, details in parameters.items():
        others = "".join(f"; {dataset}: {value}" for dataset, value in details["published"].items())
        source = f" ({details['source']})" if details["source"] else ""
        choices = f"; one of {', '.join(map(str, details['choices']))}" if details["choices"] else ""
        lines.append(
            filled(f"{name} = {details['default']}{others}{source}  {details['about']}{choices}", width, "    ")
        )
    return "\n".join(lines) or "None."


def _rows(rows: Sequence[Mapping[str, str]], width: int) -> str:
    if not rows:
        return filled(_ABSENT, width)
    headers = [title for title in _ROWS if any(title in row for row in rows)]
    return plain_table(
        headers,
        [[row.get(title, "") for title in headers] for row in rows],
        width,
        left=(0, 1),
        first=(0, 1),
        others=_WIDER,
    )
