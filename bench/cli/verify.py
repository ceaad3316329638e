"""Verdict result files against their model, their data and the images that broke samples."""

import csv
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import echo
from bench.cli._options import (
    checkpoint_or_model,
    data_option,
    device_option,
    model_options,
    plugin_option,
    refuse_idle,
)

if TYPE_CHECKING:
    from bench.trust.verification import Verdict

ROW: Mapping[str, str] = {
    ".md": r"^\| (?! *Rank \|)",
    ".html": r'^<tr\b.*<th scope="row" class="name">',
    ".csv": r"^(?!dataset,).",
    ".json": r'^ *"rank":',
}
"""What a row of a board begins with, by the suffix of its file."""


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULT...", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The run folder or checkpoint it is a result of.")
@model_options
@click.option("--dataset", help="Where the data is now.  [default: the dataset that the result names]")
@click.option(
    "--board",
    type=click.Path(path_type=Path),
    help="A board (.md, .html, .csv or .json): render it again from all RESULTs and compare.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Images per forward pass."
)
@data_option
@device_option
@plugin_option
def command(
    results: Sequence[Path],
    checkpoint: Path | None,
    model: str | None,
    weights: Path | None,
    threat_model: str | None,
    model_dir: Path | None,
    dataset: str | None,
    board: Path | None,
    batch_size: int,
    data: Path,
    device: str,
) -> None:
    """Say what in each RESULT is confirmed and what is refuted; exit with 1 if anything is.

    With a model, each RESULT is compared with it: clean predictions always, attacks where `bench eval
    --save-adversarials` kept the images that broke samples. That a sample still stands cannot be proved. Several
    RESULTs get a line each; name one alone for every check in full.

    \b
    bench eval runs/digits/cnn-small/at/seed-0 --suite full --save-adversarials
    bench verify runs/digits/cnn-small/at/seed-0/results/full-v3.h5 --checkpoint runs/digits/cnn-small/at/seed-0
    bench verify boards/digits/*.h5 --board boards/digits.md
    """
    from bench.engine.adversarials import adversarials_path
    from bench.errors import BenchError
    from bench.trust.verification import VerificationRequest, conclusion, verify

    checkpoint, model = checkpoint_or_model(checkpoint, model)
    if checkpoint is None and model is None:
        refuse_idle(
            ["weights", "threat_model", "model_dir", "dataset", "batch_size"],
            "nothing is compared with a model. Add --checkpoint RUN, or --model FILE.py:FACTORY.",
        )
    images = {adversarials_path(path) for path in results}
    paths = [path for path in results if path not in images]  # what *.h5 finds beside results is checked with them
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise BenchError(f"no result file at {', '.join(missing)}.")
    text = None if board is None else read_board(board)
    request = VerificationRequest(
        paths[0], checkpoint, model, weights, dataset, data, batch_size, device, threat_model, model_dir
    )
    checks: list[Verdict] = []
    for path in paths:
        found = verify(replace(request, result=path))
        checks += _shown(found) if len(paths) == 1 else _summed_up(path, list(found))
    if board is not None and text is not None:
        checks += _shown(iter([check_board(paths, board, text)]))
    echo(conclusion(checks))
    if any(check.verdict == "refuted" for check in checks):
        raise SystemExit(1)


def _shown(checks: Iterator["Verdict"]) -> Iterator["Verdict"]:
    """The checks, each printed once it is made."""
    for check in checks:
        echo(str(check))
        yield check


def _summed_up(path: Path, checks: list["Verdict"]) -> list["Verdict"]:
    """The checks, printed on one line: what is refuted first, and why."""
    names: dict[str, list[str]] = {}
    for check in sorted(checks, key=lambda check: check.verdict != "refuted"):
        told = check.verdict in ("refuted", "noted")
        names.setdefault(check.verdict, []).append(f"{check.name} ({check.text})" if told else check.name)
    echo(f"{path}: " + "; ".join(f"{verdict}: {', '.join(found)}" for verdict, found in names.items()))
    return checks


