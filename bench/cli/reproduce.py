"""A table or figure of the Adv-DPNP paper: train and evaluate what is missing, show ours beside the paper's."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import COUNT, PATH, data_option, device_option, plugin_option, refuse_idle
from bench.errors import BenchError


@click.command()
@click.argument("names", metavar="TABLE_OR_FIGURE...", nargs=-1, required=True)
@click.option(
    "--scale",
    type=click.Choice(["smoke", "cpu", "full"]),
    default="smoke",
    help="smoke: digits, a small network, 2 epochs, 20 images. cpu: CIFAR-10, cnn-small-bn, 6 epochs, 1000 images "
    "(figure2: MNIST, lenetpp). full: the paper's protocol, which wants a GPU for days.",
)
@click.option("--defenses", default="paper", help="paper, all, or names with commas.")
@click.option("--block", metavar="DATASET[/BACKBONE]", help="Only this part of a table, such as cifar10/wrn-34-10.")
@click.option("--seeds", type=COUNT, default=1, help="Number of seeds, from 0.")
@click.option(
    "--variant",
    default="stated",
    help="Of table2. stated: random starts and step 1/255, as the paper's text. no-start: from the clean image with "
    "step 0.8/255, judged by the last image, as the test script of FSR.",
)
@click.option(
    "--runs",
    type=PATH,
    help="Folder of the runs; those that are there are used.  [default: runs for full, else runs-SCALE]",
)
@click.option(
    "--out",
    type=PATH,
    help="Also write this markdown file; figures are drawn beside it.  [default of figures: RUNS/NAME.png and .svg]",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and its cost, and stop.")
@click.option("--stored", is_flag=True, help="Run nothing: what is there beside the paper's, the rest as not yet run.")
@data_option
@device_option
@plugin_option
def command(names: tuple[str, ...], out: Path | None, **choices: Any) -> None:
    """Reproduce table1 to table8, figure2, figure3 or figure4 of the Adv-DPNP paper (arXiv 2504.03782).

    Shows what is there, what is missing and what that costs; runs what is missing, and nothing twice; prints each table
    in the paper's layout, every number of ours with its interval beside the paper's, and at full scale their
    difference. Tables share trainings. Stop it at any time: the same command goes on.

    \b
    bench reproduce table2
    bench reproduce table2 --scale full --block cifar10/resnet18 --dry-run
    bench reproduce table3 --scale cpu --defenses at,adv-dpnp --out table3.md
    bench reproduce table2 table3 --scale full --stored
    """
    from bench.system.files import followed, require_writable, write_text

    if choices["stored"]:
        refuse_idle(["dry_run"], "--stored runs nothing. Leave out one of them.")
    if out is not None and not choices["dry_run"]:
        require_writable(followed(out))
    texts, failures = [], []
    for name in names:
        text, failed = _reproduce(name, out=out, **choices)
        texts.append(text)
        failures += failed
        if text:
            echo(text)
    if out is not None and any(texts):
        write_text(followed(out), "\n".join(texts))
    if failures:
        raise BenchError(" | ".join(failures))


def _reproduce(
    name: str,
    scale: str,
    defenses: str,
    block: str | None,
    seeds: int,
    variant: str,
    runs: Path | None,
    out: Path | None,
    dry_run: bool,
    stored: bool,
    **places: Any,
) -> tuple[str, list[str]]:
    """The report of one exhibit, and what failed; nothing of either if only the plan is asked for."""
    from bench.experiments.paper import load_exhibit, prepare_data, with_corruptions
    from bench.experiments.sweep import run_plan

    exhibit = load_exhibit(name, variant)
    runs = runs or Path("runs" if scale == "full" else f"runs-{scale}")
    planned = exhibit.plans(scale, defenses, seeds, block, runs=runs, **places)
    if scale != "full":
        planned = [(part, with_corruptions(plan)) for part, plan in planned]
    failures = []
    if not stored:
        for _, plan in planned:
            _show_plan(plan, f"{name}, scale {scale}")
        if exhibit.note:
            echo(exhibit.note)
        if dry_run:
            return "", []
        for _, plan in planned:
            prepare_data(plan)
        for _, plan in planned:
            try:
                run_plan(plan, say=lambda text: echo(text, err=True))
            except BenchError as error:
                failures.append(str(error))
    return _report(exhibit, scale, planned, out or runs / f"{name}.md", stored), failures


def _show_plan(plan: Any, title: str) -> None:
    """Print what is there, what is missing, and the cost of the latter."""
    from bench.experiments.paper import steps

    limit = "all test images" if plan.limit is None else f"the first {plan.limit} test images"
    todo = steps(plan)
    echo(
        f"{title}: {plan.dataset}, {plan.backbone}, {todo[0].epochs} epochs, suite {plan.suite}, {limit}, "
        f"convention {plan.convention}"
    )
    for step in todo:
        left = step.epochs - step.finished
        training = "trained" if step.trained else f"train {left} epochs"
        evaluation = "" if step.result is None else "evaluated" if step.evaluated else "evaluate"
        echo(f"  {step.training.run_folder!s:52} {training:18} {evaluation}")
    _show_cost(plan, todo)


def _show_cost(plan: Any, todo: Sequence[Any]) -> None:
    from bench.experiments.paper import cost

    trainings = sum(not step.trained for step in todo)
    evaluations = sum(not step.evaluated for step in todo)
    line = f"  missing: {trainings} trainings, {evaluations} evaluations."
    try:
        found = cost(plan, list(todo))
    except BenchError as error:
        echo(f"{line} They cannot run as things are: {error}")
        return
    if trainings:
        line += f" Trainings: {_time('about', found.training)}"
        line += f" (timed: {', '.join(found.timed)})." if found.timed else "."
    if evaluations:
        line += f" Evaluations: {_time('at most', found.evaluation)} {found.unknown}".rstrip() + "."
    echo(line)


def _time(limit: str, seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{limit} {timedelta(seconds=round(seconds))}"


def _report(exhibit: Any, scale: str, planned: Sequence[tuple[Any, Any]], out: Path, stored: bool) -> str:
    """Markdown: a comparison for each block of a table; the figure, and the table behind it.

    Where only what is `stored` is shown, a table has the rows of all defenses.
    """
    from bench.experiments.paper import notes_on, results_there
    from bench.leaderboard.paper.published import published
    from bench.leaderboard.paper.reproduction import render_comparison, side_by_side
    from bench.leaderboard.render.markdown import render
    from bench.leaderboard.tables.build import build_table
    from bench.text import escape

    blocks = [(block, plan, results_there(plan, stored)) for block, plan in planned]
    texts = [_draw(exhibit, blocks, out)] if not exhibit.columns else []
    for block, plan, found in blocks:
        results = list(found.results.values())
        if not results and not found.left_out and not (stored and exhibit.columns):
            continue
        notes = notes_on(exhibit, scale, block, plan, found)
        if exhibit.columns:
            figures = published(int(exhibit.name[5:]), block.published, block.backbone)
            rest = [name for name in plan.defenses if name not in found.absent] if stored else ()
            lines = side_by_side(results, figures, exhibit.columns, plan.convention, rest)
            title = f"Table {exhibit.name[5:]} of arXiv 2504.03782: {block.dataset}, {block.backbone}"
            texts.append(render_comparison(title, lines, notes, scale == "full"))
        else:
            shown = [render(build_table(results, plan.convention, len(plan.seeds) > 1))] if results else []
            texts.append("\n\n".join([*map(escape, notes), *shown]))
    return "\n".join(texts)


def _draw(exhibit: Any, blocks: Sequence[tuple[Any, Any, Any]], out: Path) -> str:
    """Draw as `bench figure` does; the markdown that shows it."""
    from bench.cli import figure

    stem = out.with_suffix("")
    plans = [plan for _, plan, _ in blocks]
    pairs = [
        (plan.result(training), training.run_folder)
        for _, plan, found in blocks
        for training in plan.trainings()
        if training.run_folder in found.results
    ]
    if not pairs:
        return ""
    results, folders = zip(*pairs, strict=True)
    context = click.get_current_context()
    if exhibit.name == "figure2":
        places = {"data": plans[0].data, "device": plans[0].device}
        limit = {} if plans[0].limit is None else {"limit": plans[0].limit}
        context.invoke(figure.scatter, paths=folders, out=stem, **limit, **places)
    elif exhibit.name == "figure3":
        context.invoke(figure.severities, paths=results, out=stem)
    else:
        context.invoke(figure.radii, paths=results, out=stem)
    return f"![{exhibit.name}]({stem.name}.png)\n"
