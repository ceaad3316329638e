"""Commands with many options: help in titled groups, and the right name for what other programs call otherwise."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import click

from bench.cli import echo

_EVERYTHING = "bench.cli.everything"
"""Key of a context's `meta` that is set where --help-all was given."""

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "--lr": ("--learning-rate",),
    "--lr-max": ("--learning-rate",),
    "--max-lr": ("--learning-rate",),
    "--optim": ("--optimizer",),
    "--opt": ("--optimizer",),
    "--scheduler": ("--schedule",),
    "--lr-scheduler": ("--schedule",),
    "--lr-schedule": ("--schedule",),
    "--lr-milestones": ("--milestones",),
    "--lr-steps": ("--milestones",),
    "--lr-decay": ("--decay",),
    "--gamma": ("--decay",),
    "--warmup": ("--warm-up",),
    "--warmup-epochs": ("--warm-up",),
    "--wd": ("--weight-decay",),
    "--l2-reg": ("--weight-decay",),
    "--batch": ("--batch-size",),
    "--bs": ("--batch-size",),
    "--num-epochs": ("--epochs",),
    "--n-epochs": ("--epochs",),
    "--max-epochs": ("--epochs",),
    "--eps": ("--epsilon", "--eps"),
    "--epsilon": ("--epsilon", "--eps"),
    "--threat": ("--norm", "--eps NORM=VALUE", "--threat-model"),
    "--norm": ("--norm", "--eps NORM=VALUE"),
    "--num-steps": ("--attack-steps", "--suite FILE.json"),
    "--steps": ("--attack-steps", "--suite FILE.json"),
    "--attack-iters": ("--attack-steps", "--suite FILE.json"),
    "--step-size": ("--attack-step", "--suite FILE.json"),
    "--alpha": ("--attack-step", "--suite FILE.json"),
    "--attack": ("--suite",),
    "--attacks": ("--suite",),
    "--version": ("--suite",),
    "--arch": ("--backbone", "--model"),
    "--architecture": ("--backbone", "--model"),
    "--network": ("--backbone", "--model"),
    "--net": ("--backbone", "--model"),
    "--model": ("--model", "--backbone"),
    "--model-name": ("--backbone", "--model"),
    "--method": ("--defense", "--defenses"),
    "--loss": ("--defense", "--defenses", "--adaptive"),
    "--beta": ("--set beta=VALUE",),
    "--lambda": ("--set lambda=VALUE",),
    "--hyperparameter": ("--set",),
    "--ema": ("--average ema", "--checkpoint average"),
    "--swa": ("--average swa", "--checkpoint average"),
    "--val": ("--holdout",),
    "--val-size": ("--holdout",),
    "--pretrained": ("--start", "--weights"),
    "--init": ("--start",),
    "--checkpoint": ("--checkpoint", "--start"),
    "--config": ("--recipe", "--suite"),
    "--gpu": ("--device",),
    "--cuda": ("--device",),
    "--amp": ("--precision bf16",),
    "--fp16": ("--precision bf16",),
    "--bf16": ("--precision bf16",),
    "--data-dir": ("--data",),
    "--data-path": ("--data",),
    "--root": ("--data",),
    "--output": ("--out", "--runs"),
    "--output-dir": ("--out", "--runs"),
    "--save-dir": ("--out", "--runs"),
    "--n-ex": ("--limit", "--limit-train"),
    "--n-examples": ("--limit", "--limit-train"),
    "--num-examples": ("--limit", "--limit-train"),
}
"""Names of options in the field's programs, and what does the same here: of several, the first that a command has."""


class Command(click.Command):
    """A command whose --help shows what matters first, and whose --help-all shows all options in titled groups."""

    def __init__(
        self, *arguments: Any, first: Sequence[str] = (), groups: Mapping[str, Sequence[str]] | None = None, **rest: Any
    ) -> None:
        """`first` and `groups` name parameters, the latter by title, also as patterns; without them, click's help."""
        super().__init__(*arguments, **rest)
        self.first, self.groups = first, groups or {}
        if self.groups:
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_show_everything,
                    help="Show every option, and exit.",
                )
            )

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            name = error.option_name
            flags = {flag for parameter in self.params for flag in parameter.opts}
            usual = name.lower().replace("_", "-")
            ours = next((one for one in (usual, *USUAL_NAMES.get(usual, ())) if one.split()[0] in flags), None)
            if ours is None:
                raise
            raise click.NoSuchOption(name, f"No such option {name!r}. Here it is {ours}.", ctx=context) from error

    def format_help(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.groups or context.meta.get(_EVERYTHING):
            super().format_help(context, formatter)
            return
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.format_usage(context, formatter)
        _write(formatter, paragraphs[0])
        _write_options(context, formatter, "Options that matter first", self._named(self.first))
        _write(formatter, *(text for text in paragraphs[1:] if text.startswith("\b")))
        _write(formatter, f"All options, and more on what the command does: {context.command_path} --help-all")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.groups:
            super().format_options(context, formatter)
            return
        grouped = {title: list(self._named(patterns)) for title, patterns in self.groups.items()}
        known = [parameter for parameters in grouped.values() for parameter in parameters]
        rest = (parameter for parameter in self.get_params(context) if isinstance(parameter, click.Option))
        grouped["Other"] = [parameter for parameter in rest if parameter not in known]
        for title, parameters in grouped.items():
            _write_options(context, formatter, title, parameters)

    def _named(self, patterns: Iterable[str]) -> Iterator[click.Parameter]:
        """The parameters that patterns match, in the order of the patterns."""
        for pattern in patterns:
            yield from (parameter for parameter in self.params if fnmatchcase(str(parameter.name), pattern))


def _show_everything(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        context.meta[_EVERYTHING] = True
        echo(context.get_help())
        context.exit()


def _write(formatter: click.HelpFormatter, *paragraphs: str) -> None:
    for text in paragraphs:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)


def _write_options(
    context: click.Context, formatter: click.HelpFormatter, title: str, parameters: Iterable[click.Parameter]
) -> None:
    records = [record for parameter in parameters if (record := parameter.get_help_record(context))]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)
