"""Train three defenses on real digits, attack them, show the board (two minutes on a CPU)."""

import dataclasses
from pathlib import Path

import click

from bench.cli import echo
from bench.cli._options import PATH


@click.command()
@click.option("--out", type=PATH, default=Path("demo"), help="Folder for the runs.")
def command(out: Path) -> None:
    """The whole path on scikit-learn's 1,797 handwritten digits: train, attack, board. Needs no download.

    Trains plain, adversarially trained and Adv-DPNP models, attacks 500 test images with FGSM, PGD-20 and
    AutoAttack, and prints the board. Nothing that is finished is repeated.
    """
    from bench.cli.leaderboard import show_board
    from bench.experiments.sweep import load_plan, run_plan

    plan = dataclasses.replace(load_plan("demo"), runs=out)
    results = run_plan(plan, say=lambda text: echo(text, err=True))
    show_board(results, out / "leaderboard.md")
    echo(
        "Every model above sees the same 500 digits. The undefended one (st) reads clean images as well as the others\n"
        "and falls apart under attack; the other two hold. Next: bench list defenses"
    )
