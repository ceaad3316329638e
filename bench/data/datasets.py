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
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision import datasets as archives

from bench.data.sampling import evenly_chosen
from bench.errors import BenchError, unknown_name
from bench.interfaces import Images
from bench.system.budgets import read_arrays, require_file

Sampling: TypeAlias = Literal["first", "stratified"]
"""Which examples stand for all of a split: its first, where that is a dataset's convention, or some of each class."""
ClassesFrom: TypeAlias = Literal["dataset", "option", "labels", "model"]
"""What says how many classes there are: the dataset, --classes, the largest label, or the outputs of a model."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, kept as integers 0..`levels`; `images` turns them into floats in [0, 1]."""

    pixels: UInt8[Tensor, "count channel height width"]
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
        return dataclasses.replace(
            self, pixels=self.pixels[places], labels=self.labels[places], origin=self.positions[rows]
        )

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
    """As `classes_from` says; of `labels`, no more than a lower bound."""
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
    sampling: Sampling = "first"
    classes_from: ClassesFrom = "dataset"
    class_names: tuple[str, ...] = ()
    """By label; empty where the dataset names none."""

    def seen_by(self, outputs: int) -> "Dataset":
        """The same for a model with so many outputs, which say how many classes there are if nothing else does.

        Raises:
            BenchError: more classes than a result file can name.
        """
        if self.classes_from != "labels":
            return self
        if outputs > _MOST_CLASSES:
            raise BenchError(f"the model returns {outputs} classes; give one of at most {_MOST_CLASSES}.")
        return dataclasses.replace(self, num_classes=outputs, classes_from="model")

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
    sampling: Sampling = "first"


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
        _BUDGETS,
        4,
        False,
        "crops, no flips: whether a mirrored image keeps its class is not known",
        # Images of one's own are often sorted by class, as image folders are: the first ones stand for one class.
        "stratified",
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
    class_names: tuple[str, ...] = ()


def _cifar_arrays(archive: Any) -> tuple[Any, Any]:
    return archive.data.transpose(0, 3, 1, 2), archive.targets


