"""Where the jobs of a sweep run: one engine per file, found by file name.

An engine starts commands and says when they have ended. Order, retries and what counts as done are those of
`bench.experiments.jobs`.
"""

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from bench.errors import BenchError, unknown_name

STAGES = ("train", "evaluate")
"""What a job of a sweep may do."""


@dataclass(frozen=True)
class Resources:
    """What each job of a stage is given; None: what every job is."""

    cpus: int | None = None
    """CPU cores, and threads."""
    gpus: float | None = None
    minutes: int | None = None
    """After which it is cut off; its next try goes on."""
    memory: float | None = None
    """GB."""

    def __post_init__(self) -> None:
        least = {"cpus": 1, "gpus": 0, "minutes": 1}
        for name, value in vars(self).items():
            if value is not None and not (value >= least[name] if name in least else value > 0):
                raise BenchError(f"{name}={value} of a job is too little.")

    def given(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class EngineOptions:
    """A person's choices of where jobs run; None: the engine's own."""

    jobs: int | None = None
    """Jobs at a time."""
    cpus: int | None = None
    """CPU cores, and threads, of each job."""
    gpus: float | None = None
    """GPUs of each job."""
    address: str | None = None
    """Of a Ray cluster."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """For Slurm's sbatch: partition, time, account, ..."""
    logs: Path = Path("runs/logs")
    stages: Mapping[str, Resources] = field(default_factory=dict)
    """What the jobs of a stage are given, where it is not what all are."""


@runtime_checkable
class Handle(Protocol):
    """A command that was started. Futures, Ray's and submitit's jobs are handles already."""

    def done(self) -> bool:
        """True if it has ended."""

    def result(self) -> Any:
        """Its exit code; raises where it was lost with its machine."""


class Engine(ABC):
    """Starts commands in the present folder, on one machine or many, each with a pipe as its standard input.

    The pipe is how a command learns that whoever waits for it is gone (`bench.worker`). Machines share the folder, and
    the Python that runs this, under the same paths.
    """

    heeds: ClassVar[tuple[str, ...]] = ()
    """Those of the options that only some engines can follow: gpus, address, slurm."""
    grants: ClassVar[tuple[str, ...]] = ("cpus",)
    """Those of `Resources` that it can give."""
    pause: ClassVar[float] = 0.1
    """Seconds between two looks at what has ended."""
    threads: int = 1
    """CPU threads of each job."""
    stages: Mapping[str, Resources] = MappingProxyType({})
    """As in the options."""
    limit: int | None = None
    """Jobs at a time; None: the engine queues them itself."""

    @abstractmethod
    def start(self, commands: Sequence[Sequence[str]], stage: str = "") -> Sequence[Handle]:
        """Start commands, or queue them; those of one of `stages` with what its jobs are given."""

    def script(self, count: int, stage: str = "") -> str:
        """The script that a cluster would be handed for that many commands; empty where there is none."""
        return ""

    def given(self, stage: str) -> Resources:
        """What the jobs of a stage are given, where it is not what all are."""
        return self.stages.get(stage, Resources())

    def threads_of(self, stage: str) -> int:
        """CPU threads of each job of a stage."""
        return self.given(stage).cpus or self.threads

    def close(self) -> None:
        """Let go of everything that is still running."""


def engine_names() -> list[str]:
    """Names of the engines: the files of this folder."""
    return sorted(item.name for item in pkgutil.iter_modules(__path__))


def make_engine(name: str, options: EngineOptions) -> Engine:
    """The engine `<Name>Engine` of the file `<name>.py`.

    Raises:
        BenchError: an unknown name, or an engine whose package is not installed.
    """
    if name not in engine_names():
        raise unknown_name("engine", name, engine_names())
    return _engine(name)(options)


def heeded_options() -> dict[str, tuple[str, ...]]:
    """The options that each engine `heeds`, whether its package is installed or not."""
    return {name: _engine(name).heeds for name in engine_names()}


def _engine(name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.{name}"), f"{name.capitalize()}Engine")


def installed(package: str, extra: str) -> Any:
    """A package that only one engine needs; refused where it is not installed."""
    if importlib.util.find_spec(package) is None:
        raise BenchError(
            f"engine {extra} needs the package {package}, which is not installed: pip install 'advbench[{extra}]', "
            f"or pip install '.[{extra}]' in a checkout."
        )
    return importlib.import_module(package)
