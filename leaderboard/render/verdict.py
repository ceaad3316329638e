"""The verdict on one result, as text: the numbers first, then each attack, and what to do next."""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.leaderboard.render.markdown import cell_text
from bench.leaderboard.render.plain import filled, plain_table
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.rows import circumstances
from bench.leaderboard.tables.table import Cell, LeaderboardTable
from bench.results.comparison import groups_that_compare
from bench.results.file import EvaluationResult, content_digest, read_result
from bench.results.metrics import CLEAN, correct, derived_columns, one_draw, robust_accuracy, worst_cases
from bench.text import one_line

_NEIGHBOURS = 8
"""Files beside a result that are read at most, the newest first."""


def verdict(result: EvaluationResult, width: int) -> str:
    """Model, data, threat model; accuracy clean and robust; what broke most; then a table; in lines of `width`.

    Robust is what rows are ranked by: AutoAttack, or the worst case in the main norm; of corruptions, their mean.
    """
    corrupted = bool(result.corruptions)
    table = build_table([result], kind="corruptions" if corrupted else "attacks")
    (row,) = table.rows
    about = table.title.rpartition(f", ranked by {table.rank_by}")[0]
    numbers = [_number("Clean", row.cells[CLEAN])]
    if table.rank_by == CLEAN:
        numbers += [f"{'Robust':10}  not measured: no attack is of the suite's main threat model"]
    else:
        told = f"  {one_line(table.rank_by)}{_threat(result, table.rank_by)}"
        numbers += [_number("Corrupted" if corrupted else "Robust", row.cells[table.rank_by]) + told]
    numbers += [f"{'Broke most':10}  {_broke_most(result)}"] if corrupted or result.attacks else []
    texts = [filled(f"{one_line(row.name) or 'unnamed'}: {one_line(about)}", width)]
    texts += ["\n".join(filled(line, width, " " * 12) for line in numbers)]
    texts += _tables(result, table, width)
    texts += [filled(f"Note: {one_line(text)}.", width) for text in circumstances(result)]
    return "\n\n".join(texts) + "\n"


def next_commands(result: EvaluationResult, path: Path) -> list[str]:
    """Commands that go on from the file of a result; with another one beside it, those that set them side by side."""
    other = next(_beside(result, path), None)
    files = [str(path), *([] if other is None else [str(other)])]
    commands = [["bench", "trust", str(path)], ["bench", "leaderboard", *files]]
    commands += [] if other is None else [["bench", "compare", *files]]
    return [shlex.join(words) for words in commands]


def _number(name: str, cell: Cell) -> str:
    return f"{name:10} {cell.value:6.1f} %  (95 % interval: {_interval(cell)})"


def _interval(cell: Cell) -> str:
    return "" if cell.interval is None else "{:.1f} to {:.1f}".format(*cell.interval)


def _threat(result: EvaluationResult, label: str) -> str:
    record = result.attacks.get(label)
    return one_line(f", {record.norm} {record.epsilon}") if record else ""


def _broke_most(result: EvaluationResult) -> str:
    """The attack, or the corruption over its severities, that left least."""
    if result.corruptions:
        found: dict[str, list[float]] = {}
        for shown in result.corruptions.values():
            found.setdefault(shown.corruption, []).append(float((shown.prediction == result.label).mean()))
        left = {name: float(np.mean(shares)) for name, shares in found.items()}
        worst = min(left, key=left.__getitem__)
        return f"{worst}: {100 * left[worst]:.1f} % left, all severities together"
    left = {label: robust_accuracy(result, label) for label in result.attacks}
    worst = min(left, key=left.__getitem__)
    right = correct(result).sum()
    broken = f"{right - correct(result, worst).sum()} of the {right} right clean are broken"
    return f"{one_line(worst)}{_threat(result, worst)}: {100 * left[worst]:.1f} % left, {broken}"


def _tables(result: EvaluationResult, table: LeaderboardTable, width: int) -> Iterator[str]:
    """The columns of the board that are not said above, a row each: attacks first, then what combines them."""
    (row,) = table.rows

    def line(title: str) -> list[str]:
        return [one_line(title), f"{row.cells[title].value:.1f}", _interval(row.cells[title])]

    headers, first = ["Accuracy", "95 % interval"], (0, 1, 2)
    if result.corruptions:
        means = [line(title) for title in table.columns if title not in (CLEAN, table.rank_by)]
        yield plain_table(["Mean over", *headers], means, width, first=first)
    elif result.attacks:
        lines = [[*line(label), _threat(result, label).removeprefix(", ")] for label in result.attacks]
        combined = {**derived_columns(result), **worst_cases(result)}
        lines += [[*line(title), f"worst of {len(labels)}"] for title, labels in combined.items()]
        lines += [[*line(title), "share of draws"] for title in one_draw(result)]
        yield plain_table(["Attack", *headers, "Threat model"], lines, width, left=(0, 3), first=first)
    if result.features:
        features = build_table([result])
        cells = features.rows[0].cells
        shown = [[title, cell_text(cells[title], form)] for title, form in features.columns.items()]
        yield plain_table(["Features", "Value"], shown, width)


def _beside(result: EvaluationResult, path: Path) -> Iterator[Path]:
    """Files of results that compare with this one: in its folder, and of its name in the folders of other runs."""
    found = set(path.parent.glob("*.h5"))
    if path.parent.name == "results" and len(path.parents) > 3:
        found |= set(path.parents[3].glob(f"*/*/results/{path.name}"))
    newest = sorted(found - {path}, key=lambda file: file.stat().st_mtime, reverse=True)
    for file in newest[:_NEIGHBOURS]:
        with suppress(BenchError, OSError):
            other = read_result(file)
            if _compares(result, other):
                yield file


def _compares(result: EvaluationResult, other: EvaluationResult) -> bool:
    return len(groups_that_compare([result, other])) == 1 and content_digest(result) != content_digest(other)
