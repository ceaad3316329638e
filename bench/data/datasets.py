"""Datasets by name: whole splits as integer tensors, with the budgets and the augmentation that belong to them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.catalogue.names import DATASETS, OWN_DATASETS
from bench.data.archives import ARCHIVES, fetch_archive, read_archive
from bench.data.hugging_face import read_hugging_face
from bench.data.image_folders import read_folder, read_imagenet, read_tiny_imagenet
from bench.data.own_file import make_dataset, read_npz
from bench.data.splits import Dataset, DatasetProtocol, Split, make_split
from bench.errors import BenchError, unknown_name

TENSORS = "tensors:"
"""How the name of a dataset in memory begins."""
DIGITS = Path(__file__).parent / "digits.npz"
"""Scikit-learn's digits in the parts of `train_test_split`: 500 test images, stratified, `random_state` 0.

As a file they save every process the seconds that scikit-learn takes to import.
"""

_BUDGETS = {"linf": "8/255", "l2": "128/255", "l1": "2000/255"}
# linf is RobustBench's for ImageNet; l2 and l1 are those of Croce & Hein 2022, https://arxiv.org/abs/2105.12508.
_LARGE_BUDGETS = {"linf": "4/255", "l2": "2", "l1": "255"}
_NOT_KNOWN = "crops, no flips: whether a mirrored image keeps its class is not known"
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
        _NOT_KNOWN,
        # Images of one's own are often sorted by class, as image folders are: the first ones stand for one class.
        "stratified",
    ),
    "folder": DatasetProtocol(_LARGE_BUDGETS, 4, False, _NOT_KNOWN, "stratified"),
    "imagenet": DatasetProtocol(_LARGE_BUDGETS, 0, False, "none: its 5,000 images are for tests alone"),
    "tinyimagenet": dataclasses.replace(_OBJECTS, sampling="stratified"),
    "hf": DatasetProtocol(_LARGE_BUDGETS, 4, False, _NOT_KNOWN, "stratified"),
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


_ON_DISK: Mapping[str, Callable[[str, str, str | None, Mapping[str, Any]], Dataset]] = {
    "folder": read_folder,
    "imagenet": read_imagenet,
    "tinyimagenet": read_tiny_imagenet,
    "hf": read_hugging_face,
}
"""Readers of images that stay on disk, by the first part of a name: of the name, its rest, and a preprocessing."""


def dataset_protocol(name: str) -> DatasetProtocol:
    """The benchmark's protocol for a dataset, whether its files are there or not; an unknown name is refused."""
    return DATASET_PROTOCOLS[_key(name)]


def load_dataset(
    name: str, root: Path, classes: int | Sequence[str | int] | None = None, preprocessing: str | None = None
) -> Dataset:
    """The dataset `name`, read from the data folder `root`.

    `digits` ships with this package. `npz:PATH` is a NumPy archive of your own with x_train, y_train, x_test and
    y_test: uint8 images (count, height, width[, channel]) and integer labels 0..K-1. Without x_train and y_train it
    serves evaluations only. It may say how many classes there are, `num_classes`, and name them, `class_names`; for one
    that does not, `classes` does (None: 1 + the largest label). `classes` may also be a list: of some classes, by name
    or label, which alone are kept and labelled anew (`Dataset.of_classes`).

    The images of `folder:PATH`, `imagenet:PATH`, `tinyimagenet:PATH` (`bench.data.image_folders`) and `hf:NAME`
    (`bench.data.hugging_face`) stay on disk, and are prepared by a `preprocessing`
    (`bench.data.stored_images.Preprocessing`; None: of ImageNet as RobustBench's, else as they are).

    Raises:
        BenchError: the name is unknown; files are missing or damaged; an array of `npz:PATH` is not as above; the
            dataset has another number of classes than `classes`, or not those in it; it takes no preprocessing.
    """
    stated = classes if isinstance(classes, int) else None
    dataset = _loaded(name, root, stated, preprocessing)
    return dataset if classes is None or isinstance(classes, int) else dataset.of_classes(classes)


