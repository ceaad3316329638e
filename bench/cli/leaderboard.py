"""A markdown table from result files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--convention",
    type=click.Choice(["any", "final"]),
    default="any",
    show_default=True,
    help="any: an adversarial image found on the way counts. final: only the image the attack ended with.",
)
@click.option("--merge-seeds", is_flag=True, help="One row for runs that differ only in their seed: mean (sd).")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the table to this file.")
def command(results: Sequence[Path], convention: str, merge_seeds: bool, out: Path | None) -> None:
    """Print a markdown table of result files: one row per model, best in bold, second underlined.

    All numbers come from the per-sample outcomes in the files; the ± is half of a 95 % Wilson interval. Rows share a
    rank where the samples cannot tell them apart; `bench compare` shows by how much two rows differ. Files of different
    suites, versions, datasets or samples are refused.

    \b
    bench leaderboard runs/digits/cnn-small/*/seed-0/results/full-v2.h5
    """
    show_board(results, out, convention, merge_seeds)


def show_board(paths: Sequence[Path], out: Path | None, convention: Any = "any", merge_seeds: bool = False) -> None:
    """Print the board of result files, and write it to `out` if given."""
    from bench.results import read_result
    from leaderboard.markdown import render, write_board
    from leaderboard.tables import build_table

    text = render(build_table([read_result(path) for path in paths], convention, merge_seeds))
    if out is not None:
        write_board(text, out)
    click.echo(text)
