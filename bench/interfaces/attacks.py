"""Attacks: what they are given, what they return, and when an image counts as adversarial."""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from bench.interfaces.draws import Draws
from bench.interfaces.tensors import Images, Labels, Logits, Objective
from bench.interfaces.threat import ThreatModel

NO_CLASS = -1
"""The prediction where logits are NaN or infinite: it equals no label."""


def classes(logits: Logits) -> Labels:
    """The class that each row of logits names, or `NO_CLASS`."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), NO_CLASS)


def fooled(images: Images, logits: Logits, labels: Labels) -> Bool[Tensor, " batch"]:
    """True for each image that is adversarial: the model's logits of it name another class than its label.

    An image or logits that are not finite are no success: what answers NaN is a fault, and not a class.
    """
    named = classes(logits)
    return (named != labels) & (named != NO_CLASS) & within(images, -torch.inf, torch.inf)


def within(images: Images, low: float, high: float) -> Bool[Tensor, " batch"]:
    """True for each image all of whose values lie strictly between two numbers; NaN does not."""
    flat = images.flatten(1)
    return (flat.amin(1) > low) & (flat.amax(1) < high)


@dataclass(frozen=True)
class Problem:
    """The task that an attack is given."""

    model: nn.Module
    """Images to logits, in eval mode."""
    images: Images
    labels: Labels
    threat: ThreatModel
    draws: Draws
    """The only source of randomness an attack may use."""
    objective: Objective | None = None
    """To ascend instead of the attack's own loss: a defense's adaptive objective, or a user's."""
    notes: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """One integer per sample that the attack wants recorded, by name; it changes no verdict."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """Texts on what the attack noticed about the model, for the record's findings."""


@dataclass(frozen=True)
class Attack(ABC):
    """Searches a threat model for images that a model gets wrong. Fields are its parameters.

    The harness projects what `perturb` returns and classifies it again: an attack can waste its budget but
    never exceed it, and never grades itself.
    """

    paper: ClassVar[str]
    """Where the attack comes from."""
    blind_stages: ClassVar[frozenset[int]] = frozenset()
    """Those of its stages (`Problem.notes`, from 1; 1 for an attack without stages) that look at no gradients."""
    transformation: ClassVar[str | None] = None
    """Of `TRANSFORMATIONS`, the one whose parameters it returns; None: it returns images, under a norm."""
    minimum_norm: ClassVar[bool] = False
    """True if it returns the nearest adversarial image that it finds, whatever the radius: one beyond is no fault."""

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
        """Perturbed images, in the order of `problem.images`; where the threat is a transformation, its parameters."""

    def passes(self) -> tuple[int, int]:
        """Gradients and plain forward passes per image, at most; (0, 0): not known. For estimates of cost only.

        Default: those of its members together.
        """
        parts = [attack.passes() for attack in self.members("linf")]
        return sum(gradients for gradients, _ in parts), sum(forwards for _, forwards in parts)

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
