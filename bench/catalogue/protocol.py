"""The settings of a training: every number is a field, with a help text and a record. Recipes give the values."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from bench.catalogue.names import built_in
from bench.catalogue.schedules import FALLING, TURNING, Position
from bench.errors import BenchError
from bench.text import setting_text

if TYPE_CHECKING:
    from bench.interfaces import ThreatModel


def setting(about: str, default: Any = MISSING, later: bool = False, **goes_with: tuple[str, ...]) -> Any:
    """A field with its help text. Every recipe must name one that has no default.

    One that came `later` has its default in every record without it. A person may give it only where another field,
    named by `goes_with`, has one of these values: with others it would change nothing.
    """
    return dataclasses.field(default=default, metadata={"about": about, "later": later, "goes_with": goes_with})


@dataclass(frozen=True, kw_only=True)
class TrainingProtocol:
    """How a defense is trained."""

    epochs: int = setting("passes over the training set")
    batch_size: int = setting("images per step; the incomplete last batch is kept")
    optimizer: Literal["sgd", "adamw"] = setting("torch.optim's SGD or AdamW", "sgd", later=True)
    learning_rate: float = setting("the highest learning rate")
    schedule: Literal["milestones", "cosine", "linear", "one-cycle", "cyclic"] = setting(
        "course of the learning rate: milestones, cosine, linear, one-cycle or cyclic", "milestones", later=True
    )
    schedule_by: Literal["epoch", "step"] = setting(
        "the rate follows the schedule from epoch to epoch, or from step to step", "epoch", later=True
    )
    milestones: tuple[int, ...] = setting(
        "full epochs after which the rate is multiplied by decay; scaled along when only epochs is given",
        (),
        schedule=("milestones",),
    )
    decay: float = setting("factor on the learning rate at each milestone", 0.1, schedule=("milestones",))
    peak: float = setting(
        "share of the training after which one-cycle and cyclic are at the highest rate",
        0.3,
        later=True,
        schedule=TURNING,
    )
    rate_start: float = setting(
        "the rate that one-cycle and cyclic start with, as a share of the highest", 0.04, later=True, schedule=TURNING
    )
    rate_end: float = setting(
        "the rate that all but milestones end with, as a share of the highest",
        0.0,
        later=True,
        schedule=(*FALLING, *TURNING),
    )
    warm_up: float = setting(
        "share of the training in which the rate rises evenly to that of the schedule; 0: none", 0.0, later=True
    )
    momentum: float = setting("momentum of SGD, first beta of AdamW")
    momentum_peak: float | None = setting(
        "SGD momentum at the highest rate of one-cycle and cyclic, from and to momentum; none: as ever",
        None,
        later=True,
        schedule=TURNING,
    )
    nesterov: bool = setting("Nesterov momentum", False)
    weight_decay: float = setting("weight decay, on all parameters")
    average: Literal["none", "ema", "swa"] = setting(
        "averaged weights, kept as the checkpoint `average`: ema over steps, swa over ends of epochs",
        "none",
        later=True,
    )
    average_decay: float = setting("what a step leaves of the ema before it", 0.9995, later=True, average=("ema",))
    average_from: float = setting(
        "share of the training after which averaging begins; swa wants about 0.75",
        0.0,
        later=True,
        average=("ema", "swa"),
    )
    label_smoothing: float = setting(
        "part of a label's weight that all classes share, in every cross-entropy that is trained on", 0.0, later=True
    )
    awp: float = setting(
        "adversarial weight perturbation: its length, as a share of the weights'; 0: none", 0.0, later=True
    )
    norm: Literal["linf", "l2", "l1"] = setting("norm of the inner attack", "linf")
    epsilon: str = setting("radius of the inner attack", "8/255")
    attack_steps: int = setting("PGD steps of the inner attack")
    attack_step: str = setting("length of one PGD step: eps/4 (2/255 at 8/255), or an absolute 2/255")
    crop_padding: int = setting("random crop after zero-padding by this many pixels; 0: none", 4)
    flip: bool = setting("random horizontal flip", True)
    holdout: int = setting(
        "training images held out to choose `best` by PGD accuracy; 0: no `best`, all images are trained on", 0
    )
    augmentation: str = setting(
        f"{', '.join(built_in('augmentation'))}, or FILE.py: what follows crops and flips; none: not even these",
        "crop-flip",
        later=True,
    )
    extra_share: float = setting(
        "share of each batch that is taken from --extra, rounded down to images", 0.0, later=True
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "attack_steps"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "decay"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("momentum", "weight_decay", "awp", "crop_padding", "holdout"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("peak", "rate_start", "rate_end", "warm_up", "average_decay", "average_from"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1, a share")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more, and below 1")
        self._require("extra_share", 0 <= self.extra_share < 1, "0 or more and below 1, such as 0.7")
        if self.augmentation == "none" and (self.crop_padding or self.flip):
            raise BenchError("protocol augmentation=none has no crops and flips: leave out crop_padding and flip.")
        if self.optimizer == "adamw":
            self._require("momentum", self.momentum < 1, "below 1, as AdamW's first beta")
            self._require("nesterov", not self.nesterov, "false with optimizer=adamw")
            self._require("momentum_peak", self.momentum_peak is None, "none with optimizer=adamw")
        if self.momentum_peak is not None:
            self._require("momentum_peak", 0 <= self.momentum_peak < math.inf, "0 or more")
        if self.nesterov and not self.momentum * (1.0 if self.momentum_peak is None else self.momentum_peak):
            raise BenchError("protocol nesterov=true needs a momentum above 0, such as 0.9.")
        self.threat.require_a_pixel_range()
        if self.threat.length(self.attack_step) > 1 and self.norm == "linf":
            raise BenchError(
                f"protocol attack_step={self.attack_step} is longer than a pixel's whole range, 1: give 2/255 or eps/4."
            )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise BenchError(f"protocol {name}={getattr(self, name)} is out of range: it must be {allowed}.")

    @property
    def threat(self) -> "ThreatModel":
        """The threat model of the inner attack."""
        # Help texts are made of this file, and need no torch.
        from bench.interfaces import ThreatModel

        return ThreatModel(self.norm, self.epsilon)

    @property
    def step_size(self) -> float:
        """Length of one PGD step, in pixel units."""
        return self.threat.length(self.attack_step)

    def ignores(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """The other setting that makes this one change nothing, and the values with which it would; None: it counts."""
        return ignored_among(vars(self), name)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step of the training, counted from 0, where an epoch has so many steps."""
        at = self._position(step, steps)
        return self.learning_rate * self._share_of_rate(at, step // steps) * at.warm_up(self.warm_up)

    def momentum_at(self, step: int, steps: int) -> float:
        """The momentum of a step."""
        if self.momentum_peak is None or self.schedule not in TURNING:
            return self.momentum
        bounds = (self.momentum, self.momentum_peak, self.momentum)
        return self._position(step, steps).turning(self.schedule, *bounds, self.peak)

    def _position(self, step: int, steps: int) -> Position:
        by_step = self.schedule_by == "step"
        return Position(step, self.epochs * steps) if by_step else Position(step // steps, self.epochs)

    def _share_of_rate(self, at: Position, epoch: int) -> float:
        if self.schedule in TURNING:
            return at.turning(self.schedule, self.rate_start, 1.0, self.rate_end, self.peak)
        if self.schedule in FALLING:
            return at.falling(self.schedule, 1.0, self.rate_end)
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)


_GOES_WITH = {field.name: field.metadata["goes_with"] for field in dataclasses.fields(TrainingProtocol)}
LATER = MappingProxyType(
    {field.name: field.default for field in dataclasses.fields(TrainingProtocol) if field.metadata["later"]}
)
"""Settings that came later, with what a record without them means."""


def ignored_among(settings: Mapping[str, Any], name: str) -> tuple[str, tuple[str, ...]] | None:
    """What `TrainingProtocol.ignores` returns, of a record of settings, some of which may be missing or unknown."""
    for other, values in _GOES_WITH.get(name, {}).items():
        if other in settings and settings[other] not in values:
            return other, values
    return None


def protocol_arguments(values: Mapping[str, Any]) -> list[str]:
    """The options that give these protocol fields: as `bench train` takes them."""
    arguments = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments += [f"--{flag}" if value else f"--no-{flag}"]
        else:
            arguments += [f"--{flag}", setting_text(value)]
    return arguments
