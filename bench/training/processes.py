"""One model trained by several processes: `torchrun --nproc-per-node 2 -m bench train ...`.

Every process draws the same order, augmentation and noise as a single one would, and works on its rows of each batch.
Before every optimiser step gradients are averaged, weighted by rows: all processes hold the same model after every
step. BatchNorm normalises with the statistics of a process's own rows; its running statistics are averaged in the same
way, with the gradients. Process 0 alone writes files.
"""

import atexit
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import Share

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, which may be validating or writing."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a training."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Processes":
        """As torchrun says; without it, one.

        Raises:
            BenchError: the variables contradict each other, as a RANK does that was left by something else.
        """
        texts = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        texts |= {name: os.environ[name] for name in (*texts, "LOCAL_WORLD_SIZE") if name in os.environ}
        numbers = {name: int(text) if text.isdecimal() else -1 for name, text in texts.items()}
        rank, count, local = (numbers[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if 0 <= rank < count and 0 <= local < numbers.get("LOCAL_WORLD_SIZE", local + 1):
            return cls(rank, count, local)
        given = " ".join(f"{name}={text}" for name, text in texts.items())
        raise BenchError(
            f"no process of a training can be {given} (ranks count from 0): start several with torchrun, or, for one, "
            f"unset {' '.join(texts)}."
        )

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this process: of several GPUs its own."""
        own = self.count > 1 and chosen.type == "cuda" and chosen.index is None
        return torch.device("cuda", self.local_rank) if own else chosen

    @property
    def writes(self) -> bool:
        """True if this process writes files and talks."""
        return self.rank == 0

    def meet(self, device: torch.device) -> None:
        """Connect the processes, by NCCL on CUDA and by Gloo elsewhere."""
        if self.count > 1 and not torch.distributed.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            try:
                torch.distributed.init_process_group(backend, timeout=PATIENCE)
            except ValueError as error:  # a variable that torchrun sets is missing
                raise BenchError(
                    f"WORLD_SIZE={self.count}, but {error}: start several processes with torchrun; for one, "
                    "unset RANK WORLD_SIZE."
                ) from error
            if backend == "gloo":
                # Left to the interpreter's end, its threads may abort a process that has finished.
                atexit.register(torch.distributed.destroy_process_group)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def differences(self, mine: Mapping[str, str]) -> list[str]:
        """The names whose texts are not the same in all processes; every process learns the same."""
        if self.count == 1:
            return []
        everyone: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(everyone, dict(mine))
        names = sorted({name for texts in everyone for name in texts})
        return [name for name in names if len({texts.get(name) for texts in everyone}) > 1]

    def share(self, total: int) -> Share | None:
        """This process's rows of a batch; all of them where there are fewer than processes. None: not shared."""
        if self.count == 1:
            return None
        if total < self.count:
            return Share(0, total, total)
        return Share(total * self.rank // self.count, total * (self.rank + 1) // self.count, total)

    def weight(self, share: Share | None) -> float:
        """The share of a mean over this process's rows in that over the batch."""
        if share is None or share.total < self.count:
            return 1 / self.count
        return (share.end - share.first) / share.total

    def sum(self, tensors: Sequence[Tensor], weight: float = 1.0) -> None:
        """Replace each tensor by its weighted sum over the processes; all in one message."""
        if self.count == 1 or not tensors:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors]) * weight
        torch.distributed.all_reduce(message)
        for tensor, part in zip(tensors, torch.split(message, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


class GradientAveraging:
    """Makes optimiser steps with the gradients of the whole batch; `weight` is that of the present batch.

    With the gradients of the shared optimiser, the model's running statistics are averaged; `own` are optimisers that a
    defense has registered.
    """

    def __init__(
        self,
        processes: Processes,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        own: Iterable[torch.optim.Optimizer],
    ) -> None:
        self.processes, self.model, self.weight = processes, model, processes.weight(None)
        if processes.count > 1:
            optimizer.register_step_pre_hook(self._average)
            for other in own:
                other.register_step_pre_hook(self._average_gradients)

    @torch.no_grad()
    def _average(self, optimizer: torch.optim.Optimizer, *ignored: Any) -> None:
        norms = [layer for layer in self.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        statistics = [buffer for layer in norms for buffer in layer.buffers() if buffer.is_floating_point()]
        self.processes.sum([*_gradients(optimizer), *statistics], self.weight)

    @torch.no_grad()
    def _average_gradients(self, optimizer: torch.optim.Optimizer, *ignored: Any) -> None:
        self.processes.sum(_gradients(optimizer), self.weight)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
