"""The settings of a training: every number is a field, with a help text and a record. Recipes give the values."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.interfaces import ThreatModel


def setting(about: str, default: Any = MISSING) -> Any:
    """A field with its help text. Every recipe must name one that has no default."""
    return dataclasses.field(default=default, metadata={"about": about})


@dataclass(frozen=True, kw_only=True)
class TrainingProtocol:
    """How a defense is trained."""

    epochs: int = setting("passes over the training set")
    batch_size: int = setting("images per step; the incomplete last batch is kept")
    learning_rate: float = setting("SGD learning rate of the first era")
    milestones: tuple[int, ...] = setting(
        "full epochs after which the rate is multiplied by decay; scaled along when only epochs is given", ()
    )
    decay: float = setting("factor on the learning rate at each milestone", 0.1)
    momentum: float = setting("SGD momentum")
    nesterov: bool = setting("Nesterov momentum", False)
    weight_decay: float = setting("SGD weight decay, on all parameters")
    norm: Literal["linf", "l2", "l1"] = setting("norm of the inner attack", "linf")
    epsilon: str = setting("radius of the inner attack", "8/255")
    attack_steps: int = setting("PGD steps of the inner attack")
    attack_step: str = setting("length of one PGD step: eps/4 (2/255 at 8/255), or an absolute 2/255")
    crop_padding: int = setting("random crop after zero-padding by this many pixels; 0: none", 4)
    flip: bool = setting("random horizontal flip", True)
    holdout: int = setting(
        "training images held out to choose `best` by PGD accuracy; 0: no `best`, all images are trained on", 0
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "attack_steps"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "decay"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("momentum", "weight_decay", "crop_padding", "holdout"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        if self.nesterov and not self.momentum:
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

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)


def protocol_arguments(values: Mapping[str, Any]) -> list[str]:
    """The options that give these protocol fields: as `bench train` takes them."""
    arguments = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments += [f"--{flag}" if value else f"--no-{flag}"]
        else:
            arguments += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]
    return arguments