def _loaded(name: str, root: Path, classes: int | None, preprocessing: str | None) -> Dataset:
    key = _key(name)
    if name.startswith(TENSORS):
        raise BenchError(f"{name} was in the memory of another process: give its images again, as an npz:PATH.")
    protocol = vars(dataset_protocol(name))
    if key in _ON_DISK:
        return _with_classes(_ON_DISK[key](name, name.partition(":")[2], preprocessing, protocol), classes)
    if preprocessing is not None:
        raise BenchError(f"{name} is read as it is, and --preprocessing {preprocessing} would change nothing.")
    if key == "npz":
        return read_npz(name, classes, protocol)
    train, test = _read_digits() if key == "digits" else read_archive(name, root)
    num_classes = ARCHIVES[name].num_classes if name in ARCHIVES else 10
    class_names = ARCHIVES[name].class_names if name in ARCHIVES else ()
    return _with_classes(Dataset(name, num_classes, train, test, **protocol, class_names=class_names), classes)


def _with_classes(dataset: Dataset, classes: int | None) -> Dataset:
    if classes not in (None, dataset.num_classes):
        raise BenchError(f"{dataset.name} has {dataset.num_classes} classes, not {classes}: leave out --classes.")
    return dataset


def held_dataset(images: Tensor, labels: Tensor, classes: int | None = None) -> Dataset:
    """A dataset for evaluations of test images in memory, named by their digest, with the protocol of `npz:PATH`.

    Args:
        images: (count, channel, height, width), uint8, or floats k / 255.
        labels: (count,), whole numbers from 0.
        classes: how many there are.  [default: as many as the model has outputs]

    Raises:
        BenchError: images or labels are not as above.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or 0 in images.shape:
        raise BenchError(
            f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)} do not fit: give "
            "(count, channel, height, width) and (count,)."
        )
    pixels = images.detach().cpu()
    if pixels.dtype != torch.uint8:
        levels = 255 * pixels.double()
        if not bool(((levels - levels.round()).abs() < 1e-3).all()) or levels.min() < 0 or levels.max() > 255:
            raise BenchError(
                "images are neither uint8 nor floats k/255 in [0, 1]: undo a normalisation (it belongs into the "
                "model), and write (255 * images).round().to(torch.uint8)."
            )
        pixels = levels.round().to(torch.uint8)
    if labels.is_floating_point() or labels.dtype == torch.bool or not 0 <= int(labels.min()) <= int(labels.max()):
        raise BenchError(f"labels of type {labels.dtype} are not whole numbers from 0: write labels.long().")
    arrays = {"x_test": pixels.permute(0, 2, 3, 1).numpy(), "y_test": labels.detach().cpu().numpy()}
    dataset = make_dataset(TENSORS, "memory", arrays, classes, vars(DATASET_PROTOCOLS["npz"]))
    return dataclasses.replace(dataset, name=f"{TENSORS}{dataset.test.digest()[:12]}")


def fetch_dataset(name: str, root: Path) -> None:
    """Download the dataset into the data folder `root`, unless it is there.

    Raises:
        BenchError: the name is unknown or has no download; the download failed or was damaged.
    """
    key = _key(name)
    if key == "npz" or key in _ON_DISK:
        what = "a file" if key == "npz" else "data"
        raise BenchError(f"{name} is {what} of your own: there is nothing to fetch. Put it at that path.")
    if key != "digits":
        fetch_archive(name, root)


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
    """The name in `DATASET_PROTOCOLS`: for data of one's own, the part before the colon."""
    kind, colon, _ = name.partition(":")
    if colon and (kind in _ON_DISK or kind == "npz" or f"{kind}:" == TENSORS):
        return kind if kind in _ON_DISK else "npz"
    if name not in DATASETS:
        raise unknown_name("dataset", name, [*DATASETS, *OWN_DATASETS])
    return name


def _read_digits() -> tuple[Split, Split]:
    with np.load(DIGITS, allow_pickle=False) as held:
        train, test = (make_split(held[f"x_{part}"], held[f"y_{part}"], levels=16) for part in ("train", "test"))
    return train, test
