"""Train and evaluate many defenses; what is finished is not repeated."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import echo
from bench.cli._commands import Command
from bench.cli._options import (
    COUNT,
    PATH,
    SEARCH_PRECISIONS,
    TRAINING_PRECISIONS,
    backbone_option,
    data_option,
    device_option,
    parse_settings,
    plugin_option,
    protocol_options,
    protocol_values,
    recipe_option,
    refuse_idle,
    runs_option,
    which_option,
)

if TYPE_CHECKING:
    from bench.experiments.executors import Engine
    from bench.experiments.jobs import Job


@click.command(cls=Command)
@click.option("--defenses", default="all", help="`all`, or names separated by commas.")
@click.option("--dataset", default="cifar10", help="digits, mnist, cifar10, ... or npz:PATH.")
@recipe_option
@backbone_option("As for `bench train`.")
@click.option("--seeds", type=COUNT, default=1, help="Number of seeds, from 0.")
@click.option("--suite", default="full", help="Suite to evaluate under.")
@which_option
@click.option("--limit-train", type=COUNT, help="As for `bench train`.")
@click.option("--extra", metavar="npz:PATH", help="As for `bench train`.")
@click.option("--limit", type=COUNT, help="As for `bench eval`.")
@click.option(
    "--precision", type=TRAINING_PRECISIONS, default="fp32", help="Of the trainings, as `bench train --precision`."
)
@click.option(
    "--eval-precision", type=SEARCH_PRECISIONS, default="fp32", help="How attacks search, as `bench eval --precision`."
)
@click.option("--engine", default="local", help="Where jobs run: local, ray or slurm.")
@click.option(
    "--jobs",
    type=COUNT,
    help="Jobs at a time, each a process of its own.  [default: local: one after the other, in this process; "
    "ray, slurm: what the cluster gives]",
)
@click.option("--shards", type=COUNT, default=1, help="Jobs that share an evaluation.")
@click.option("--cpus", type=COUNT, help="Cores and threads of each job.  [default: local: all / jobs; else 1]")
@click.option(
    "--gpus", type=click.FloatRange(min=0), help="GPUs of each job; with ray also less than 1.  [default: 1 if any]"
)
@click.option("--address", help="Of a running Ray cluster, HOST:PORT or auto.  [default: Ray on this machine]")
@click.option(
    "--slurm",
    multiple=True,
    metavar="NAME=VALUE",
    help="For sbatch: partition=gpu, account=..., time=MINUTES. cluster=local tries it here. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Show the jobs that are missing, and Slurm's scripts, and stop.")
@click.option("--board", type=PATH, help="Also write the leaderboard to this file: .html, .md, .csv or .json.")
@data_option
@runs_option
@device_option
@plugin_option
@protocol_options
def command(
    defenses: str,
    seeds: int,
    which: str | None,
    engine: str,
    jobs: int | None,
    shards: int,
    cpus: int | None,
    gpus: float | None,
    address: str | None,
    slurm: tuple[str, ...],
    dry_run: bool,
    board: Path | None,
    **options: Any,
) -> None:
    """Train every defense with every seed, evaluate each under a suite, and print the board.

    The state of a sweep is what lies in the run folders: stop it at any time, give the same command again, and
    only what is missing runs. Defenses that others need (ST for HAT) come first. Where one fails, the others go on. The
    defaults below are those of the default recipe on CIFAR-10 (docs/protocol.md).

    With --jobs, --shards or another engine, every training and evaluation is a process of its own: one that fails is
    tried twice more, then named, and the others go on. Logs are in RUNS/logs; docs/scaling.md is about clusters.

    \b
    bench sweep --dataset digits --defenses all --seeds 3 --suite full
    bench sweep --dataset digits --defenses all --seeds 3 --suite full --jobs 2
    bench sweep --dataset cifar10 --seeds 5 --engine ray --address auto --shards 4
    bench sweep --dataset cifar10 --seeds 5 --engine slurm --slurm partition=gpu --dry-run
    """
    from bench.catalogue.suites import load_suite
    from bench.cli.eval import refuse_what_is_idle
    from bench.cli.leaderboard import show_board
    from bench.experiments.executors import EngineOptions, heeded_options, make_engine
    from bench.experiments.jobs import waves
    from bench.experiments.sweep import Plan, all_defenses, plan_jobs, run_plan
    from bench.leaderboard.render.files import require_form
    from bench.system.files import require_writable

    if board is not None:
        require_form(board)
        if not dry_run:
            require_writable(board)
    heeded = heeded_options()
    if engine in heeded:
        others = [f"{name} heeds {', '.join(f'--{one}' for one in taken)}" for name, taken in heeded.items() if taken]
        unheeded = sorted(set().union(*heeded.values()) - set(heeded[engine]))
        refuse_idle(unheeded, f"engine {engine} heeds no such thing; {'; '.join(others)}.")
    refuse_what_is_idle(load_suite(options["suite"]))
    in_this_process = engine == "local" and (jobs, shards) == (None, 1)
    if in_this_process:
        refuse_idle(["cpus"], "one run after the other takes every core. Add --jobs N for jobs with so many each.")
    # The options left are called as the fields that they fill.
    protocol, names = protocol_values(options), all_defenses(defenses)
    plan = Plan(defenses=names, seeds=tuple(range(seeds)), protocol=protocol, checkpoint=which or "last", **options)
    chosen = make_engine(engine, EngineOptions(jobs, cpus, gpus, address, parse_settings(slurm), plan.logs))
    if dry_run:
        plan.check()
        show_jobs(waves(plan_jobs(plan, shards)), chosen)
        return
    results = run_plan(
        plan, lambda text: echo(text, err=True), engine=None if in_this_process else chosen, shards=shards
    )
    show_board(results, board, merge_seeds=seeds > 1)


def show_jobs(sets: "Sequence[Sequence[Job]]", engine: "Engine") -> None:
    """Print the commands that are missing, and what a cluster would be handed, set by set."""
    for number, jobs in enumerate(sets):
        echo(f"# {len(jobs)} job{'s' * (len(jobs) > 1)}{', when those above are done' if number else ''}")
        if engine.script(len(jobs)):
            echo(engine.script(len(jobs)))
        for job in jobs:
            echo(shlex.join(["bench", *job.arguments]))
    if not sets:
        echo("Nothing is missing.")
