"""Means over the steps of an epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.training.processes import Processes


class Averages:
    """Running means of named scalars, kept on their device so that adding costs no synchronisation."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """In double precision, each in one place: a recorded step adds to it at every replay."""
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one value per name, multiplied by a process's share in it; one that is not one number is refused."""
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim():
                shape = tuple(value.shape)
                raise BenchError(
                    f"{name!r} was recorded with shape {shape}: reduce it to one number, such as its mean."
                )
            number = value.detach().double() if isinstance(value, Tensor) else torch.tensor(float(value)).double()
            number, total = number * weight, self.sums.get(name)
            if total is None:
                self.sums[name] = number
            else:
                # A first value from Python lies on the CPU, where nothing of a device can be added in place.
                self.sums[name] = total.add_(number) if total.device == number.device else total + number
            self.counts[name] = self.counts.get(name, 0) + 1

    def unite(self, processes: Processes, device: torch.device) -> None:
        """Add up what all processes have."""
        self.sums = {name: total.to(device) for name, total in self.sums.items()}
        processes.sum(list(self.sums.values()))

    def not_finite(self) -> list[str]:
        """Names whose sum is NaN or infinite."""
        return [f"{name} = {float(total)}" for name, total in self.sums.items() if not torch.isfinite(total)]

    def means(self) -> dict[str, float]:
        """Mean of each name."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}
