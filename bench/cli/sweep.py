"""Train and evaluate many defenses; what is finished is not repeated."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.catalogue.names import CHECKPOINTS, DEFAULT_RECIPE
from bench.cli import echo
from bench.cli._commands import Command
from bench.cli._options import (
    COUNT,
    PATH,
    SEARCH_PRECISIONS,
    TRAINING_PRECISIONS,
    backbone_option,
    comma_separated,
    data_option,
    device_option,
    flag_of,
    is_said,
    parse_settings,
    plugin_option,
    protocol_options,
    protocol_values,
    refuse_idle,
    runs_option,
)
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.experiments.executors import Engine, Resources
    from bench.experiments.grid import Sweep
    from bench.experiments.jobs import Job


def names_option(*flags: str, default: str, about: str) -> Callable[..., Any]:
    """An option of names with commas between them."""

    def read(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
        return comma_separated(text)

    return click.option(*flags, default=default, callback=read, help=about)


@click.command(cls=Command)
@click.argument("plan", required=False, metavar="[PLAN.toml]", type=PATH)
@names_option("--defenses", default="all", about="`all`, or names separated by commas.")
@names_option(
    "--datasets", "--dataset", default="cifar10", about="digits, mnist, cifar10, ... or npz:PATH, with commas."
)
@names_option(
    "--recipes",
    "--recipe",
    default=DEFAULT_RECIPE,
    about="Recipes to train by (see `bench list recipes`), or FILE.json, with commas.",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Try every value of a setting, or of a hyperparameter that all the defenses have; DEFENSE.NAME=VALUE,...: of "
    "that one alone. Repeatable: every combination is run.",
)
@backbone_option("As for `bench train`.")
@click.option("--seeds", default="1", help="How many, from 0; or a range, 0-4, or a list, 0,2,5.")
@names_option("--suites", "--suite", default="full", about="Suites to evaluate under, with commas.")
@click.option(
    "--checkpoint",
    type=click.Choice(CHECKPOINTS),
    default="last",
    help="Which of a run's checkpoints to evaluate: the last weights, the best on held-out images, or averaged ones.",
)
@click.option("--limit-train", type=COUNT, help="As for `bench train`.")
@click.option("--extra", metavar="npz:PATH", help="As for `bench train`.")
@click.option("--limit", type=COUNT, help="As for `bench eval`.")
@click.option(
    "--precision", type=TRAINING_PRECISIONS, default="auto", help="Of the trainings, as `bench train --precision`."
)
@click.option(
    "--eval-precision", type=SEARCH_PRECISIONS, default="auto", help="How attacks search, as `bench eval --precision`."
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
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, show how many jobs there are, what tells them apart, each that is missing, and stop.",
)
@click.option("--board", type=PATH, help="Also write the leaderboard to this file: .html, .md, .csv or .json.")
@data_option
@runs_option
@device_option
@plugin_option
@protocol_options
def command(plan: Path | None, dry_run: bool, **options: Any) -> None:
    """Train every defense with every seed, evaluate each under a suite, and print the board.

    Several datasets, recipes, suites, and values of a --grid are run in every combination. The folder of a run names
    what of a grid it is of: RUNS/<dataset>/<backbone>/<defense>/beta=1.0,epochs=10/seed-0. A PLAN is a file that says
    all this, and what jobs are given (`bench explain plan-file`); options beside it take the place of what it says.

    The state of a sweep is what lies in the run folders: stop it at any time, give the same command again, and
    only what is missing runs. Defenses that others need (ST for HAT) come first. Where one fails, the others go on. The
    defaults below are those of the default recipe on CIFAR-10 (`bench list recipes`).

    With --jobs, --shards or another engine, every training and evaluation is a process of its own: one that fails is
    tried twice more, then named, and the others go on. Logs are in RUNS/logs, `bench status RUNS` shows how far it is,
    and `bench explain cluster` is about clusters.

    \b
    bench sweep --dataset digits --defenses all --seeds 3 --suite full
    bench sweep --datasets digits,mnist --defenses trades,mart --grid beta=1,3,6 --grid epochs=10,20 --seeds 0-4
    bench sweep --dataset digits --defenses at,trades --recipe pang2021,fastat2026 --grid trades.beta=1,6 --dry-run
    bench sweep examples/sweep.toml --seeds 1 --dry-run
    bench sweep --dataset cifar10 --seeds 5 --engine ray --address auto --shards 4
    bench sweep --dataset cifar10 --seeds 5 --engine slurm --slurm partition=gpu --dry-run
    """
    from bench.catalogue.suites import load_suite
    from bench.cli.eval import refuse_what_is_idle
    from bench.cli.leaderboard import show_board
    from bench.experiments.executors import EngineOptions, make_engine
    from bench.experiments.grid import Sweep, parse_seeds
    from bench.experiments.jobs import waves
    from bench.experiments.sweep import all_defenses, check_plans, needed_room, plan_jobs, run_plans
    from bench.leaderboard.render.files import require_form
    from bench.system.files import followed, require_writable
    from bench.text import amount

    options["grid"] = {name: comma_separated(values) for name, values in parse_settings(options["grid"]).items()}
    options["slurm"] = parse_settings(options["slurm"])
    if plan is not None:
        options = planned(plan, options)
    board, engine, jobs, shards = (options.pop(name) for name in ("board", "engine", "jobs", "shards"))
    stages = options.pop("resources", {})
    where = {name: options.pop(name) for name in ("cpus", "gpus", "address")}
    where["settings"] = options.pop("slurm")
    if board is not None:
        require_form(board)
        if not dry_run:
            require_writable(followed(board))
    alone = engine == "local" and (jobs, shards) == (None, 1)
    refuse_unheeded(engine, alone)
    sweep = Sweep(
        defenses=all_defenses(",".join(options.pop("defenses"))),
        seeds=parse_seeds(options.pop("seeds")),
        protocol=protocol_values(options),
        **{name: options.pop(name) for name in ("datasets", "recipes", "suites", "grid")},
        # The options left are called as the fields that they fill.
        shared=options,
    )
    plans = sweep.plans()
    suites = [load_suite(name) for name in sweep.suites]
    refuse_what_is_idle(next((suite for suite in suites if suite.cells), suites[0]))
    if board is not None and board.suffix == ".md" and len(sweep.datasets) * len(sweep.suites) > 1:
        raise BenchError(f"{board} holds one table, and the sweep has several. Give a .html, .csv or .json file.")
    chosen = make_engine(engine, EngineOptions(jobs, **where, logs=plans[0].logs, stages=stages))
    show_idle_resources(stages, () if alone else chosen.grants)
    if dry_run:
        needed = needed_room(plans, check_plans(plans))
        every = plan_jobs(plans, shards)
        missing = waves(every)
        show_size(sweep, len(every), sum(map(len, missing)))
        if missing:
            echo(f"# What is missing needs at least {amount(needed.needed)} of disk; {amount(needed.free)} are free.")
        show_jobs(missing, chosen)
        return
    results = run_plans(plans, lambda text: echo(text, err=True), engine=None if alone else chosen, shards=shards)
    show_board(results, board, merge_seeds=len(sweep.seeds) > 1, apart=True)


def planned(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, and what a plan says in the place of those that nobody gave; says which ones count before it."""
    from bench.experiments.plan_file import read_plan

    said = {name.replace("protocol_", "settings."): flag_of(name) for name in options if is_said(name)}
    said |= {f"{table}.{name}": f"--{table} {name}" for table in ("grid", "slurm") for name in options[table]}
    plan, told = read_plan(path, {name.replace("-", "_"): flag for name, flag in said.items()})
    for line in told:
        echo(line, err=True)
    for table in ("grid", "slurm"):
        plan[table] = {**plan.get(table, {}), **options[table]}
    settings = {f"protocol_{name}": value for name, value in plan.pop("settings", {}).items()}
    return {**options, **plan, **settings}


