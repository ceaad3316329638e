"""What runs have left that no command needs any more: list it, and remove it with --yes."""

from collections import Counter
from pathlib import Path

import click

from bench.cli import echo
from bench.cli._options import PATH


@click.command()
@click.argument("runs", type=PATH, default=Path("runs"))
@click.option("--yes", is_flag=True, help="Remove it.  [default: only list it]")
@click.option(
    "--unfinished",
    is_flag=True,
    help="Also the finished blocks of evaluations that were stopped: given again, they begin anew.",
)
def command(runs: Path, yes: bool, unfinished: bool) -> None:
    """List what can go below the folder RUNS, and with --yes remove it.

    That is training states of finished runs, blocks of evaluations whose results are there, and what killed processes
    left. Checkpoints, histories, results and logs stay. A finished run without its training state is finished all the
    same; but a checkpoint of it that is damaged later cannot be written again. What is younger than an hour is left, as
    somebody may be at work on it, and so is what a living process locks.

    \b
    bench clean runs
    bench clean runs --yes
    """
    from bench.experiments.cleaning import KINDS, removables
    from bench.text import amount

    found = removables(runs, unfinished)
    for item in found:
        if yes:
            item.remove()
        echo(f"{amount(item.size):>8}  {item.path}")
    sizes, counts = Counter[str](), Counter[str]()
    for item in found:
        sizes[item.kind] += item.size
        counts[item.kind] += 1
    for kind, what in KINDS.items():
        if counts[kind]:
            echo(f"{amount(sizes[kind]):>8}  {counts[kind]} x {what}")
    if not found:
        echo("There is nothing to remove.")
    else:
        total = amount(sum(sizes.values()))
        echo(f"{total} removed." if yes else f"{total} in all. Nothing was removed: add --yes.")
