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

from bench.leaderboard.intervals import bounds_legend, error_text
from bench.leaderboard.marks import MARKS, NORMS, TRUST, trust_legend
from bench.leaderboard.tables import Scale, best_two
from bench.leaderboard.text import one_line

PARTS = Path(__file__).parent / "page"
LEADS: Mapping[str, str] = {
    "attacks": "Accuracy in percent on clean images and under attack.",
    "corruptions": "Accuracy in percent on clean and on corrupted images.",
    "features": "How well features of clean and of attacked images separate classes.",
}
"""By the kind of a board."""


def render_html(record: Mapping[str, Any]) -> str:
    """The page of `leaderboard.records.leaderboard`: a section per board, a row per model."""
    boards = record["boards"]
    datasets = dict.fromkeys(str(board["dataset"]) for board in boards)
    body = "\n".join(_section(number, board, str(record["convention"])) for number, board in enumerate(boards))
    leads = dict.fromkeys(LEADS[board["kind"]] for board in boards)
    lead = " ".join([*leads, "Choose a row for its details, trust report and commands."])
    return _page("Robustness leaderboard", ", ".join(datasets), lead, body, record)


def render_index(pages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A page that links others, by file name with the boards that each of them holds."""
    rows = "\n".join(_link(name, boards) for name, boards in pages.items())
    titles = (("Board", "name"), ("Suite", ""), ("Models", "number"), ("Samples", "number"), ("Best", ""))
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
    facts = f"{shown}{suite} · {board['samples']:,} samples{judged}{merged}"
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
        sorted_by = f' aria-sort="{first}"' if title == board["order"] and not _has_ranks(board) else ""
        cells.append(f'<th scope="col" class="number" data-first="{first}"{sorted_by}>{escape(title)}{threat}</th>')
    return "".join(cells)


def _has_ranks(board: Mapping[str, Any]) -> bool:
    """Whether rows are compared by a test; those of corruptions and features are not."""
    return bool(board["kind"] == "attacks")


def _threat(attack: Mapping[str, Any]) -> str:
    return f"{attack['norm']} {attack['epsilon']}"


def _body(board: Mapping[str, Any]) -> str:
    rows = board["rows"]
    scales = board["scales"]
    best = {
        title: best_two((_value(row, title) for row in rows if row["ranked"]), Scale(**scales[title]))
        for title in board["columns"]
    }
    lines = []
    for number, row in enumerate(rows):
        leads = row["rank"] is None or number == 0 or row["rank"] != rows[number - 1]["rank"]
        cells = [_cell(row, title, best[title], scales[title]["decimals"]) for title in board["columns"]]
        look = "first" if leads else "further"
        rank = _rank(row) if _has_ranks(board) else ""
        lines.append(f'<tr data-row="{number}" class="{look}">{rank}{_name_and_trust(row)}{"".join(cells)}</tr>')
    return "\n".join(lines)


def _value(row: Mapping[str, Any], title: str) -> float:
    features = row.get("features")
    return float(features[title]["value"] if features else row["accuracies"][title]["percent"])


def _rank(row: Mapping[str, Any]) -> str:
    rank = "-" if row["rank"] is None else row["rank"]
    return f'<td class="rank" data-value="{row["rank"] or ""}">{rank}</td>'


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


def _cell(row: Mapping[str, Any], title: str, best: Sequence[float], decimals: int) -> str:
    features = row.get("features")
    number = (features or row["accuracies"])[title]
    value = _value(row, title)
    place = best.index(value) if row["ranked"] and value in best else None
    look = "" if place is None else (" best", " second")[place]
    error = f"±{number['sd']:.{decimals}f}" if "sd" in number else ""
    if "low" in number:
        error = error_text(value, (number["low"], number["high"])).replace("± ", "±")
    shown = f'<span class="error">{error}</span>' if error else ""
    key = str(value).replace("inf", "Infinity")  # as JavaScript reads it
    return (
        f'<td class="number{look}" data-value="{key}"><span class="percent">{value:.{decimals}f}</span>{shown}'
        f"{'' if features else _bar(number)}</td>"
    )


def _bar(accuracy: Mapping[str, Any]) -> str:
    percent, low, high = (accuracy.get(name) for name in ("percent", "low", "high"))
    if "sd" in accuracy:
        low, high = max(percent - accuracy["sd"], 0), min(percent + accuracy["sd"], 100)
    interval = f";--l:{low:.4g}%;--w:{high - low:.4g}%" if low is not None else ""
    return f'<i class="bar" style="--v:{percent:.4g}%{interval}"></i>'


def _legend(board: Mapping[str, Any]) -> str:
    present = dict.fromkeys(row["trust"] for row in board["rows"])
    texts = [
        f"<p>{escape(_measure(board))} Per column: <b>best</b>, <u>second</u>.</p>",
        f"<p>{escape(board['ranking'])}</p>",
        f"<p>{escape(trust_legend(present))}</p>",
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in board["notes"])
    count = len(board["notes"])
    opened = " open" if count <= 4 else ""
    listed = f"<details{opened}><summary>Notes ({count})</summary><ol>{notes}</ol></details>" if notes else ""
    return f'<footer class="legend">{"".join(texts)}{listed}</footer>'


def _measure(board: Mapping[str, Any]) -> str:
    """What the numbers are, what ± is, and what the line below a number shows."""
    merged = board["seeds"] != [1]
    if board["kind"] == "features":
        return f"{board['measure']}.{' ± is the standard deviation over seeds.' if merged else ''}"
    if merged:
        return "± is the standard deviation over seeds, which the line below it shows, on a scale from 0 to 100."
    if board["kind"] == "attacks":
        cells = [one for row in board["rows"] for one in row["accuracies"].values() if "low" in one]
        bounds = bounds_legend((one["percent"], (one["low"], one["high"])) for one in cells)
        line = "which the line below it shows, on a scale from 0 to 100"
        return f"± is half the width of the 95 % Wilson interval{bounds}, {line}."
    return f"{board['measure']}; the line below it is a scale from 0 to 100."


# ------------------------------------------------------------------------------------------------ index


def _link(name: str, boards: Sequence[Mapping[str, Any]]) -> str:
    first = boards[0]
    title = f"{first['dataset']} {_threats(first['threats'])}"
    samples = "/".join(f"{board['samples']:,}" for board in boards)
    shown = "<br>".join(escape(_best(board, len(boards) > 1)) for board in boards)
    count = sum(len(board["rows"]) for board in boards)
    return (
        f'<tr><th scope="row" class="name"><a href="{escape(name)}">{escape(title)}</a></th>'
        f"<td>{escape(first['suite'])}, version {escape(first['suite_version'])}</td>"
        f'<td class="number">{count}</td><td class="number">{samples}</td><td>{shown}</td></tr>'
    )


def _best(board: Mapping[str, Any], several: bool) -> str:
    """The first row of a board; where there are several, whose numbers do not compare, also which board it is of."""
    order, scale = board["order"], board["scales"][board["order"]]
    ranked = [row for row in board["rows"] if row["ranked"]]
    sign = -1 if scale["lower_is_better"] else 1
    best = max(ranked, key=lambda row: sign * _value(row, order), default=None)
    shown = f"{best['name']}, {order} {_value(best, order):.{scale['decimals']}f}" if best else "-"
    images = board["corruptions"]["set"] if "corruptions" in board else _threats(board["threats"])
    return f"{images}, {board['samples']:,} samples: {shown}" if several else shown
