"""One job of a sweep, in a process of its own: `bench --job LOG train --defense ...`.

Its output goes to the end of LOG. While it lives it holds a lock on that file, so that the same job never runs twice at
once, whoever starts it, on machines that share the file system (if that has locks). It ends when the process that waits
for it does, even if that is killed: then the pipe at its standard input closes.
"""

import fcntl
import os
import platform
import shlex
import sys
import threading
import time
from contextlib import suppress


def main() -> None:
    """Run the command line in `sys.argv`, behind the name of a log."""
    log, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
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
