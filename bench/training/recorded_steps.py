"""Recorded steps: the kernels of a whole training step, recorded once an epoch and launched together.

An eager ResNet-18 waits for the CPU to launch its kernels; a replay does not. Recorded is all that `TrainingRun.step`
does with a batch (noise, folding, ascents, both passes, the optimiser) and what it adds to the epoch's means. What
comes from outside lies in fixed places that every batch is copied to: images, labels, indices, crops, learning rates.

Python does not run in a replay, so whatever a step takes from it stays as it was. A number that moves from step to step
must not be taken: `TrainingContext.batch` and `progress` are watched, and so are generators of the CPU, state outside
of the model, and optimisers. Anew every epoch, because epochs may differ; and so an epoch is the same in a resumed run.

The first three steps of an epoch are run as they are, and are the training's. Recorded, the next one is replayed on the
same three batches from the same state. Where the two end apart, or a step cannot be recorded, all are run as they are.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from bench.catalogue.protocol import TrainingProtocol
from bench.interfaces import Images, Labels, TrainingContext
from bench.training.averages import Averages
from bench.training.cuda_graphs import CudaRecorder, Recorder, Terms
from bench.training.kept_state import KeptState
from bench.training.observed_rates import ObservedRates
from bench.training.stray_state import StrayState

Take = Callable[[Images, Labels, TrainingContext], Terms]
"""A step with a batch, whose loss terms it returns and adds to the epoch's means."""

EAGER = 3
"""Steps of an epoch that are run as they are: libraries choose algorithms, optimisers make their buffers."""
FEWEST = 20
"""Steps of an epoch for which recording pays: it costs about as much as six."""
DISAGREEMENT = 0.05
"""How far three replayed steps may end from the three steps, relative to the way that these went.

Atomic sums round differently, and signs of gradients near 0 follow; other images, noise or rates go another way."""
_MOVING = ("batch", "progress")


@runtime_checkable
class Run(Protocol):
    """What is asked of a `TrainingRun`, which has graphs."""

    optimizer: torch.optim.Optimizer
    observed_rates: ObservedRates
    kept: KeptState
    protocol: TrainingProtocol
    device: torch.device
    rate_places: list[Tensor] | None

    @property
    def model(self) -> nn.Module:
        """In training."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches, of which the last may be smaller."""


class Graphs:
    """Records the steps of a run's epochs, until one turns out not to be what was recorded.

    Args:
        say: is told, once, why steps are not recorded.
        recorder: of the device; None: CUDA's.
        fewest: steps of an epoch, below which none are recorded.
    """

    def __init__(self, say: Callable[[str], None], recorder: Recorder | None = None, fewest: int = FEWEST) -> None:
        self.say, self.recorder, self.fewest = say, recorder or CudaRecorder(), fewest
        self.refused = False
        self.replayed = 0
        """Steps of the newest epoch that were replays."""

    @contextmanager
    def epoch(self, run: Run, take: Take, averages: Averages, stray: StrayState) -> Iterator[Take]:
        """The same step, for every batch of an epoch, in order."""
        self.replayed = 0
        reason = _hopeless(run)
        if reason and not self.refused:
            self.refuse(reason)
        if self.refused or run.steps_per_epoch < self.fewest:
            yield take
            return
        with self.recorder.working(), _rates_in_place(run) as rates:
            yield _Epoch(self, run, take, averages, stray, rates)

    def refuse(self, reason: str) -> None:
        """Record no more."""
        self.refused = True
        self.say(f"Without CUDA graphs: {reason}.")


def _hopeless(run: Run) -> str:
    """Why no step of the run could be recorded; empty: perhaps one can."""
    others = [name for name, item in run.kept.items.items() if not isinstance(item, Tensor)]
    if others:
        return f"the defense keeps {', '.join(others)}, whose Python code would not run"
    moving = run.protocol.momentum_peak is not None and run.protocol.schedule_by == "step"
    return "the momentum moves at every step" if moving else ""


@contextmanager
def _rates_in_place(run: Run) -> Iterator[list[Tensor]]:
    """The run's learning rates in tensors that are filled before each step; numbers again at exit."""
    groups = run.optimizer.param_groups
    run.rate_places = [torch.tensor(group["lr"], dtype=torch.float32, device=run.device) for group in groups]
    for group, place in zip(groups, run.rate_places, strict=True):
        group["lr"] = place
    try:
        yield run.rate_places
    finally:
        run.rate_places = None
        for group in groups:
            group["lr"] = float(group["lr"])