_ARCHIVES = {
    "cifar10": _Archive(
        archives.CIFAR10,
        10,
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
        _cifar_arrays,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
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
_NPZ_FACTS = ("num_classes", "class_names")
_NPZ_NEEDED = "x_test, y_test, and to train x_train, y_train"
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


def load_dataset(name: str, root: Path, classes: int | None = None) -> Dataset:
    """The dataset `name`, read from the data folder `root`.

    `digits` ships with scikit-learn. `npz:PATH` is a NumPy archive of your own with x_train, y_train, x_test and
    y_test: uint8 images (count, height, width[, channel]) and integer labels 0..K-1. Without x_train and y_train it
    serves evaluations only. It may say how many classes there are, `num_classes`, and name them, `class_names`.

    Args:
        name: of the dataset.
        root: the data folder.
        classes: how many classes an `npz:PATH` has that does not say it.  [default: 1 + the largest label]

    Raises:
        BenchError: the name is unknown; files are missing or damaged; an array of `npz:PATH` is not as above; the
            dataset has another number of classes than `classes`.
    """
    key = _key(name)
    protocol = vars(dataset_protocol(name))
    if key == "npz":
        return _read_npz(name, classes, protocol)
    num_classes, train, test = _read_digits() if key == "digits" else _read_archive(name, root)
    if classes not in (None, num_classes):
        raise BenchError(f"{name} has {num_classes} classes, not {classes}: leave out --classes.")
    class_names = _ARCHIVES[name].class_names if name in _ARCHIVES else ()
    return Dataset(name, num_classes, train, test, **protocol, class_names=class_names)


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


def _split(pixels: np.ndarray, labels: Any, levels: int = 255, sampling: Sampling = "first") -> Split:
    held = torch.from_numpy(pixels).contiguous(), torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return Split(*held, levels, sampling)


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


def _read_npz(name: str, classes: int | None, protocol: Mapping[str, Any]) -> Dataset:
    path = Path(name.removeprefix("npz:")).expanduser()
    arrays = _open_npz(path)
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    for part in parts:
        images = arrays[f"x_{part}"]
        _check_images(f"x_{part}", path, images)
        arrays[f"y_{part}"] = _checked_labels(f"y_{part}", path, arrays[f"y_{part}"], len(images))
    class_names = _class_names(path, arrays)
    declared = _declared_classes(path, arrays, class_names)
    if None not in (declared, classes) and declared != classes:
        raise BenchError(f"{name} has {declared} classes, as it says itself, not {classes}: leave out --classes.")
    highest, part = max((int(arrays[f"y_{part}"].max()), part) for part in parts)
    stated = classes if declared is None else declared
    if stated is None and not highest:
        raise BenchError(f"y_{parts[0]} in {path} holds the label 0 alone, expected labels of two classes or more.")
    if stated is not None and not max(highest + 1, 2) <= stated <= _MOST_CLASSES:
        raise BenchError(
            f"{stated} classes do not fit {path}, where y_{part} holds the label {highest}: "
            f"give {max(highest + 1, 2)} to {_MOST_CLASSES}."
        )
    arrays = {"x_train": arrays["x_test"][:0], "y_train": arrays["y_test"][:0], **arrays}
    train_shape, test_shape = (arrays[key].shape[1:] for key in ("x_train", "x_test"))
    if train_shape != test_shape:
        raise BenchError(f"x_test in {path} holds images of {test_shape}, expected {train_shape} as in x_train.")
    train, test = (
        _split(_channels_first(arrays[f"x_{part}"]), arrays[f"y_{part}"], sampling=protocol["sampling"])
        for part in ("train", "test")
    )
    source: ClassesFrom = "dataset" if declared is not None else "labels" if classes is None else "option"
    count = highest + 1 if stated is None else stated
    return Dataset(name, count, train, test, **protocol, classes_from=source, class_names=class_names)


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise BenchError(f"there is no file {path}. Write it with numpy.savez: {_NPZ_NEEDED}.")
    try:
        arrays = read_arrays(path, (*_NPZ_ARRAYS, *_NPZ_FACTS))
    except _UNREADABLE:
        raise BenchError(
            f"{path} cannot be read as an archive of plain arrays. Write it with numpy.savez: {_NPZ_NEEDED}."
        ) from None
    missing = [key for key in _NPZ_ARRAYS if not isinstance(arrays.get(key), np.ndarray)]
    # Whoever has none of the training arrays wants to evaluate, and is not asked for them.
    if missing[:2] == ["x_train", "y_train"]:
        missing = missing[2:]
    if missing:
        raise BenchError(f"{path} has no array {', '.join(missing)}. It needs {_NPZ_NEEDED}.")
    return arrays


def _check_images(name: str, path: Path, images: np.ndarray) -> None:
    what = f"{name} in {path}"
    if images.dtype != np.uint8:
        way_out = ""
        if images.dtype.kind in "iuf" and images.size and images.min() >= 0 and images.max() <= 255:
            # A whole 1 may be a level; a float 1 at most is a share of the range.
            shares = images.dtype.kind == "f" and images.max() <= 1
            way_out = f" Write {f'(255 * {name}).round()' if shares else name}.astype(numpy.uint8)."
        raise BenchError(f"{what} is of type {images.dtype}, expected uint8 pixels 0..255.{way_out}")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise BenchError(
            f"{what} has shape {images.shape}, expected (count, height, width[, channel]), none of them 0."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise BenchError(f"{what} has shape {images.shape}, expected channels last: transpose(0, 2, 3, 1) it.")


def _checked_labels(name: str, path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    """The labels, one per image; a column of them is a list of them."""
    what = f"{name} in {path}"
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    way_out = ""
    if labels.dtype.kind in "biuf" and labels.ndim == 2 and bool(((labels != 0).sum(1) == 1).all()):
        way_out = f" They look one-hot: write {name}.argmax(1)."
    elif labels.dtype.kind == "b" or (
        labels.dtype.kind == "f" and bool((np.isfinite(labels) & (labels == labels.round())).all())
    ):
        way_out = f" Write {name}.astype(int)."
    if labels.dtype.kind not in "iu":
        raise BenchError(f"{what} is of type {labels.dtype}, expected integer labels 0..K-1.{way_out}")
    if labels.shape != (count,):
        raise BenchError(f"{what} has shape {labels.shape}, expected one label per image: ({count},).{way_out}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= _MOST_CLASSES:
        raise BenchError(
            f"{what} holds labels {lowest} to {highest}, expected 0..K-1 for K classes, at most {_MOST_CLASSES}."
        )
    return labels


def _declared_classes(path: Path, arrays: Mapping[str, Any], class_names: tuple[str, ...]) -> int | None:
    """What `num_classes` says, or else how many `class_names` there are; None: neither is there."""
    given = arrays.get("num_classes")
    if given is None:
        return len(class_names) or None
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "iu" or given.size != 1:
        raise BenchError(f"num_classes in {path} is not one integer: save it as num_classes=10.")
    count = int(given.item())
    if class_names and count != len(class_names):
        raise BenchError(f"{path} holds {len(class_names)} class_names, and num_classes {count}: make them agree.")
    return count


def _class_names(path: Path, arrays: Mapping[str, Any]) -> tuple[str, ...]:
    given = arrays.get("class_names")
    if given is None:
        return ()
    if isinstance(given, np.ndarray) and given.dtype.kind == "U" and given.ndim == 1:
        found = tuple(map(str, given))
        if len(set(found)) == len(found) > 1 and all(name.strip() and name.isprintable() for name in found):
            return found
    raise BenchError(f"class_names in {path} are not two or more different printable names: save a list of texts.")


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
