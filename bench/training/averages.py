"""Means over the steps of an epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.training.processes import Processes


class Averages:
    """Running means of named scalars, kept on their device so that adding costs no synchronisation."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one value per name, multiplied by a process's share in it; one that is not one number is refused."""
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim():
                shape = tuple(value.shape)
                raise BenchError(
                    f"{name!r} was recorded with shape {shape}: reduce it to one number, such as its mean."
                )
            number = value.detach().double() if isinstance(value, Tensor) else torch.tensor(float(value)).double()
            number = number * weight
            self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._counts[name] = self._counts.get(name, 0) + 1

    def unite(self, processes: Processes, device: torch.device) -> None:
        """Add up what all processes have."""
        self._sums = {name: total.to(device) for name, total in self._sums.items()}
        processes.sum(list(self._sums.values()))

    def not_finite(self) -> list[str]:
        """Names whose sum is NaN or infinite."""
        return [f"{name} = {float(total)}" for name, total in self._sums.items() if not torch.isfinite(total)]

    def means(self) -> dict[str, float]:
        """Mean of each name."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}
