"""Leaderboards as one HTML file that needs nothing else: no network, no server, and no script to be read.

The tables are plain HTML; the script in `page/` adds sorting, filters and the part of a row that opens, from
`leaderboard.render.board_data`, which the page carries. Everything from a result file is text, here by `escape`, there
by textContent, and the page's policy lets no other script run and nothing be loaded.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from bench.leaderboard.wording.intervals import bounds_legend, error_text
from bench.leaderboard.wording.marks import MARKS, NORMS, TRUST, trust_legend
from bench.leaderboard.wording.ranks import BOLD, leading, rank_text
from bench.text import one_line

PARTS = Path(__file__).parent / "page"
LEADS: Mapping[str, str] = {
    "attacks": "Accuracy in percent on clean images and under attack.",
    "corruptions": "Accuracy in percent on clean and on corrupted images.",
    "features": "How well features of clean and of attacked images separate classes.",
}
"""By the kind of a board."""


def render_html(data: Mapping[str, Any]) -> str:
    """The page of `leaderboard.render.board_data`: a section per board, a row per model."""
    boards = data["boards"]
    datasets = dict.fromkeys(str(board["dataset"]) for board in boards)
    body = "\n".join(_section(number, board, str(data["convention"])) for number, board in enumerate(boards))
    leads = dict.fromkeys(LEADS[board["kind"]] for board in boards)
    lead = " ".join([*leads, "Choose a row for its details, trust report and commands."])
    return _page("Robustness leaderboard", ", ".join(datasets), lead, body, data)


def render_index(pages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A page that links others, by file name with the boards that each of them holds."""
    rows = "\n".join(_link(name, boards) for name, boards in pages.items())
    titles = (("Board", "name"), ("Suite", ""), ("Models", "number"), ("Samples", "number"), ("First", ""))
    head = "".join(f'<th scope="col" class="{look}">{title}</th>' for title, look in titles)
    table = f'<table class="index"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>'
    body = f'<div class="scroll">{table}</div>'
    return _page("Robustness leaderboards", "", "One page for each dataset, threat model and suite.", body, None)


def escape(text: object) -> str:
    """One line of text that no part of HTML acts on, in an element or in a quoted attribute."""
    return html.escape(one_line(text))


def embedded(data: Any) -> str:
    """JSON that cannot leave its script element: < > & and U+2028, U+2029 are written as escapes."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page(heading: str, subject: str, lead: str, body: str, data: Mapping[str, Any] | None) -> str:
    parts = {path.suffix: path.read_text(encoding="utf-8") for path in PARTS.iterdir()}
    digest = base64.b64encode(hashlib.sha256(parts[".js"].encode()).digest()).decode()
    return Template(parts[".html"]).substitute(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
        title=escape(f"{heading}: {subject}" if subject else heading),
        heading=escape(heading),
        lead=escape(lead),
        style=parts[".css"],
        script=parts[".js"],
        body=body,
        data=embedded(data),
        signs=html.escape(json.dumps({"norms": dict(NORMS), "marks": dict(MARKS), "trust": dict(TRUST)})),
    )


# ---------------------------------------------------------------------------------------------- a board


def _section(number: int, board: Mapping[str, Any], convention: str) -> str:
    counts = "/".join(map(str, board["seeds"]))
    merged = f" · means over {counts} seeds" if counts != "1" else ""
    shown = f"{board['corruptions']['set']} · " if "corruptions" in board else ""
    judged = f" · convention {convention}" if board["kind"] == "attacks" else ""
    suite = f"suite {board['suite']}, version {board['suite_version']}"
    facts = f"{shown}{suite} · {board['samples']:,} samples{judged}{merged} · {_order(board)} by {board['rank_by']}"
    threats = _threats(board["threats"])
    return f"""<section class="board" id="board-{number}" data-board="{number}">
