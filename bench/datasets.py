"""Datasets by name: whole splits as integer tensors, with the budgets and the augmentation that belong to them."""

import dataclasses
import hashlib
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision import datasets as archives

from bench.budgets import read_arrays, require_file
from bench.errors import BenchError, unknown_name
from bench.interfaces import Images


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, kept as integers 0..`levels`; `images` turns them into floats in [0, 1]."""

    pixels: UInt8[Tensor, "count channel height width"]
    labels: Int64[Tensor, " count"]
    levels: int = 255
    """The integer that stands for 1.0."""

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Int64[Tensor, " batch"] | slice) -> Images:
        """The chosen images as float32 pixels / levels, the same floats on every device."""
        chosen = self.pixels[indices].float()
        # CUDA multiplies by the reciprocal of a Python number, which can be off by one ulp; a tensor it divides by.
        return chosen / torch.full((), self.levels, dtype=chosen.dtype, device=chosen.device)

    def take(self, limit: int) -> "Split":
        """The first `limit` examples.

        Raises:
            BenchError: the limit is below 1 or above the number of examples.
        """
        if not 1 <= limit <= len(self):
            raise BenchError(f"limit {limit} does not fit a split of {len(self)} examples. Give 1 to {len(self)}.")
        return dataclasses.replace(self, pixels=self.pixels[:limit], labels=self.labels[:limit])

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on another device."""
        return dataclasses.replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def digest(self) -> str:
        """SHA-256 over shape, levels, pixels and labels: identifies the exact examples, in order."""
        digest = hashlib.sha256(f"{tuple(self.pixels.shape)} {self.levels}".encode())
        digest.update(self.pixels.cpu().contiguous().numpy().data)
        digest.update(np.ascontiguousarray(self.labels.cpu().numpy(), dtype="<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and what the benchmark's protocol says about them."""

    name: str
    num_classes: int
    train: Split
    """Empty where an `npz:PATH` has none."""
    test: Split
    epsilons: Mapping[str, str]
    """The default budget by norm, as text."""
    crop_padding: int
    """Pixels of zero padding for random crops in training; 0: no crops."""
    flip: bool
    """Whether training mirrors images at random."""
    flip_note: str
    """Why it does or does not."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.test.pixels.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class DatasetProtocol:
    """What the benchmark's protocol says about a dataset, as in `Dataset`."""

    epsilons: Mapping[str, str]
    crop_padding: int
    flip: bool
    flip_note: str


_BUDGETS = {"linf": "8/255", "l2": "128/255", "l1": "2000/255"}
_OBJECTS = DatasetProtocol(_BUDGETS, 4, True, "crops and flips: a mirrored object keeps its class")
DATASET_PROTOCOLS: Mapping[str, DatasetProtocol] = {
    "cifar10": _OBJECTS,
    "cifar100": _OBJECTS,
    "svhn": DatasetProtocol(
        _BUDGETS,
        4,
        False,
        "crops, no flips: a mirrored digit may change its class (deviation: the Adv-DPNP paper names crops and flips "
        "for training in general)",
    ),
    "npz": DatasetProtocol(
        _BUDGETS, 4, False, "crops, no flips: whether a mirrored image keeps its class is not known"
    ),
    "mnist": DatasetProtocol(
        {"linf": "0.3", "l2": "2", "l1": "10"}, 0, False, "neither crops nor flips: a mirrored digit is another shape"
    ),
    # l2 and l1: the same share of the linf ball's extent in that norm as CIFAR's budgets have.
    "digits": DatasetProtocol(
        {"linf": "0.15", "l2": "0.35", "l1": "0.8"},
        0,
        False,
        "neither crops nor flips: a mirrored digit is another shape, and on 8x8 pixels a crop cuts strokes off",
    ),
}


@dataclass(frozen=True)
class _Archive:
    """A published dataset that torchvision reads."""

    reader: Callable[..., Any]
    num_classes: int
    folder: str
    """Below the data folder."""
    files: tuple[str, ...]
    arrays: Callable[[Any], tuple[Any, Any]]
    """Pixels (count, channel, height, width) and labels of what the reader returns."""
    train: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"train": False})


def _cifar_arrays(archive: Any) -> tuple[Any, Any]:
    return archive.data.transpose(0, 3, 1, 2), archive.targets


