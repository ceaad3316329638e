"""Defenses: training methods, and what they are told about the run they are in."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces.models import BackboneFactory, Classifier, LinearClassifier, evaluation_mode, without_autocast
from bench.interfaces.placement import Placement
from bench.interfaces.tensors import Images, Indices, Labels, Objective, Scalar, Step
from bench.interfaces.threat import ThreatModel

Family: TypeAlias = Literal[
    "no adversarial training", "single-step", "multi-step", "prototype", "distillation", "weight perturbation"
]
"""Kinds of training methods, by which they are listed."""


@runtime_checkable
class Stateful(Protocol):
    """An object that knows its own state, as optimisers, their schedules and modules do."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, and lists and dictionaries of them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take over what `state_dict` returned."""


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one of several processes works on."""

    first: int
    end: int
    total: int
    """Rows of the whole batch."""


@dataclass(frozen=True)
class TrainingContext:
    """The facts of a run that its defense is told."""

    threat: ThreatModel
    steps: int
    """Ascent steps of the inner maximum."""
    step_size: float
    """Length of one ascent step, in pixel units."""
    generator: torch.Generator
    """The source of randomness, on the device of the images; a function of (seed, epoch)."""
    epoch: int = 0
    """Counted from 0."""
    epochs: int = 1
    batch: int = 0
    """The number of this batch in its epoch, counted from 0; at the end of an epoch, `batches_per_epoch`."""
    batches_per_epoch: int = 1
    training_images: int = 0
    """Images that are trained on, extra ones included and held-out ones not."""
    training_set: Callable[[], Iterator[tuple[Images, Labels]]] = lambda: iter(())
    """The training images as they are, in their order, in batches with their labels: no extra and no held-out ones."""
    indices: Indices = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """The training image that each row of the batch was made of, below `training_images`; outside a step, none.

    The same image has the same index in every epoch and in a resumed run. Extra images come after the others; such a
    one may be in an epoch, and in a batch, several times.
    """
    placement: Placement = dataclasses.field(default_factory=Placement)
    """The crops and flips of this batch."""
    requirements: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """The trained models that the defense's `requires` names, in eval mode."""
    view: Callable[[nn.Module], AbstractContextManager[nn.Module]] = evaluation_mode
    """How to look at the model while crafting; use `crafting`."""
    record: Callable[[str, Tensor | float], None] = lambda name, value: None
    """Adds a value to the epoch's history (averaged over the epoch), beside the loss terms."""
    half: bool = False
    """True if the run computes in bfloat16 where that is safe."""
    share: Share | None = None
    """The rows of the batch that this process was given; None: all of it."""
    repeated: Callable[[Step], Step] = lambda step: step
    """The same step, for one that is run several times on one batch; who looks at steps or remembers them exchanges it.

    It may be left out where its result is known: a step counts nothing and writes to no table. Do that before or after
    the ascent.
    """
    state: Mapping[str, "Stateful | Tensor"] = dataclasses.field(default_factory=dict)
    """The defense's own `state` and `tables`, as earlier steps have left them."""

    @property
    def progress(self) -> float:
        """The share of the run's steps that are done, in [0, 1]."""
        return (self.epoch + self.batch / self.batches_per_epoch) / self.epochs

    @contextmanager
    def crafting(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as perturbed images should be crafted against it: the same function, in eval mode, in float32.

        The same function means the weights that are trained: a run stops where eval mode computes with others, such as
        averaged ones. Give the part that is trained instead of the whole model then.
        In a bfloat16 run the shared inner maximum, `attacks.craft`, leaves float32 by itself where that is safe.
        """
        with self.rounding(half=False), self.view(model) as view:
            yield view

    @staticmethod
    @contextmanager
    def without_statistics(model: nn.Module) -> Iterator[nn.Module]:
        """The model, whose BatchNorms leave their running statistics as they are until exit.

        In train mode they normalise with the statistics of the batch all the same. For a step of several forward
        passes, not all of which shall count.
        """
        layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        before = [layer.track_running_stats for layer in layers]
        for layer in layers:
            layer.track_running_stats = False
        try:
            yield model
        finally:
            for layer, tracks in zip(layers, before, strict=True):
                layer.track_running_stats = tracks

    def rounding(self, half: bool) -> AbstractContextManager[Any]:
        """In a bfloat16 run: autocast, on or off. In any other run nothing is touched."""
        if not self.half:
            return nullcontext()
        # Without a cache, because weights may change between two forwards of one step.
        return torch.autocast(self.generator.device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    def noise(self, distribution: Callable[..., Tensor], images: Images) -> Images:
        """Numbers of the images' shape from `torch.rand` or `torch.randn`: the same, however a batch is shared."""
        share = self.share or Share(0, len(images), len(images))
        shape = (share.total, *images.shape[1:])
        numbers = distribution(shape, generator=self.generator, device=images.device, dtype=images.dtype)
        return numbers[share.first : share.end]


@dataclass(frozen=True)
class Defense(ABC):
    """A training method. Its dataclass fields are its hyperparameters; what is learned lives in the model."""

    paper: ClassVar[str]
    """Citation, with the equation that is implemented."""
    family: ClassVar[Family | None] = None
    """What kind of method it is; None: of none of these."""
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Published hyperparameters that differ from the defaults, by dataset."""
    unrecorded: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Hyperparameters that were added later, with the value that a record without them means."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Defenses whose trained model (same dataset, backbone and seed) this one needs."""
    views: ClassVar[int] = 1
    """Augmented versions of each image in a batch. With n images, rows i, i + n, i + 2n, ... are versions of one."""
    undivided: ClassVar[str] = ""
    """Why processes cannot share a batch, if they cannot. They can where the loss is a mean over the batch, noise comes
    from `TrainingContext.noise`, and weights move by `optimizer.step` alone, or alike in every process."""

    def build(self, backbone: BackboneFactory, num_classes: int) -> Classifier:
        """The model to train. Default: the stock backbone and one linear layer."""
        return LinearClassifier(backbone(), num_classes)

    @abstractmethod
    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        """Named terms, already weighted: the training loss is their sum. The model is in train mode.

        A term is one number, a mean over the batch, say; their sum has a gradient.
        """

    def update(
        self, model: Any, optimizer: torch.optim.Optimizer, images: Images, labels: Labels, context: TrainingContext
    ) -> dict[str, Scalar]:
        """One optimiser step. Override to perturb weights, project parameters or use optimisers of your own.

        A resumed run has the model, the shared optimiser, `state` and `tables`: what else must outlive an epoch is
        lost.
        """
        terms = self.losses(model, images, labels, context)
        require_terms(self, "losses", terms)
        optimizer.zero_grad(set_to_none=True)
        with without_autocast(images):
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return terms

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        """Groups of parameters for the shared optimiser. Default: all that require a gradient, in one group.

        A group's own `lr` is its rate of the first era: the schedule multiplies it as it does the protocol's.
        """
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def state(self, model: Any, optimizer: torch.optim.Optimizer) -> Mapping[str, Stateful | Tensor]:
        """All that must outlive an epoch besides the model and the shared optimiser, by name. Default: nothing.

        Called once, with the model on its device. Its items (an optimiser of the defense's own, a schedule of one, a
        table of tensors that is changed in place) are given to every step as `context.state`, saved with the model,
        and in a resumed run put back.
        """
        return {}

    def tables(self, image_shape: tuple[int, int, int]) -> Mapping[str, tuple[int, ...]]:
        """The shapes of what is kept for each training image, by name, such as `{"loss": ()}`. Default: nothing.

        A table is a float32 tensor of one such row per image, at first 0, and is given, saved and put back as `state`
        is: a step reads and writes the rows `context.indices`. The harness makes it, because it knows how many images
        there are. Several processes cannot share a training with tables.
        """
        return {}

    def begin_epoch(self, model: Any, context: TrainingContext) -> None:
        """Called before the first batch of every epoch."""

    def end_epoch(self, model: Any, context: TrainingContext) -> None:
        """Called after the last batch of every epoch."""

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective | None:
        """A loss that an attacker who knows this defense would maximise. None: nothing beyond cross-entropy."""
        return None


def require_terms(defense: Defense, method: str, terms: object) -> None:
    """Refuse terms that are no dictionary of names to single numbers, without waiting for the device.

    The sum of `losses` needs a gradient as well; that of `update` was used already.
    """
    where = f"{method}() of {type(defense).__name__} returned"
    if not isinstance(terms, Mapping) or not terms:
        shown = "no terms" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise BenchError(f'{where} {shown}: return a dictionary of named loss terms, such as {{"loss": loss}}.')
    for name, term in terms.items():
        if not isinstance(name, str):
            raise BenchError(f"{where} the name {name!r}, which is not text.")
        if not isinstance(term, Tensor):
            raise BenchError(f"{where} a {type(term).__name__} for {name!r}: it must be a tensor; leave out .item().")
        if term.dim():
            shape = tuple(term.shape)
            raise BenchError(f"{where} shape {shape} for {name!r}: reduce it to one number, e.g. with .mean().")
    if method == "losses" and not any(term.requires_grad for term in terms.values()):
        raise BenchError(f"{where} {', '.join(terms)} without a gradient: leave out .detach() and no_grad().")
