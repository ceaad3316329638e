"""A process that has imported everything, and forks another for each job: what a job costs is its work.

`bench.worker` is the other end.
"""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.launching import program

CAN_FORK = sys.platform == "linux"
"""Elsewhere libraries of the system keep threads, and a process that forks may hang."""

_PATIENCE = 10.0
"""Seconds that a server has to end."""


class JobServer:
    """Starts with its first job, and ends when it is closed, or when this process does."""

    def __init__(self, variables: Sequence[str]) -> None:
        """`variables` are those that libraries read when they are imported, as NAME=VALUE."""
        self.variables = variables
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.asking: socket.socket | None = None
        self.running: set[socket.socket] = set()
        self.closed = False

    def call(self, words: Sequence[str], variables: Mapping[str, str]) -> int:
        """The exit code of a job: a log, and a command line of the program.

        Raises:
            OSError: the server, or whoever waits for the job there, was killed.
        """
        ours, theirs = socket.socketpair()
        request = {"words": list(words), "folder": str(Path.cwd()), "variables": dict(variables)}
        with ours:
            try:
                with self.lock, theirs:
                    self.running.add(ours)
                    socket.send_fds(self._started(), [json.dumps(request).encode()], [theirs.fileno()])
                answer = ours.recv(100)
            finally:
                self.running.discard(ours)
        if not answer:
            raise ConnectionError("the process that waited for the job is gone")
        return int(answer)

    def _started(self) -> socket.socket:
        """The socket on which the server is asked; a server that was killed is started anew."""
        if self.closed:
            raise ConnectionError("no job starts any more")
        if self.asking is None or self.process is None or self.process.poll() is not None:
            self._end()
            self.asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self.process = subprocess.Popen(["env", *self.variables, *program(), "--jobs"], stdin=theirs.fileno())
        return self.asking

    def close(self) -> None:
        """End the server and every job."""
        with self.lock:
            self.closed = True
            for job in list(self.running):
                with suppress(OSError):
                    job.shutdown(socket.SHUT_RDWR)  # it ends when its standard input does
            self._end()

    def _end(self) -> None:
        if self.asking is not None and self.process is not None:
            self.asking.close()
            try:
                self.process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
