"""Ways to bring a model, by what stands before the colon: `timm:resnet18` is brought by timm.py.

One file a kind, found by name. The first line of its docstring is the form of such a name and what it stands for, as
`bench list models` shows it; `TAKES` holds the fields of an `Order` that mean something to it, besides the name; and
`bring` makes the model. The packages that a kind needs are imported in there, and only then.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bench.catalogue.names import built_in
from bench.errors import BenchError


@dataclass(frozen=True, kw_only=True)
class Order:
    """A model that a person asked for."""

    name: str
    """What stands after the colon; of FILE.py:FACTORY, all of it."""
    weights: Path | None = None
    download: bool = False
    """Files that are on no disk here may be downloaded."""
    dataset: str | None = None
    threat_model: str | None = None
    model_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A model, with what its files say about it."""

    module: nn.Module
    name: str
    """Of its row."""
    source: str
    """Where it comes from, for the result: a name, and no path."""
    file: str | None = None
    """Name of the file of its weights."""
    identity: Any = None
    """Besides the weights, what makes the model: a configuration, or the digest of its file."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """More keys of `run` in a result."""
    adapters: tuple[str, ...] = ()
    """Those of `bench.interop.adapters` that its own configuration asks for."""
    told: tuple[str, ...] = ()
    """Lines for the person: what was done to weights, what is not known."""
    dataset: str | None = None
    """What it was trained on, where that is known."""


def kind_of(model: str) -> tuple[Any, str]:
    """The file of a model's kind, and what stands after the colon; FILE.py:FACTORY is the kind without a prefix."""
    prefix, separator, name = model.partition(":")
    if not separator or prefix not in built_in("model"):
        return _file("_factory"), model
    if not name:
        raise BenchError(f"model {model!r} names nothing after the colon. Give {form(_file(prefix))}.")
    return _file(prefix), name


def form(kind: Any) -> str:
    """How a model of a kind is named, such as `timm:NAME`."""
    return str(kind.__doc__).partition(": ")[0]


def forms(option: str = "") -> list[str]:
    """The forms of all kinds, or of those that take an option."""
    kinds = [_file(name) for name in ("_factory", *built_in("model"))]
    return [form(kind) for kind in kinds if not option or option in kind.TAKES]


def _file(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