_ARCHIVES = {
    "cifar10": _Archive(
        archives.CIFAR10,
        10,
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
        _cifar_arrays,
    ),
    "cifar100": _Archive(archives.CIFAR100, 100, "cifar-100-python", ("train", "test", "meta"), _cifar_arrays),
    "mnist": _Archive(
        archives.MNIST,
        10,
        "MNIST/raw",
        tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        lambda archive: (archive.data[:, None].numpy(), archive.targets.numpy()),
    ),
    "svhn": _Archive(
        archives.SVHN,
        10,
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        lambda archive: (archive.data, archive.labels),
        {"split": "train"},
        {"split": "test"},
    ),
}

_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# Result files store labels as int16.
_MOST_CLASSES = 2**15

_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, AssertionError, LookupError, HTTPException),
    *(pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error),
)
"""What torchvision, NumPy and the network raise for files they cannot get or read."""


def dataset_names() -> list[str]:
    """Every name that `load_dataset` takes, besides `npz:PATH`."""
    return sorted([*_ARCHIVES, "digits"])


def dataset_protocol(name: str) -> DatasetProtocol:
    """What the benchmark's protocol says about a dataset, whether its files are there or not.

    Raises:
        BenchError: the name is unknown.
    """
    return DATASET_PROTOCOLS[_key(name)]


def load_dataset(name: str, root: Path) -> Dataset:
    """The dataset `name`, read from the data folder `root`.

    `digits` ships with scikit-learn. `npz:PATH` is a NumPy archive of your own with x_train, y_train, x_test and
    y_test: uint8 images (count, height, width[, channel]) and integer labels 0..K-1. Without x_train and y_train it
    serves evaluations only.

    Raises:
        BenchError: the name is unknown; files are missing or damaged; an array of `npz:PATH` is not as above.
    """
    key = _key(name)
    if key == "npz":
        num_classes, train, test = _read_npz(Path(name.removeprefix("npz:")).expanduser())
    elif key == "digits":
        num_classes, train, test = _read_digits()
    else:
        num_classes, train, test = _read_archive(name, root)
    return Dataset(name, num_classes, train, test, **vars(dataset_protocol(name)))


def fetch_dataset(name: str, root: Path) -> None:
    """Download the dataset into the data folder `root`, unless it is there.

    Raises:
        BenchError: the name is unknown or has no download; the download failed or was damaged.
    """
    key = _key(name)
    if key == "npz":
        raise BenchError(f"{name} is a file of your own: there is nothing to fetch. Put it at that path.")
    if key == "digits":
        return
    archive = _ARCHIVES[key]
    try:
        with _unpacked_inside():
            for part in (archive.train, archive.test):
                archive.reader(root, download=True, **part)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise BenchError(
            f"{name} could not be downloaded ({reason}). Put {', '.join(archive.files)} in {root / archive.folder} "
            "by hand."
        ) from None


@contextmanager
def _unpacked_inside() -> Iterator[None]:
    """An archive whose members lead out of the folder is refused: PEP 706, which torchvision does not ask for."""
    before = getattr(tarfile.TarFile, "extraction_filter", None)
    chosen = getattr(tarfile, "data_filter", None)  # the first releases of Python 3.10 and 3.11 have none
    tarfile.TarFile.extraction_filter = None if chosen is None else staticmethod(chosen)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def describe(name: str, root: Path) -> str:
    """One line: what the dataset holds if it loads, what is missing or wrong if it does not.

    Raises:
        BenchError: the name is unknown.
    """
    _key(name)
    try:
        dataset = load_dataset(name, root)
    except BenchError as error:
        return str(error)
    shape = "x".join(map(str, dataset.image_shape))
    counts = f"{len(dataset.train)} training and {len(dataset.test)} test images"
    return f"{name} is present: {counts} of {shape}, {dataset.num_classes} classes."


def _key(name: str) -> str:
    if name.startswith("npz:"):
        return "npz"
    if name not in dataset_names():
        raise unknown_name("dataset", name, [*dataset_names(), "npz:PATH"])
    return name


def _split(pixels: np.ndarray, labels: Any, levels: int = 255) -> Split:
    return Split(torch.from_numpy(pixels).contiguous(), torch.from_numpy(np.asarray(labels, dtype=np.int64)), levels)