def read_board(board: Path) -> str:
    """The text of a board.

    Raises:
        BenchError: it is not one of the forms that `bench leaderboard` writes, or cannot be read.
    """
    from bench.errors import BenchError
    from bench.system.budgets import read_text

    if board.suffix not in ROW:
        raise BenchError(f"{str(board)!r} is no board: give one that ends in {', '.join(ROW)}.")
    try:
        return read_text(board)
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the board {board}: {error}.") from None


def check_board(paths: Sequence[Path], board: Path, text: str) -> "Verdict":
    """Render a board again from its result files, in every way in which it can be, and compare the texts.

    A board of another version says other things, and is neither confirmed nor refuted.
    """
    from bench.errors import BenchError
    from bench.leaderboard.render.board_data import VERSION
    from bench.leaderboard.render.files import board_text, form_version
    from bench.results.file import read_result
    from bench.trust.verification import Verdict

    version = form_version(text, board.suffix)
    if version is not None and version != VERSION:
        told = (
            f"{board} was written by another version of bench (boards of version {version}; this one writes {VERSION})"
        )
        return Verdict("board", "not checked", f"{told}: write it again with `bench leaderboard` to compare it")
    ways: Any = product(("any", "final"), (False, True), (None, *_rankings(text)))
    columns = _columns(text) if board.suffix == ".md" else []
    nearest, reasons = "", []
    try:
        results = [read_result(path) for path in paths]
    except BenchError as error:
        return Verdict("board", "refuted", str(error))
    for convention, merge_seeds, rank_by in ways:
        try:
            computed = board_text(results, board.suffix, convention, merge_seeds, columns, rank_by)
        except BenchError as error:
            reasons.append(str(error))
            continue
        if not _differing(text, computed):
            rows = f"{_rows(board, text)} rows of {board}"
            return Verdict("board", "confirmed", f"{rows}, computed again from {len(paths)} files")
        nearest = min(nearest, computed, key=lambda other: (not other, len(_differing(text, other))))
    return Verdict("board", "refuted", _difference(board, text, nearest) if nearest else reasons[0])


def _rankings(text: str) -> list[str]:
    """Titles of the columns that a board says it is ranked by; in a CSV file, all that its rows name."""
    found = re.findall(r'(?:ranked by |"rank_by": ?")((?:\\.|[^"<\n\\])*)', text)
    header, *lines = list(csv.reader(text.splitlines())) or [[]]
    place = header.index("rank by") if "rank by" in header else None
    found += [] if place is None else [line[place] for line in lines if len(line) > place]
    return list(dict.fromkeys(html.unescape(one) for one in found))


def _columns(text: str) -> list[str]:
    """Titles of a Markdown board's columns, which may be some of all; those of Rank, Model and Trust left out."""
    from bench.text import uncut

    header = next((line for line in text.splitlines() if line.startswith("|")), "")
    return [html.unescape(uncut(cell.strip())) for cell in header.split("|")[4:-1]]


def _differing(shown: str, computed: str) -> list[tuple[int, str, str]]:
    """Lines that are not the same: their number from 1, as shown and as computed."""
    pairs = zip_longest(shown.splitlines(), computed.splitlines(), fillvalue="")
    return [(number, *pair) for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1]]


def _rows(board: Path, text: str) -> int:
    return len(re.findall(ROW[board.suffix], text, re.MULTILINE))


def _difference(board: Path, shown: str, computed: str) -> str:
    """Whether rows are missing, and the first line that differs in more than the width of a column."""
    different = _differing(shown, computed)
    narrow = [(number, _narrow(line), _narrow(other)) for number, line, other in different]
    number, line, other = next((found for found in narrow if found[1] != found[2]), different[0])
    same = next((place for place, pair in enumerate(zip(line, other, strict=False)) if len(set(pair)) > 1), 0)
    part = slice(max(0, same - 20), same + 60)
    rows = [_rows(board, text) for text in (shown, computed)]
    missing = f"the board has {rows[0]} rows, the files give {rows[1]}; " if rows[0] != rows[1] else ""
    return (
        f"other numbers or texts than the result files give: {missing}{len(different)} lines of {board}, the first is "
        f"line {number}: {line[part]!r} is shown, {other[part]!r} is computed"
    )


def _narrow(line: str) -> str:
    """A line of a Markdown table without what fills its columns."""
    return re.sub(r"([ -])+", r"\1", line)
