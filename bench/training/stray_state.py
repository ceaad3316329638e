"""State that changes in training and is registered nowhere: lost in a resumed run, which then ends at other bits.

Optimisers are seen when they step, wherever they are kept (`bench.training.observed_rates`). All else is found where
plug-ins keep things: in attributes of the model's modules, of the defense and of its class, and in the variables around
it.
"""

import gc
import hashlib
import inspect
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import Defense, Stateful
from bench.system.files import content_digest

_WAY_OUT = "return it from state(model, optimizer), and take it from context.state."
_OF_TORCH = frozenset(vars(nn.Module()))
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, partial, property, classmethod, staticmethod)
_LIBRARIES = (sys.stdlib_module_names - {"types"}) | {"torch", "numpy"}
"""Into whose objects nobody looks: loggers, locks."""
_DEPTH = 5
"""Of containers and objects in each other; what lies deeper is not looked at."""


def hidden(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of all that the modules of a model have besides parameters, saved buffers and submodules."""
    for prefix, module in model.named_modules():
        found = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
        found |= {name: module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers}
        for name, value in found.items():
            yield f"{prefix}.{name}".removeprefix("."), value


def parts(name: str, value: Any, skipped: Collection[int] = (), depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors, numbers, generators and `Stateful` objects in a value: in containers and attributes, with their names.

    Objects whose ids are `skipped` are left out.
    """
    if id(value) in skipped or isinstance(value, _CODE) or depth > _DEPTH:
        return
    if isinstance(value, (Tensor, Stateful)) or _plain(value) is not None:
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from parts(f"{name}[{key!r}]", item, skipped, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for number, item in enumerate(value):
            yield from parts(f"{name}[{number}]", item, skipped, depth + 1)
    elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _LIBRARIES:
        for key, item in list(vars(value).items()):
            yield from parts(f"{name}.{key}", item, {*skipped, id(value)}, depth + 1)


def _plain(value: Any) -> Any:
    """A value to make a digest of; None for all that is no number, text, array or generator."""
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    for kind, read in _READ.items():
        if isinstance(value, kind):
            return repr(read(value))
    numbers = isinstance(value, (list, tuple)) and value and all(isinstance(item, _NUMBERS) for item in value)
    return repr(value) if numbers else None  # one long log is one thing


_NUMBERS = (bool, int, float, complex, str, bytes)
_READ: Mapping[type, Callable[[Any], Any]] = {
    **{kind: repr for kind in _NUMBERS},
    torch.Generator: lambda generator: generator.get_state().tolist(),
    np.random.Generator: lambda generator: generator.bit_generator.state,
    np.random.RandomState: lambda generator: generator.get_state(legacy=False),
    random.Random: random.Random.getstate,
}


class StrayState:
    """Finds what changes from one look to the next and is not `registered`.

    It looks at attributes of the model's modules, of the defense and of its class, and at variables that the defense's
    methods use; `say` is told, in one line, of what only may be state: numbers, tensors and generators.
    """

    def __init__(
        self, defense: Defense, model: nn.Module, registered: Collection[object], say: Callable[[str], None]
    ) -> None:
        self.defense, self.model, self.registered, self.say = defense, model, registered, say
        self.seen = self._digests()
        self.told: set[str] = set()

    def require_none(self, strangers: Collection[torch.optim.Optimizer]) -> None:
        """Refuse optimisers, schedules and modules that a resumed run would not have; say what else has changed.

        The `strangers` are unregistered optimisers that have stepped.
        """
        owner = type(self.defense).__name__
        if strangers:
            gc.collect()  # what an inner loop left behind is no state
        for stranger in strangers:
            raise BenchError(
                f"{owner} steps an optimiser of its own ({type(stranger).__name__}), which a resumed run would start "
                f"anew: {_WAY_OUT}"
            )
        before, self.seen = self.seen, self._digests()
        changed = {name: kind for name, (kind, now) in self.seen.items() if before.get(name, (kind, now))[1] != now}
        for name, kind in changed.items():
            if issubclass(kind, Stateful):
                raise BenchError(
                    f"{name} of {owner} ({kind.__name__}) changes in training, and a resumed run would start it anew: "
                    f"{_WAY_OUT}"
                )
        new = [name for name in changed if name not in self.told]
        self.told.update(new)
        if new:
            more = f" and {len(new) - 3} more" if len(new) > 3 else ""
            self.say(
                f"warning: a resumed run starts anew with {', '.join(new[:3])}{more}, which {owner} changes in "
                f"training. Where losses depend on one: register a buffer, or {_WAY_OUT}"
            )

    def _places(self) -> Iterator[tuple[str, Any]]:
        for name, value in hidden(self.model):
            yield f"model.{name}", value
        for name, value in vars(self.defense).items():
            yield f"self.{name}", value
        for owner in type(self.defense).__mro__:
            if owner is Defense:
                break
            for name, value in vars(owner).items():
                if isinstance(value, FunctionType):
                    around = inspect.getclosurevars(value)
                    yield from {**around.globals, **around.nonlocals}.items()
                elif not name.startswith("__") and name != "_abc_impl":
                    yield f"{owner.__name__}.{name}", value

    def _digests(self) -> dict[str, tuple[type, str]]:
        known = [*self.registered, *self.model.modules(), self.defense]
        known += [module for item in self.registered if isinstance(item, nn.Module) for module in item.modules()]
        saved = [*self.model.state_dict().values(), *(item for item in self.registered if isinstance(item, Tensor))]
        skipped, storages = {id(item) for item in known}, {_storage(tensor) for tensor in saved}
        found = {}
        for place, content in self._places():
            for name, value in parts(place, content, skipped):
                if isinstance(value, Tensor) and _storage(value) in storages:
                    continue
                found[name] = (type(value), _digest(value))
        return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _digest(value: Any) -> str:
    plain = value.state_dict() if isinstance(value, Stateful) else value if isinstance(value, Tensor) else _plain(value)
    try:
        return content_digest(plain)
    except (RuntimeError, TypeError, ValueError):
        return repr(plain)
