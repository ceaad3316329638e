"""Train a defense by a recipe."""

import sys
from pathlib import Path
from typing import Any

import click

from bench.catalogue.names import DATASETS, DEFAULT_RECIPE, OWN_DATASETS, built_in
from bench.cli import echo
from bench.cli._commands import Command
from bench.cli._options import (
    COUNT,
    PATH,
    TRAINING_PRECISIONS,
    backbone_option,
    classes_option,
    comma_separated,
    data_option,
    device_option,
    parse_settings,
    plugin_option,
    preprocessing_option,
    protocol_options,
    protocol_values,
    recipe_option,
    refuse_idle,
    runs_option,
)
from bench.errors import BenchError
from bench.training import SECONDS_BETWEEN_SAVES


@click.command(
    cls=Command,
    first=(
        *("defense", "dataset", "recipe", "backbone", "protocol_epochs", "protocol_learning_rate", "settings"),
        *("seed", "resume", "device"),
    ),
    groups={
        "What": (
            *("defense", "settings", "dataset", "classes", "preprocessing", "limit_train", "extra"),
            *("backbone", "start", "plugin"),
        ),
        "Recipe": ("recipe", "seed", "protocol_*"),
        "Machine": ("device", "precision", "deterministic", "cuda_graphs", "profiled", "data"),
        "Output": ("out", "runs", "named_by", "resume", "save_every", "watch"),
    },
)
@click.option("--defense", required=True, help="Defense to train (see `bench list defenses`).")
@click.option("--dataset", default="cifar10", help=f"{', '.join((*DATASETS, *OWN_DATASETS))}.")
@recipe_option
@backbone_option(
    f"{', '.join(built_in('backbone'))}, timm:NAME, or FILE.py of your own.  "
    f"[default: the recipe's; of {DEFAULT_RECIPE}: resnet18; digits, mnist: cnn-small]"
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Seed of initialisation, order, augmentation and attacks.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A hyperparameter of the defense. Repeatable."
)
@click.option("--start", type=PATH, help="A checkpoint or run folder, whose weights the training starts with.")
@click.option("--limit-train", type=COUNT, help="Train on N images only: the first, or some of each class.")
@click.option(
    "--extra",
    metavar="npz:PATH",
    help="Images to train on beside the dataset's: x_train, y_train, or image, label. Takes --extra-share.",
)
@classes_option
@preprocessing_option
@click.option(
    "--named-by",
    metavar="NAME,...",
    default="",
    show_default=False,
    help="Hyperparameters and settings that you give and whose values the run folder is to name, as `bench sweep "
    "--grid` has it: .../<defense>/beta=1.0,epochs=10/seed-<seed>.",
)
@click.option(
    "--watch",
    type=COUNT,
    help="After each epoch, show accuracy clean, under FGSM and PGD-10 on N training and N test images. It changes "
    "nothing, and chooses nothing.",
)
@click.option(
    "--out",
    type=PATH,
    help="Run folder.  [default: RUNS/<dataset>/<backbone>/<defense>/seed-<seed>; "
    "of another recipe RUNS/<dataset>/<backbone>/<recipe>/...]",
)
@click.option(
    "--precision",
    type=TRAINING_PRECISIONS,
    default="auto",
    help="auto: tf32 on CUDA, else fp32. bf16: bfloat16 in the network, float32 in the losses, TF32 between.",
)
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=None,
    help="Record a training step and replay it, where three replays end as three steps do.  [default: on CUDA]",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="Deterministic algorithms only: on CUDA the same bits again, slower. On a CPU they are the same anyway.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=SECONDS_BETWEEN_SAVES,
    help="How often the state that --resume reads is written, by a thread; 0: after every epoch, before the next.",
)
@click.option("--profile", "profiled", is_flag=True, help="Show where the time of a step goes, and train nothing.")
@click.option(
    "--resume", is_flag=True, help="Continue an unfinished run: to the same bits, on CUDA with --deterministic."
)
@data_option
@runs_option
@device_option
@plugin_option
@protocol_options
def command(
    defense: str,
    settings: tuple[str, ...],
    named_by: str,
    out: Path | None,
    profiled: bool,
    resume: bool,
    **options: Any,
) -> None:
    """Train a defense by a recipe: every number of a training, of which any option replaces one.

    Without options this is the paper's protocol on CIFAR-10 with a ResNet-18: 110 epochs, which wants a GPU.
    Recipes hold other numbers for some datasets (`bench list recipes`). The defaults below are those of the default
    recipe on CIFAR-10.
    On a CPU: --dataset digits, or --backbone cnn-small-bn with fewer --epochs, or --limit-train.

    The run folder holds `last/model.safetensors` (and `best/` with --holdout), `history.jsonl`, and
    `training_state.pt`, which --resume reads; where it is damaged, the one before is in
    `training_state.previous.pt`. They are written about every 30 seconds, at the last epoch and at any stop: SIGTERM
    ends the batch, saves the last finished epoch, and stops. Damaged files of a finished run are written again. A
    defense that needs another trained model trains it first.

    \b
    bench train --defense adv-dpnp
    bench train --defense at --dataset digits --epochs 5
    bench train --defense adv-dpnp --set lambda_dnp=0.3 --set dnp_reduction=sum
    bench train --defense at --recipe pang2021-short --backbone cnn-small-bn
    bench train --defense trades --precision bf16 --profile
    torchrun --nproc-per-node 2 -m bench train --defense at      one model, two processes
    """
    from bench.catalogue.plugins import find
    from bench.training.processes import Processes
    from bench.training.request import TrainingRequest
    from bench.training.train import prepare_run, train

    if profiled:
        idle = ["resume", "out", "runs", "named_by", "watch", "save_every", "cuda_graphs"]
        refuse_idle(idle, "--profile runs steps one by one and writes nothing. Leave out one of them.")
    if out is not None and not find("defense", defense).requires:
        refuse_idle(
            ["runs", "named_by"],
            f"--out is the run's folder, and {defense} needs no other model. Leave out one of them.",
        )
    given, protocol = parse_settings(settings), protocol_values(options)
    names = tuple(name.replace("-", "_") for name in comma_separated(named_by))
    # The options left are called as the fields that they fill.
    request = TrainingRequest(defense, hyperparameters=given, protocol=protocol, named_by=names, folder=out, **options)
    for name in names:
        if name not in request.setting:
            raise BenchError(f"--named-by {name} names nothing that is given: add --set {name}=VALUE, or its option.")
    if profiled:
        from bench.training.profiling import profile

        echo(profile(prepare_run(request, trial=True)))
        return
    folder = train(request, resume=resume)
    if Processes.from_environment().writes:
        echo(f"{folder}")
    if sys.stderr.isatty():
        echo(f"Next: bench eval {folder} --suite quick", err=True)