<h2>{escape(board["dataset"])} <span class="threats">{escape(threats)}</span></h2>
<p class="facts">{escape(facts)}</p>
<div class="scroll"><table>
<thead><tr>{_head(board)}</tr></thead>
<tbody>
{_body(board)}
</tbody></table></div>
{_legend(board)}
</section>"""


def _threats(threats: Sequence[str]) -> str:
    radii: dict[str, list[str]] = {}
    for norm, _, radius in (threat.partition(" ") for threat in threats):
        radii.setdefault(NORMS.get(norm, norm), []).append(radius)
    shown = (
        f"{norm} {found[0]}{f' to {found[-1]}' if len(found) > 1 else ''}".strip() for norm, found in radii.items()
    )
    return ", ".join(shown) or "no attack"


def _head(board: Mapping[str, Any]) -> str:
    cells = ['<th scope="col" class="rank" aria-sort="ascending">Rank</th>'] if _has_ranks(board) else []
    cells += ['<th scope="col" class="name">Model</th>', '<th scope="col" class="trust">Trust</th>']
    for title in board["columns"]:
        attack = board["attacks"].get(title)
        threat = f"<small>{escape(_threats([_threat(attack)]))}</small>" if attack else ""
        lower = board["scales"][title]["lower_is_better"]
        first = "ascending" if lower else "descending"
        sorted_by = f' aria-sort="{first}"' if title == board["rank_by"] and not _has_ranks(board) else ""
        cells.append(f'<th scope="col" class="number" data-first="{first}"{sorted_by}>{escape(title)}{threat}</th>')
    return "".join(cells)


def _has_ranks(board: Mapping[str, Any]) -> bool:
    """True if rows are compared by a test; of features no samples are known."""
    return bool(board["kind"] != "features")


def _order(board: Mapping[str, Any]) -> str:
    return "ranked" if _has_ranks(board) else "ordered"


def _threat(attack: Mapping[str, Any]) -> str:
    return f"{attack['norm']} {attack['epsilon']}"


def _body(board: Mapping[str, Any]) -> str:
    rows = board["rows"]
    scales = board["scales"]
    bold = {title: leading([row["ranks"].get(title) for row in rows]) for title in board["columns"]}
    lines = []
    for number, row in enumerate(rows):
        cells = [_cell(row, title, bold[title][number], scales[title]["decimals"]) for title in board["columns"]]
        rank = _rank(row, number) if _has_ranks(board) else ""
        lines.append(f'<tr data-row="{number}">{rank}{_name_and_trust(row)}{"".join(cells)}</tr>')
    return "\n".join(lines)


def _value(row: Mapping[str, Any], title: str) -> float:
    features = row.get("features")
    return float(features[title]["value"] if features else row["accuracies"][title]["percent"])


def _rank(row: Mapping[str, Any], number: int) -> str:
    """Rows sort by their place among those that have ranks: ranges of ranks overlap."""
    return f'<td class="rank" data-value="{number if row["rank"] else ""}">{rank_text(row["rank"])}</td>'


def _name_and_trust(row: Mapping[str, Any]) -> str:
    trust, meaning = row["trust"], TRUST[row["trust"]]
    notes = f'&nbsp;<sup class="dagger">†{",".join(map(str, row["notes"]))}</sup>' if row["notes"] else ""
    named = str(row["backbone"]) in str(row["distinction"]).split(", ")
    facts = [row["distinction"], None if named else row["backbone"]]
    facts += [f"{len(row['results'])} seeds"] if len(row["results"]) > 1 else []
    about = " · ".join(str(fact) for fact in facts if fact)
    return (
        f'<th scope="row" class="name"><span class="label">{escape(row["model"])}</span>{notes}'
        f"<small>{escape(about)}</small></th>"
        f'<td class="trust" data-value="{list(TRUST).index(trust)}">'
        f'<span class="mark {trust}" role="img" aria-label="{meaning}" title="{meaning}">{MARKS[trust]}</span></td>'
    )


def _cell(row: Mapping[str, Any], title: str, leads: bool, decimals: int) -> str:
    features = row.get("features")
    number = (features or row["accuracies"])[title]
    value = _value(row, title)
    error = f"±{number['sd']:.{decimals}f}" if "sd" in number else ""
    if "low" in number:
        error = error_text(value, (number["low"], number["high"])).replace("± ", "±")
    shown = f'<span class="error">{error}</span>' if error else ""
    key = str(value).replace("inf", "Infinity")  # as JavaScript reads it
    return (
        f'<td class="number{" best" if leads else ""}" data-value="{key}">'
        f'<span class="percent">{value:.{decimals}f}</span>{shown}{"" if features else _bar(number)}</td>'
    )


def _bar(accuracy: Mapping[str, Any]) -> str:
    percent, low, high = (accuracy.get(name) for name in ("percent", "low", "high"))
    interval = f";--l:{low:.4g}%;--w:{high - low:.4g}%" if low is not None else ""
    return f'<i class="bar" style="--v:{percent:.4g}%{interval}"></i>'


def _legend(board: Mapping[str, Any]) -> str:
    present = dict.fromkeys(row["trust"] for row in board["rows"])
    texts = [
        f"<p>{escape(_measure(board))}{f' <b>Bold</b>: {BOLD}.' if _has_ranks(board) else ''}</p>",
        f"<p>{escape(board['ranking'])}</p>",
        f"<p>{escape(trust_legend(present))}</p>",
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in board["notes"])
    count = len(board["notes"])
    opened = " open" if count <= 4 else ""
    listed = f"<details{opened}><summary>Notes ({count})</summary><ol>{notes}</ol></details>" if notes else ""
    return f'<footer class="legend">{"".join(texts)}{listed}</footer>'


def _measure(board: Mapping[str, Any]) -> str:
    """A line on what the numbers are, what ± is, and what the line below a number shows."""
    merged = board["seeds"] != [1]
    if board["kind"] == "features":
        return f"{board['measure']}.{' ± is the standard deviation over seeds.' if merged else ''}"
    cells = [one for row in board["rows"] for one in row["accuracies"].values() if "low" in one]
    bounds = bounds_legend((one["percent"], (one["low"], one["high"])) for one in cells)
    over = ", over training seeds and test images" if merged else ""
    line = "which the line below it shows, on a scale from 0 to 100"
    return f"{board['measure']}, ± half the width of its 95 % interval{over}{bounds}, {line}."


# ------------------------------------------------------------------------------------------------ index


def _link(name: str, boards: Sequence[Mapping[str, Any]]) -> str:
    first = boards[0]
    title = f"{first['dataset']} {_threats(first['threats'])}"
    samples = "/".join(f"{board['samples']:,}" for board in boards)
    shown = "<br>".join(escape(_first(board, len(boards) > 1)) for board in boards)
    count = sum(len(board["rows"]) for board in boards)
    return (
        f'<tr><th scope="row" class="name"><a href="{escape(name)}">{escape(title)}</a></th>'
        f"<td>{escape(first['suite'])}, version {escape(first['suite_version'])}</td>"
        f'<td class="number">{count}</td><td class="number">{samples}</td><td>{shown}</td></tr>'
    )


def _first(board: Mapping[str, Any], several: bool) -> str:
    """The first row of a board; where there are several, whose numbers do not compare, also which board it is of."""
    column = board["rank_by"]
    first = next((row for row in board["rows"] if row["ranked"]), None)
    decimals = board["scales"][column]["decimals"]
    shown = f"{first['name']}, {column} {_value(first, column):.{decimals}f}" if first else "-"
    images = board["corruptions"]["set"] if "corruptions" in board else _threats(board["threats"])
    return f"{images}, {board['samples']:,} samples: {shown}" if several else shown
