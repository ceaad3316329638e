"""The contract between the harness and its plug-ins. Read this file first.

Data flows one way:

    dataset -> train(defense) -> checkpoint -> evaluate(suite) -> result file -> table -> leaderboard

A *defense* is a frozen dataclass in `defenses/` that returns named loss terms. An *attack* is a frozen
dataclass in `attacks/` that returns images. Neither ever reports its own success: the harness projects what an
attack returns onto the threat model, classifies it again, and stores the outcome for every sample.

Images are NCHW float tensors in [0, 1]; models return logits and normalise inside, if at all.
"""

import dataclasses
import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from bench.errors import BenchError
from bench.exact import exact

Images: TypeAlias = Float[Tensor, "batch channel height width"]
Labels: TypeAlias = Int64[Tensor, " batch"]
Logits: TypeAlias = Float[Tensor, "batch classes"]
Features: TypeAlias = Float[Tensor, "batch dim"]
FeatureMap: TypeAlias = Float[Tensor, "batch channels rows columns"]
Centres: TypeAlias = Float[Tensor, "classes dim"]
PerExample: TypeAlias = Float[Tensor, " batch"]
Scalar: TypeAlias = Float[Tensor, ""]

Objective: TypeAlias = Callable[[nn.Module, Images], PerExample]
"""What an attack ascends: model and perturbed images in, one value per image out (larger is worse for the model)."""
ObjectiveFactory: TypeAlias = Callable[[nn.Module, Images, Labels], Objective | None]
"""Makes what is to be ascended on some clean images with their labels; None: nothing but the attack's own loss."""
Step: TypeAlias = Callable[[Images], Images]
"""One step of an ascent: perturbed images in, perturbed further out."""

NORMS: tuple[str, ...] = ("linf", "l2", "l1")

_STEP = re.compile(r"(?:(?P<factor>[0-9.]+(?:/[0-9.]+)?)\*?)?eps(?:/(?P<divisor>[0-9.]+))?")


@dataclass(frozen=True)
class ThreatModel:
    """The images an adversary may submit: within `epsilon` of the original in `norm`, and inside [0, 1].

    `epsilon` stays the text it was given as (`8/255`, `0.15`), so that it is recorded exactly.

    Raises:
        BenchError: the norm is unknown, or epsilon is not a number or fraction of at least 0.
    """

    norm: str = "linf"
    epsilon: str = "8/255"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise BenchError(f"unknown norm {self.norm!r}. Choose from: {', '.join(NORMS)}.")
        try:
            value = exact(self.epsilon)
        except (ValueError, ZeroDivisionError):
            raise BenchError(
                f"epsilon {self.epsilon!r} is not a number. Write a fraction such as 8/255 or a decimal such as 0.15."
            ) from None
        if value < 0:
            raise BenchError(f"epsilon {self.epsilon} is below 0. It is a radius: give 0 or more, such as 8/255.")

    def require_a_pixel_range(self) -> None:
        """For a radius that a person gave; a suite's multiples of it, such as 4*eps, may go beyond the range.

        Raises:
            BenchError: more than 1 in linf, where 1 allows every image.
        """
        value = exact(self.epsilon)
        if self.norm == "linf" and value > 1:
            levels = value.denominator == 1 and value < 255
            hint = f"did you mean {value}/255?" if levels else "1 is the whole range: give less, such as 8/255."
            raise BenchError(f"epsilon {self.epsilon} is wider than the whole pixel range [0, 1]; {hint}")

    @property
    def radius(self) -> float:
        """Epsilon as a float, in units of a pixel's range [0, 1]."""
        return float(exact(self.epsilon))

    def length(self, text: str) -> float:
        """The length that `text` names: `2/255`, `0.01`, `eps/4`, `0.1*eps` or `2.5*eps/20`.

        Raises:
            BenchError: the text is none of these, or the length is negative.
        """
        relative = _STEP.fullmatch(text.replace(" ", ""))
        try:
            if relative:
                factor = exact(relative["factor"] or "1")
                return float(factor * exact(self.epsilon) / exact(relative["divisor"] or "1"))
            value = exact(text)
        except (ValueError, ZeroDivisionError):
            raise BenchError(f"step size {text!r} is not a length. Write 2/255, 0.01, eps/4 or 2.5*eps/20.") from None
        if value < 0:
            raise BenchError(f"step size {text!r} is below 0. Write a length such as 2/255 or eps/4.")
        return float(value)

    def distance(self, perturbed: Images, clean: Images) -> PerExample:
        """Distance of each pair in this norm, computed in float64."""
        difference = (perturbed.double() - clean.double()).flatten(1)
        order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[self.norm]
        return torch.linalg.vector_norm(difference, ord=order, dim=1)

    def project(self, perturbed: Images, clean: Images) -> Images:
        """The nearest images that the threat model allows (for l2: onto the ball, then onto the box)."""
        if self.norm == "linf":
            nearest = torch.minimum(torch.maximum(perturbed, clean - self.radius), clean + self.radius)
        elif self.norm == "l2":
            difference = perturbed - clean
            length = torch.linalg.vector_norm(difference.flatten(1), dim=1)
            factor = (self.radius / length.clamp_min(1e-12)).clamp_max(1.0)
            nearest = clean + difference * factor.view(-1, 1, 1, 1)
        else:
            nearest = _project_l1(perturbed, clean, self.radius)
        return nearest.clamp(0.0, 1.0)


