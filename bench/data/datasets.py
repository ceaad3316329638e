"""Datasets by name: whole splits as integer tensors, with the budgets and the augmentation that belong to them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.catalogue.names import DATASETS
from bench.data.archives import ARCHIVES, fetch_archive, read_archive
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


def dataset_protocol(name: str) -> DatasetProtocol:
    """The benchmark's protocol for a dataset, whether its files are there or not; an unknown name is refused."""
    return DATASET_PROTOCOLS[_key(name)]


def load_dataset(name: str, root: Path, classes: int | None = None) -> Dataset:
    """The dataset `name`, read from the data folder `root`.

    `digits` ships with this package. `npz:PATH` is a NumPy archive of your own with x_train, y_train, x_test and
    y_test: uint8 images (count, height, width[, channel]) and integer labels 0..K-1. Without x_train and y_train it
    serves evaluations only. It may say how many classes there are, `num_classes`, and name them, `class_names`; for one
    that does not, `classes` does (None: 1 + the largest label).

    Raises:
        BenchError: the name is unknown; files are missing or damaged; an array of `npz:PATH` is not as above; the
            dataset has another number of classes than `classes`.
    """
    key = _key(name)
    if name.startswith(TENSORS):
        raise BenchError(f"{name} was in the memory of another process: give its images again, as an npz:PATH.")
    protocol = vars(dataset_protocol(name))
    if key == "npz":
        return read_npz(name, classes, protocol)
    train, test = _read_digits() if key == "digits" else read_archive(name, root)
    num_classes = ARCHIVES[name].num_classes if name in ARCHIVES else 10
    if classes not in (None, num_classes):
        raise BenchError(f"{name} has {num_classes} classes, not {classes}: leave out --classes.")
    class_names = ARCHIVES[name].class_names if name in ARCHIVES else ()
    return Dataset(name, num_classes, train, test, **protocol, class_names=class_names)


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
    if key == "npz":
        raise BenchError(f"{name} is a file of your own: there is nothing to fetch. Put it at that path.")
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
    if name.startswith(("npz:", TENSORS)):
        return "npz"
    if name not in DATASETS:
        raise unknown_name("dataset", name, [*DATASETS, "npz:PATH"])
    return name


def _read_digits() -> tuple[Split, Split]:
    with np.load(DIGITS, allow_pickle=False) as held:
        train, test = (make_split(held[f"x_{part}"], held[f"y_{part}"], levels=16) for part in ("train", "test"))
    return train, test
