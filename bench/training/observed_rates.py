"""The rates that optimisers used in an epoch, read off at their steps, whoever set them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable", "initial_lr"})
_NAMES = {"lr": "learning_rate"}

Settings = dict[str, float | Tensor]


class ObservedRates:
    """The settings of every step of an epoch, of the run's shared optimiser and of a defense's own, by name."""

    def __init__(self, shared: torch.optim.Optimizer, own: Mapping[str, torch.optim.Optimizer]) -> None:
        self.optimizers = {"": shared, **{f"{name}_": optimizer for name, optimizer in own.items()}}
        self.usual = {prefix: _settings(optimizer) for prefix, optimizer in self.optimizers.items()}
        self.used: dict[str, list[list[Settings]]] = {}
        self.strangers: WeakSet[torch.optim.Optimizer] = WeakSet()
        """Other optimisers that have stepped, and still exist."""
        self._aside: list[torch.optim.Optimizer] | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note every step from here to the exit, of any optimiser."""
        self.used = {prefix: [] for prefix in self.optimizers}
        hook = register_optimizer_step_pre_hook(self.note)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def set_aside(self) -> Iterator[list[torch.optim.Optimizer]]:
        """Optimisers whose steps, until exit, are recorded and not taken: they are listed here, and not noted."""
        self._aside = []
        try:
            yield self._aside
        finally:
            self._aside = None

    def note(self, optimizer: torch.optim.Optimizer, *ignored: Any) -> None:
        """Note that an optimiser steps, with the settings that it has now."""
        if self._aside is not None:
            self._aside.append(optimizer)
            return
        for prefix, known in self.optimizers.items():
            if optimizer is known:
                self.used[prefix].append(_settings(optimizer))
                return
        self.strangers.add(optimizer)

    def row(self) -> dict[str, float]:
        """For the history: every rate that was used, and every other setting that is not as it was at the start.

        A setting that changed within the epoch is its mean over steps, with the lowest and the highest beside it. A
        group of parameters is named where its rates are not those of the first one; an own optimiser, always.
        """
        row: dict[str, float] = {}
        for prefix, steps in self.used.items():
            groups = max(map(len, steps), default=0)
            for number in range(groups):
                taken = [step[number] for step in steps if number < len(step)]
                usual = self.usual[prefix][number] if number < len(self.usual[prefix]) else {}
                for key in taken[0]:
                    values = [_number(settings[key]) for settings in taken if key in settings]
                    as_first = number > 0 and values == [_number(step[0].get(key, -1.0)) for step in steps]
                    if as_first or (key != "lr" and set(values) == {_number(usual.get(key, values[0]))}):
                        continue
                    name = f"{prefix}{_NAMES.get(key, key)}{f'_group_{number + 1}' if number else ''}"
                    row |= _summary(name, values)
        return row


def _summary(name: str, values: list[float]) -> dict[str, float]:
    if min(values) == max(values):
        return {name: values[0]}
    return {name: fmean(values), f"{name}_lowest": min(values), f"{name}_highest": max(values)}


def _number(setting: int | float | Tensor) -> float:
    """A setting; of a float32 the seven digits that it holds, so that 0.1 is 0.1."""
    short = isinstance(setting, Tensor) and setting.dtype == torch.float32
    return float(f"{float(setting):.7g}") if short else float(setting)


def _settings(optimizer: torch.optim.Optimizer) -> list[Settings]:
    """The numbers of each group; one on a device is read at the end of the epoch, so that no step waits for it."""
    return [
        {
            key: value.detach().clone() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key not in _IMPLEMENTATION
            and (isinstance(value, (bool, int, float)) or (isinstance(value, Tensor) and not value.dim()))
        }
        for group in optimizer.param_groups
    ]
