"""Options that several commands share."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bench.catalogue.names import CHECKPOINTS, DEFAULT_RECIPE
from bench.catalogue.recipes import setting_help
from bench.errors import BenchError
from bench.text import setting_text

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
TRAINING_PRECISIONS = click.Choice(["auto", "fp32", "tf32", "bf16"])
SEARCH_PRECISIONS = click.Choice(["auto", "fp32", "fp32-folded", "tf32", "bf16"])

data_option = click.option(
    "--data",
    type=PATH,
    default=lambda: Path(os.environ.get("BENCH_DATA", "data")),
    show_default=False,
    help="Folder of the datasets.  [default: $BENCH_DATA, else ./data]",
)
runs_option = click.option("--runs", type=PATH, default=Path("runs"), help="Folder of all runs.")
recipe_option = click.option(
    "--recipe", default=DEFAULT_RECIPE, help="Recipe to train by (see `bench list recipes`), or FILE.json."
)
device_option = click.option("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
which_option = click.option(
    "--checkpoint",
    "which",
    type=click.Choice(CHECKPOINTS),
    help="Which of a run's checkpoints: the last weights, the best on held-out images, or averaged ones.  "
    "[default: last]",
)


def _number_or_names(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | tuple[str, ...] | None:
    """A number alone as one, of at least 2; texts between commas as a tuple of them."""
    if value is None or not value.isdecimal():
        return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())
    if int(value) < 2:
        raise click.BadParameter(f"{value} is not in the range x>=2.")
    return int(value)


classes_option = click.option(
    "--classes",
    metavar="N|NAME,NAME,...",
    callback=_number_or_names,
    help="Which of a dataset's classes to keep, by name or label; they are labelled anew, from 0. Or a number: how "
    "many classes an npz:PATH has that does not say it (num_classes).  [default: all; how many: eval: as many as the "
    "model has outputs; train: 1 + the largest label]",
)
preprocessing_option = click.option(
    "--preprocessing",
    metavar="none|Res256Crop224|...",
    help="How images on disk become pixels, as RobustBench names it: shorter side to 256, middle 224 x 224.  "
    "[default: imagenet: Res256Crop224; folder, tinyimagenet, hf: none]",
)


def is_said(name: str) -> bool:
    """True if a person gave this parameter of the running command."""
    unsaid = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return click.get_current_context().get_parameter_source(name) not in unsaid


def flag_of(name: str) -> str:
    """The option that gives a parameter of the running command."""
    flags = {parameter.name: parameter.opts[0] for parameter in click.get_current_context().command.params}
    return flags[name]


format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["plain", "markdown"]),
    help="How to print: plain text as wide as the terminal (or COLUMNS), or Markdown.  "
    "[default: plain on a terminal, else markdown]",
)


def text_width(form: str | None = None) -> int | None:
    """The width of plain text in characters; None: Markdown, by `format_option` or because there is no terminal."""
    plain = form == "plain" if form else sys.stdout.isatty()
    return terminal_width() if plain else None


def terminal_width() -> int:
    """Characters of a line of the terminal, or of $COLUMNS; 80 where neither says."""
    return shutil.get_terminal_size().columns


def refuse_idle(names: Iterable[str], reason: str) -> None:
    """Refuse those of the running command's parameters that a person gave, because they would change nothing.

    The error ends with the reason, which says what they would apply to. Options that say where data, devices and
    plug-ins are (--data, --device, --plugin) are given to every command alike, and are never refused.
    """
    idle = [flag_of(name) for name in names if is_said(name)]
    if idle:
        raise BenchError(f"{', '.join(idle)} would change nothing: {reason}")


def convention_option(
    about: str = "any: an adversarial image found on the way counts. final: only the image the attack ended with.",
) -> Callable[..., Any]:
    """--convention, with its help text."""
    return click.option("--convention", type=click.Choice(["any", "final"]), default="any", help=about)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --adapt, and what some kinds take: --weights, --download, --threat-model and --model-dir."""
    for option in (
        click.option(
            "--model-dir",
            type=PATH,
            help="RobustBench's files: DIR/<dataset>/<threat model>/<NAME>.pt; what is missing is downloaded.  "
            "[default: models]",
        ),
        click.option(
            "--threat-model",
            metavar="[Linf|L2|corruptions]",
            help="Which of RobustBench's lists NAME is on.  [default: Linf]",
        ),
        click.option(
            "--download",
            is_flag=True,
            help="Download what timm:, torchvision: or hf: publishes and is not on this machine.",
        ),
        click.option(
            "--adapt",
            multiple=True,
            metavar="ADAPTER",
            help="Put around the model, in place of its own of that name: resize=224[,bicubic], "
            "normalize=MEAN:STD or normalize=imagenet, half or bfloat16, output=KEY (of several), binary (one logit), "
            "classes=3,7,10-12 (some outputs); none: leave out its own. Recorded. Repeatable.",
        ),
        click.option(
            "--weights",
            type=PATH,
            help="Weights for FILE.py:FACTORY, timm:NAME or torchvision:NAME: .safetensors, or a torch state "
            "dictionary, also within a checkpoint.",
        ),
        click.option(
            "--model",
            metavar="MODEL",
            help="FILE.py:FACTORY, a function of your own that returns a torch module (its code is run); KIND:NAME, "
            "such as timm:resnet18, of a kind that `bench list models` shows; or a folder that `bench export "
            "huggingface` wrote.",
        ),
    ):
        command = option(command)
    return command