@dataclass(frozen=True)
class _Batch:
    """A batch, and all else that its step started from."""

    images: Images
    labels: Labels
    told: TrainingContext
    drawn: tuple[Tensor, ...]
    rates: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Of the batch, in order."""
        placement = (self.told.placement.offsets, self.told.placement.mirrored)
        found = [self.images, self.labels, self.told.indices, *placement]
        return [tensor for tensor in found if tensor is not None]


class _Epoch:
    """The steps of one epoch: some as they are, then replays of one for every batch of the same size."""

    def __init__(
        self, graphs: Graphs, run: Run, take: Take, averages: Averages, stray: StrayState, rates: Sequence[Tensor]
    ) -> None:
        self.graphs, self.run, self.take, self.averages, self.stray = graphs, run, take, averages, stray
        self.rates = rates
        self.read: set[str] = set()
        self.watched = _watched(self.read)
        self.seen: list[_Batch] = []
        self.before: Mapping[tuple[str, Any], Tensor] = {}
        self.drew_on_host = False
        self.place: _Batch | None = None
        self.replay: Callable[[], object] = lambda: None
        self.terms: Terms = {}
        self.counts: Mapping[str, int] = {}
        self.stepped: list[torch.optim.Optimizer] = []

    def __call__(self, images: Images, labels: Labels, told: TrainingContext) -> Terms:
        given = _Batch(images, labels, told, (), ())
        if self.place is not None and _same_shapes(given, self.place):
            self._replay(given)
            self.graphs.replayed += 1
            return self.terms
        if self.graphs.refused or len(self.seen) == EAGER or (self.seen and not _same_shapes(given, self.seen[0])):
            return self.take(images, labels, told)
        if not self.seen:
            self.before = {name: tensor.clone() for name, tensor in self._moving().items()}
        rates = tuple(rate.clone() for rate in self.rates)
        self.seen.append(replace(given, drawn=_drawn(told.generator, self.run.device), rates=rates))
        host = _drawn_on_the_host(self.run.device)
        terms = self.take(images, labels, _as(self.watched, told))
        self.drew_on_host |= _drawn_on_the_host(self.run.device) != host
        if len(self.seen) == EAGER:
            self.stray.require_none(self.run.observed_rates.strangers)
            reason = self._unrecordable() or self._record(told.generator)
            if reason:
                self.place = None
                self.graphs.refuse(reason)
            self.before = {}
        return terms

    def _weights(self) -> list[Tensor]:
        """All that the model has or the optimiser trains."""
        trained = [weight for group in self.run.optimizer.param_groups for weight in group["params"]]
        return list(dict.fromkeys([*self.run.model.parameters(), *trained]))

    def _moving(self) -> dict[tuple[str, Any], Tensor]:
        """All tensors that a step changes, by what they are and a name."""
        optimizer, weights = self.run.optimizer, self._weights()
        states = {(n, key): one for n, w in enumerate(weights) for key, one in optimizer.state.get(w, {}).items()}
        kinds: dict[str, Mapping[Any, Any]] = {
            "weights": dict(enumerate(weights)),
            "buffers": dict(self.run.model.named_buffers()),
            "kept tensors": self.run.kept.items,
            "optimiser": {name: one for name, one in states.items() if isinstance(one, Tensor)},
            "means": self.averages.sums,
        }
        return {(kind, name): tensor.detach() for kind, found in kinds.items() for name, tensor in found.items()}

    def _put_back(self, values: Mapping[tuple[str, Any], Tensor]) -> None:
        """What was not there was 0: an optimiser's buffers, and means."""
        for name, tensor in self._moving().items():
            value = values.get(name)
            tensor.zero_() if value is None else tensor.copy_(value)

    def _groups(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return zip(self.run.optimizer.param_groups, self.rates, strict=True)

    def _unrecordable(self) -> str:
        """What the steps so far have shown that no graph can repeat."""
        if self.read:
            return f"a step reads context.{self.read.pop()}, which a replay could not move"
        if any(group["lr"] is not rate for group, rate in self._groups()):
            return "a step uses rates of its own"
        if any(optimizer is not self.run.optimizer for optimizer in self.stepped):
            return "a step uses an optimiser of its own"
        if self.stray.told:
            return f"{', '.join(sorted(self.stray.told)[:3])} changes in Python"
        return "a step draws random numbers on the CPU" if self.drew_on_host else ""

    def _record(self, generator: torch.Generator) -> str:
        """Record a step and compare; returns why it cannot be used. The training stands where its own steps left it."""
        last = self.seen[-1]
        after = {name: one.clone() for name, one in self._moving().items()}
        sums, counts = dict(self.averages.sums), dict(self.averages.counts)
        gradients = [(weight, weight.grad) for weight in self._weights()]
        drawn, in_force = _drawn(generator, self.run.device), [rate.clone() for rate in self.rates]
        indices, placement = last.told.indices.clone(), last.told.placement.copied()
        self.place = replace(
            last,
            images=last.images.clone(),
            labels=last.labels.clone(),
            told=_as(self.watched, replace(last.told, indices=indices, placement=placement)),
        )
        arguments = (self.place.images, self.place.labels, self.place.told)
        try:
            with self.run.observed_rates.set_aside() as self.stepped, _capturable(self.run.optimizer):
                self.replay, self.terms = self.graphs.recorder(lambda: self.take(*arguments), generator)
            self.counts = {name: count - counts.get(name, 0) for name, count in self.averages.counts.items()}
            if reason := self._unrecordable():
                return reason
            self._put_back(self.before)
            self.averages.counts = dict(counts)
            for batch in self.seen:
                _draw_from(batch.drawn, generator, self.run.device)
                for rate, value in zip(self.rates, batch.rates, strict=True):
                    rate.copy_(value)
                self._launch(batch)
            if not all(map(torch.equal, _drawn(generator, self.run.device), drawn)):
                return "replayed, a step draws other numbers"
            return _difference(self._moving(), after, self.before)
        except Exception as error:  # whatever a plug-in does while it is recorded: the step itself works
            return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        finally:
            # A recording that failed on its way leaves means and gradients that nobody computed.
            self.averages.sums, self.averages.counts = sums, counts
            for weight, gradient in gradients:
                weight.grad = gradient
            self._put_back(after)
            _draw_from(drawn, generator, self.run.device)
            for rate, value in zip(self.rates, in_force, strict=True):
                rate.copy_(value)

    def _launch(self, batch: _Batch) -> None:
        assert self.place is not None
        for place, tensor in zip(self.place.tensors, batch.tensors, strict=True):
            place.copy_(tensor)
        self.replay()

    def _replay(self, batch: _Batch) -> None:
        """A replay, and what the step would have told others."""
        self._launch(batch)
        counts = self.averages.counts
        self.averages.counts = {name: counts.get(name, 0) + more for name, more in self.counts.items()}
        for optimizer in self.stepped:
            self.run.observed_rates.note(optimizer)


def _same_shapes(one: _Batch, other: _Batch) -> bool:
    return [tensor.shape for tensor in one.tensors] == [tensor.shape for tensor in other.tensors]


def _as(kind: type[TrainingContext], told: TrainingContext) -> TrainingContext:
    return kind(**{field.name: getattr(told, field.name) for field in fields(told)})


def _watched(read: set[str]) -> type[TrainingContext]:
    """A kind of context that notes who reads a number that moves from step to step; a copy of one is one."""

    def note(name: str, reader: str) -> Any:
        if name in _MOVING and reader not in ("dataclasses", __name__):  # which only copy it
            read.add(name)

    # Type checkers wrap functions, and would be the reader; they leave a lambda alone.
    notes = {
        "__getattribute__": lambda self, name: (
            note(name, sys._getframe(1).f_globals["__name__"]) or object.__getattribute__(self, name)
        )
    }
    return type("Watched", (TrainingContext,), notes)


def _drawn(generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    """The states of the generators on the device that a step may draw from."""
    shared = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return generator.get_state(), shared


def _draw_from(drawn: tuple[Tensor, ...], generator: torch.Generator, device: torch.device) -> None:
    generator.set_state(drawn[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(drawn[1], device)
    else:
        torch.set_rng_state(drawn[1])


def _drawn_on_the_host(device: torch.device) -> object:
    """The states of generators of the CPU, to compare. Type checkers draw from Python's: that one is left out."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    torch_state = torch.get_rng_state().tolist() if device.type != "cpu" else None
    return numpy_state["key"].tobytes(), int(numpy_state["pos"]), torch_state


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """An optimiser that asks whether it may be recorded is told so until exit."""
    groups = [group for group in optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _difference(
    found: Mapping[tuple[str, Any], Tensor],
    expected: Mapping[tuple[str, Any], Tensor],
    before: Mapping[tuple[str, Any], Tensor],
) -> str:
    """Where replays and steps end apart; empty where they do not. Waits for the device."""
    if found.keys() != expected.keys():
        return "recorded, a step keeps or records other things"
    for kind in dict.fromkeys(kind for kind, _ in expected):
        names = [name for name in expected if name[0] == kind]
        exact = [name for name in names if not expected[name].is_floating_point()]
        if not all(torch.equal(found[name], expected[name]) for name in exact):
            return f"replayed, three steps end at other {kind}"
        apart = way = 0.0
        for name in set(names) - set(exact):
            start = before.get(name, torch.zeros_like(expected[name]))
            apart += float((found[name].double() - expected[name].double()).square().sum())
            way += float((expected[name].double() - start.double()).square().sum())
        if not apart <= DISAGREEMENT**2 * way:
            return (
                f"replayed, three steps end at other {kind} ({(apart / max(way, 1e-300)) ** 0.5:.1%} of the way apart)"
            )
    return ""
