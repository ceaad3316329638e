"""Weights that others saved, loaded into a module: found in what holds them, and under the module's names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.weights import load_tensors
from bench.system.budgets import require_file

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema", "ema")
"""Names under which training scripts keep a state dictionary."""
PREFIXES = ("module", "model", "_orig_mod")
"""Parts of a name that DataParallel, Lightning and torch.compile put there."""
_SHOWN = 3
"""Names of each kind that a refusal shows."""


@dataclass(frozen=True)
class StateDictionary:
    """Tensors by name, and the file that they were read from."""

    path: Path
    tensors: Mapping[str, Tensor]
    within: tuple[str, ...] = ()
    """What held them in the file, from the outside in."""

    def load_into(self, model: nn.Module) -> tuple[str, ...]:
        """Load the weights into a module; returns what was done to find them or their names, one line or none.

        The names are taken as they are if they fit; else without `PREFIXES`, on both sides.

        Raises:
            BenchError: names are missing or unknown, or a tensor has another shape.
        """
        names = self._names(model)
        own = model.state_dict()
        shapes = [
            f"{name}: {_shape(self.tensors[given])} for {_shape(own[name])}"
            for given, name in names.items()
            if name in own and not nn.parameter.is_lazy(own[name]) and self.tensors[given].shape != own[name].shape
        ]
        missing: Iterable[str] = ()
        unknown: Iterable[str] = ()
        if not shapes:
            try:
                missing, unknown = model.load_state_dict(
                    {name: self.tensors[given] for given, name in names.items()}, strict=False
                )
            except Exception as error:  # a module may load its weights itself
                raise BenchError(f"{self.path} does not fit the model: {' '.join(str(error).split())[:200]}") from error
        else:
            missing, unknown = own.keys() - names.values(), names.values() - own.keys()
        wrong = {"missing in it": sorted(missing), "unknown to the model": sorted(unknown), "of another shape": shapes}
        if any(wrong.values()):
            told = [f"{len(found)} {what} ({_few(found)})" for what, found in wrong.items() if found]
            raise BenchError(
                f"{self.path} does not fit the model, which has {len(own)} tensors: {', '.join(told)}. Build "
                "the network that these weights were saved from."
            )
        return self._told(names)

    def outputs_of(self, model: nn.Module) -> tuple[int, int]:
        """Rows of a module's last parameter, in this file and in the module: the classes of a library's classifiers.

        The same number twice where the file does not have it.
        """
        last, own = list(model.named_parameters())[-1]
        given = {name: self.tensors[key] for key, name in self._names(model).items()}.get(last, own)
        return len(given), len(own)

    def _names(self, model: nn.Module) -> dict[str, str]:
        """The name in the model, by the name in the file; what has none there keeps its own."""
        own = list(model.state_dict())
        bare = {_bare(name): name for name in own}
        names = {name: bare.get(_bare(name), name) for name in self.tensors}
        as_they_are = len(self.tensors.keys() & set(own))
        clear = len(bare) == len(own) and len(set(names.values())) == len(names)
        better = clear and len(set(names.values()) & set(own)) > as_they_are
        return names if better else {name: name for name in self.tensors}

    def _told(self, names: Mapping[str, str]) -> tuple[str, ...]:
        done = [f"taken from {'.'.join(self.within)}"] if self.within else []
        changed = {given: name for given, name in names.items() if given != name}
        if changed:
            parts = {part for given, name in changed.items() for part in {*given.split(".")} ^ {*name.split(".")}}
            removed = " and ".join(f"{prefix}." for prefix in PREFIXES if prefix in parts)
            done.append(f"{len(changed)} names matched without {removed}")
        return (f"{self.path.name}: {'; '.join(done)}.",) if done else ()


def read_state(path: Path) -> StateDictionary:
    """The state dictionary in a .safetensors file or a file of torch.save. Executes nothing.

    Raises:
        BenchError: the file is missing, unreadable, or holds no state dictionary, or several.
    """
    if not path.is_file():
        raise BenchError(f"no weights at {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            require_file(path)
            state: Any = load_file(path)
        else:
            state = load_tensors(path)
    except BenchError:
        raise
    except Exception as error:  # both raise many kinds for damaged or hostile files
        raise BenchError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and plain values "
            "(nothing in it was executed). Save it again with torch.save(model.state_dict(), path)."
        ) from error
    return _unwrapped(state, path)


def load_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a file of weights into a module; returns what was done, and refuses, as `StateDictionary.load_into` does."""
    return read_state(path).load_into(model)


def _unwrapped(state: Any, path: Path) -> StateDictionary:
    """The state dictionary in a file's content; several are refused like none: averaged weights are another model."""
    within: list[str] = []
    for _ in range(3):  # as deep as {"state_dict": {"model": ...}}; a file may contain itself
        if _is_state(state) or not isinstance(state, Mapping):
            break
        held = [name for name in WRAPPERS if isinstance(state.get(name), Mapping)]
        if len(held) != 1:
            break
        within += held
        state = state[held[0]]
    if _is_state(state):
        return StateDictionary(path, dict(state), tuple(within))
    if not isinstance(state, Mapping):
        raise BenchError(f"{path} is not a state dictionary (names to tensors) but a {type(state).__name__}.")
    keys = ", ".join(repr(key)[:40] for key in list(state)[:12])
    states = [repr(key)[:40] for key, value in state.items() if _is_state(value) and value]
    way_out = f"Save the one you mean: torch.save(checkpoint[{states[0]}], 'weights.pt')." if states else "None is one."
    raise BenchError(f"{path} is not a state dictionary (names to tensors). It holds: {keys or 'nothing'}. {way_out}")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in PREFIXES)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
