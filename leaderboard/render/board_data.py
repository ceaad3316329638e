"""Boards as plain data, of which the page, the JSON file and the CSV file are made.

    {"format": "bench-leaderboard", "version": 2, "convention": "any",
     "checks": {name: {"meaning", "advice"}},                       of the trust reports' findings
     "boards": [{                                                   results that compare, a board each
        "name", "dataset", "suite", "suite_version", "samples", "threat", "threats",
        "kind": "attacks" | "corruptions" | "features",             what the columns show
        "columns": [title, ...],
        "scales": {title: {"decimals", "lower_is_better", "compares"}}, of the columns
        "rank_by",                                                  title of the column that puts rows in order
        "attacks": {title: {"attack", "norm", "epsilon", "radius", "parameters"}},
        "curves": [[title, ...], ...],                              one attack with several radii, ascending
        "corruptions": {"set", "generated", "names", "severities"}, of the kind corruptions
        "seeds": [counts of results per row],
        "measure", "ranking", "notes",                              texts of the legend; "ranking" says what ranks mean
        "rows": [{
            "name", "model", "distinction",                         the name is both: model (distinction)
            "defense", "backbone", "ranked", "trust", "notes": [numbers from 1],
            "recipe", "extra", "parameters",                        of the training, and its size; null: not recorded
            "rank": [highest, lowest] or null,                      in the column "rank_by"
            "ranks": {column: [highest, lowest] or null},           in every column that is tested
            "accuracies": {column: {"percent", "low", "high", "sd"}},
            "corruptions": {"fog-1": {"percent", "low", "high", "sd"}},
            "features": {column: {"value", "sd"}},
            "classes": {"labels": [label, ...], "accuracies": {column: [percent, ...]}},  of few classes, under attacks
            "results": [{                                           one, or one for each seed
                "digest", "seed", "checkpoint", "checkpoint_digest", "source", "epoch", "recipe",
                "address": of the page of the weights, or null, "verify": [command, ...],
                "extra": {"name", "size", "digest", ...},           extra training images, as in a result file
                "accuracies", "corruptions", "features", "objectives",
                "hyperparameters", "protocol", "environment", "commands",
                "findings": [{"name", "severity", "message", "value", "threshold"}]}]}]}]}

Accuracies are in percent: `low` and `high` bound the 95 % interval, over test images and, where `percent` or `value` is
a mean over seeds, over these; `sd` is then their standard deviation. What does not apply is absent. Boards of features
hold accuracies as well, clean and under the attack that perturbs. `digest` is that of the result file. A finding whose
meaning or advice is not that of `checks` carries its own. Every text is one printable line; a number that is not
finite is a text. `objectives` names the columns whose attack did not ascend its own loss.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from bench.errors import unknown_name
from bench.leaderboard.render.commands import address, commands, verification
from bench.leaderboard.tables.attacks import objective_text, radius_families
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.corruptions import corrupted_name
from bench.leaderboard.tables.kinds import board_numbers, cells_by_part, kind_of
from bench.leaderboard.tables.table import Cell, LeaderboardTable, Row
from bench.leaderboard.wording.paths import without_folders
from bench.results.board_rows import of_one_board
from bench.results.classes import class_accuracies
from bench.results.comparison import corrupted_set, groups_that_compare
from bench.results.file import EvaluationResult, content_digest
from bench.results.metrics import Convention, columns, main_threat
from bench.results.trainings import recipe_of, recorded_extra, recorded_protocol, recorded_recipe
from bench.text import one_line

_MOST_CLASSES = 20
"""Of a table of classes: with more it would fit no page."""
VERSION = 2
"""That of what boards say, in any of their forms. Version 1 had a number as rank, and did not say by which column."""


def board_data(
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    merge_seeds: bool = False,
    rank_by: str | None = None,
) -> dict[str, Any]:
    """The data above; results that do not compare become boards of their own.

    A board without a column `rank_by` is ranked as if none were asked for; each says by which it is.

    Raises:
        BenchError: as `leaderboard.tables.build`, but never for results that do not compare; no board has the column.
    """
    groups = [of_one_board(group) for group in groups_that_compare(results)]
    columns = rankings(groups, convention, rank_by)
    boards = [
        _board(group, build_table(group, convention, merge_seeds, rank_by=column), convention)
        for group, column in zip(groups, columns, strict=True)
    ]
    boards.sort(key=lambda board: (board["name"], board["samples"]))
    return {
        "format": "bench-leaderboard",
        "version": VERSION,
        "convention": convention,
        "checks": _factored_checks(boards),
        "boards": boards,
    }


def rankings(
    groups: Sequence[Sequence[EvaluationResult]], convention: Convention, rank_by: str | None
) -> list[str | None]:
    """The column asked for, for each group of results that has it; None for the others.

    Raises:
        BenchError: none has it.
    """
    titles = [list(board_numbers(of_one_board(group)[0], convention)) for group in groups] if rank_by else []
    if rank_by and not any(rank_by in some for some in titles):
        raise unknown_name("column", rank_by, dict.fromkeys(title for some in titles for title in some))
    return [rank_by if rank_by in some else None for some in titles] or [None] * len(groups)


def page_name(result: EvaluationResult) -> str:
    """The file name of a result's page, without suffix: dataset, main threat model, suite and version."""
    facts = (without_folders(result.run.get("dataset")), *_threat_model(result))
    words = (*facts, result.suite.get("name"), f"v{result.suite.get('version')}")
    distinct = dict.fromkeys(map(one_line, words))  # the suite corruptions is of the threat model corruptions
    letters = ("".join(mark if mark.isalnum() or mark in ".+" else "-" for mark in word) for word in distinct)
    return "-".join(letters).strip("-.")[:120]


