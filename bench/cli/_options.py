"""Options that several commands share."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bench.catalogue.protocol import setting_help
from bench.errors import BenchError

TRAINING_PRECISIONS = click.Choice(["fp32", "tf32", "bf16"])
SEARCH_PRECISIONS = click.Choice(["fp32", "fp32-folded", "bf16"])


def refuse_idle(names: Iterable[str], reason: str) -> None:
    """Refuse those of the running command's parameters that a person gave, because they would change nothing.

    What says where data, devices and plug-ins are (--data, --device, --plugin) is given to every command alike, and is
    never refused.

    Raises:
        BenchError: one was given; the text ends with the reason, which says what they would apply to.
    """
    context = click.get_current_context()
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    unsaid = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    idle = [flags[name] for name in names if context.get_parameter_source(name) not in unsaid]
    if idle:
        raise BenchError(f"{', '.join(idle)} would change nothing: {reason}")


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path),
        default=lambda: Path(os.environ.get("BENCH_DATA", "data")),
        help="Folder of the datasets.  [default: $BENCH_DATA, else ./data]",
    )(command)


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--runs."""
    return click.option(
        "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of all runs."
    )(command)


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto (CUDA where there is one), cpu, cuda, cuda:1, ..."
    )(command)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --weights, and for RobustBench's zoo --threat-model and --model-dir."""
    for option in (
        click.option(
            "--model-dir",
            type=click.Path(path_type=Path),
            help="RobustBench's files: DIR/<dataset>/<threat model>/<NAME>.pt; what is missing is downloaded.  "
            "[default: models]",
        ),
        click.option(
            "--threat-model",
            metavar="[Linf|L2|corruptions]",
            help="Which of RobustBench's lists NAME is on.  [default: Linf]",
        ),
        click.option(
            "--weights",
            type=click.Path(path_type=Path),
            help="Weights for FILE.py:FACTORY: .safetensors, or a torch state dictionary, also within a checkpoint.",
        ),
        click.option(
            "--model",
            metavar="MODEL",
            help="FILE.py:FACTORY, a function of your own that returns a torch module (its code is run); "
            "robustbench:NAME, a model of RobustBench's zoo; or a folder that `bench export huggingface` wrote.",
        ),
    ):
        command = option(command)
    return command


def checkpoint_or_model(checkpoint: Path | None, model: str | None) -> tuple[Path | None, str | None]:
    """A --model that is a folder is a checkpoint."""
    if checkpoint is None and model is not None and Path(model).is_dir():
        return Path(model), None
    return checkpoint, model


def classes_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--classes."""
    return click.option(
        "--classes",
        type=click.IntRange(min=2),
        help="How many classes an npz:PATH has that does not say it (num_classes).  "
        "[default: eval: as many as the model has outputs; train: 1 + the largest label]",
    )(command)


def plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--plugin: files with defenses or attacks of your own."""

    def add(context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]) -> None:
        if paths:
            from bench.catalogue.plugins import add_plugin

            for path in paths:
                add_plugin(path)

    return click.option(
        "--plugin",
        multiple=True,
        type=click.Path(path_type=Path),
        callback=add,
        expose_value=False,
        is_eager=True,
        help="A Python file with a defense or attack of your own, named after the file. Its code is run. Repeatable.",
    )(command)


def protocol_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per field of the protocol."""
    for name, (default, about) in reversed(setting_help().items()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            flag = f"{flag}/--no-{name.replace('_', '-')}"
        kind: Any = bool if isinstance(default, bool) else str
        about = f"{about}  [default: {shown}]"
        command = click.option(flag, f"protocol_{name}", type=kind, default=None, help=about)(command)
    return command


def protocol_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol fields that were given."""
    return {name.removeprefix("protocol_"): value for name, value in options.items() if value is not None}


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
