"""Evaluate a checkpoint, or a model of your own, under a suite of attacks."""

import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._commands import Command
from bench.cli._options import (
    COUNT,
    PATH,
    SEARCH_PRECISIONS,
    checkpoint_or_model,
    classes_option,
    convention_option,
    data_option,
    device_option,
    model_options,
    plugin_option,
    preprocessing_option,
    refuse_idle,
    terminal_width,
    which_option,
)
from bench.errors import BenchError


@click.command(
    cls=Command,
    first=("suite", "limit", "eps", "model", "weights", "dataset", "which", "device", "dry_run", "out"),
    groups={
        "What": (
            *("which", "model", "weights", "adapt", "threat_model", "model_dir", "download", "name", "plugin"),
            *("dataset", "classes", "preprocessing", "limit", "sampling", "randomised"),
        ),
        "Attacks": (
            *("suite", "eps", "seed", "convention", "precision", "adaptive", "transfer", "corruptions_dir", "probes"),
        ),
        "Machine": ("device", "batch_size", "processes", "data", "dry_run"),
        "Output": ("out", "overwrite", "save_adversarials"),
    },
)
@click.argument("checkpoint", required=False, type=PATH)
@which_option
@model_options
@click.option("--name", help="Name of the row.  [default: the defense, or the file of the weights]")
@click.option("--dataset", help="What to evaluate on.  [default: what the checkpoint was trained on]")
@classes_option
@preprocessing_option
@click.option("--suite", default="quick", help="Suite name (see `bench list suites`), or FILE.json.")
@click.option(
    "--limit",
    type=int,
    help="Evaluate on N test images only, the same for everyone: the first, or some of each class.",
)
@click.option(
    "--sampling",
    type=click.Choice(["first", "stratified"]),
    help="Which N images: the first, or of each class its share.  [default: first; of npz:PATH, folder:PATH, "
    "tinyimagenet:PATH and hf:NAME, which may be sorted by class, stratified]",
)
@click.option(
    "--eps",
    multiple=True,
    metavar="[NORM=]VALUE",
    help="Radius instead of the dataset's, such as 8/255 or l2=0.5. Recorded exactly.",
)
@click.option("--seed", default=0, help="Seed of the attacks.")
@click.option(
    "--batch-size",
    type=int,
    help="Images per forward pass; results do not depend on it.  [default: 256; on CUDA 2,048 of 32x32 pixels]",
)
@click.option(
    "--randomised",
    is_flag=True,
    help="The model is random by design, as one that says `randomised = True`: for --suite eot and eot-quick.",
)
@convention_option(
    "any: an image is done once an adversarial one was found. final: attacks run to the end; both are stored."
)
@click.option(
    "--precision",
    type=SEARCH_PRECISIONS,
    default="auto",
    help="How attacks search: fp32-folded with BatchNorm folded into convolutions; tf32 (CUDA) and bf16 in coarser "
    "numbers as well. auto: tf32 on CUDA, else fp32. Every claim is confirmed in plain float32; labelled in the file.",
)
@click.option(
    "--adaptive",
    metavar="FILE.py:FUNCTION",
    help="A loss of your own: (model, perturbed, clean, labels) to a value per image; adds a column. Its code is run.",
)
@click.option(
    "--transfer",
    multiple=True,
    type=PATH,
    help="A run folder: craft images against that model and try them on this one; adds a column. Repeatable.",
)
@click.option(
    "--corruptions-dir",
    type=PATH,
    help="For --suite corruptions: CIFAR-10-C, or what `bench data corrupt` wrote.  [default: DATA/CIFAR-10-C, "
    "DATA/CIFAR-100-C or DATA/DATASET-C]",
)
@click.option(
    "--probes",
    type=click.IntRange(min=0),
    default=64,
    help="Images on which the trust report looks at the model itself; 0: only at outcomes.",
)
@click.option(
    "--save-adversarials",
    is_flag=True,
    help="Keep the image behind every broken sample in RESULT.adversarials.h5, so that `bench verify` can replay it.",
)
@click.option("--processes", type=COUNT, default=1, help="Share the work: one GPU each.")
@click.option("--shard", hidden=True, default="0/1", callback=lambda context, option, text: parse_shard(text))
@click.option(
    "--out", type=PATH, help="Result file.  [default: RUN/results/SUITE-vN.h5, with what else was chosen in its name]"
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost at most, from a short measurement, and stop.")
@click.option("--overwrite", is_flag=True, help="Replace an existing result file.")
@data_option
@device_option
@plugin_option
def command(
    checkpoint: Path | None,
    which: str | None,
    model: str | None,
    eps: tuple[str, ...],
    corruptions_dir: Path | None,
    shard: tuple[int, int],
    processes: int,
    dry_run: bool,
    **options: Any,
) -> None:
    """Evaluate a CHECKPOINT of `bench train` (a run folder will do), or any --model, and print the verdict.

    A model of your own takes NCHW float images in [0, 1], normalises inside, and returns logits.

    \b
    bench eval runs/digits/cnn-small/at/seed-0 --suite full
    bench eval runs/cifar10/resnet18/at/seed-0 --suite corruptions --corruptions-dir data/CIFAR-10-C
    bench eval runs/cifar10/resnet18/at/seed-0 --suite features
    bench eval runs/cifar10/resnet18/fastat2026/at/seed-0 --checkpoint average --suite full
    bench eval --model mine.py:make_model --weights mine.pt --dataset cifar10 --suite quick --limit 1000
    bench eval --model robustbench:Rice2020Overfitting --threat-model Linf --dataset cifar10 --suite autoattack
    """
    from bench.catalogue.suites import load_suite
    from bench.cli.trust import show_report, show_verdict
    from bench.engine.adversarials import adversarials_path
    from bench.evaluation.cost import estimate
    from bench.evaluation.evaluate import evaluate
    from bench.evaluation.request import EvaluationRequest
    from bench.leaderboard.render.verdict import next_commands, verdict
    from bench.system.blocks import parts_folders
    from bench.system.devices import choose_device, warning_of_slow_bfloat16
    from bench.system.progress import EvaluationProgress

    checkpoint, model = checkpoint_or_model(checkpoint, model, which)
    if shard == (0, 1):  # a share is given every option of the whole
        refuse_what_is_idle(load_suite(options["suite"]))
    # The options left are called as the fields that they fill.
    request = EvaluationRequest(
        checkpoint=checkpoint,
        model=model,
        epsilons=parse_radii(eps),
        corruptions=corruptions_dir,
        shard=shard,
        command=shlex.join(["bench", *sys.argv[1:]]),
        **options,
    )
    half = request.precision == "bf16" and shard == (0, 1)
    if half and (warning := warning_of_slow_bfloat16(choose_device(request.device))):
        echo(warning, err=True)
    if dry_run:
        show_cost(estimate(request))
        return
    with closing(EvaluationProgress(quiet=shard != (0, 1))) as progress:
        try:
            result, path = evaluate(request, progress, processes, progress.say, progress.overall)
        except KeyboardInterrupt:
            if shard != (0, 1):  # the process that started this one says it for all
                raise SystemExit(143) from None
            raise
    if shard != (0, 1):
        return
    echo(verdict(result, terminal_width()))
    show_verdict(result, result.findings)
    if result.run["sampling"] != "all":
        echo(told_sampling(result.run, len(result.label)), err=True)
    show_report(result.findings, everything=False, to_errors=True)
    echo(f"{path}", err=True)
    if request.save_adversarials:
        echo(f"{adversarials_path(path)}", err=True)
    echo("\n".join(["Next:", *(f"  {line}" for line in next_commands(result, path))]), err=True)
    for folder in parts_folders(path):
        echo(f"{folder}: left by an evaluation of other settings or code; delete it if none runs.", err=True)


def refuse_what_is_idle(suite: Any) -> None:
    """Refuse options of the running command that nothing in the suite takes."""
    if not suite.corruptions:
        refuse_idle(["corruptions_dir"], f"suite {suite.name} holds no corruptions. Take --suite corruptions.")
    if not suite.cells:
        attacking = ["convention", "precision", "eval_precision", "save_adversarials"]
        refuse_idle(attacking, f"suite {suite.name} holds no attacks. Take another suite, such as quick.")


def told_sampling(run: Mapping[str, Any], count: int) -> str:
    """One line: which part of the test images an evaluation was on."""
    from bench.data.datasets import dataset_protocol

    usual = dataset_protocol(str(run["dataset"])).sampling == "first"
    which = {
        "first": f"the first, as is the convention of {run['dataset']}" if usual else "the first",
        "stratified": "of each class its share, the same for everyone",
    }[run["sampling"]]
    return f"{count} of {run['dataset_size']} test images: {which}."


def show_cost(costs: list[tuple[str, int, float]]) -> None:
    """Print an estimate, in the order of the suite, and the total."""
    for name, gradients, seconds in [*costs, ("in all", sum(c[1] for c in costs), sum(c[2] for c in costs))]:
        echo(f"{name:30} at most {gradients:>12,} gradients {timedelta(seconds=round(seconds))!s:>16}")
    echo("Broken images leave early under --convention any, so it will usually be less.")


def parse_shard(text: str) -> tuple[int, int]:
    """`1/4` as (1, 4)."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or int(found[1]) >= int(found[2]):
        raise click.BadParameter(f"{text!r} is not I/N with I below N, such as 1/4.")
    return int(found[1]), int(found[2])


def parse_radii(texts: tuple[str, ...]) -> dict[str, str]:
    """`8/255` and `l2=0.5` as {"linf": "8/255", "l2": "0.5"}.

    Raises:
        BenchError: a norm is unknown or comes twice, or a radius is not a number of at least 0 (under linf, of at
            most 1).
    """
    from bench.interfaces import ThreatModel

    radii: dict[str, str] = {}
    for text in texts:
        given, separator, value = text.rpartition("=")
        norm = given if separator else "linf"
        ThreatModel(norm, value).require_a_pixel_range()
        if norm in radii:
            raise BenchError(f"--eps gives {norm} twice: {radii[norm]} and {value}. Give it once.")
        radii[norm] = value
    return radii
