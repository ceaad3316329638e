"""The jobs of a sweep as a file beside their logs, for `bench status`: what is to do, who does it, what failed."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.errors import BenchError
from bench.experiments.executors import STAGES
from bench.experiments.jobs import Job
from bench.system.budgets import read_json
from bench.system.files import content_digest, write_text
from bench.text import one_line

ENDING = ".sweep.json"


class JobListFile:
    """Written when a sweep starts, at each failure, and at its end; a sweep goes on where that cannot be."""

    def __init__(self, logs: Path, runs: Path, jobs: Sequence[Job]) -> None:
        self.path = logs / f"{content_digest([job.name for job in jobs])[:8]}{ENDING}"
        self.content: dict[str, Any] = {
            **{"version": 1, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "ended": None},
            "jobs": [
                {"name": job.name, "stage": job.stage, "leaves": _below(runs, job.leaves), "shard": list(job.shard)}
                for job in jobs
            ],
            "failures": {},
        }

    def __enter__(self) -> "JobListFile":
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.content["ended"] = time.time()
        self._write()

    def note(self, name: str, reason: str) -> None:
        """A job is given up."""
        self.content["failures"][name] = reason
        self._write()

    def _write(self) -> None:
        with suppress(BenchError):
            write_text(self.path, json.dumps(self.content) + "\n", durable=False)


def _below(runs: Path, leaves: Path | None) -> str | None:
    """As a path below the folder of the runs, wherever that is moved."""
    return leaves.relative_to(runs).as_posix() if leaves is not None and leaves.is_relative_to(runs) else None


@dataclass(frozen=True)
class ListedJob:
    """A job of a list on disk."""

    name: str
    stage: str
    leaves: Path
    """A run folder, or a result file; below the folder of the runs, as a path in it."""
    shard: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class JobList:
    """The list of one sweep, as it was found on disk."""

    path: Path
    host: str
    pid: int
    started: float
    ended: float | None
    """None: it goes on, or was killed."""
    jobs: tuple[ListedJob, ...]
    failures: Mapping[str, str] = field(default_factory=dict)


def read_job_lists(logs: Path) -> list[JobList]:
    """The lists in a folder of logs, the newest last; files that are none are passed over, and so are single jobs."""
    found = []
    for path in sorted(logs.glob(f"*{ENDING}")):
        with suppress(OSError, BenchError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            found.append(_job_list(path, read_json(path)))
    return sorted(found, key=lambda one: one.started)


def _job_list(path: Path, content: Mapping[str, Any]) -> JobList:
    ended = content["ended"]
    return JobList(
        path,
        one_line(content["host"])[:100],
        int(content["pid"]),
        float(content["started"]),
        None if ended is None else float(ended),
        tuple(job for entry in content["jobs"] for job in _listed(entry)),
        {str(name): one_line(reason)[:2000] for name, reason in dict(content["failures"]).items()},
    )


def _listed(entry: Any) -> list[ListedJob]:
    """The job of an entry; none where it is damaged, or would lead out of the folder."""
    with suppress(ValueError, TypeError, KeyError):
        leaves, stage, (number, count) = Path(entry["leaves"]), entry["stage"], entry["shard"]
        if stage in STAGES and not leaves.is_absolute() and ".." not in leaves.parts:
            return [ListedJob(one_line(entry["name"])[:500], stage, leaves, (int(number), int(count)))]
    return []
