"""Check result files against their model, their data and the images that broke samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import echo
from bench.cli._options import (
    COUNT,
    PATH,
    checkpoint_or_model,
    data_option,
    device_option,
    model_options,
    plugin_option,
    refuse_idle,
)
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.trust.verification import Verdict


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULT...", type=PATH)
@click.option("--checkpoint", type=PATH, help="The run folder or checkpoint it is a result of.")
@model_options
@click.option("--dataset", help="Where the data is now.  [default: the dataset that the result names]")
@click.option(
    "--board", type=PATH, help="A board (.md, .html, .csv or .json): render it again from all RESULTs and compare."
)
@click.option("--batch-size", type=COUNT, default=256, help="Images per forward pass.")
@data_option
@device_option
@plugin_option
def command(
    results: Sequence[Path], checkpoint: Path | None, model: str | None, board: Path | None, **options: Any
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
    from bench.trust.verification import Verdict, VerificationRequest, conclusion, verify

    checkpoint, model = checkpoint_or_model(checkpoint, model)
    if checkpoint is None and model is None:
        refuse_idle(
            ["weights", "download", "threat_model", "model_dir", "adapt", "dataset", "batch_size"],
            "nothing is compared with a model. Add --checkpoint RUN, or --model FILE.py:FACTORY.",
        )
    images = {adversarials_path(path) for path in results}
    paths = [path for path in results if path not in images]  # what *.h5 finds beside results is checked with them
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise BenchError(f"no result file at {', '.join(missing)}.")
    text = None if board is None else read_board(board)
    request = VerificationRequest(paths[0], checkpoint=checkpoint, model=model, **options)
    checks: list[Verdict] = []
    for path in paths:
        found = verify(replace(request, result=path))
        checks += _shown(found) if len(paths) == 1 else _summed_up(path, list(found))
    if board is not None and text is not None:
        from bench.leaderboard.render.rebuilding import compared

        checks += _shown([Verdict("board", *compared(paths, board, text))])
    echo(conclusion(checks))
    if any(check.status == "refuted" for check in checks):
        raise SystemExit(1)


def _shown(checks: Iterable["Verdict"]) -> Iterator["Verdict"]:
    """The checks, each printed once it is made."""
    for check in checks:
        echo(str(check))
        yield check


def _summed_up(path: Path, checks: list["Verdict"]) -> list["Verdict"]:
    """The checks, printed on one line: what is refuted first, and why."""
    names: dict[str, list[str]] = {}
    for check in sorted(checks, key=lambda check: check.status != "refuted"):
        told = check.status in ("refuted", "noted")
        names.setdefault(check.status, []).append(f"{check.name} ({check.text})" if told else check.name)
    echo(f"{path}: " + "; ".join(f"{status}: {', '.join(found)}" for status, found in names.items()))
    return checks


def read_board(board: Path) -> str:
    """The text of a board.

    Raises:
        BenchError: it is not one of the forms that `bench leaderboard` writes, or cannot be read.
    """
    from bench.leaderboard.render.rebuilding import ROW
    from bench.system.budgets import read_text

    if board.suffix not in ROW:
        raise BenchError(f"{str(board)!r} is no board: give one that ends in {', '.join(ROW)}.")
    try:
        return read_text(board)
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the board {board}: {error}.") from None
