"""Files of PyTorch and models that a file describes, within a budget of bytes, items and numbers.

A list can hold itself twice, thirty times over; a tensor can show one number a billion times; and ten letters in a
configuration can ask for ten million layers.
"""

import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import BenchError
from bench.system.budgets import Budget, require_file

MOST_ITEMS = 10**7
"""Of nested lists and dictionaries."""
_SMALLEST = 64
"""Numbers that a tensor counts for at least: a layer is an object of some thousand bytes."""
_STARTS, _GRANTED = 8, 2**20
"""How many times a model's numbers may be made while it is built, and how many more: first weights are drawn, scaled
and copied."""


def load_tensors(source: Path) -> Any:
    """The value in a file of `torch.save`, if that is tensors and plain values. Executes nothing.

    Raises:
        OSError, BenchError: as `require_file`; or it claims more than it can hold.
        Exception: of many kinds, for a damaged or hostile file.
    """
    budget = Budget(source, require_file(source), "Save it again with torch.save.")
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for item in archive.infolist():
                budget.take(f"record {item.filename!r}", item.file_size)
    content = torch.load(source, map_location="cpu", weights_only=True)
    budget.taken = 0  # the records are tensors now: counted once more as these, and not twice
    for value in _members(content):
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            # A tensor may show a few numbers again and again, or many the same; whoever copies them needs the room.
            budget.take("a tensor", value.nbytes)
    return content


def require_few_items(content: Any, path: Path) -> None:
    """Refuse lists in lists that hold more than `MOST_ITEMS` items, each as often as it is held, or themselves."""
    if _unfolded(content, {}) > MOST_ITEMS:
        raise BenchError(f"{str(path)!r} holds more than {MOST_ITEMS} items, as lists in lists. Save it again.")


def _unfolded(value: Any, known: dict[int, float]) -> float:
    """Items in a value, each as often as it is held; `known` are those of what was looked at, by id."""
    if id(value) not in known:
        known[id(value)] = math.inf  # for whatever holds itself
        known[id(value)] = 1.0 + sum(_unfolded(member, known) for member in _held(value))
    return known[id(value)]


def _members(content: Any) -> Iterator[Any]:
    """A value and what the containers in it hold, each container looked into once."""
    seen: set[int] = set()
    waiting = [content]
    yield content
    while waiting:
        container = waiting.pop()
        if id(container) not in seen:
            seen.add(id(container))
            yield from _held(container)
            waiting += _held(container)


def _held(value: Any) -> Collection[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


class _Creations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the numbers of new tensors before they are made."""

    def __init__(self, most: int, refusal: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.refusal = most, refusal

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], list | tuple) and all(isinstance(size, int) for size in args[0]):
            self.left -= max(math.prod(args[0]), _SMALLEST)
            if self.left < 0:
                raise BenchError(self.refusal)
        return function(*args, **(kwargs or {}))


@contextmanager
def building(numbers: int, what: str) -> Iterator[None]:
    """A model of so many numbers is built here, from a configuration in a file; one of far more is refused."""
    most = _STARTS * numbers + _GRANTED
    refusal = f"{what} describes a model of far more numbers than the {numbers} of its weights. Train it again."
    with _Creations(most, refusal):
        yield