def checkpoint_or_model(
    checkpoint: Path | None, model: str | None, which: str | None = None
) -> tuple[Path | None, str | None]:
    """A --model that is a folder is a checkpoint; of a run folder `which` names one of several."""
    if checkpoint is None and model is not None and Path(model).is_dir():
        checkpoint, model = Path(model), None
    if checkpoint is None:
        refuse_idle(["which"], "only runs of `bench train` have several. Give a run folder.")
        return None, model
    return named_checkpoint(checkpoint, which), model


def named_checkpoint(run: Path, which: str | None) -> Path:
    """The checkpoint of a run that `which_option` names; without a name, what was given."""
    from bench.models.checkpoints import checkpoint_of

    return run if which is None else checkpoint_of(run, which)


def _add_plugins(context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]) -> None:
    if paths:
        from bench.catalogue.plugins import add_plugin

        for path in paths:
            add_plugin(path)


plugin_option = click.option(
    "--plugin",
    multiple=True,
    type=PATH,
    callback=_add_plugins,
    expose_value=False,
    is_eager=True,
    help="A Python file with a defense, attack, backbone or augmentation of your own, named after the file. Its code "
    "is run. Repeatable.",
)


def plugin_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A name, also where it is given as FILE.py, which is added as a plug-in."""
    if value is None or not value.endswith(".py"):
        return value
    _add_plugins(context, parameter, (Path(value),))
    return Path(value).stem.replace("_", "-")


def backbone_option(about: str) -> Callable[..., Any]:
    """--backbone, with its help text."""
    return click.option("--backbone", callback=plugin_name, help=about)


def protocol_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per field of the protocol."""
    for name, (default, about) in reversed(setting_help().items()):
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        kind: Any = bool if isinstance(default, bool) else str
        about = f"{about}  [default: {setting_text(default)}]"
        read = plugin_name if name == "augmentation" else None
        command = click.option(flag, f"protocol_{name}", type=kind, default=None, callback=read, help=about)(command)
    return command


def protocol_values(options: dict[str, Any]) -> dict[str, Any]:
    """The protocol fields that were given; what gives them is taken out of a command's options."""
    given = {name: options.pop(f"protocol_{name}") for name in setting_help()}
    return {name: value for name, value in given.items() if value is not None}


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts of a text that commas separate, without those that are empty."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary.

    Raises:
        BenchError: an entry has no equals sign, or a name comes twice.
    """
    parsed: dict[str, str] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise BenchError(f"{text!r} is not NAME=VALUE, such as beta=4.")
        if name.strip() in parsed:
            raise BenchError(
                f"{name.strip()} is given twice: {parsed[name.strip()]} and {value.strip()}. Give it once."
            )
        parsed[name.strip()] = value.strip()
    return parsed
