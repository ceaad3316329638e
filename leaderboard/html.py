"""Leaderboards as one HTML file that needs nothing else: no network, no server, and no script to be read.

The tables are plain HTML; the script in `page/` adds sorting, filters and the part of a row that opens, from the data
of `leaderboard.records`, which the page carries. Everything from a result file is text, here by `escape`, there by
textContent, and the page's policy lets no other script run and nothing be loaded.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from leaderboard.tables import best_two
from leaderboard.text import one_line

PARTS = Path(__file__).parent / "page"
NORMS: Mapping[str, str] = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}  # noqa: RUF001 - the script l is meant
TRUST: Mapping[str, tuple[str, str]] = {
    "passed": ("✓", "every check of the trust report passed"),
    "warning": ("!", "the numbers may be too high"),
    "error": ("✗", "the numbers cannot be believed; not ranked"),
    "unchecked": ("?", "no trust report"),
}
LEAD = "Accuracy in percent on clean images and under attack. Choose a row for its attacks, trust report and commands."


def render_html(record: Mapping[str, Any]) -> str:
    """The page of `leaderboard.records.leaderboard`: a section per board, a row per model."""
    boards = record["boards"]
    datasets = dict.fromkeys(str(board["dataset"]) for board in boards)
    body = "\n".join(_section(number, board, str(record["convention"])) for number, board in enumerate(boards))
    return _page("Robustness leaderboard", ", ".join(datasets), LEAD, body, record)


def render_index(pages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A page that links others, by file name with the boards that each of them holds."""
    rows = "\n".join(_link(name, boards) for name, boards in pages.items())
    titles = (("Board", "name"), ("Suite", ""), ("Models", "number"), ("Samples", "number"), ("Best worst case", ""))
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
    )


# ---------------------------------------------------------------------------------------------- a board


def _section(number: int, board: Mapping[str, Any], convention: str) -> str:
    counts = "/".join(map(str, board["seeds"]))
    merged = f" · means over {counts} seeds" if counts != "1" else ""
    facts = (
        f"suite {board['suite']}, version {board['suite_version']} · {board['samples']:,} samples · "
        f"convention {convention}{merged}"
    )
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
    shown = (f"{norm} {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "") for norm, found in radii.items())
    return ", ".join(shown) or "no attack"


def _head(board: Mapping[str, Any]) -> str:
    cells = ['<th scope="col" class="rank" aria-sort="ascending">Rank</th>', '<th scope="col" class="name">Model</th>']
    cells.append('<th scope="col" class="trust">Trust</th>')
    for title in board["columns"]:
        attack = board["attacks"].get(title)
        threat = f"<small>{escape(_threats([_threat(attack)]))}</small>" if attack else ""
        cells.append(f'<th scope="col" class="number">{escape(title)}{threat}</th>')
    return "".join(cells)


def _threat(attack: Mapping[str, Any]) -> str:
    return f"{attack['norm']} {attack['epsilon']}"


def _body(board: Mapping[str, Any]) -> str:
    rows = board["rows"]
    places = [
        best_two(row["accuracies"][title]["percent"] for row in rows if row["ranked"]) for title in board["columns"]
    ]
    lines = []
    for number, row in enumerate(rows):
        leads = row["rank"] is None or number == 0 or row["rank"] != rows[number - 1]["rank"]
        cells = [_cell(row, title, best) for title, best in zip(board["columns"], places, strict=True)]
        look = "first" if leads else "further"
        lines.append(f'<tr data-row="{number}" class="{look}">{_first_cells(row)}{"".join(cells)}</tr>')
    return "\n".join(lines)


def _first_cells(row: Mapping[str, Any]) -> str:
    mark, meaning = TRUST[row["trust"]]
    rank = "-" if row["rank"] is None else row["rank"]
    notes = f' <sup class="dagger">†{",".join(map(str, row["notes"]))}</sup>' if row["notes"] else ""
    facts = [row["distinction"] or row["backbone"]]
    facts += [f"{len(row['results'])} seeds"] if len(row["results"]) > 1 else []
    about = " · ".join(str(fact) for fact in facts if fact)
    return (
        f'<td class="rank" data-value="{row["rank"] or ""}">{rank}</td>'
        f'<th scope="row" class="name"><span class="label">{escape(row["model"])}</span>{notes}'
        f"<small>{escape(about)}</small></th>"
        f'<td class="trust" data-value="{list(TRUST).index(row["trust"])}">'
        f'<span class="mark {row["trust"]}" role="img" aria-label="{meaning}" title="{meaning}">{mark}</span></td>'
    )


def _cell(row: Mapping[str, Any], title: str, best: Sequence[float]) -> str:
    accuracy = row["accuracies"][title]
    percent = accuracy["percent"]
    place = best.index(percent) if row["ranked"] and percent in best else None
    look = "" if place is None else (" best", " second")[place]
    low, high = accuracy.get("low"), accuracy.get("high")
    spread = accuracy.get("sd")
    error = spread if low is None else (high - low) / 2
    if spread is not None:
        low, high = max(percent - spread, 0), min(percent + spread, 100)
    bar = f"--v:{percent:.4g}%" + (f";--l:{low:.4g}%;--w:{high - low:.4g}%" if low is not None else "")
    shown = "" if error is None else f'<span class="error">±{error:.1f}</span>'
    return (
        f'<td class="number{look}" data-value="{percent:g}"><span class="percent">{percent:.1f}</span>{shown}'
        f'<i class="bar" style="{bar}"></i></td>'
    )


def _legend(board: Mapping[str, Any]) -> str:
    error = "half the width of the 95 % Wilson interval, which the line below it shows"
    if board["seeds"] != [1]:
        error = "the standard deviation over seeds, which the line below it shows"
    present = [trust for trust in TRUST if any(row["trust"] == trust for row in board["rows"])]
    marks = ", ".join(f"{TRUST[trust][0]} {TRUST[trust][1]}" for trust in present)
    texts = [
        f"<p>± is {error}, on a scale from 0 to 100. Per column: <b>best</b>, <u>second</u>.</p>",
        f"<p>{escape(board['ranking'])}</p>",
        f"<p>Trust: {escape(marks)}.</p>",
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in board["notes"])
    count = len(board["notes"])
    opened = " open" if count <= 4 else ""
    listed = f"<details{opened}><summary>Notes ({count})</summary><ol>{notes}</ol></details>" if notes else ""
    return f'<footer class="legend">{"".join(texts)}{listed}</footer>'


# ------------------------------------------------------------------------------------------------ index


def _link(name: str, boards: Sequence[Mapping[str, Any]]) -> str:
    first = boards[0]
    title = f"{first['dataset']} {_threats(first['threats'])}"
    samples = "/".join(f"{board['samples']:,}" for board in boards)
    ranked = [row for board in boards for row in board["rows"] if row["ranked"]]
    best = max(ranked, key=lambda row: row["accuracies"]["Worst case"]["percent"], default=None)
    shown = f"{best['name']} {best['accuracies']['Worst case']['percent']:.1f}" if best else "-"
    count = sum(len(board["rows"]) for board in boards)
    return (
        f'<tr><th scope="row" class="name"><a href="{escape(name)}">{escape(title)}</a></th>'
        f"<td>{escape(first['suite'])}, version {escape(first['suite_version'])}</td>"
        f'<td class="number">{count}</td><td class="number">{samples}</td><td>{escape(shown)}</td></tr>'
    )