def refuse_unheeded(engine: str, alone: bool) -> None:
    """Refuse options that the engine does not heed; `alone`, runs follow each other in this process."""
    from bench.experiments.executors import heeded_options

    heeded = heeded_options()
    if engine in heeded:
        others = [f"{name} heeds {', '.join(f'--{one}' for one in taken)}" for name, taken in heeded.items() if taken]
        unheeded = sorted(set().union(*heeded.values()) - set(heeded[engine]))
        refuse_idle(unheeded, f"engine {engine} heeds no such thing; {'; '.join(others)}.")
    if alone:
        refuse_idle(["cpus"], "one run after the other takes every core. Add --jobs N for jobs with so many each.")


def show_idle_resources(stages: "Mapping[str, Resources]", granted: Sequence[str]) -> None:
    """Say which resources of a plan no job is given, because nothing here can give them."""
    for stage, resources in stages.items():
        if idle := [name for name in resources.given() if name not in granted]:
            echo(f"Here no job of resources.{stage} is given {', '.join(idle)}: not all engines can.", err=True)


def show_size(sweep: "Sweep", jobs: int, missing: int) -> None:
    """Print how many jobs a sweep has, and what tells them apart."""
    echo(f"# The sweep has {jobs} jobs, of which {missing} are missing.")
    for name, values in sweep.differing().items():
        echo(f"# {name}: {', '.join(values)}")


def show_jobs(sets: "Sequence[Sequence[Job]]", engine: "Engine") -> None:
    """Print the commands that are missing, and what a cluster would be handed, set by set."""
    from bench.experiments.jobs import by_stage

    for number, jobs in enumerate(sets):
        echo(f"# {len(jobs)} job{'s' * (len(jobs) > 1)}{', when those above are done' if number else ''}")
        for stage, alike in by_stage(jobs, engine).items():
            if script := engine.script(len(alike), stage):
                echo(script)
            for job in alike:
                echo(shlex.join(["bench", *job.arguments]))
    if not sets:
        echo("Nothing is missing.")
