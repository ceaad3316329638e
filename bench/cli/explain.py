"""Explain a check of the trust report, a term or a mark."""

import re
from collections.abc import Iterator

import click

from bench.cli import echo
from bench.cli._options import terminal_width
from bench.errors import BenchError, nearest_names

SIGNS = {"±": "interval", "†": "dagger"}
"""Terms that boards show as a sign."""
WIDEST = 100
"""Characters of a line of prose, at most."""


@click.command()
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """Say what a check of the trust report means, a term of boards and commands, or a mark. Without a NAME: which are.

    \b
    bench explain worst-case
    bench explain rank
    bench explain '!'
    """
    if name is None:
        for title, names in _listed():
            echo(mark=title, bold=True)
            echo(_filled(f"  {', '.join(names)}"))
        echo("Defenses, attacks, suites and recipes have pages of their own: bench list NAME")
        return
    found = list(explanations(name))
    if not found:
        raise BenchError(_unknown(name))
    for number, (title, lines) in enumerate(found):
        if number:
            echo()
        echo(mark=title, bold=True)
        for label, text in lines:
            echo(_filled(f"{label}: {text}"))


def explanations(name: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """All that is called so: a title each, and labelled sentences. Spelt in any case, with spaces or hyphens."""
    from bench.leaderboard.wording.marks import MARKS
    from bench.results.explanations import MARKED, TERMS
    from bench.results.findings import CHECKS

    name = SIGNS.get(name.strip(), _spelt(name))
    if name in CHECKS:
        yield f"{name}, a check of the trust report", _of_a_check(name)
    if name in TERMS:
        yield name, [("Means", TERMS[name])]
    for severity, mark in MARKS.items():
        if name in (severity, mark):
            yield f"{mark} {severity}, a mark", [("Means", f"{MARKED[severity]}.")]


def _of_a_check(name: str) -> list[tuple[str, str]]:
    from bench.results.explanations import STAGES
    from bench.results.findings import CHECKS
    from bench.trust.thresholds import THRESHOLDS

    check = CHECKS[name]
    lines = [("When it fires", f"{check.meaning}."), ("To do", f"{check.advice}.")]
    if check.where_gradients_hold:
        lines.append(("To do where no check says that gradients are wrong", f"{check.where_gradients_hold}."))
    lines += [("Fires beyond", f"{text}.") for names, text in THRESHOLDS.items() if name in names]
    for number, stage in enumerate(STAGES, start=1):
        if name in stage.checks:
            earlier = "" if number == 1 else " A fault of an earlier step raises checks of later ones: repair it first."
            lines.append(
                (f"Step {number} of {len(STAGES)}, {stage.title[0].lower()}{stage.title[1:]}", stage.text + earlier)
            )
    return lines


def _listed() -> list[tuple[str, list[str]]]:
    from bench.leaderboard.wording.marks import MARKS
    from bench.results.explanations import STAGES, TERMS
    from bench.results.findings import CHECKS

    staged = [(stage.title, stage.checks) for stage in STAGES]
    rest = [name for name in CHECKS if not any(name in checks for _, checks in staged)]
    marks = [f"{mark} {severity}" for severity, mark in MARKS.items()]
    steps = [(f"Checks {number}, {title}", names) for number, (title, names) in enumerate(staged, start=1)]
    return [*steps, ("Checks beside these", rest), ("Terms", list(TERMS)), ("Marks", [*marks, *SIGNS])]


def _unknown(name: str) -> str:
    from bench.cli.list_ import kinds_of

    names = dict.fromkeys(one.split()[-1] for _, names in _listed() for one in names)
    if kinds_of(_spelt(name)):
        return f"{name!r} is no check, term or mark, and has a page of its own: bench list {_spelt(name)}"
    return f"no check, term or mark is called {name!r}.{nearest_names(_spelt(name), names)} All of them: bench explain"


def _spelt(name: str) -> str:
    """A name as it is listed: without what stands in brackets, such as the norm of a column."""
    return re.sub(r"[\s_]+", "-", re.sub(r"\(.*?\)", "", name).strip().lower())


def _filled(text: str) -> str:
    from bench.leaderboard.render.plain import filled

    return filled(text, min(terminal_width(), WIDEST), "  ")
