"""The command line: one file per command, found by file name and imported only when it runs."""

import ast
import errno
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

import bench
from bench.errors import BenchError, system_refusal, unknown_name
from bench.interop import robustbench as robustbench_package
from bench.system.signals import Terminated, listen
from bench.system.streams import outliving_its_reader, replace_missing
from bench.text import one_line, printable


def echo(text: object = "", err: bool = False, mark: str = "", **style: Any) -> None:
    """Print text, behind a mark that is styled as by `click.style`; control characters in them do nothing."""
    with outliving_its_reader() if err else nullcontext():
        click.echo((click.style(printable(mark), **style) if mark else "") + printable(text), err=err)


class Refusal(click.ClickException):
    """The end of a command that met a `BenchError`: one line, and the exit code of bad usage."""

    exit_code = 2


class Interruption(click.ClickException):
    """The end of a command at Ctrl-C (exit code 130) or SIGTERM (143): what is kept and how to go on."""

    def __init__(self, cause: KeyboardInterrupt) -> None:
        terminated = isinstance(cause, Terminated)
        self.exit_code = 143 if terminated else 130  # type: ignore[misc]
        super().__init__(
            f"{'terminated' if terminated else 'interrupted'}. Finished epochs and finished blocks are on disk: "
            "`bench train --resume` goes on with a training, the same command with an evaluation, a sweep, a "
            "reproduction or corruptions."
        )


@contextmanager
def one_line_each() -> Iterator[None]:
    """Whatever a person can mend ends in one line."""
    try:
        yield
    except click.ClickException as error:
        error.message = one_line(error.message)  # type: ignore[misc]
        raise
    except KeyboardInterrupt as error:
        raise Interruption(error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # whoever read the output has gone, which click knows
        refusal = error if isinstance(error, BenchError) else system_refusal(error)
        if refusal is None:
            raise
        raise Refusal(one_line(refusal)) from error


class LazyGroup(click.Group):
    """Commands are the files of this folder; `bench --help` imports none of them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(_files())

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        files = _files()
        if name not in files:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{files[name]}").command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0] if arguments else ""
        if name and not name.startswith("-") and name not in self.list_commands(context):
            raise click.UsageError(str(unknown_name("command", name, self.list_commands(context))))
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in self.list_commands(context)])

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with one_line_each():
            return super().make_context(*arguments, **options)

    def invoke(self, context: click.Context) -> object:
        with one_line_each():
            return super().invoke(context)


def _files() -> dict[str, str]:
    """File names without ending, by command."""
    return {
        item.name.rstrip("_").replace("_", "-"): item.name
        for item in pkgutil.iter_modules(__path__)
        if item.name[0] != "_"
    }


def _summary(name: str) -> str:
    """The first line of a command's file, read without importing it."""
    path = Path(__file__).with_name(f"{_files()[name]}.py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(bench.__version__, prog_name="bench")
def group() -> None:
    """A benchmark for adversarially trained image classifiers.

    \b
    bench train --defense adv-dpnp                      one defense, the shared protocol
    bench eval runs/cifar10/resnet18/adv-dpnp/seed-0 --suite full
    bench leaderboard runs/cifar10/*/*/*/results/full-v3.h5
    bench demo                                          all of it, small, on data that is already here
    """


def main() -> None:
    """Entry point of the `bench` command."""
    replace_missing()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a terminal may know few characters
    listen()
    robustbench_package.install()  # for models whose code imports robustbench or autoattack
    group.main(prog_name="bench")
