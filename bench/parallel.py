"""One model trained by several processes: `torchrun --nproc-per-node 2 -m bench train ...`.

Every process draws the same order, augmentation and noise as a single one would, and works on its rows of each batch.
Before every optimiser step gradients are averaged, weighted by rows: all processes hold the same model after every
step. BatchNorm normalises with the statistics of a process's own rows; its running statistics are averaged in the same
way, with the gradients. Process 0 alone writes files.
"""

import os
from collections.abc import Sequence
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
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Processes":
        """As torchrun says; without it, one."""
        names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        texts = [os.environ.get(name, default) for name, default in names.items()]
        if not all(text.isdecimal() for text in texts):
            raise BenchError(f"{', '.join(names)} are {', '.join(texts)}: leave them to torchrun, or unset them.")
        rank, count, local = map(int, texts)
        return cls(rank, count, local)

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this process: of several GPUs its own."""
        own = self.count > 1 and chosen.type == "cuda" and chosen.index is None
        return torch.device("cuda", self.local_rank) if own else chosen

    @property
    def writes(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def meet(self, device: torch.device) -> None:
        """Connect the processes, by NCCL on CUDA and by Gloo elsewhere."""
        if self.count > 1 and not torch.distributed.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, timeout=PATIENCE)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def share(self, total: int) -> Share | None:
        """This process's rows of a batch; all of them where there are fewer than processes. None: not shared."""
        if self.count == 1:
            return None
        if total < self.count:
            return Share(0, total, total)
        return Share(total * self.rank // self.count, total * (self.rank + 1) // self.count, total)

    def weight(self, share: Share | None) -> float:
        """What a mean over this process's rows contributes to that over the batch."""
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


class Agreement:
    """Makes an optimiser step with the gradients of the whole batch; `weight` is that of the present batch."""

    def __init__(self, processes: Processes, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.processes, self.model, self.weight = processes, model, processes.weight(None)
        if processes.count > 1:
            optimizer.register_step_pre_hook(self._average)

    @torch.no_grad()
    def _average(self, optimizer: torch.optim.Optimizer, *ignored: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = [layer for layer in self.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        statistics = [buffer for layer in norms for buffer in layer.buffers() if buffer.is_floating_point()]
        self.processes.sum([*gradients, *statistics], self.weight)
