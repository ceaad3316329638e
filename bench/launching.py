"""How further processes of this program start: from its own files, and with nothing of the current folder."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_THREADS = "OMP_NUM_THREADS"
_SAFE_PATH = "PYTHONSAFEPATH"
_MAIN = Path(__file__).resolve().with_name("__main__.py")


def program() -> list[str]:
    """The words of a command that starts this program once more.

    They name a file, because `python -m` looks into the current folder before any code of ours runs.
    """
    return [sys.executable, str(_MAIN)]


def job_command(log: str, arguments: Sequence[str], threads: int | str) -> list[str]:
    """The words that start a job of a sweep. `env` sets variables on machines that have an environment of their own."""
    return ["env", f"{_THREADS}={threads}", *program(), "--job", log, *arguments]


def job_in(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """The variable that a `job_command` sets, and its words behind `--job`; None: it is another command."""
    before = ["env", *command[1:2], *program(), "--job"]
    if list(command[: len(before)]) != before or not command[1].startswith(f"{_THREADS}="):
        return None
    return command[1], list(command[len(before) :])


@contextmanager
def multiprocessing_starts() -> Iterator[None]:
    """Processes that multiprocessing starts in here find this program, also in a checkout that is not installed.

    Python 3.10 knows no way to keep the current folder out: a file there that is named like a module of the standard
    library is taken for it.
    """
    before, path = os.environ.get(_SAFE_PATH), list(sys.path)
    os.environ[_SAFE_PATH] = "1"
    sys.path.append(str(_MAIN.parent.parent))
    try:
        yield
    finally:
        sys.path[:] = path
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