def _project_l1(perturbed: Images, clean: Images, radius: float) -> Images:
    """Exact projection onto the l1 ball intersected with [0, 1] (Croce & Hein 2021, "Mind the box", section 2).

    The projection shrinks every |difference| by one threshold per image and cuts it at the room left inside
    the box; the threshold is the root of a piecewise linear, decreasing function, found here by bisection.
    """
    difference = (perturbed - clean).flatten(1)
    size = difference.abs()
    flat = clean.flatten(1)
    room = torch.where(difference > 0, 1.0 - flat, flat).clamp_min(0.0)

    def shrunk(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold).clamp_min(0.0), room)

    low = torch.zeros_like(size[:, :1])
    high = torch.where(shrunk(low).sum(1, keepdim=True) > radius, size.amax(1, keepdim=True), low)
    for _ in range(40):
        middle = (low + high) / 2
        too_long = shrunk(middle).sum(1, keepdim=True) > radius
        low = torch.where(too_long, middle, low)
        high = torch.where(too_long, high, middle)
    return clean + (difference.sign() * shrunk(high)).view_as(clean)


# ------------------------------------------------------------------------------------------------ models


class Backbone(nn.Module, ABC):
    """Maps images to one feature vector each, by way of a feature map that a defense may work on."""

    feature_dim: int
    map_channels: int

    @abstractmethod
    def feature_map(self, images: Images) -> FeatureMap:
        """The last map before pooling."""

    @abstractmethod
    def embed(self, feature_map: FeatureMap) -> Features:
        """The feature vector of a map (usually its spatial mean)."""

    def forward(self, images: Images) -> Features:
        return self.embed(self.feature_map(images))

    def initialise_linear(self, linear: nn.Linear) -> None:
        """Initialise a linear layer on the features as this backbone's authors do. Default: as PyTorch does."""


@runtime_checkable
class BackboneFactory(Protocol):
    """Makes the backbone that the run asks for."""

    def __call__(self, activation: Literal["relu", "prelu"] = "relu", final_activation: bool = True) -> Backbone:
        """`prelu` learns one slope per block; without `final_activation` the features may be negative."""


class Classifier(nn.Module, ABC):
    """A model whose features and class centres can be measured. `forward` returns logits."""

    @abstractmethod
    def features(self, images: Images) -> Features:
        """The features that `score` reads."""

    @abstractmethod
    def score(self, features: Features) -> Logits:
        """Logits of features."""

    @abstractmethod
    def class_centres(self) -> Centres:
        """One vector per class in feature space: prototypes, or the classifier's weight rows."""

    def forward(self, images: Images) -> Logits:
        return self.score(self.features(images))


class LinearClassifier(Classifier):
    """A backbone and one linear layer with bias."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.feature_dim, num_classes)
        backbone.initialise_linear(self.head)

    def features(self, images: Images) -> Features:
        return self.backbone(images)

    def score(self, features: Features) -> Logits:
        return self.head(features)

    def class_centres(self) -> Centres:
        return self.head.weight.detach()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; every submodule's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def without_autocast(images: Images) -> AbstractContextManager[Any]:
    """For backward passes, which under autocast round even what the forward pass computed in float32."""
    return torch.autocast(images.device.type, enabled=False)


# ----------------------------------------------------------------------------------------------- attacks


NO_CLASS = -1
"""The prediction where logits are NaN or infinite: it equals no label."""


def classes(logits: Logits) -> Labels:
    """The class that each row of logits names, or `NO_CLASS`."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), NO_CLASS)


def fooled(images: Images, logits: Logits, labels: Labels) -> Bool[Tensor, " batch"]:
    """Whether each image is adversarial: the model's logits of it name another class than its label.

    An image or logits that are not finite are no success: what answers NaN is a fault, and not a class.
    """
    named = classes(logits)
    return (named != labels) & (named != NO_CLASS) & within(images, -torch.inf, torch.inf)


