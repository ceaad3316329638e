"""A model to evaluate, and how it is named: a checkpoint of ours, one in memory, or one of the kinds of --model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.errors import BenchError
from bench.interfaces import ObjectiveFactory
from bench.interop.adapters import NONE, adapted, chosen_adapters
from bench.interop.declared import ReplacedGradients, declared_gradients, declares_randomness
from bench.interop.kinds import Brought, Order, forms, kind_of
from bench.models.checkpoints import find_checkpoint, load_checkpoint
from bench.system.files import content_digest

_WHOLE = "weights and configuration"


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, and how it is described in a result file."""

    name: str
    model: nn.Module
    description: Mapping[str, Any]
    adaptive: ObjectiveFactory | None = None
    dataset: str | None = None
    """The dataset it was trained on, where that is known."""
    told: tuple[str, ...] = ()
    """Lines for the person: what was done to make it a model that can be evaluated."""
    digest_of: str = "weights; its code is not part of the digest"

    @property
    def randomised(self) -> bool:
        """True if the model declares itself random."""
        return declares_randomness(self.model)


def from_checkpoint(path: Path, device: torch.device) -> Subject:
    """The model of a checkpoint written by `bench train`.

    Raises:
        BenchError: the checkpoint is missing, damaged, or does not fit its defense.
    """
    checkpoint = load_checkpoint(path)
    defense = checkpoint.defense()
    config = dict(checkpoint.config)
    # What was no choice at the training and is one now: said, and needed to train it again.
    later = {name: value for name, value in defense.unrecorded.items() if name not in config["hyperparameters"]}
    config |= {name: {**later, **config.get(name, {})} for name in ("hyperparameters", "hyperparameters_given")}
    description = {
        **{key: value for key, value in config.items() if key not in ("dataset", "environment", "format")},
        "training_data": config["dataset"],
        "training_environment": config["environment"],
        "checkpoint": find_checkpoint(path).parent.name,
        "checkpoint_digest": checkpoint.digest,
        "finished": config["epoch"] == config["protocol"]["epochs"],
    }
    return Subject(
        name=checkpoint.config["defense"],
        model=checkpoint.build(device),
        description=description,
        adaptive=defense.adaptive_objective,
        digest_of=_WHOLE,
        dataset=checkpoint.config["dataset"]["name"],
    )


def from_module(model: nn.Module, name: str | None, device: torch.device, adapt: Iterable[str] = ()) -> Subject:
    """A model in memory, called `name` or by its class, with adapters around it."""
    kind = type(model).__name__
    return _around(Brought(module=model, name=name or kind, source=f"python:{kind}"), device, adapt)


def _around(brought: Brought, device: torch.device, given: Iterable[str]) -> Subject:
    """A model that is no checkpoint of ours, in eval mode, in its adapters: they are no part of its digest."""
    model = brought.module.to(device).eval()
    weights = dict(model.state_dict())
    identity = {} if brought.identity is None else {"identity": brought.identity}
    digest = content_digest({**identity, "weights": weights} if identity else weights)
    description = {"source": brought.source, "checkpoint": brought.file, "checkpoint_digest": digest, **brought.facts}
    adapters = chosen_adapters(brought.adapters, given)
    if adapters:
        description["adapters"] = [str(one) for one in adapters]
    told = [*brought.told]
    replaced = declared_gradients(model)
    if replaced:
        description["backward_as"] = replaced
        model = ReplacedGradients(model)
        told += [
            f"{part}: its gradient is that of {name}, as the model says (BPDA)." for part, name in replaced.items()
        ]
    if brought.adapters and NONE not in given:
        told.append(
            f"{brought.source}: adapters {' '.join(description['adapters'])} (--adapt {NONE} for none of its own)."
        )
    return Subject(
        brought.name,
        adapted(model, adapters).to(device).eval(),
        description,
        dataset=brought.dataset,
        told=tuple(told),
        digest_of=_WHOLE if identity else Subject.digest_of,
    )


_OPTIONS = {
    "weights": ("--weights", "other models bring their own"),
    "download": ("--download", "other models are where they are named"),
    "threat_model": ("--threat-model", "a suite names its own threat models"),
    "model_dir": ("--model-dir", "other models lie where they are named"),
}
"""Of some kinds: the flag by field of `Order`, and why the others have no use for it."""


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A model as a person named it: a checkpoint, or one of `bench.interop.kinds`, with what its kind takes."""

    checkpoint: Path | None = None
    model: str | None = None
    weights: Path | None = None
    download: bool = False
    """What a library publishes and is not on this machine may be downloaded."""
    threat_model: str | None = None
    """One of RobustBench's lists; None: Linf."""
    model_dir: Path | None = None
    """RobustBench's files: <dataset>/<threat model>/<NAME>.pt; None: in `models`."""
    adapt: tuple[str, ...] = ()
    """Adapters, as `bench.interop.adapters` reads them."""

    def load(self, device: torch.device, dataset: str | None) -> Subject:
        """The model in eval mode; RobustBench has another one of a name for each dataset.

        Raises:
            BenchError: it is not named exactly once, options do not belong together, or it cannot be loaded.
        """
        if (self.checkpoint is None) == (self.model is None):
            raise BenchError("name one model: a checkpoint of `bench train`, or --model FILE.py:FACTORY.")
        kind: Any = None
        if self.model is not None:
            kind, name = kind_of(self.model)
        for option, (flag, reason) in _OPTIONS.items():
            if getattr(self, option) and (kind is None or option not in kind.TAKES):
                raise BenchError(f"{flag} goes with --model {', '.join(forms(option))}; {reason}.")
        chosen_adapters((), self.adapt)  # those that cannot be read are refused before anything is loaded
        if self.checkpoint is not None:
            if self.adapt:
                raise BenchError("--adapt goes with --model; a checkpoint of `bench train` takes images as they are.")
            return from_checkpoint(self.checkpoint, device)
        order = Order(name=name, dataset=dataset, **{option: getattr(self, option) for option in _OPTIONS})
        return _around(kind.bring(order), device, self.adapt)

    @property
    def from_zoo(self) -> bool:
        """True if it is RobustBench's, of which there is one of a name for each dataset and threat model."""
        return self.model is not None and "threat_model" in kind_of(self.model)[0].TAKES

    @property
    def python_file(self) -> Path | None:
        """The file whose code makes the model."""
        if self.model is None or kind_of(self.model)[1] != self.model:
            return None
        return Path(self.model.rpartition(":")[0])
