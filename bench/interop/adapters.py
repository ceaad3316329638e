"""What is put around a model that takes other images, or gives something else, than the contract asks.

An adapter is written NAME or NAME=VALUE: after --adapt, in a result, in a row's notes. Whatever order they are given
in, an image passes them in this one: resize, normalize, half or bfloat16, the model, output, binary, classes. All have
gradients, so a radius is one of the dataset's own pixels.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import BenchError, unknown_name
from bench.interfaces import Images, Logits

Wrap: TypeAlias = Callable[[nn.Module], nn.Module]

NONE = "none"
"""Given instead of an adapter: those that a model declares are left out."""
IMAGENET = "0.485,0.456,0.406:0.229,0.224,0.225"
MODES = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class Adapter:
    """One adapter as it was read."""

    name: str
    value: str
    wrap: Wrap

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


class Around(nn.Module):
    """A module that another one is in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Resize(Around):
    """Images of any size become `size` (height, width), as Pillow filters them: nothing is rounded or clipped."""

    def __init__(self, module: nn.Module, size: tuple[int, int], mode: str) -> None:
        super().__init__(module)
        self.size, self.mode = size, mode

    def forward(self, images: Images) -> Any:
        if tuple(images.shape[-2:]) == self.size:
            return self.module(images)
        if self.mode == "nearest":
            return self.module(functional.interpolate(images, self.size, mode="nearest-exact"))
        return self.module(functional.interpolate(images, self.size, mode=self.mode, antialias=True))


class Normalize(Around):
    """(images - mean) / deviation, one of each per channel or for all."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__(module)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    def forward(self, images: Images) -> Any:
        if len(self.mean) not in (1, images.shape[1]):  # they would be broadcast to images of more channels
            raise BenchError(
                f"normalize is of {len(self.mean)} channels, the images have {images.shape[1]}: give --adapt normalize="
                "MEAN:STD with a number for each, or one for all."
            )
        return self.module((images - self.mean) / self.deviation)


class InPrecision(Around):
    """The module's weights and what it computes in `dtype`; logits in float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        # Who has the module in memory keeps it as it is.
        same = all(one.dtype == dtype for one in module.parameters())
        super().__init__(module if same else deepcopy(module).to(dtype))
        self.dtype = dtype

    def forward(self, images: Images) -> Any:
        answer = self.module(images.to(self.dtype))
        return answer.float() if isinstance(answer, Tensor) else answer


class Output(Around):
    """One of several outputs, by key, attribute or position."""

    def __init__(self, module: nn.Module, key: str) -> None:
        super().__init__(module)
        self.key = key

    def forward(self, images: Images) -> Any:
        answer = self.module(images)
        found = held(answer)
        if self.key not in found:
            has = ", ".join(found) or f"a {type(answer).__name__}"
            raise BenchError(f"the model's output has no {self.key!r} (--adapt output={self.key}): it has {has}.")
        return found[self.key]


class Binary(Around):
    """Of one logit z per image, the logits (0, z): the same decision, and the same cross-entropy, for two classes."""

    def forward(self, images: Images) -> Logits:
        logit = self.module(images).reshape(len(images), -1)
        if logit.shape[1] != 1:
            raise BenchError(f"--adapt binary takes one logit per image, the model returns {logit.shape[1]}.")
        return torch.cat([torch.zeros_like(logit), logit], 1)


class Classes(Around):
    """Some of the outputs, in an order: the k-th of them is class k of the dataset."""

    chosen: Tensor

    def __init__(self, module: nn.Module, chosen: Sequence[int]) -> None:
        super().__init__(module)
        self.register_buffer("chosen", torch.tensor(chosen))
        self.most = max(chosen)

    def forward(self, images: Images) -> Logits:
        logits = self.module(images)
        if self.most >= logits.shape[1]:
            raise BenchError(f"--adapt classes names output {self.most}, the model's are 0 to {logits.shape[1] - 1}.")
        return logits[:, self.chosen]


def held(answer: Any) -> dict[str, Any]:
    """What an output that is no tensor holds, by the names that `output=` takes."""
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        named = dict(zip(getattr(answer, "_fields", ()), answer, strict=False))
        return {str(place): value for place, value in enumerate(answer)} | named
    return {} if isinstance(answer, Tensor) else dict(getattr(answer, "__dict__", {}))


