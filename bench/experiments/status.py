"""How far runs are, from files alone: the lists of sweeps, signs of life, locks, logs, checkpoints and results.

Nothing that is read is trusted: it has a size that is taken, a type, and is shown as text on a line.
"""

import fcntl
import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from bench.catalogue.names import ADVERSARIALS, CHECKPOINTS
from bench.errors import BenchError
from bench.experiments.job_list import JobList, ListedJob, read_job_lists
from bench.experiments.jobs import log_file
from bench.system.blocks import is_finished, parts_folders
from bench.system.budgets import read_json, require_file
from bench.system.heartbeat import STALE, sign_of_evaluation, sign_of_training
from bench.system.locks import LOCK_FILE, is_running
from bench.text import one_line

STATES = ("failed", "running", "waiting", "done")
MOST_FOLDERS = 100_000
"""Folders that are looked into."""
_SEEN = 4000
"""Bytes of the beginning and of the end of a log that are looked at."""
_LINES = 3
_RUN_FILES = frozenset({*CHECKPOINTS, LOCK_FILE, "history.jsonl", "training_state.pt", ".status.json"})
_BLOCK = "[0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9]"
"""Names of parts begin so: of a block, or of a piece of one."""
_UNREADABLE = (OSError, BenchError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class JobStatus:
    """A training or an evaluation, and how far it is; None: not known."""

    name: str
    stage: str
    state: str
    """One of STATES; what was stopped and can go on is waiting."""
    host: str | None = None
    pid: int | None = None
    since: float | None = None
    """When this try began, in seconds since 1970."""
    heard: float | None = None
    """Seconds since its last sign of life."""
    unit: str = "epoch"
    """What `done` and `total` count: epochs or blocks."""
    done: int | None = None
    total: int | None = None
    images: float | None = None
    """A second."""
    left: float | None = None
    """Seconds."""
    reason: str = ""
    """Of a failure, or of what waits after one."""
    log: tuple[str, ...] = ()
    """The last lines of the log of a job with a reason."""


@dataclass(frozen=True)
class SweepStatus:
    """A sweep that was started, and whether its process is still there; None: it is another host's."""

    path: Path
    host: str
    pid: int
    since: float
    is_there: bool | None


@dataclass(frozen=True)
class Status:
    """All that a folder of runs holds."""

    jobs: tuple[JobStatus, ...]
    sweeps: tuple[SweepStatus, ...]
    """Those that have not ended."""
    is_whole: bool = True
    """False where there are more folders than are looked into."""

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {state: sum(job.state == state for job in self.jobs) for state in STATES}

    def left(self) -> tuple[float | None, bool]:
        """Seconds until all is done, and True if that is only the part of it that is known; None: nothing is known.

        A job that waits takes as long as those of its stage that run do in all, and as many run at once as now.
        """
        running = [job for job in self.jobs if job.state == "running"]
        waiting = Counter(job.stage for job in self.jobs if job.state == "waiting")
        known = [job for job in running if job.left is not None]
        took: dict[str, list[float]] = {}
        for job in known:
            if job.done is not None and job.total:
                took.setdefault(job.stage, []).append((job.left or 0.0) * job.total / max(job.total - job.done, 1))
        if not known:
            return (None, True) if running or waiting else (0.0, False)
        work = sum(job.left or 0.0 for job in known) + sum(
            count * mean(took[stage]) for stage, count in waiting.items() if stage in took
        )
        lower = len(known) < len(running) or not waiting.keys() <= took.keys()
        return max(work / len(running), *(job.left or 0.0 for job in known)), lower


def survey(runs: Path, now: float | None = None) -> Status:
    """The state of all jobs of sweeps below a folder, and of trainings and evaluations that were started by hand.

    Raises:
        BenchError: there is no such folder.
    """
    if not runs.is_dir():
        raise BenchError(f"there is no folder {str(runs)!r}. Give the folder of the runs, such as runs.")
    look = _Look(runs, time.time() if now is None else now)
    lists = read_job_lists(runs / "logs")
    found: dict[str, JobStatus] = {}
    for one in lists:
        for job in one.jobs:
            found[job.name] = look.at(job, one)
    folders, is_whole = _run_folders(runs)
    for folder in folders:
        for job in _by_hand(runs, folder):
            if job.name not in found:
                found[job.name] = look.at(job, None)
    sweeps = tuple(
        SweepStatus(one.path, one.host, one.pid, one.started, _is_there(one.host, one.pid))
        for one in lists
        if one.ended is None
    )
    return Status(tuple(found.values()), sweeps, is_whole)


class _Look:
    """A look at the files of jobs at a moment."""

    def __init__(self, runs: Path, now: float) -> None:
        self.runs, self.now = runs, now

    def at(self, job: ListedJob, sweep: JobList | None) -> JobStatus:
        """The state of a job, of a sweep or by hand."""
        place, log = self.runs / job.leaves, log_file(job.name, self.runs / "logs")
        if job.stage == "train":
            sign, owner = _Sign.read(sign_of_training(place)), _Sign.read(place / LOCK_FILE)
            done, total = _epochs(place)
            is_done = done is not None and done == total
        else:
            sign, owner = _Sign.read(sign_of_evaluation(place, job.shard)), None
            done, total = _kept_blocks(place), None
            is_done = _is_evaluated(place, job.shard)
        unit = "epoch" if job.stage == "train" else "block"
        known = JobStatus(job.name, job.stage, "waiting", unit=unit, done=done, total=total)
        if sign is not None and sign.is_young(self.now):
            return replace(known, state="running", **sign.facts(self.now))
        if is_done:
            return replace(known, state="done")
        # A lock without signs is of a process that just began, or of an older version of this program.
        if owner is not None and (owner.is_there() or (owner.is_there() is None and sign is None)):
            who = sign if sign is not None and sign.pid == owner.pid else owner
            return replace(known, state="running", **who.facts(self.now))
        if _is_held(log):
            return replace(known, state="running", **({} if sign is None else sign.facts(self.now)))
        return self._not_running(known, sign or owner, log, sweep)

    def _not_running(self, known: JobStatus, last: "_Sign | None", log: Path, sweep: JobList | None) -> JobStatus:
        """Of a job that is not done and that nobody works on: it waits, or has failed."""
        listed = sweep.failures.get(known.name, "") if sweep is not None else ""
        reason = listed
        if last is not None:
            known = replace(known, **{**last.facts(self.now), "images": None, "left": None})
            reason = reason or last.error or last.silence(self.now)
        elif sweep is not None and _written_since(log, sweep.started):
            reason = reason or "ended without a result"
        if not reason:
            return known
        if not listed and sweep is not None and sweep.ended is None and _is_there(sweep.host, sweep.pid):
            return replace(known, reason=f"{reason}; the sweep tries it again", log=_tail(log))
        return replace(known, state="failed", reason=reason, log=_tail(log))


@dataclass(frozen=True)
class _Sign:
    """A sign of life or a lock, as it was found on disk."""

    host: str
    pid: int
    started: float | None = None
    updated: float = -math.inf
    known: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @staticmethod
    def read(path: Path) -> "_Sign | None":
        """None: there is none that can be read."""
        with suppress(*_UNREADABLE):
            content = read_json(path)
            started = _moment(content.get("started", content.get("since")))
            updated = _number(content.get("updated"))
            pid = content["pid"]
            if not isinstance(pid, int):
                return None
            return _Sign(
                one_line(content["host"])[:100],
                pid,
                started,
                -math.inf if updated is None else updated,
                content,
                one_line(content.get("error", ""))[:2000],
            )
        return None

    def is_there(self) -> bool | None:
        """True if its process is; None: it is another host's."""
        return _is_there(self.host, self.pid)

    def is_young(self, now: float) -> bool:
        """True if whoever gave it lives, as far as can be known."""
        return not self.error and now - self.updated <= STALE and self.is_there() is not False

    def silence(self, now: float) -> str:
        """Why nobody who gave it lives."""
        who = f"process {self.pid} on {self.host}"
        if self.is_there() is False or not math.isfinite(self.updated):
            return f"{who} is gone, killed perhaps"
        return f"no sign of life of {who} for {round(now - self.updated)} s"

    def facts(self, now: float) -> dict[str, Any]:
        """The part of a `JobStatus` that it knows."""
        found: dict[str, Any] = {"host": self.host, "pid": self.pid, "since": self.started}
        found["heard"] = max(now - self.updated, 0.0) if math.isfinite(self.updated) else None
        found |= {name: value for name in ("done", "total") if (value := _count(self.known.get(name))) is not None}
        numbers = {name: _number(self.known.get(name)) for name in ("images", "left")}
        return found | {name: value for name, value in numbers.items() if value is not None and value >= 0}


def _number(value: Any) -> float | None:
    with suppress(TypeError, ValueError, OverflowError):
        number = float(value) if isinstance(value, int | float) else math.nan
        return number if math.isfinite(number) else None
    return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**53 else None


def _moment(value: Any) -> float | None:
    """Seconds since 1970, of a number or of a date in a text."""
    if isinstance(value, str):
        with suppress(ValueError, OverflowError, OSError):
            return datetime.fromisoformat(value).timestamp()
        return None
    return _number(value)


def _is_there(host: str, pid: int) -> bool | None:
    """True if a process of this host is there; None: it is another host's."""
    return is_running(pid) if host == socket.gethostname() else None


def _is_held(log: Path) -> bool:
    """True if a job holds the lock on its log: then it lives, wherever it does."""
    try:
        require_file(log)
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, BenchError):
        return False
    return False


