"""Leaderboards as plain data: what the page, the JSON file and the CSV file are made of.

    {"format": "bench-leaderboard", "version": 1, "convention": "any",
     "checks": {name: {"meaning", "advice"}},                       of the trust reports' findings
     "boards": [{                                                   results that compare, a board each
        "name", "dataset", "suite", "suite_version", "samples", "threat", "threats",
        "columns": [title, ...],
        "attacks": {title: {"attack", "norm", "epsilon", "radius", "parameters"}},
        "curves": [[title, ...], ...],                              one attack with several radii, ascending
        "seeds": [counts of results per row],
        "ranking", "notes",
        "rows": [{
            "name", "model", "distinction",                         the name is both: model (distinction)
            "defense", "backbone", "rank", "ranked", "trust", "notes": [numbers from 1],
            "accuracies": {column: {"percent", "low", "high", "sd"}},
            "results": [{                                           one, or one for each seed
                "digest", "seed", "checkpoint", "checkpoint_digest", "source", "epoch",
                "accuracies", "objectives", "hyperparameters", "protocol", "environment", "commands",
                "findings": [{"name", "severity", "message", "value", "threshold"}]}]}]}]}

Accuracies are in percent: `low` and `high` bound the 95 % Wilson interval, `sd` is the standard deviation over seeds
where `percent` is their mean; what does not apply is absent. `digest` is that of the result file. A finding whose
meaning or advice is not that of `checks` carries its own. Every text is one printable line; a number that is not
finite is a text. `objectives` names the columns whose attack did not ascend its own loss.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from bench.comparison import groups_that_compare
from bench.metrics import Convention, main_threat
from bench.results import EvaluationResult, canonical_json, content_digest
from leaderboard.commands import commands
from leaderboard.tables import Cell, LeaderboardTable, Row, build_table, cells_of
from leaderboard.text import one_line, without_folders


def leaderboard(
    results: Sequence[EvaluationResult], convention: Convention = "any", merge_seeds: bool = False
) -> dict[str, Any]:
    """The data above; results that do not compare become boards of their own.

    Raises:
        BenchError: as `leaderboard.tables.build_table`, but never for results that do not compare.
    """
    boards = [
        _board(group, build_table(group, convention, merge_seeds), convention) for group in groups_that_compare(results)
    ]
    boards.sort(key=lambda board: (board["name"], board["samples"]))
    return {
        "format": "bench-leaderboard",
        "version": 1,
        "convention": convention,
        "checks": _factored_checks(boards),
        "boards": boards,
    }


def page_name(result: EvaluationResult) -> str:
    """Of the page that a result belongs on: dataset, main threat model, suite and version, as a file name."""
    facts = (without_folders(result.run.get("dataset")), *(main_threat(result) or ("clean",)))
    words = (*facts, result.suite.get("name"), f"v{result.suite.get('version')}")
    letters = ("".join(mark if mark.isalnum() or mark in ".+" else "-" for mark in one_line(word)) for word in words)
    return "-".join(letters).strip("-.")[:120]


def _board(results: Sequence[EvaluationResult], table: LeaderboardTable, convention: Convention) -> dict[str, Any]:
    first = results[0]
    threat = main_threat(first)
    board = {
        "name": page_name(first),
        "dataset": without_folders(first.run.get("dataset")),
        "suite": first.suite.get("name"),
        "suite_version": first.suite.get("version"),
        "samples": len(first.label),
        "threat": " ".join(map(str, threat)) if threat else None,
        "threats": list(dict.fromkeys(f"{record.norm} {record.epsilon}" for record in first.attacks.values())),
        "columns": table.headers[1:],
        "attacks": {label: _attack(record) for label, record in first.attacks.items()},
        "curves": _curves(first),
        "seeds": sorted({len(row.results) for row in table.rows}),
        "ranking": table.ranking,
        "notes": table.notes,
        "rows": [
            _row(row, table.headers[1:], [results[place] for place in row.results], convention) for row in table.rows
        ],
    }
    plain: dict[str, Any] = _plain(board)
    return plain


def _row(
    row: Row, titles: Sequence[str], results: Sequence[EvaluationResult], convention: Convention
) -> dict[str, Any]:
    run = results[0].run
    name = one_line(row.name) or "unnamed"
    model = one_line(run.get("model", "unnamed")) or "unnamed"
    return {
        "name": name,
        "model": model,
        "distinction": name.removeprefix(model).strip(" ()"),
        "defense": run.get("defense"),
        "backbone": run.get("backbone"),
        "rank": row.rank,
        "ranked": row.ranked,
        "trust": row.trust,
        "notes": row.notes,
        "accuracies": _accuracies(dict(zip(titles, row.cells, strict=True))),
        "results": [_result(result, convention) for result in results],
    }


def _result(result: EvaluationResult, convention: Convention) -> dict[str, Any]:
    run = result.run
    recorded = ("seed", "checkpoint", "checkpoint_digest", "epoch", "hyperparameters", "protocol")
    source = {"source": without_folders(run["source"])} if "source" in run else {}
    return {
        "digest": content_digest(result),
        **{name: run.get(name) for name in recorded},
        **source,
        "accuracies": _accuracies(cells_of(result, convention)),
        "objectives": {
            label: without_folders(record.objective)
            for label, record in result.attacks.items()
            if record.objective != "default"
        },
        "environment": _environment(run),
        "commands": commands(result),
        "findings": result.findings,
    }


def _environment(run: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = run.get("evaluation")
    environment = evaluation.get("environment") if isinstance(evaluation, Mapping) else None
    if not isinstance(environment, Mapping):
        return {}
    return {"device": environment.get("device"), "versions": environment.get("versions")}


def _accuracies(cells: Mapping[str, Cell]) -> dict[str, dict[str, float]]:
    found = {}
    for title, cell in cells.items():
        low, high = cell.interval or (None, None)
        values = {"percent": cell.percent, "low": low, "high": high, "sd": cell.spread}
        found[title] = {name: round(value, 4) for name, value in values.items() if value is not None}
    return found


def _attack(record: Any) -> dict[str, Any]:
    return {
        "attack": record.attack,
        "norm": record.norm,
        "epsilon": record.epsilon,
        "radius": _radius(record.epsilon),
        "parameters": record.parameters,
    }


def _radius(epsilon: str) -> float | None:
    try:
        return float(Fraction(epsilon))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _curves(result: EvaluationResult) -> list[list[str]]:
    """Columns of one attack, all parameters equal, in the order of their radii; at least two radii each."""
    curves: dict[str, dict[float, str]] = {}
    for label, record in result.attacks.items():
        same = canonical_json("attack", [record.attack, record.norm, record.objective, record.parameters])
        radius = _radius(record.epsilon)
        if radius is not None:
            curves.setdefault(same, {}).setdefault(radius, label)
    return [[curve[radius] for radius in sorted(curve)] for curve in curves.values() if len(curve) > 1]


def _factored_checks(boards: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Meaning and advice by check, taken out of the findings; hundreds of them say the same."""
    checks: dict[str, dict[str, Any]] = {}
    findings = [
        finding
        for board in boards
        for row in board["rows"]
        for result in row["results"]
        for finding in result["findings"]
        if isinstance(finding, dict)
    ]
    for finding in findings:
        texts = {name: finding[name] for name in ("meaning", "advice") if name in finding}
        if texts and checks.setdefault(str(finding.get("name")), texts) == texts:
            for name in texts:
                del finding[name]
    return checks


def _plain(value: Any) -> Any:
    """`value` as JSON that every reader takes: texts on one line, no NaN."""
    if isinstance(value, Mapping):
        return {one_line(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return one_line(value)
