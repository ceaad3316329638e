"""Where the time of a training step goes, and what share of the device's speed it reaches."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.system.devices import training_arithmetic
from bench.system.randomness import seeded
from bench.training.averages import Averages
from bench.training.run import TrainingRun

SECONDS = 10.0
_FEW_IMAGES = 8
PARTS = ("data", "crafting", "update")


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's operation counts. `FlopCounterMode` does, but its module hooks refuse gradients to an input."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*arguments, **(options or {}), out_val=result)
        return result


@dataclass
class Stopwatch:
    """Seconds and operations by part. `clock` waits for the device, so that asynchronous work is counted."""

    clock: Callable[[], float]
    operations: Callable[[], int] = lambda: 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    flop: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))

    @contextmanager
    def measure(self, part: str, within: str | None = None) -> Iterator[None]:
        """Add what happens inside to `part`, and take it from the part around it."""
        seconds, flop = self.clock(), self.operations()
        yield
        seconds, flop = self.clock() - seconds, self.operations() - flop
        for name, sign in ((part, 1), (within, -1)):
            if name is not None:
                self.seconds[name] += sign * seconds
                self.flop[name] += sign * flop


def profile(run: TrainingRun, seconds: float = SECONDS) -> str:
    """Train for some steps that are thrown away; a table of milliseconds, operations and speed by part.

    Multiply-adds of matrix products and convolutions count as two operations, all else as none. The peak is the speed
    of one large matrix product on the same device, in the precision of the run.
    """
    with training_arithmetic(run.precision, run.deterministic), seeded(run.seed):
        steps = _Steps(run)
        steps.take(Stopwatch(steps.clock))
        with OperationCounter() as counter:
            counted = Stopwatch(steps.clock, lambda: counter.total)
            steps.take(counted)
        timed, taken = Stopwatch(steps.clock), 0
        until = time.monotonic() + seconds
        while not taken or time.monotonic() < until:
            steps.take(timed)
            taken += 1
        peak = matrix_product_speed(run.device, torch.bfloat16 if run.precision == "bf16" else torch.float32)
    rows = [(name, timed.seconds[name] / taken, counted.flop[name]) for name in PARTS]
    rows.append(("step", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    head = (
        f"{run.config['defense']}, {run.config['backbone']}, batch {steps.batch}, {run.precision} on {run.device}, "
        f"{torch.get_num_threads()} CPU threads: {taken} steps, {steps.batch / rows[-1][1]:.0f} images/s"
    )
    return "\n".join([head, _table(rows, peak), f"peak: a matrix product, {peak / 1e9:,.0f} GFLOP/s"])


def seconds_per_image(run: TrainingRun) -> float:
    """Of training: one step that is thrown away, of few images where a network is slow."""
    sizes = (_FEW_IMAGES, run.protocol.batch_size)
    with training_arithmetic(run.precision, run.deterministic), seeded(run.seed):
        for size in sizes:
            run.protocol = replace(run.protocol, batch_size=size)
            steps = _Steps(run)
            steps.take(Stopwatch(steps.clock))
            timed = Stopwatch(steps.clock)
            steps.take(timed)
            seconds = sum(timed.seconds.values())
            if seconds > 1:
                break
    return seconds / steps.batch


def _table(rows: list[tuple[str, float, int]], peak: float) -> str:
    lines = [f"{'':10} {'ms/step':>10} {'share':>7} {'GFLOP':>10} {'GFLOP/s':>10} {'of peak':>8}"]
    for name, seconds, flop in rows:
        speed = flop / max(seconds, 1e-9)
        lines.append(
            f"{name:10} {1e3 * seconds:10.1f} {seconds / rows[-1][1]:7.1%} {flop / 1e9:10.3f} {speed / 1e9:10.1f} "
            f"{speed / peak:8.1%}"
        )
    return "\n".join(lines)


class _Steps:
    """Training steps of a run's first epoch, over and over."""

    def __init__(self, run: TrainingRun) -> None:
        context = run.context(0, Averages())
        self.run, self.batch = run, run.largest_batch
        self.steps = chain.from_iterable(run.steps(context) for _ in repeat(None))
        run.model.train()
        run.defense.begin_epoch(run.model, context)

    def clock(self) -> float:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)
        return time.perf_counter()

    def take(self, stopwatch: Stopwatch) -> None:
        """One step with a whole batch."""

        @contextmanager
        def view(model: nn.Module) -> Iterator[nn.Module]:
            with stopwatch.measure("crafting", within="update"), self.run.view(model) as shown:
                yield shown

        with stopwatch.measure("data"):
            images, labels, told = next(step for step in self.steps if len(step[1]) == self.batch)
        with stopwatch.measure("update"):
            self.run.step(images, labels, replace(told, view=view))


def matrix_product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def seconds() -> float:
        started = time.perf_counter()
        (left @ right).sum().item()
        return time.perf_counter() - started

    seconds()
    return 2 * size**3 / min(seconds() for _ in range(5))