def _threat_model(result: EvaluationResult) -> tuple[Any, ...]:
    """Norm and radius; as RobustBench has it, corruptions are a threat model too."""
    return ("corruptions",) if result.corruptions else main_threat(result) or ("clean",)


def _board(results: Sequence[EvaluationResult], table: LeaderboardTable, convention: Convention) -> dict[str, Any]:
    first = results[0]
    threat = " ".join(map(str, _threat_model(first)))
    threats = dict.fromkeys(f"{record.norm} {record.epsilon}" for record in first.attacks.values())
    board = {
        "name": page_name(first),
        "dataset": without_folders(first.run.get("dataset")),
        "suite": first.suite.get("name"),
        "suite_version": first.suite.get("version"),
        "samples": len(first.label),
        "threat": None if threat == "clean" else threat,
        "threats": [threat] if first.corruptions else list(threats),
        "kind": kind_of(first),
        "columns": list(table.columns),
        "scales": {title: vars(column) for title, column in table.columns.items()},
        "rank_by": table.rank_by,
        "attacks": {label: _attack(record) for label, record in first.attacks.items()},
        "curves": [[record.label for record in family] for family in radius_families(first)],
        **({"corruptions": _corruptions(first)} if first.corruptions else {}),
        "seeds": sorted({len(row.results) for row in table.rows}),
        "measure": table.measure,
        "ranking": table.ranking,
        "notes": table.notes,
        "rows": [_row(row, table.rank_by, [results[one] for one in row.results], convention) for row in table.rows],
    }
    plain: dict[str, Any] = _plain(board)
    return plain


def _corruptions(result: EvaluationResult) -> dict[str, Any]:
    shown = result.corruptions.values()
    return {
        "set": corrupted_name(result),
        "generated": bool(corrupted_set(result).get("generated")),
        "names": list(dict.fromkeys(one.corruption for one in shown)),
        "severities": sorted({one.severity for one in shown}),
    }


def _row(row: Row, rank_by: str, results: Sequence[EvaluationResult], convention: Convention) -> dict[str, Any]:
    run = results[0].run
    name = one_line(row.name) or "unnamed"
    model = one_line(run.get("model", "unnamed")) or "unnamed"
    return {
        "name": name,
        "model": model,
        "distinction": name.removeprefix(model).strip(" ()"),
        "defense": run.get("defense"),
        "backbone": run.get("backbone"),
        "recipe": recipe_of(run) if recorded_protocol(run) else None,
        "extra": (recorded_extra(run) or "none") if recorded_protocol(run) else None,
        "parameters": run.get("parameters"),
        "rank": row.ranks.get(rank_by),
        "ranks": row.ranks,
        "ranked": row.ranked,
        "trust": row.trust,
        "notes": row.notes,
        **_numbers(cells_by_part(results, convention)),
        **_classes(results, convention),
        "results": [_result(result, convention) for result in results],
    }


def _result(result: EvaluationResult, convention: Convention) -> dict[str, Any]:
    run = result.run
    recorded = ("seed", "checkpoint", "checkpoint_digest", "epoch", "hyperparameters", "protocol")
    source = {"source": without_folders(run["source"])} if "source" in run else {}
    recipe = {"recipe": recorded_recipe(run)} if "recipe" in run else {}
    extra = run.get("training_data", {}).get("extra")
    return {
        "digest": content_digest(result),
        **{name: run.get(name) for name in recorded},
        **source,
        **recipe,
        **({"extra": {**extra, "name": without_folders(extra.get("name"))}} if extra else {}),
        **_numbers(cells_by_part([result], convention)),
        "objectives": {
            label: without_folders(objective_text(record))
            for label, record in result.attacks.items()
            if record.objective != "default"
        },
        "environment": _environment(run),
        "commands": commands(result),
        "verify": verification(result),
        "address": address(run),
        "findings": result.findings,
    }


def _environment(run: Mapping[str, Any]) -> dict[str, Any]:
    environment = run.get("evaluation", {}).get("environment", {})
    return {name: environment.get(name) for name in ("device", "versions")} if environment else {}


def _numbers(parts: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, dict[str, float]]]:
    """By part and title."""
    units = {"features": "value"}
    return {
        part: {title: _cell(cell, units.get(part, "percent")) for title, cell in cells.items()}
        for part, cells in parts.items()
    }


def _classes(results: Sequence[EvaluationResult], convention: Convention) -> dict[str, Any]:
    """Accuracy in percent by column and true class, means over seeds, of results with attacks and few classes."""
    labels = np.unique(results[0].label).tolist()
    if kind_of(results[0]) != "attacks" or len(labels) > _MOST_CLASSES:
        return {}
    found = [
        {title: list(class_accuracies(one, shown).values()) for title, shown in columns(one, convention).items()}
        for one in results
    ]
    means = {title: np.mean([one[title] for one in found], axis=0) for title in found[0]}
    return {
        "classes": {
            "labels": labels,
            "accuracies": {title: [round(100 * share, 1) for share in mean.tolist()] for title, mean in means.items()},
        }
    }


def _cell(cell: Cell, unit: str) -> dict[str, float]:
    low, high = cell.interval or (None, None)
    values = {"low": low, "high": high, "sd": cell.spread}
    # A number that is rounded twice may differ from the one in the table.
    return {unit: cell.value, **{name: round(value, 4) for name, value in values.items() if value is not None}}


def _attack(record: Any) -> dict[str, Any]:
    return {
        "attack": record.attack,
        "norm": record.norm,
        "epsilon": record.epsilon,
        "radius": float(Fraction(record.epsilon)),
        # The loss is each row's own: `objectives` names it.
        "parameters": record.shared,
    }


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