def read_adapter(text: str) -> Adapter:
    """The adapter of a text such as `resize=224`.

    Raises:
        BenchError: there is none of this name, or it does not take this value.
    """
    name, _, value = text.partition("=")
    if name not in READERS:
        raise unknown_name("adapter", name, [*READERS, NONE])
    about, read = READERS[name]
    try:
        canonical, wrap = read(value.strip())
    except (ValueError, IndexError):
        raise BenchError(f"adapter {text!r} is not {about}.") from None
    return Adapter(name, canonical, wrap)


def chosen_adapters(declared: Iterable[str], given: Iterable[str]) -> tuple[Adapter, ...]:
    """Those that a model declares and those that a person gave, which replace declared ones of their name.

    They come in the order in which an image passes them. `none` leaves out all that are declared.

    Raises:
        BenchError: an adapter cannot be read, or two of a kind are given.
    """
    texts = list(given)
    own = [read_adapter(text) for text in texts if text != NONE]
    if NONE in texts:
        declared = ()
    found = {_slot(one.name): one for one in map(read_adapter, declared)}
    for one in own:
        same = [str(other) for other in own if _slot(other.name) == _slot(one.name)]
        if len(same) > 1:
            raise BenchError(f"--adapt {same[0]} and {same[1]} do not go together. Give one.")
        found[_slot(one.name)] = one
    return tuple(sorted(found.values(), key=lambda one: list(READERS).index(one.name)))


def adapted(module: nn.Module, adapters: Iterable[Adapter]) -> nn.Module:
    """A module with adapters around it; itself without any."""
    by_name = {one.name: one for one in adapters}
    for name in _FROM_THE_INSIDE:
        module = by_name[name].wrap(module) if name in by_name else module
    return module


def _slot(name: str) -> str:
    """What an adapter decides: each may be decided once."""
    return {"half": "precision", "bfloat16": "precision", "binary": "classes"}.get(name, name)


def _resize(value: str) -> tuple[str, Wrap]:
    size, _, mode = value.partition(",")
    sides = [int(side) for side in size.split("x")]
    if len(sides) > 2 or not all(0 < side <= 2**12 for side in sides) or (mode or MODES[0]) not in MODES:
        raise ValueError(value)
    return value, partial(Resize, size=(sides[0], sides[-1]), mode=mode or MODES[0])


def _normalize(value: str) -> tuple[str, Wrap]:
    value = IMAGENET if value == "imagenet" else value
    mean, deviation = ([float(number) for number in part.split(",")] for part in value.split(":"))
    if len(mean) != len(deviation) or not all(0 < number < float("inf") for number in deviation):
        raise ValueError(value)
    if not all(abs(number) < float("inf") for number in mean):
        raise ValueError(value)
    return value, partial(Normalize, mean=mean, deviation=deviation)


def _output(value: str) -> tuple[str, Wrap]:
    if not value:
        raise ValueError(value)
    return value, partial(Output, key=value)


def _classes(value: str) -> tuple[str, Wrap]:
    chosen: list[int] = []
    for part in value.split(","):
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        if found is None:
            raise ValueError(value)
        chosen += range(int(found[1]), int(found[2] or found[1]) + 1)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise ValueError(value)
    return value.replace(" ", ""), partial(Classes, chosen=chosen)


def _without_value(wrap: Wrap, value: str) -> tuple[str, Wrap]:
    if value:
        raise ValueError(value)
    return value, wrap


READERS: dict[str, tuple[str, Callable[[str], tuple[str, Wrap]]]] = {
    "resize": ("resize=SIZE or resize=HEIGHTxWIDTH, with ,bicubic or ,nearest after it for other filters", _resize),
    "normalize": ("normalize=MEAN:STD, a number for each channel or one for all, or normalize=imagenet", _normalize),
    "half": ("half", partial(_without_value, partial(InPrecision, dtype=torch.float16))),
    "bfloat16": ("bfloat16", partial(_without_value, partial(InPrecision, dtype=torch.bfloat16))),
    "output": ("output=KEY, the key, attribute or position of the logits", _output),
    "binary": ("binary", partial(_without_value, Binary)),
    "classes": ("classes=3,7,10-12: an output for each class of the dataset, two or more, none twice", _classes),
}
"""By name, in the order in which an image passes them: how each is written, and what reads its value."""
_FROM_THE_INSIDE = ("output", "half", "bfloat16", "binary", "classes", "normalize", "resize")
