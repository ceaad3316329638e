"""Jobs of a sweep, each in a process of its own: `bench --job LOG train --defense ...`.

The output of a job goes to the end of LOG. While it lives it holds a lock on that file, so that the same job never runs
twice at once, whoever starts it, on machines that share the file system (if that has locks). It ends when the process
that waits for it does, even if that is killed: then the pipe at its standard input closes.

Importing costs a process seconds. `bench --jobs` imports once, and forks a process for each job that it is asked for
(`bench.experiments.job_server` asks). It does nothing else: no thread, no CUDA and no parallel work of torch, which do
not survive a fork, are there before a job has its own process.
"""

import fcntl
import importlib
import json
import os
import platform
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.system.mounts import flock_spans_hosts

MOST = 2**17
"""Bytes of a request."""
_IMPORTED = (
    "bench.cli.train",
    "bench.cli.eval",
    "bench.cli.trust",
    "bench.training.train",
    "bench.evaluation.evaluate",
    "bench.leaderboard.render.verdict",
    "h5py",
    "torch._dynamo",  # which an optimizer's first step imports
)
"""Modules that jobs need, with all that these import."""


def main() -> None:
    """Run the command line in `sys.argv`, behind the name of a log."""
    log, *arguments = sys.argv[1:]
    run(log, arguments)


def run(log: str, arguments: Sequence[str]) -> None:
    """Run a command line of the program as the job of this process."""
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if flock_spans_hosts(Path(log)):
            os.environ["BENCH_ONE_JOB"] = "1"  # see bench.system.locks
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    sys.argv = ["bench", *arguments]
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"$ {shlex.join(sys.argv)}  # {started}, {platform.node()}", flush=True)  # noqa: T201
    from bench.cli import main as command_line

    command_line()


def _end_with_the_caller() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)  # nothing to clean up: files are whole


def import_everything() -> None:
    """Import what jobs need, so that processes that are forked from this one need not."""
    for name in _IMPORTED:
        importlib.import_module(name)
    from bench.catalogue.plugins import find, names

    for kind in ("attack", "defense", "backbone"):
        for name in names(kind):
            find(kind, name)


def serve() -> None:
    """Fork a process for each job that is asked for on standard input, a socket, until that closes.

    A request is `words` (a log and a command line), `folder` and `variables` as JSON, with a socket: the standard input
    of the job, on which its exit code goes back.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs, and for who waits for them
    import_everything()
    signal.signal(signal.SIGCHLD, lambda number, frame: _bury())
    asked = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    while True:
        message, sockets, _, _ = socket.recv_fds(asked, MOST, 1)
        if not message:
            break
        if not os.fork():
            asked.close()
            _wait_for_a_job(json.loads(message), socket.socket(fileno=sockets[0]))
        os.close(sockets[0])
    _bury(0)


def _bury(how: int = os.WNOHANG) -> None:
    """Wait for processes that have ended, so that their CPU time counts as this one's; with 0 for all."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


def _wait_for_a_job(request: Mapping[str, Any], caller: socket.socket) -> None:
    """Fork the job, and tell the caller how it ended; the process ends with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    job = os.fork()
    if not job:
        _become(request, caller)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the job may go on to the end of its block
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    with suppress(OSError):
        caller.sendall(str(code).encode())
    os._exit(0)


def _become(request: Mapping[str, Any], caller: socket.socket) -> None:
    """Run the job in this process, and end it; nothing of it outlives it, so that nothing is to be torn down."""
    code: object = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(caller.fileno(), sys.stdin.fileno())
        os.chdir(request["folder"])
        os.environ.update(request["variables"])
        log, *arguments = request["words"]
        run(log, arguments)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