def _read_digits() -> tuple[int, Split, Split]:
    # scikit-learn takes seconds to import, and only this dataset needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = digits.images.astype(np.uint8)[:, None]
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, digits.target, test_size=500, random_state=0, stratify=digits.target
    )
    return 10, _split(x_train, y_train, levels=16), _split(x_test, y_test, levels=16)


def _read_archive(name: str, root: Path) -> tuple[int, Split, Split]:
    archive = _ARCHIVES[name]
    folder = root / archive.folder
    fetch = f"bench data fetch {name} --data {root}"
    missing = [file for file in archive.files if not (folder / file).is_file()]
    if missing:
        raise BenchError(f"{name} is missing {', '.join(missing)} in {folder}. Run: {fetch}")
    try:
        for file in archive.files:
            require_file(folder / file)
        train, test = (_read_part(archive, root, part) for part in (archive.train, archive.test))
    except _UNREADABLE:
        files = ", ".join(archive.files)
        raise BenchError(
            f"{name} is damaged in {folder}: its files are unreadable or not the published ones. "
            f"Delete {files}, then run: {fetch}"
        ) from None
    return archive.num_classes, train, test


def _read_part(archive: _Archive, root: Path, part: Mapping[str, Any]) -> Split:
    pixels, labels = archive.arrays(archive.reader(root, download=False, **part))
    # MNIST's unpacked files have no checksum.
    if len(pixels) != len(labels) or not 0 <= int(np.min(labels)) <= int(np.max(labels)) < archive.num_classes:
        raise ValueError
    return _split(pixels, labels)


def _read_npz(path: Path) -> tuple[int, Split, Split]:
    arrays = _open_npz(path)
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    for part in parts:
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        _check_images(f"x_{part} in {path}", images)
        _check_labels(f"y_{part} in {path}", labels, len(images))
    num_classes = 1 + max(int(arrays[f"y_{part}"].max()) for part in parts)
    if num_classes < 2:
        raise BenchError(f"y_{parts[0]} in {path} holds the label 0 alone, expected labels of two classes or more.")
    arrays = {"x_train": arrays["x_test"][:0], "y_train": arrays["y_test"][:0], **arrays}
    train_shape, test_shape = (arrays[key].shape[1:] for key in ("x_train", "x_test"))
    if train_shape != test_shape:
        raise BenchError(f"x_test in {path} holds images of {test_shape}, expected {train_shape} as in x_train.")
    train, test = (_split(_channels_first(arrays[f"x_{part}"]), arrays[f"y_{part}"]) for part in ("train", "test"))
    return num_classes, train, test


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise BenchError(f"there is no file {path}. Write it with numpy.savez: {', '.join(_NPZ_ARRAYS)}.")
    try:
        arrays = read_arrays(path, _NPZ_ARRAYS)
    except _UNREADABLE:
        raise BenchError(
            f"{path} cannot be read as an archive of plain arrays. Write it with numpy.savez: {', '.join(_NPZ_ARRAYS)}."
        ) from None
    missing = [key for key in _NPZ_ARRAYS if key not in arrays]
    if missing and missing != ["x_train", "y_train"]:
        raise BenchError(f"{path} has no array {', '.join(missing)}. It needs {', '.join(_NPZ_ARRAYS)}.")
    return arrays


def _check_images(what: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise BenchError(f"{what} is of type {images.dtype}, expected uint8 pixels 0..255.")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise BenchError(
            f"{what} has shape {images.shape}, expected (count, height, width[, channel]), none of them 0."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise BenchError(f"{what} has shape {images.shape}, expected channels last: transpose(0, 2, 3, 1) it.")


def _check_labels(what: str, labels: np.ndarray, count: int) -> None:
    if labels.dtype.kind not in "iu":
        raise BenchError(f"{what} is of type {labels.dtype}, expected integer labels 0..K-1.")
    if labels.shape != (count,):
        raise BenchError(f"{what} has shape {labels.shape}, expected one label per image: ({count},).")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= _MOST_CLASSES:
        raise BenchError(
            f"{what} holds labels {lowest} to {highest}, expected 0..K-1 for K classes, at most {_MOST_CLASSES}."
        )


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
