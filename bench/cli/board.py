"""Check what others send to a board, and put it there."""

from pathlib import Path
from typing import Any

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


@click.group()
def command() -> None:
    """A board that others add to: a folder of result files, in git or not.

    \b
    bench submit ROW.h5                          a row as a bundle to send
    bench board check BUNDLE --board FOLDER      what a maintainer would look at
    bench attack-bundle ROW.h5                   images and model of a row, to attack
    bench submit-attack FILE BOARD               images that break more of it
    bench leaderboard FOLDER                     the board
    """


@command.command()
@click.argument("bundle", type=PATH)
@click.option("--board", type=PATH, help="The folder of the rows that it is to stand beside: duplicates are refused.")
@click.option("--accept", is_flag=True, help="Put the row on the board, with a record of who checked what.")
@click.option("--by", default="", show_default=False, help="Who checks it: for --accept.")
@click.option("--checkpoint", type=PATH, help="The row's model.  [default: the one in the bundle]")
@model_options
@click.option("--dataset", help="Where the data is here.  [default: the dataset that the row names]")
@click.option("--seed", type=click.IntRange(min=0), help="Chooses what is evaluated again.  [default: a random one]")
@click.option("--batch-size", type=COUNT, default=256, help="Images per forward pass.")
@data_option
@device_option
@plugin_option
def check(
    bundle: Path,
    board: Path | None,
    accept: bool,
    by: str,
    checkpoint: Path | None,
    model: str | None,
    seed: int | None,
    **options: Any,
) -> None:
    """Say what in a BUNDLE of `bench submit` is confirmed and what is refuted; exit with 1 if anything is.

    Files and digests; model, data, suite and every broken sample as by `bench verify`; whether card, recipe and
    provenance say what the row says; whether the board has the row; a random 5 % of the samples that still stand,
    evaluated again; the trust report, made again. That a sample stands can never be proved.

    \b
    bench board check at-digits-full-1a2b3c4d --board boards/digits
    bench board check at-digits-full-1a2b3c4d --board boards/digits --accept --by "A. Maintainer"
    """
    import secrets

    from bench.leaderboard.render.markdown import render_row
    from bench.submissions.board_check import accept as put_on_board
    from bench.submissions.board_check import check as checks_of
    from bench.submissions.board_check import conclusion
    from bench.submissions.bundle import RESULT
    from bench.trust.verification import Verdict, VerificationRequest

    if accept and (board is None or not by.strip()):
        raise BenchError("--accept needs --board FOLDER to put the row on, and --by NAME for the record.")
    if not accept:
        refuse_idle(["by"], "it is for the record of a row that is put on the board. Add --accept.")
    if board is not None and not board.is_dir() and not accept:
        raise BenchError(f"no folder of rows at {str(board)!r}. Name one, or leave --board out.")
    checkpoint, model = checkpoint_or_model(checkpoint, model)
    request = VerificationRequest(bundle / RESULT, checkpoint=checkpoint, model=model, **options)
    seed = secrets.randbits(32) if seed is None else seed
    checks: list[Verdict] = []
    for verdict in checks_of(request, board, seed, render_row):
        echo(str(verdict))
        checks.append(verdict)
    echo(conclusion(checks))
    if any(verdict.status == "refuted" for verdict in checks):
        raise SystemExit(1)
    if board is not None and accept:
        echo(put_on_board(request, board, checks, seed, by))
