"""Say whether the numbers of a result file can be believed."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import PATH, text_width

_TEXTS = ("name", "message", "meaning", "advice")
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan", "passed": "green"}


@click.command()
@click.argument("result", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON, for programs.")
def command(result: Path, as_json: bool) -> None:
    """Show the trust report of a RESULT file: the verdict, then every check, what it saw, and what that means.

    \b
    ✓ passed     the check looked and found nothing
    · note       worth knowing; the number stands
    ! warning    the number may be too high
    ✗ error      the number cannot be believed; the row is not ranked

    Checks on outcomes are made anew from the file; those that need the model are as `bench eval` stored them. Exit
    code 1 where there is an error.

    \b
    bench trust runs/digits/cnn-small/at/seed-0/results/full-v3.h5
    """
    import json

    from bench.results.file import read_result
    from bench.trust.outcome_checks import reassessed

    read = read_result(result)
    findings = reassessed(read)
    if as_json:
        echo(json.dumps(findings, indent=2, sort_keys=True))
    else:
        show_verdict(read, findings)
        show_report(findings, everything=True)
    if any(finding.get("severity") == "error" for finding in findings):
        raise SystemExit(1)


def show_verdict(result: Any, findings: Sequence[Mapping[str, Any]]) -> None:
    """Print in one line whether the numbers of a result can be believed, by its findings; in colour on a terminal."""
    from bench.leaderboard.tables.rows import trust_of
    from bench.leaderboard.wording.marks import trust_verdict

    trust = trust_of([result], findings)
    verdict, counts = trust_verdict(trust, findings)
    echo(counts, mark=verdict, fg=_COLOURS.get(trust, "white"), bold=True)


def show_report(findings: Sequence[Mapping[str, Any]], everything: bool, to_errors: bool = False) -> None:
    """Print findings, the worst first; passed ones on request."""
    from bench.leaderboard.wording.marks import MARKS
    from bench.text import one_line

    said, width = partial(echo, err=to_errors), text_width()
    indent = " " * 27
    beside = partial(textwrap.fill, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    for finding in findings:
        severity = str(finding.get("severity"))
        if severity == "passed" and not everything:
            continue
        mark = MARKS.get(severity, MARKS["unchecked"])
        name, message, meaning, advice = (one_line(str(finding.get(key))) for key in _TEXTS)
        # In a pipe or a file a finding is one line.
        text = message if width is None else beside(message, width).lstrip()
        said(f" {name:24} {text}", mark=mark, fg=_COLOURS.get(severity, "white"))
        if severity in ("error", "warning"):
            for text in (f"{meaning}.", f"To do: {advice}."):
                said(beside(text, min(width or 100, 100)))
    serious = [one_line(one.get("name")) for one in findings if one.get("severity") in ("error", "warning")]
    if serious:
        said(f"Repair the first one first. Why: bench explain {serious[0]}")
