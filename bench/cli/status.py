"""How far runs are: jobs that wait, run, are done or failed, and the time that is left."""

import dataclasses
import json
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli import echo
from bench.cli._options import PATH

if TYPE_CHECKING:
    from bench.experiments.status import JobStatus, Status

WIDTH = 80
SECONDS = 5.0
"""Between two looks."""
MOST = 10
"""Jobs that wait or are done which are named; failed and running ones all are."""


@click.command()
@click.argument("runs", type=PATH, default=Path("runs"))
@click.option("--once", is_flag=True, help="Look once.  [default: every few seconds on a terminal, until nothing runs]")
@click.option("--json", "as_json", is_flag=True, help="For machines: all that is known of every job, once.")
def command(runs: Path, once: bool, as_json: bool) -> None:
    """Show how far the trainings and evaluations below the folder RUNS are.

    Files alone are read: it works while the sweep is dead, from any machine that sees them, and for runs that were
    started by hand. A training or evaluation gives a sign of life every ten seconds; one without any for two minutes,
    or whose process is gone, was killed. Who gives the same command again goes on with it.

    \b
    bench status runs
    bench status runs --json
    """
    from bench.experiments.status import survey

    if as_json:
        now = time.time()
        echo(json.dumps(plain(survey(runs, now), now), indent=2))
        return
    once = once or not sys.stdout.isatty()
    while True:
        found = survey(runs)
        if not once:
            click.clear()
        for line in lines(found, time.time()):
            echo(line)
        if once or not (found.counts()["running"] or any(sweep.is_there for sweep in found.sweeps)):
            return
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            return


def plain(found: "Status", now: float) -> dict[str, object]:
    """All that is known, as JSON has it; times are in seconds, moments since 1970."""
    left, is_lower = found.left()
    return {
        **{"version": 1, "now": now, "counts": found.counts(), "left": left, "left_is_a_lower_bound": is_lower},
        "sweeps": [{**dataclasses.asdict(sweep), "path": str(sweep.path)} for sweep in found.sweeps],
        "jobs": [dataclasses.asdict(job) for job in found.jobs],
    }


def lines(found: "Status", now: float) -> Iterator[str]:
    """What a person is shown, in lines of at most 80 columns: first a sentence, then job by job."""
    from bench.experiments.status import STATES

    yield from textwrap.wrap(sentence(found), WIDTH)
    for sweep in found.sweeps:
        who = f"process {sweep.pid} on {sweep.host}"
        told = {
            True: f"The sweep is {who}, since {moment(sweep.since, now)}.",
            False: f"The sweep was {who}, which is gone: give its command again to go on.",
            None: f"The sweep was started {moment(sweep.since, now)} as {who}.",
        }
        yield from textwrap.wrap(told[sweep.is_there], WIDTH)
    if not found.is_whole:
        yield "There are more folders than are looked into: give one further down."
    for state in STATES:
        jobs = [job for job in found.jobs if job.state == state]
        if jobs:
            yield ""
        few = jobs if state in ("failed", "running") else jobs[:MOST]
        for job in few:
            yield f"{state:8} {shortened(job.name)}"
            yield from details(job, now)
        if len(few) < len(jobs):
            yield f"{state:8} {len(jobs) - len(few)} more (--json names all)"


def sentence(found: "Status") -> str:
    """How many jobs are done, run, failed and wait, and how much time is left."""
    if not found.jobs:
        return "There are no runs here yet."
    counts = found.counts()
    parts = [f"{counts['done']} of {len(found.jobs)} jobs done"]
    parts += [f"{counts[state]} {state}" for state in ("running", "failed", "waiting") if counts[state]]
    left, is_lower = found.left()
    if counts["running"]:
        least = "at least" if is_lower else "about"
        parts.append("time left unknown" if left is None else f"{least} {duration(left)} left")
    return f"{', '.join(parts)}."


def details(job: "JobStatus", now: float) -> Iterator[str]:
    """The lines below the name of a job."""
    parts = [job.reason] if job.reason else []
    if job.state != "done" and job.done is not None:
        parts.append(f"{job.unit} {job.done} of {job.total} done" if job.total else f"{job.done} {job.unit}s kept")
    if job.state == "running":
        parts += [] if job.images is None else [f"{job.images:,.0f} images/s"]
        parts += [] if job.left is None else [f"{duration(job.left)} left"]
    if job.state in ("running", "failed") and job.host is not None:
        parts.append(f"{job.host}:{job.pid}" + ("" if job.since is None else f" since {moment(job.since, now)}"))
        parts += [] if job.heard is None else [f"heard {duration(job.heard)} ago"]
    indent = " " * 9
    yield from textwrap.wrap(", ".join(parts), WIDTH, initial_indent=indent, subsequent_indent=indent)
    for line in job.log:
        yield f"{indent}| {line}"[:WIDTH]


def shortened(name: str) -> str:
    """A name of a job in what is left of a line; its end tells more than its middle."""
    most = WIDTH - 9
    return name if len(name) <= most else f"{name[:10]}...{name[-(most - 13) :]}"


def duration(seconds: float) -> str:
    """Seconds for a person: 40 s, 12 min, 3.5 h, 2.0 days."""
    for least, size, unit, digits in ((172800, 86400, "days", 1), (5400, 3600, "h", 1), (90, 60, "min", 0)):
        if seconds >= least:
            return f"{seconds / size:,.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def moment(since: float, now: float) -> str:
    """A time of the day, or a date where it was on another."""
    try:
        then, today = time.localtime(since), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "an unknown time"
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)
