"""Signs of life: a small file that says who works on what, since when and how far; `bench status` reads it.

It comes after a second, is written anew every ten, and is gone when the work is done or was stopped. One that has
become old is of a process that was killed; one of work that failed says why.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bench.errors import BenchError, cause
from bench.system.files import write_text

FIRST, EVERY = 1.0, 10.0
"""Seconds until the file is written first, and between two times: what is over sooner leaves no file."""
STALE = 120.0
"""Seconds after which a sign is old: file systems of networks show files late."""


def sign_of_training(folder: Path) -> Path:
    """Where the training of a run folder gives signs of life."""
    return folder / ".status.json"


def sign_of_evaluation(result: Path, shard: tuple[int, int] = (0, 1)) -> Path:
    """Where the evaluation that writes a result, or one of its shards, does."""
    part = "" if shard == (0, 1) else f".{shard[0]}-of-{shard[1]}"
    return result.parent / f".{result.name}{part}.status.json"


class Heartbeat:
    """Writes the file from a thread of its own, so that a long step or block is no silence. Without a path: nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, float | None] = {}
        self.started = time.time()
        self.is_written = False
        self.stopped, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)

    def tell(self, done: int, total: int, images: float | None, left: float | None) -> None:
        """How far the work is: so many of its epochs or blocks, images a second, and seconds left; None: not known."""
        self.known = {"done": done, "total": total, "images": images, "left": left}

    def __enter__(self) -> "Heartbeat":
        if self.path is not None:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.path is None:
            return
        self.stopped.set()
        self.ended.wait()  # join alone, interrupted by Ctrl-C, takes a thread that runs for one that has ended
        self.thread.join()
        if isinstance(error, Exception) and self.is_written:
            self._write(str(error) if isinstance(error, BenchError) else cause(error))
        else:
            with suppress(OSError):
                self.path.unlink()

    def _go_on(self) -> None:
        pause = FIRST
        try:
            while not self.stopped.wait(pause):
                self._write()
                pause = EVERY
        finally:
            self.ended.set()

    def _write(self, error: str = "") -> None:
        assert self.path is not None
        who = {"host": socket.gethostname(), "pid": os.getpid(), "started": self.started, "updated": time.time()}
        with suppress(BenchError):  # what cannot say how far it is goes on all the same
            write_text(self.path, json.dumps({"version": 1, **who, **self.known, "error": error}) + "\n", durable=False)
            self.is_written = True
