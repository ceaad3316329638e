"""A Slurm cluster, through submitit: jobs that may start together are one array. Needs the extra `slurm`.

https://github.com/facebookincubator/submitit
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from bench.errors import BenchError, unknown_name
from bench.experiments.executors import Engine, EngineOptions, Handle, installed

MINUTES = 24 * 60
"""Time limit of a job unless --slurm time=MINUTES says otherwise; one that is cut off goes on in its next try."""


class SlurmEngine(Engine):
    """Submits from a login node and waits. With `--slurm cluster=local` submitit runs the jobs on this machine instead.

    Raises:
        BenchError: submitit is not installed, or has no such setting.
    """

    heeds: ClassVar[tuple[str, ...]] = ("gpus", "slurm")
    grants: ClassVar[tuple[str, ...]] = ("cpus", "gpus", "minutes", "memory")
    pause: ClassVar[float] = 1.0

    def __init__(self, options: EngineOptions) -> None:
        self.submitit = installed("submitit", "slurm")
        self.folder, self.threads, self.limit = options.logs / "submitit", options.cpus or 1, options.jobs
        self.stages, self.executors = options.stages, dict[str, Any]()
        gpus = 1 if options.gpus is None else options.gpus
        given = {"cpus_per_task": self.threads, "time": MINUTES} | ({"gpus_per_node": gpus} if gpus else {})
        given |= {"array_parallelism": options.jobs} if options.jobs else {}
        self.parameters: dict[str, Any] = {"job_name": "bench"} | given | dict(options.settings)
        self.cluster = self.parameters.pop("cluster", "slurm")
        known = self.submitit.SlurmExecutor._valid_parameters()
        for name in self.parameters.keys() - known:
            raise unknown_name("setting of Slurm", name, known | {"cluster"})
        for name in self.parameters.keys() & {"cpus_per_task", "gpus_per_node", "time", "array_parallelism"}:
            self.parameters[name] = _whole(name, self.parameters[name])
        for stage in self.stages:
            self.of_stage(stage)

    def of_stage(self, stage: str) -> dict[str, Any]:
        """The settings of a stage's jobs; what their resources name counts before --slurm."""
        own = self.given(stage)
        words = {"cpus_per_task": own.cpus, "time": own.minutes}
        words["gpus_per_node"] = None if own.gpus is None else _whole("gpus_per_node", own.gpus)
        given = self.parameters | {word: value for word, value in words.items() if value is not None}
        given |= {} if own.memory is None else {"mem": f"{round(own.memory * 1024)}M"}
        return {word: value for word, value in given.items() if word != "gpus_per_node" or value}

    def executor(self, stage: str) -> Any:
        """The object that submits a stage's jobs; refused where there is no Slurm."""
        if stage not in self.executors:
            self.executors[stage] = self._make_executor(self.of_stage(stage))
        return self.executors[stage]

    def _make_executor(self, parameters: dict[str, Any]) -> Any:
        if self.cluster == "local":
            executor = self.submitit.LocalExecutor(self.folder)
            executor.update_parameters(timeout_min=parameters["time"])
            return executor
        try:
            executor = self.submitit.SlurmExecutor(self.folder)
        except RuntimeError as error:
            raise BenchError(
                "there is no Slurm here (no srun): start the sweep on a login node, look at it with --dry-run, or try "
                "it with --slurm cluster=local."
            ) from error
        executor.update_parameters(**parameters)
        return executor

    def start(self, commands: Sequence[Sequence[str]], stage: str = "") -> list[Handle]:
        here, executor = str(Path.cwd()), self.executor(stage)
        try:
            with executor.batch():
                return [
                    executor.submit(subprocess.call, list(command), cwd=here, stdin=subprocess.PIPE)
                    for command in commands
                ]
        except (OSError, subprocess.SubprocessError, self.submitit.core.utils.FailedJobError) as error:
            raise BenchError(f"Slurm does not take the jobs: {' '.join(str(error).split())}") from error

    def script(self, count: int, stage: str = "") -> str:
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        array = {"map_count": count} if count > 1 else {}
        text: str = self.submitit.slurm.slurm._make_sbatch_string(command, self.folder, **self.of_stage(stage), **array)
        return text


def _whole(name: str, value: Any) -> int:
    try:
        if float(value) == int(float(value)) >= 0:
            return int(float(value))
    except ValueError:
        pass
    raise BenchError(
        f"{name}={value} is not a whole number{' of minutes' if name == 'time' else ''}; Slurm takes those."
    )
