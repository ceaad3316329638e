"""A Ray cluster, or Ray on this machine: one task per job. Needs the extra `ray`.

Moritz et al., OSDI 2018, https://arxiv.org/abs/1712.05889.
"""

import os
import socket
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from bench.errors import BenchError
from bench.experiments.executors import Engine, EngineOptions, Handle, installed


class RayEngine(Engine):
    """Ray places tasks on cores and GPUs. A worker that dies is a failed try, repeated by `bench.experiments.jobs`."""

    heeds: ClassVar[tuple[str, ...]] = ("gpus", "address")
    grants: ClassVar[tuple[str, ...]] = ("cpus", "gpus", "memory")

    def __init__(self, options: EngineOptions) -> None:
        self.ray, self.options = installed("ray", "ray"), options
        self.threads, self.limit, self.stages = options.cpus or 1, options.jobs, options.stages

    @cached_property
    def task(self) -> Any:
        """`subprocess.call` as a remote function; refused where no cluster answers."""
        ray, address = self.ray, self.options.address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _require_answer(address)
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise BenchError(
                f"no Ray cluster at {address or 'this machine'}: {reason}. Give --address HOST:PORT of a running one "
                "(ray start --head), or leave it out to start Ray here."
            ) from error
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0)) if self.options.gpus is None else self.options.gpus
        return ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(subprocess.call)

    def start(self, commands: Sequence[Sequence[str]], stage: str = "") -> list[Handle]:
        here, own = str(Path.cwd()), self.given(stage)
        words = {"num_cpus": own.cpus, "num_gpus": own.gpus, "memory": own.memory and round(own.memory * 2**30)}
        given = {word: value for word, value in words.items() if value is not None}
        task = self.task.options(**given) if given else self.task
        return [
            task.remote(list(command), cwd=here, stdin=subprocess.PIPE).future()  # the pipe is made over there
            for command in commands
        ]

    def close(self) -> None:
        self.ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Raise an OSError where nothing listens: Ray itself tries for minutes."""
    host, separator, port = (address or "").rpartition("://")[2].rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
