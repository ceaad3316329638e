"""CUDA graphs: the kernels of a step, recorded and launched together; what a failed recording leaves is put right."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import torch

from bench.interfaces import Scalar

Terms = dict[str, Scalar]


@runtime_checkable
class Recorder(Protocol):
    """Records steps on a device."""

    def working(self) -> AbstractContextManager[Any]:
        """Where all steps of an epoch are run, recorded or not."""

    def __call__(self, step: Callable[[], Terms], generator: torch.Generator) -> tuple[Callable[[], object], Terms]:
        """A function that does again what the step does on the device, and the terms that it then leaves.

        `generator` is one that the step draws from. After an error all is as it was before.
        """


class CudaRecorder:
    """Records on a CUDA device. Graphs share their memory: only the newest one is ever replayed."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.pool: Any = None
        self.graph: Any = None

    @contextmanager
    def working(self) -> Iterator[None]:
        """A stream of its own, for other steps as well: gradients are added up on the stream that first had them."""
        self.stream = self.stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        outside = torch.cuda.current_stream()
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outside.wait_stream(self.stream)

    def __call__(self, step: Callable[[], Terms], generator: torch.Generator) -> tuple[Callable[[], object], Terms]:
        """As `Recorder` says.

        A synchronisation makes a recording invalid. It is then ended all the same, and what torch leaves behind is put
        right: generators that still count as being recorded, and an allocator that waits for the end.
        """
        torch.cuda.synchronize()
        self.graph = None  # the one before gives its memory to this one
        if self.pool is None:
            torch.cuda.empty_cache()
            self.pool = torch.cuda.graph_pool_handle()
        graph, device = torch.cuda.CUDAGraph(), torch.cuda.current_device()
        generators = [generator, torch.cuda.default_generators[device]]
        intact = [one.clone_state() for one in generators]
        graph.register_generator_state(generator)
        collects = gc.isenabled()
        gc.disable()  # what it frees may be no part of a recording
        try:
            # Other threads, such as one that writes files, are no part of it.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                terms = step()
            except BaseException:
                with suppress(RuntimeError):  # the step's own error says more
                    graph.capture_end()
                raise
            graph.capture_end()
        except BaseException:
            with suppress(RuntimeError):  # it has ended already
                torch._C._cuda_endAllocateToPool(device, self.pool)
            for one, state in zip(generators, intact, strict=True):
                one.graphsafe_set_state(state)
            raise
        finally:
            if collects:
                gc.enable()
        self.graph = graph
        return graph.replay, terms
