"""Splits and datasets: labelled images as integer tensors, and what the benchmark's protocol says about them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from bench.data.sampling import evenly_chosen
from bench.data.stored_images import StoredImages
from bench.errors import BenchError, unknown_name
from bench.interfaces import Images

Sampling: TypeAlias = Literal["first", "stratified"]
"""Examples that stand for all of a split: its first, where that is a dataset's convention, or some of each class."""
ClassesFrom: TypeAlias = Literal["dataset", "option", "labels", "model"]
"""Source of the number of classes: the dataset, --classes, the largest label, or the outputs of a model."""
MOST_CLASSES = 2**15
"""Result files store labels as int16."""
_MOST_LISTED = 20
"""Names of classes in a message."""
_READ_AT_ONCE = 64
"""Images of a split on disk that are in memory together while it is digested."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, kept as integers 0..`levels`; `images` turns them into floats in [0, 1].

    They are in memory, or on disk and read when an index asks for them.
    """

    pixels: UInt8[Tensor, "count channel height width"] | StoredImages
    labels: Int64[Tensor, " count"]
    levels: int = 255
    """The integer that stands for 1.0."""
    sampling: Sampling = "first"
    origin: Int64[np.ndarray, " count"] | None = None
    """Of a part: where in the whole split its examples are."""

    @property
    def positions(self) -> Int64[np.ndarray, " count"]:
        """Where in the dataset's split each example is, from 0: results name samples, and key attacks' draws, by it."""
        return np.arange(len(self)) if self.origin is None else self.origin

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Int64[Tensor, " batch"] | slice) -> Images:
        """The chosen images as float32 pixels / levels, the same floats on every device."""
        chosen = self.pixels[indices].float()
        # CUDA multiplies by the reciprocal of a Python number, which can be off by one ulp; a tensor it divides by.
        return chosen / torch.full((), self.levels, dtype=chosen.dtype, device=chosen.device)

    def take(self, limit: int) -> "Split":
        """`limit` examples in their order, the same for everyone: the first ones, or as `evenly_chosen` chooses.

        Raises:
            BenchError: the limit is below 1 or above the number of examples.
        """
        if not 1 <= limit <= len(self):
            raise BenchError(f"limit {limit} does not fit a split of {len(self)} examples. Give 1 to {len(self)}.")
        if self.sampling == "first" or limit == len(self):
            return self.chosen(np.arange(limit))
        return self.chosen(evenly_chosen(self.labels.cpu().numpy(), limit))

    def chosen(self, rows: Int64[np.ndarray, " chosen"]) -> "Split":
        """The examples at these rows, in this order."""
        places = torch.from_numpy(rows).to(self.labels.device)
        pixels = self.pixels.chosen(rows) if isinstance(self.pixels, StoredImages) else self.pixels[places]
        return dataclasses.replace(self, pixels=pixels, labels=self.labels[places], origin=self.positions[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on another device."""
        return dataclasses.replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def held(self) -> UInt8[Tensor, "count channel height width"]:
        """All pixels, in memory; more than `bench.data.stored_images.MOST_AT_ONCE` that are on disk are refused."""
        return self.pixels.held() if isinstance(self.pixels, StoredImages) else self.pixels

    def digest(self) -> str:
        """SHA-256 over shape, levels, pixels and labels: identifies the exact examples, in order.

        Of images on disk it is that of the pixels that they are read as: every one is read once.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(f"{tuple(self.pixels.shape)} {self.levels}".encode())
        size = _READ_AT_ONCE if isinstance(self.pixels, StoredImages) else max(1, len(self))
        for first in range(0, len(self), size):
            digest.update(self.pixels[first : first + size].cpu().contiguous().numpy().data)
        digest.update(np.ascontiguousarray(self.labels.cpu().numpy(), dtype="<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and what the benchmark's protocol says about them."""

    name: str
    num_classes: int
    """As `classes_from` says; of `labels`, no more than a lower bound."""
    train: Split
    """Empty where an `npz:PATH` has none."""
    test: Split
    epsilons: Mapping[str, str]
    """The default budget by norm, as text."""
    crop_padding: int
    """Pixels of zero padding for random crops in training; 0: no crops."""
    flip: bool
    """True if training mirrors images at random."""
    flip_note: str
    """The reason why it does or does not."""
    sampling: Sampling = "first"
    classes_from: ClassesFrom = "dataset"
    class_names: tuple[str, ...] = ()
    """By label; empty where the dataset names none."""
    kept_classes: tuple[int, ...] = ()
    """Of some of a dataset's classes: the label that each had among all; empty: all are here."""
    preprocessing: str = ""
    """How images on disk became these pixels, as `bench.data.stored_images.Preprocessing` says it; empty: they are."""
    extra: Split | None = None
    """Images that are trained on beside `train`."""

    def seen_by(self, outputs: int) -> "Dataset":
        """The same for a model with so many outputs, which say how many classes there are if nothing else does.

        Raises:
            BenchError: more classes than a result file can name.
        """
        if self.classes_from != "labels":
            return self
        if outputs > MOST_CLASSES:
            raise BenchError(f"the model returns {outputs} classes; give one of at most {MOST_CLASSES}.")
        return dataclasses.replace(self, num_classes=outputs, classes_from="model")

    def of_classes(self, wanted: Sequence[str | int]) -> "Dataset":
        """The same with some of its classes alone, which are labelled anew, from 0 in their old order.

        Args:
            wanted: names, or labels (also as text, where no class is called so).

        Raises:
            BenchError: there is no such class, fewer than two are wanted, or none of their images is for tests.
        """
        labels = sorted({self._label(one) for one in wanted})
        if len(labels) < 2:
            raise BenchError(f"classes {', '.join(map(str, wanted))} are fewer than two: name two or more.")
        train, test = _of_labels(self.train, labels), _of_labels(self.test, labels)
        if not len(test):
            raise BenchError(f"{self.name} has no test images of the classes {', '.join(map(str, wanted))}.")
        names = tuple(self.class_names[label] for label in labels) if self.class_names else ()
        own = self.kept_classes or range(self.num_classes)
        return dataclasses.replace(
            self,
            train=train,
            test=test,
            num_classes=len(labels),
            classes_from="option",
            class_names=names,
            kept_classes=tuple(own[label] for label in labels),
        )

    def _label(self, wanted: str | int) -> int:
        if isinstance(wanted, str) and wanted in self.class_names:
            return self.class_names.index(wanted)
        if str(wanted).isdecimal() and int(wanted) < self.num_classes:
            return int(wanted)
        if 0 < len(self.class_names) <= _MOST_LISTED:
            raise unknown_name("class", str(wanted), self.class_names)
        such = f", and names such as {', '.join(self.class_names[:3])}" if self.class_names else ""
        raise BenchError(f"{self.name} has no class {wanted!r}: it has labels from 0 to {self.num_classes - 1}{such}.")

    def described(self) -> dict[str, Any]:
        """Facts for a record of what was chosen of the dataset; empty where nothing was."""
        facts = {"kept_classes": list(self.kept_classes), "preprocessing": self.preprocessing}
        if self.kept_classes or self.preprocessing:
            facts["class_names"] = list(self.class_names)
        return {name: value for name, value in facts.items() if value}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.test.pixels.shape[1:]
        return channels, height, width


def _of_labels(split: Split, labels: list[int]) -> Split:
    """The examples of these labels, with the places of the labels in the list as labels, and positions from 0."""
    old = split.labels.numpy()
    rows = np.flatnonzero(np.isin(old, labels))
    part = split.chosen(rows)
    return dataclasses.replace(part, labels=torch.from_numpy(np.searchsorted(labels, old[rows])), origin=None)


@dataclass(frozen=True)
class DatasetProtocol:
    """The benchmark's protocol for a dataset, as in `Dataset`."""

    epsilons: Mapping[str, str]
    crop_padding: int
    flip: bool
    flip_note: str
    sampling: Sampling = "first"


def make_split(pixels: np.ndarray, labels: Any, levels: int = 255, sampling: Sampling = "first") -> Split:
    """A split of arrays: pixels (count, channel, height, width) and one label each."""
    held = torch.from_numpy(pixels).contiguous(), torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return Split(*held, levels, sampling)
