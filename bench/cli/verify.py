"""Check a result file against its model, its data and the images that broke samples."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bench.cli_options import checkpoint_or_model, data_option, device_option, model_options, plugin_option

if TYPE_CHECKING:
    from bench.verification import Check


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULT...", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The run folder or checkpoint it is a result of.")
@model_options
@click.option("--dataset", help="Where the data is now.  [default: the dataset that the result names]")
@click.option(
    "--board", type=click.Path(path_type=Path), help="A markdown board: render it again from all RESULTs and compare."
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
    model_dir: Path,
    dataset: str | None,
    board: Path | None,
    batch_size: int,
    data: Path,
    device: str,
) -> None:
    """Say what in a RESULT is confirmed and what is refuted; exit with 1 if anything is.

    The first RESULT is compared with the model: clean predictions always, attacks where `bench eval
    --save-adversarials` kept the images that broke samples. Further RESULTs are the other rows of a --board. That a
    sample still stands cannot be proved.

    \b
    bench eval runs/digits/cnn-small/at/seed-0 --suite full --save-adversarials
    bench verify runs/digits/cnn-small/at/seed-0/results/full-v2.h5 --checkpoint runs/digits/cnn-small/at/seed-0
    bench verify boards/digits/*.h5 --board boards/digits.md
    """
    from bench.verification import VerificationRequest, conclusion, verify

    checkpoint, model = checkpoint_or_model(checkpoint, model)
    request = VerificationRequest(
        results[0], checkpoint, model, weights, dataset, data, batch_size, device, threat_model, model_dir
    )
    checks = []
    for check in verify(request):
        click.echo(str(check))
        checks.append(check)
    if board is not None:
        checks.append(check_board(results, board))
        click.echo(str(checks[-1]))
    click.echo(conclusion(checks))
    if any(check.verdict == "refuted" for check in checks):
        raise SystemExit(1)


def check_board(paths: Sequence[Path], board: Path) -> "Check":
    """Render a board again from its result files and compare the texts. Its title says how it was rendered.

    Raises:
        BenchError: the board cannot be read.
    """
    from bench.errors import BenchError
    from bench.results import read_result
    from bench.verification import Check
    from leaderboard.markdown import render
    from leaderboard.measured import table_of

    try:
        text = board.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the board {board}: {error}.") from None
    title = text.partition("\n")[0]
    convention: Literal["any", "final"] = "final" if ", convention final" in title else "any"
    try:
        table = table_of([read_result(path) for path in paths], convention, merge_seeds=", means over " in title)
    except BenchError as error:
        return Check("board", "refuted", str(error))
    pairs = zip_longest(text.splitlines(), render(table).splitlines())
    different = [number for number, (shown, computed) in enumerate(pairs, start=1) if shown != computed]
    if different:
        where = f"{len(different)} lines of {board}, the first is line {different[0]}"
        return Check("board", "refuted", f"other numbers or texts than the result files give: {where}")
    return Check("board", "confirmed", f"{len(table.rows)} rows of {board}, computed again from {len(paths)} files")