def within(images: Images, low: float, high: float) -> Bool[Tensor, " batch"]:
    """Whether all values of each image lie strictly between two numbers; NaN does not."""
    flat = images.flatten(1)
    return (flat.amin(1) > low) & (flat.amax(1) < high)


class Draws:
    """Random numbers keyed by (seed, stream, key, sample index).

    A sample's numbers do not depend on the batch it is in, so results are the same for every batch size,
    order and shard.
    """

    def __init__(self, seed: int, stream: str, indices: np.ndarray) -> None:
        self.seed, self.stream, self.indices = seed, stream, indices

    def _stack(self, like: Tensor, key: object, draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> Tensor:
        rows = np.empty((len(self.indices), *like.shape[1:]), dtype=np.float32)
        for row, index in enumerate(self.indices):
            digest = hashlib.blake2b(f"{self.seed}/{self.stream}/{key}/{index}".encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
            rows[row] = draw(generator, like.shape[1:])
        return torch.from_numpy(rows).to(device=like.device, dtype=like.dtype)

    def uniform(self, like: Tensor, key: object = 0) -> Tensor:
        """Numbers in [0, 1) of the shape, type and device of `like` (first axis: sample)."""
        return self._stack(like, key, lambda generator, shape: generator.random(shape, dtype=np.float32))

    def normal(self, like: Tensor, key: object = 0) -> Tensor:
        """Standard normal numbers of the shape, type and device of `like` (first axis: sample)."""
        return self._stack(like, key, lambda generator, shape: generator.standard_normal(shape, dtype=np.float32))


@dataclass(frozen=True)
class Problem:
    """What an attack is given."""

    model: nn.Module
    """Images to logits, in eval mode."""
    images: Images
    labels: Labels
    threat: ThreatModel
    draws: Draws
    """The only source of randomness an attack may use."""
    objective: Objective | None = None
    """What to ascend instead of the attack's own loss: a defense's adaptive objective, or a user's."""
    notes: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """What an attack wants recorded, one integer per sample; it changes no verdict."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """What an attack noticed about the model, for the record's findings."""


@dataclass(frozen=True)
class Attack(ABC):
    """Searches a threat model for images that a model gets wrong. Fields are its parameters.

    The harness projects what `perturb` returns and classifies it again: an attack can waste its budget but
    never exceed it, and never grades itself.
    """

    paper: ClassVar[str]
    """Where the attack comes from."""
    blind_stages: ClassVar[frozenset[int]] = frozenset()
    """Which of its stages (`Problem.notes`, from 1; 1 for an attack without stages) look at no gradients."""
    minimum_norm: ClassVar[bool] = False
    """Whether it returns the nearest adversarial image that it finds, whatever the radius: one beyond is no fault."""

    @property
    def fixed_batch(self) -> int | None:
        """A number where draws depend on the batch: so many of the samples to attack are given at once, in order."""
        return None

    @property
    def ascends(self) -> Literal["cross-entropy", "margin", "other"]:
        """The loss it ascends, so that the trust report can compare what two losses find."""
        return "other"

    @abstractmethod
    def perturb(self, problem: Problem) -> Images:
        """Perturbed images, in the order of `problem.images`."""

    def passes(self) -> tuple[int, int]:
        """Gradients and plain forward passes per image, at most; (0, 0): not known. For estimates of cost only."""
        return 0, 0

    def members(self, norm: str) -> tuple["Attack", ...]:
        """The attacks that it runs, each on the images that still stand; none: it is no ensemble."""
        return ()


State: TypeAlias = dict[str, Tensor]
"""Of an iterative attack, between two steps: tensors with one row per image, `images` among them."""


@dataclass(frozen=True)
class IterativeAttack(Attack):
    """An attack that moves images step by step, every row for itself.

    Because the state is explicit, the harness can run PGD-20 and PGD-500 as one search, give a restart only to the
    images still standing, and take an image out as soon as its outcome is known: with the same outcomes as running
    each alone. Fields called `steps`, `restarts` and `step_size` have the meaning they have in `PGD`.
    """

    @property
    def lengths(self) -> tuple[int, int]:
        """Steps and restarts: the fields of those names, else 1."""
        return getattr(self, "steps", 1), getattr(self, "restarts", 1)

    @abstractmethod
    def begin(self, problem: Problem, restart: int) -> State:
        """The state before the first step; its `images` are allowed."""

    @abstractmethod
    def step(self, problem: Problem, state: State) -> State:
        """The state after one step. `state["images"]` goes through `problem.model` once, as it is."""

    def passes(self) -> tuple[int, int]:
        return math.prod(self.lengths), 1

    def family(self, threat: ThreatModel) -> tuple[Any, ...]:
        """Equal for attacks of which one is a prefix of the other: all parameters but `steps` and `restarts`."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("steps", "restarts")}
        if "step_size" in values:
            values["step_size"] = threat.length(values["step_size"])
        return (type(self), *values.items())

    def perturb(self, problem: Problem) -> Images:
        """The last iterate; of several restarts, the first that fools the model, else the last one's."""
        kept, done = problem.images, torch.zeros_like(problem.labels, dtype=torch.bool)
        steps, restarts = self.lengths
        for restart in range(restarts):
            state = self.begin(problem, restart)
            for _ in range(steps):
                state = self.step(problem, state)
            kept = torch.where(done.view(-1, 1, 1, 1), kept, state["images"])
            if restarts > 1:
                with torch.no_grad():
                    done = fooled(kept, problem.model(kept), problem.labels)
        return kept


# ---------------------------------------------------------------------------------------------- defenses


def hyperparameter(default: Any, about: str, source: str = "paper", choices: tuple[Any, ...] = ()) -> Any:
    """A dataclass field with its help text, where its default comes from, and its allowed values."""
    return dataclasses.field(default=default, metadata={"about": about, "source": source, "choices": choices})


@runtime_checkable
class Stateful(Protocol):
    """What knows its own state, as optimisers, their schedules and modules do."""

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
    """What a defense is told about the run it is in."""

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
    requirements: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """The trained models that the defense's `requires` names, in eval mode."""
    view: Callable[[nn.Module], AbstractContextManager[nn.Module]] = evaluation_mode
    """How to look at the model while crafting; use `crafting`."""
    record: Callable[[str, Tensor | float], None] = lambda name, value: None
    """Adds a value to the epoch's history (averaged over the epoch), beside the loss terms."""
    half: bool = False
    """Whether the run computes in bfloat16 where that is safe."""
    share: Share | None = None
    """The rows of the batch that this process was given; None: all of it."""
    repeated: Callable[[Step], Step] = lambda step: step
    """The same step, for one that is run several times on one batch."""
    state: Mapping[str, "Stateful | Tensor"] = dataclasses.field(default_factory=dict)
    """What the defense's `state` returned, as earlier steps have left it."""

    @contextmanager
    def crafting(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as perturbed images should be crafted against it: the same function, in eval mode, in float32.

        The same function means the weights that are trained: a run stops where eval mode computes with others, such as
        averaged ones. Give the part that is trained instead of the whole model then.
        In a bfloat16 run the shared inner maximum, `attacks.craft`, leaves float32 by itself where that is safe.
        """
        with self.rounding(half=False), self.view(model) as view:
            yield view

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
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Published hyperparameters that differ from the defaults, by dataset."""
    unrecorded: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Hyperparameters that were added later, with the value that a record without them means."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Defenses whose trained model (same dataset, backbone and seed) this one needs."""
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

        A resumed run has the model, the shared optimiser and `state`: what else must outlive an epoch is lost.
        """
        terms = self.losses(model, images, labels, context)
        require_terms(self, "losses", terms)
        optimizer.zero_grad(set_to_none=True)
        with without_autocast(images):
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return terms

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        """What the shared optimiser updates. Default: every parameter that requires a gradient, one group.

        A group's own `lr` is its rate of the first era: the schedule multiplies it as it does the protocol's.
        """
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def state(self, model: Any, optimizer: torch.optim.Optimizer) -> Mapping[str, Stateful | Tensor]:
        """What must outlive an epoch besides the model and the shared optimiser, by name. Default: nothing.

        Called once, with the model on its device. What it returns (an optimiser of the defense's own, a schedule of
        one, a table of tensors that is changed in place) is given to every step as `context.state`, saved with every
        epoch, and in a resumed run put back.
        """
        return {}

    def begin_epoch(self, model: Any, context: TrainingContext) -> None:
        """Called before the first batch of every epoch."""

    def end_epoch(self, model: Any, context: TrainingContext) -> None:
        """Called after the last batch of every epoch."""

    def adaptive_objective(self, model: Any, images: Images, labels: Labels) -> Objective | None:
        """What an attacker who knows this defense would maximise. None: nothing beyond cross-entropy."""
        return None


def require_terms(defense: Defense, method: str, terms: object) -> None:
    """Refuse what is no loss, without waiting for the device.

    The sum of `losses` needs a gradient; what `update` returns was used already.

    Raises:
        BenchError: `terms` is no dictionary of names to single numbers, or all of them are cut from the model.
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
