"""The shared training protocol: every number of it is a field, with a default, a help text and a record.

The defaults are those of "Bag of Tricks for Adversarial Training" (Pang et al., ICLR 2021), which the Adv-DPNP
paper uses for every defense (section 4.1).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from bench.catalogue.names import built_in
from bench.catalogue.parameters import override
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.interfaces import ThreatModel


def setting(default: Any, about: str) -> Any:
    """A protocol field with its help text."""
    return dataclasses.field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class TrainingProtocol:
    """How every defense is trained."""

    epochs: int = setting(110, "passes over the training set")
    batch_size: int = setting(128, "images per step; the incomplete last batch is kept")
    learning_rate: float = setting(0.1, "SGD learning rate of the first era")
    milestones: tuple[int, ...] = setting(
        (100, 105), "full epochs after which the rate is multiplied by decay; scaled along when only epochs is given"
    )
    decay: float = setting(0.1, "factor on the learning rate at each milestone")
    momentum: float = setting(0.9, "SGD momentum")
    nesterov: bool = setting(False, "Nesterov momentum")
    weight_decay: float = setting(5e-4, "SGD weight decay, on all parameters")
    norm: Literal["linf", "l2", "l1"] = setting("linf", "norm of the inner attack")
    epsilon: str = setting("8/255", "radius of the inner attack")
    attack_steps: int = setting(10, "PGD steps of the inner attack")
    attack_step: str = setting("eps/4", "length of one PGD step: eps/4 (2/255 at 8/255), or an absolute 2/255")
    crop_padding: int = setting(4, "random crop after zero-padding by this many pixels; 0: none")
    flip: bool = setting(True, "random horizontal flip")
    holdout: int = setting(
        0, "training images held out to choose `best` by PGD accuracy; 0: no `best`, all images are trained on"
    )
    augmentation: str = setting(
        "crop-flip",
        f"{', '.join(built_in('augmentation'))}, or FILE.py: what follows crops and flips; none: not even these",
    )
    extra_share: float = setting(0.0, "share of each batch that is taken from --extra, rounded down to images")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "attack_steps"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "decay"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("momentum", "weight_decay", "crop_padding", "holdout"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._require("extra_share", 0 <= self.extra_share < 1, "0 or more and below 1, such as 0.7")
        if self.augmentation == "none" and (self.crop_padding or self.flip):
            raise BenchError("protocol augmentation=none has no crops and flips: leave out crop_padding and flip.")
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

    def record(self) -> dict[str, Any]:
        """All settings, as checkpoints hold them; those of `LATER` are left out where they are as before."""
        return {name: value for name, value in vars(self).items() if LATER.get(name, ...) != value}

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


LATER: Mapping[str, Any] = {"augmentation": "crop-flip", "extra_share": 0.0}
"""Settings that came after the first records, and what a record without them means."""

DATASET_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "svhn": {"attack_step": "eps/8"},
    "mnist": {"attack_steps": 40, "attack_step": "eps/30"},
    "digits": {"epochs": 20, "batch_size": 64, "learning_rate": 0.05, "milestones": (15, 18)},
}
"""Where a dataset departs from the defaults: SVHN and MNIST as the Adv-DPNP paper states; digits our own choice: the
small network without BatchNorm trains stably at 0.05, and not with every defense at 0.1."""

DATASET_BACKBONES: Mapping[str, str] = {"digits": "cnn-small", "mnist": "cnn-small"}
"""Default backbones other than resnet18."""


def protocol_for(
    dataset: str, epsilons: Mapping[str, str], crop_padding: int, flip: bool, given: Mapping[str, Any]
) -> TrainingProtocol:
    """The protocol for a dataset: the shared defaults, the dataset's own, and then those given, as text or values.

    Raises:
        BenchError: an unknown field or a value out of range.
    """
    chosen = {key.replace("-", "_"): value for key, value in given.items()}
    if chosen.get("augmentation") == "none":
        crop_padding, flip = 0, False
    values: dict[str, Any] = {"crop_padding": crop_padding, "flip": flip, **DATASET_SETTINGS.get(dataset, {}), **chosen}
    norm = str(values.get("norm", "linf"))
    if norm in epsilons:
        values.setdefault("epsilon", epsilons[norm])
    protocol = override(TrainingProtocol, values, kind="protocol setting")
    if "epochs" in chosen and "milestones" not in chosen:
        usual = DATASET_SETTINGS.get(dataset, {}).get("epochs", TrainingProtocol.epochs)
        scaled = tuple(round(milestone * protocol.epochs / usual) for milestone in protocol.milestones)
        protocol = dataclasses.replace(protocol, milestones=scaled)
    return protocol


def setting_help() -> dict[str, tuple[Any, str]]:
    """Field name to default and help text, in order."""
    return {field.name: (field.default, field.metadata["about"]) for field in fields(TrainingProtocol)}


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
