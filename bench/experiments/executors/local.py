"""This machine: some subprocesses at a time, which take turns on its GPUs."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from bench.experiments.executors import Engine, EngineOptions


class LocalEngine(Engine):
    """A thread waits for each subprocess; GPUs are dealt out in turn."""

    def __init__(self, options: EngineOptions) -> None:
        self.limit, self.stages = options.jobs or 1, options.stages
        self.threads = options.cpus or max(1, (os.cpu_count() or 1) // self.limit)
        self.waiting = ThreadPoolExecutor(self.limit)
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
        chosen = [] if gpu is None else ["env", f"CUDA_VISIBLE_DEVICES={gpu}"]
        try:
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
        for process in list(self.processes):
            process.kill()


def _visible_gpus() -> list[str]:
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(number) for number in range(torch.cuda.device_count())]
