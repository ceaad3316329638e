"""Train and evaluate many defenses; what is finished is not repeated."""

from pathlib import Path

import click

from bench.cli_options import data_option, device_option, plugin_option, protocol_options, protocol_values, runs_option


@click.command()
@click.option("--defenses", default="all", show_default=True, help="`all`, or names separated by commas.")
@click.option("--dataset", default="cifar10", show_default=True, help="digits, mnist, cifar10, ... or npz:PATH.")
@click.option("--backbone", help="As for `bench train`.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of seeds, from 0.")
@click.option("--suite", default="full", show_default=True, help="Suite to evaluate under.")
@click.option("--limit-train", type=click.IntRange(min=1), help="Train on the first N images only.")
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate on the first N test images only.")
@click.option(
    "--board",
    type=click.Path(path_type=Path),
    help="Also write the leaderboard to this file: .html, .md, .csv or .json.",
)
@data_option
@runs_option
@device_option
@plugin_option
@protocol_options
def command(
    defenses: str,
    dataset: str,
    backbone: str | None,
    seeds: int,
    suite: str,
    limit_train: int | None,
    limit: int | None,
    board: Path | None,
    data: Path,
    runs: Path,
    device: str,
    **protocol: str | bool | None,
) -> None:
    """Train every defense with every seed, evaluate each under a suite, and print the board.

    The state of a sweep is what lies in the run folders: stop it at any time, give the same command again, and
    only what is missing runs. Defenses that others need (ST for HAT) come first.

    \b
    bench sweep --dataset digits --defenses all --seeds 3 --suite full
    """
    from bench.cli.leaderboard import show_board
    from leaderboard.writing import require_form

    if board is not None:
        require_form(board)
    from bench.sweep import Plan, all_defenses, run_plan

    plan = Plan(
        dataset=dataset,
        defenses=all_defenses(defenses),
        suite=suite,
        seeds=tuple(range(seeds)),
        backbone=backbone,
        protocol=protocol_values(protocol),
        limit_train=limit_train,
        limit=limit,
        data=data,
        runs=runs,
        device=device,
    )
    results = run_plan(plan, say=lambda text: click.echo(text, err=True))
    show_board(results, board, merge_seeds=seeds > 1)
