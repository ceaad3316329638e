"""CUDA graphs for the inner maximum: the kernels of one ascent step, recorded once per batch and launched together.

An eager ResNet-18 waits for the CPU to launch its kernels; a replay does not. A step is recorded anew for every batch,
because weights have moved since, and whatever a step reads from the CPU stays as it was when recorded. So the first
batch is crafted both ways, and where the two differ, or a step cannot be recorded, all steps are run one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.interfaces import Images, Step

AGREEMENT = 0.999
"""Share of the pixels which a recorded step and the step itself must move alike: atomic sums may round differently."""


class Graphs:
    """Records steps, until one turns out not to be what it recorded.

    Args:
        say: is told, once, why steps are not recorded.
        record: the step and its input to a function that runs it on what the input then holds, and returns its output.
    """

    def __init__(
        self, say: Callable[[str], None], record: Callable[[Step, Images], Callable[[], Images]] | None = None
    ) -> None:
        self.say, self.record = say, record or CudaRecorder()
        self.refused = self.compared = False

    def repeated(self, generator: torch.Generator) -> Callable[[Step], Step]:
        """The `TrainingContext.repeated` of a run whose steps draw from `generator`."""
        return lambda step: step if self.refused else _Repeated(step, self, generator)

    def started(self, step: Step, images: Images, generator: torch.Generator) -> Callable[[], Images] | None:
        """The recorded step; None, with the generator where it was, if it cannot be recorded or is not the step."""
        state = generator.get_state()
        try:
            replay = self.record(step, images)
            agrees = self.compared or _agree(replay(), step(images.clone()))
        except RuntimeError as error:
            agrees, reason = False, str(error).splitlines()[0]
        else:
            reason = "recorded and run, a step gives different images: it draws numbers, or reads the CPU"
        if agrees:
            self.compared = True
            return replay
        generator.set_state(state)
        self.refused = True
        self.say(f"Without CUDA graphs: {reason}.")
        return None


class _Repeated:
    """A step that is run, then recorded, then replayed."""

    def __init__(self, step: Step, graphs: Graphs, generator: torch.Generator) -> None:
        self.step, self.graphs, self.generator = step, graphs, generator
        self.replay: Callable[[], Images] | None = None
        self.place: Tensor | None = None

    def __call__(self, images: Images) -> Images:
        if self.place is None:
            # Not recorded: libraries choose algorithms and allocate at the first call.
            self.place = torch.empty_like(images)
            return self.step(images)
        if self.replay is None:
            self.replay = None if self.graphs.refused else self._recorded(images)
        if self.replay is None:
            return self.step(images)
        self.place.copy_(images)
        return self.replay().clone()  # a copy: the next replay writes to the same place

    def _recorded(self, images: Images) -> Callable[[], Images] | None:
        assert self.place is not None
        self.place.copy_(images)
        return self.graphs.started(self.step, self.place, self.generator)


class CudaRecorder:
    """Records on a CUDA device. Graphs share their memory: only the newest one is ever replayed."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, step: Step, images: Images) -> Callable[[], Images]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = step(images)

        def replay() -> Images:
            graph.replay()
            return output

        return replay


def _agree(found: Images, expected: Images) -> bool:
    return (found == expected).float().mean().item() >= AGREEMENT
