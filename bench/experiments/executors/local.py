"""This machine: some processes at a time, which take turns on its GPUs."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from bench.experiments.executors import Engine, EngineOptions
from bench.experiments.job_server import CAN_FORK, JobServer
from bench.launching import job_in

_GPUS = "CUDA_VISIBLE_DEVICES"


class LocalEngine(Engine):
    """A thread waits for each process; GPUs are dealt out in turn.

    Jobs of the program are forked by a server that has imported it, one for each number of threads; other commands are
    subprocesses, and so is everything where forking is not safe.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.limit, self.stages = options.jobs or 1, options.stages
        self.threads = options.cpus or max(1, (os.cpu_count() or 1) // self.limit)
        self.waiting = ThreadPoolExecutor(self.limit)
        self.servers: dict[str, JobServer] = {}
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.closed = False
        self.gpus: SimpleQueue[str | None] = SimpleQueue()
        gpus = _visible_gpus()
        for number in range(self.limit):
            self.gpus.put(gpus[number % len(gpus)] if gpus else None)

    def start(self, commands: Sequence[Sequence[str]], stage: str = "") -> list[Future[int]]:
        return [self.waiting.submit(self._call, command) for command in commands]

    def _call(self, command: Sequence[str]) -> int:
        gpu = self.gpus.get()
        chosen = [] if gpu is None else ["env", f"{_GPUS}={gpu}"]
        job = job_in(command) if CAN_FORK else None
        try:
            if job is not None:
                threads, words = job
                server = self.servers.setdefault(threads, JobServer([threads]))
                return server.call(words, {} if gpu is None else {_GPUS: gpu})
            with subprocess.Popen([*chosen, *command], stdin=subprocess.PIPE) as process:
                self.processes.add(process)
                if self.closed:
                    process.kill()
                return process.wait()
        finally:
            self.gpus.put(gpu)

    def close(self) -> None:
        self.closed = True
        self.waiting.shutdown(wait=False, cancel_futures=True)
        for server in list(self.servers.values()):
            server.close()
        for process in list(self.processes):
            process.kill()


def _visible_gpus() -> list[str]:
    import torch

    chosen = os.environ.get(_GPUS)
    return chosen.split(",") if chosen else [str(number) for number in range(torch.cuda.device_count())]
