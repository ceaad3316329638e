"""The command line, called in this process."""

from typing import Any

from click.testing import CliRunner

from bench.cli import group


def bench(*arguments: Any) -> tuple[int, str]:
    """Exit code and output of `bench ARGUMENTS`; an exception that is no exit is raised."""
    outcome = CliRunner().invoke(group, [str(argument) for argument in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def refused(*arguments: Any, code: int = 2) -> str:
    """The one line with which `bench ARGUMENTS` is refused."""
    found, output = bench(*arguments)
    assert (found, output.count("\n")) == (code, 1), output
    assert output.startswith("Error: ")
    return output.removeprefix("Error: ").strip()
