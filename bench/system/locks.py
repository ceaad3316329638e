"""One writer per folder: the kernel holds the lock, and drops it when its owner dies; the file names the owner.

Where the kernel's locks are those of one host alone (`bench.system.mounts`), or there are none, the file itself is the
lock: it comes into being with its owner's name in it, for one process only, and no host takes over another one's.
"""

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TextIO

from bench.errors import BenchError
from bench.system.files import cannot_write
from bench.system.mounts import flock_spans_hosts
from bench.text import time_text

LOCK_FILE = ".lock"
ONE_JOB = "BENCH_ONE_JOB"
"""Set where a job of a sweep holds a lock that spans hosts: what another host left here is then stale."""


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; what a dead process of this host left of one is taken over.

    Raises:
        BenchError: another process holds it, or one of another host left it; or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _taken(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        # Before the lock goes: who opened the file meanwhile sees that it is not the one at this path any more.
        with suppress(OSError):
            path.unlink()
        file.close()


def _taken(path: Path) -> TextIO:
    while True:
        spans = flock_spans_hosts(path.parent)
        if not spans and (mine := _created(path)):
            return mine
        with suppress(FileNotFoundError):
            file = path.open("a+" if spans else "r+", encoding="utf-8")
            try:
                owner = _owner(file)
                if not _free(file, owner, spans):
                    raise _refusal(path, owner)
                if _is_at(file, path):
                    _sign(file, path)
                    return file
            except BaseException:
                file.close()
                raise
            file.close()


def _created(path: Path) -> TextIO | None:
    """The file, made with this process's name in it; None where there is one already."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with ExitStack() as undone:
            undone.callback(temporary.unlink, missing_ok=True)
            file = temporary.open("x+", encoding="utf-8")
            with ExitStack() as closed:
                closed.callback(file.close)
                _sign(file, temporary)
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.link(temporary, path)
                closed.pop_all()
            return file
    except FileExistsError:
        return None
    except OSError:  # there are no links: until it is signed, it is nobody's that could be asked
        with suppress(FileExistsError):
            file = path.open("x+", encoding="utf-8")
            _sign(file, path)
            return file
    return None


def _sign(file: TextIO, path: Path) -> None:
    since = time_text()
    try:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        file.flush()
    except OSError:
        path.unlink()
        raise


def _is_at(file: TextIO, path: Path) -> bool:
    """True if the file is still at its path, which its last owner removes."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _owner(file: TextIO) -> Mapping[str, Any]:
    """Who wrote the file last; nothing known where it is empty or damaged."""
    file.seek(0)
    with suppress(ValueError, RecursionError):
        owner = json.loads(file.read(1000))
        if isinstance(owner, dict):
            return owner
    return {}


def _free(file: TextIO, owner: Mapping[str, Any], spans: bool = True) -> bool:
    """True if this process may have the lock; the kernel's is then held from here on, where there is one."""
    here = owner.get("host", socket.gethostname() if spans else None) == socket.gethostname()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the process is all there is to ask, and only this host's can be
        return here and not is_running(owner.get("pid"))
    return here or (spans and ONE_JOB in os.environ)


def is_stale(path: Path) -> bool:
    """True if a lock is what a dead process of this host left."""
    with suppress(OSError), path.open("r+", encoding="utf-8") as file:
        owner = _owner(file)
        return not is_running(owner.get("pid")) and _free(file, owner, spans=False)
    return False


def is_running(pid: Any) -> bool:
    """True if there is a process of this number on this host."""
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _refusal(path: Path, owner: Mapping[str, Any]) -> BenchError:
    name = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this host')}{_age(owner.get('since'))}"
    return BenchError(f"{path.parent} is in use by {name}. Wait for it or stop it; if it is gone, delete {path}.")


def _age(since: Any) -> str:
    try:
        seconds = round((datetime.now(timezone.utc) - datetime.fromisoformat(since)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return ""
    # A clock that was set back must not show an age below 0.
    return f", since {since} ({timedelta(seconds=max(0, seconds))})"