def _written_since(log: Path, moment: float) -> bool:
    """True if a job that began since then wrote something into its log."""
    with suppress(OSError):
        found = log.stat()
        return found.st_size > 0 and found.st_mtime >= moment
    return False


def _tail(log: Path) -> tuple[str, ...]:
    """The last lines of a log that say something."""
    with suppress(OSError, BenchError):
        size = require_file(log)
        with log.open("rb") as file:
            file.seek(max(size - _SEEN, 0))
            text = file.read(_SEEN).decode("utf-8", errors="replace")
        lines = [line for part in re.split(r"[\r\n]", text) if (line := one_line(part))]
        return tuple(line[:500] for line in lines[-_LINES:])
    return ()


def _epochs(folder: Path) -> tuple[int | None, int | None]:
    """Epochs that the last checkpoint has, and that there will be."""
    with suppress(*_UNREADABLE):
        content = read_json(folder / "last" / "config.json")
        return _count(content["epoch"]), _count(content["protocol"]["epochs"])
    return None, None


def _is_evaluated(result: Path, shard: tuple[int, int]) -> bool:
    with suppress(OSError, ValueError):
        return result.is_file() or (shard != (0, 1) and is_finished(result, shard, None))
    return False


def _kept_blocks(result: Path) -> int | None:
    """Blocks of an evaluation that are kept until it is done; None: there are none."""
    with suppress(OSError, ValueError):
        return (
            sum(len({path.name[:9] for path in folder.glob(f"{_BLOCK}*.npz")}) for folder in parts_folders(result))
            or None
        )
    return None


def _run_folders(runs: Path) -> tuple[list[Path], bool]:
    """The run folders below a folder, and True if that are all of them."""
    found: list[Path] = []
    for number, (place, folders, files) in enumerate(os.walk(runs)):
        if number >= MOST_FOLDERS:
            return found, False
        if not _RUN_FILES.isdisjoint([*folders, *files]):
            found.append(Path(place))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found, True


def _by_hand(runs: Path, folder: Path) -> Iterator[ListedJob]:
    """The training of a run folder and the evaluations of its model, as a sweep would call them."""
    place = folder.relative_to(runs)
    shown = one_line(place.as_posix() if place.parts else folder.resolve().name)
    yield ListedJob(f"train {shown}", "train", place)
    results = {}
    with suppress(OSError):
        for path in sorted((folder / "results").iterdir()):
            named = re.fullmatch(r"\.?(.+?\.h5)(\..*)?", path.name)
            if named and not path.name.endswith((ADVERSARIALS, ".tmp")):
                results[named[1]] = path.with_name(named[1])
    for name, path in results.items():
        stem = one_line(name.removesuffix(".h5"))
        yield ListedJob(f"evaluate {shown} {stem}", "evaluate", path.relative_to(runs))
