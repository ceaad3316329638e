"""Jobs that leave files behind, run in order on an engine. Nothing is known of them but these files.

A job is a command line of this program. It is done when its result is on disk, whoever wrote it; so a stopped set of
jobs can be started again anywhere, and only what is missing runs.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.errors import BenchError
from bench.experiments.executors import Engine, Handle
from bench.launching import job_command

TRIES = 3


@dataclass(frozen=True)
class Job:
    """A command, and how to see that it is done."""

    name: str
    arguments: tuple[str, ...]
    """Of the program: train, --defense, ..."""
    done: Callable[[], bool]
    """True if the result is on disk; asked only once the jobs before it are done. Raises BenchError: it never will."""
    after: tuple[str, ...] = ()
    """Names of the jobs before it."""
    stage: str = ""
    """One of `executors.STAGES`."""
    leaves: Path | None = None
    """A run folder, or a result file."""
    shard: tuple[int, int] = (0, 1)
    """Which part of an evaluation it is."""

    def log(self, folder: Path) -> Path:
        """The file that its output goes to."""
        return log_file(self.name, folder)

    def command(self, folder: Path, threads: int) -> list[str]:
        """The words that an engine starts."""
        return job_command(str(self.log(folder)), self.arguments, os.environ.get("OMP_NUM_THREADS") or threads)


def log_file(name: str, folder: Path) -> Path:
    """Where a job of this name says what it does."""
    return folder / f"{'-'.join(name.replace('/', ' ').split())}.log"


class Schedule:
    """Runs jobs after those they need, tries a failing one again, and goes on without it in the end."""

    def __init__(
        self,
        jobs: Iterable[Job],
        engine: Engine,
        logs: Path,
        say: Callable[[str], None],
        note: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        self.waiting = {job.name: job for job in jobs}
        self.engine, self.logs, self.say, self.total = engine, logs, say, len(self.waiting)
        self.running: dict[str, tuple[Job, Handle, float]] = {}
        self.finished: set[str] = set()
        self.failures: dict[str, str] = {}
        """Why a job failed, and every job that needs it, by name."""
        self.tries: Counter[str] = Counter()
        self.note = note
        """Told the name and the reason of each failure."""

    def run(self) -> Mapping[str, str]:
        """Run everything; returns why jobs failed, by name."""
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            while self.waiting or self.running:
                self.start()
                self.collect()
        finally:
            self.engine.close()
        return self.failures

    def start(self) -> None:
        """Hand over what is ready, as far as the engine has room."""
        room = len(self.waiting) if self.engine.limit is None else self.engine.limit - len(self.running)
        started = list(islice(self.ready(), room))
        if not started:
            return
        for stage, jobs in by_stage(started, self.engine).items():
            threads = self.engine.threads_of(stage)
            handles = self.engine.start([job.command(self.logs, threads) for job in jobs], stage)
            for job, handle in zip(jobs, handles, strict=True):
                del self.waiting[job.name]
                self.tries[job.name] += 1
                self.running[job.name] = job, handle, time.monotonic()
                self.report(job, "started" if self.tries[job.name] == 1 else f"try {self.tries[job.name]} of {TRIES}")

    def ready(self) -> Iterator[Job]:
        """Jobs that are not done, and whose predecessors are; what is found done is struck off on the way."""
        for job in sorted_by_need(self.waiting.values()):
            lost = [name for name in job.after if name in self.failures]
            if lost:
                self.give_up(job, f"needs {lost[0]}")
            elif self.finished.issuperset(job.after):
                if self.is_done(job):
                    self.finished.add(self.waiting.pop(job.name).name)
                elif job.name not in self.failures:
                    yield job

    def is_done(self, job: Job) -> bool:
        """True if its result is on disk; a job that cannot ever be done is given up."""
        try:
            return job.done()
        except BenchError as error:
            self.give_up(job, str(error))
            return False

    def collect(self) -> None:
        """Look at what has ended; wait a little if nothing has."""
        ended = [entry for entry in self.running.values() if entry[1].done()]
        if self.running and not ended:
            time.sleep(self.engine.pause)
        for job, handle, started in ended:
            del self.running[job.name]
            if self.is_done(job):
                self.finished.add(job.name)
                self.report(job, f"done in {time.monotonic() - started:.0f} s")
            elif job.name not in self.failures:
                self.failed(job, _ending(handle))

    def failed(self, job: Job, ending: str) -> None:
        """Line the job up again, or give it up."""
        if self.tries[job.name] < TRIES:
            self.waiting[job.name] = job
            self.report(job, f"{ending}; once more")
        else:
            log = job.log(self.logs)
            self.give_up(job, f"failed {TRIES} times, see {log} (at the end: {ending}{_last_line(log)})")

    def give_up(self, job: Job, reason: str) -> None:
        """Go on without it."""
        self.waiting.pop(job.name, None)
        self.failures[job.name] = reason
        self.note(job.name, reason)
        self.report(job, reason)

    def report(self, job: Job, what: str) -> None:
        """One line."""
        self.say(f"[{len(self.finished)}/{self.total}] {job.name}: {what}")


def by_stage(jobs: Iterable[Job], engine: Engine) -> dict[str, list[Job]]:
    """The jobs that an engine gives the same, by the stage whose resources they are; empty: those of every job."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.stage if job.stage in engine.stages else "", []).append(job)
    return found


def sorted_by_need(jobs: Iterable[Job]) -> list[Job]:
    """The same jobs, each behind those it needs; otherwise in their order."""
    left, ordered = {job.name: job for job in jobs}, []
    while left:
        free = [job for job in left.values() if not left.keys() & set(job.after)]
        if not free:
            raise ValueError(f"jobs need each other: {', '.join(left)}")
        ordered += free
        left = {job.name: job for job in left.values() if left.keys() & set(job.after)}
    return ordered


def waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that are missing on disk, in sets that can run at the same time."""
    missing: dict[str, int] = {}
    for job in sorted_by_need(jobs):
        before = [missing[name] for name in job.after if name in missing]
        if before or not job.done():
            missing[job.name] = max(before, default=-1) + 1
    return [[job for job in jobs if missing.get(job.name) == depth] for depth in sorted(set(missing.values()))]


def _ending(handle: Handle) -> str:
    """How a command ended, in words."""
    try:
        code = handle.result()
    except Exception as error:  # every engine has errors of its own for a lost machine
        return f"lost ({type(error).__name__})"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}" if code else "left no result"


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f", {lines[-1].strip()}" if lines else ""
