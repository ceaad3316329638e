"""Datasets in a NumPy archive of one's own, `npz:PATH`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.splits import MOST_CLASSES, ClassesFrom, Dataset, make_split
from bench.errors import BenchError
from bench.system.budgets import UNREADABLE, read_arrays

_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_NPZ_FACTS = ("num_classes", "class_names")
_NPZ_NEEDED = "x_test, y_test, and to train x_train, y_train"


def read_npz(name: str, classes: int | None, protocol: Mapping[str, Any]) -> Dataset:
    """The dataset in `npz:PATH`, as `bench.data.datasets.load_dataset` describes it.

    Raises:
        BenchError: the file is missing or damaged, or an array is not as described.
    """
    path = Path(name.removeprefix("npz:")).expanduser()
    return make_dataset(name, path, _open_npz(path), classes, protocol)


def make_dataset(
    name: str, place: Path | str, arrays: dict[str, Any], classes: int | None, protocol: Mapping[str, Any]
) -> Dataset:
    """The dataset of arrays named as those of `npz:PATH`; messages say that they are in `place`.

    Raises:
        BenchError: an array is not as described.
    """
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    for part in parts:
        images = arrays[f"x_{part}"]
        check_images(f"x_{part}", place, images)
        arrays[f"y_{part}"] = checked_labels(f"y_{part}", place, arrays[f"y_{part}"], len(images))
    class_names = _class_names(place, arrays)
    declared = _declared_classes(place, arrays, class_names)
    if None not in (declared, classes) and declared != classes:
        raise BenchError(f"{name} has {declared} classes, as it says itself, not {classes}: leave out --classes.")
    highest, part = max((int(arrays[f"y_{part}"].max()), part) for part in parts)
    stated = classes if declared is None else declared
    if stated is None and not highest:
        raise BenchError(f"y_{parts[0]} in {place} holds the label 0 alone, expected labels of two classes or more.")
    if stated is not None and not max(highest + 1, 2) <= stated <= MOST_CLASSES:
        raise BenchError(
            f"{stated} classes do not fit {place}, where y_{part} holds the label {highest}: "
            f"give {max(highest + 1, 2)} to {MOST_CLASSES}."
        )
    arrays = {"x_train": arrays["x_test"][:0], "y_train": arrays["y_test"][:0], **arrays}
    train_shape, test_shape = (arrays[key].shape[1:] for key in ("x_train", "x_test"))
    if train_shape != test_shape:
        raise BenchError(f"x_test in {place} holds images of {test_shape}, expected {train_shape} as in x_train.")
    train, test = (
        make_split(channels_first(arrays[f"x_{part}"]), arrays[f"y_{part}"], sampling=protocol["sampling"])
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
    except UNREADABLE:
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


def check_images(name: str, place: Path | str, images: np.ndarray) -> None:
    """Refuse an array of a file that holds no images."""
    what = f"{name} in {place}"
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


def checked_labels(name: str, place: Path | str, labels: np.ndarray, count: int) -> np.ndarray:
    """The labels, one per image; a column of them is a list of them."""
    what = f"{name} in {place}"
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
    if lowest < 0 or highest >= MOST_CLASSES:
        raise BenchError(
            f"{what} holds labels {lowest} to {highest}, expected 0..K-1 for K classes, at most {MOST_CLASSES}."
        )
    return labels


def _declared_classes(place: Path | str, arrays: Mapping[str, Any], class_names: tuple[str, ...]) -> int | None:
    """The number in `num_classes`, or else of `class_names`; None: neither is there."""
    given = arrays.get("num_classes")
    if given is None:
        return len(class_names) or None
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "iu" or given.size != 1:
        raise BenchError(f"num_classes in {place} is not one integer: save it as num_classes=10.")
    count = int(given.item())
    if class_names and count != len(class_names):
        raise BenchError(f"{place} holds {len(class_names)} class_names, and num_classes {count}: make them agree.")
    return count


def _class_names(place: Path | str, arrays: Mapping[str, Any]) -> tuple[str, ...]:
    given = arrays.get("class_names")
    if given is None:
        return ()
    if isinstance(given, np.ndarray) and given.dtype.kind == "U" and given.ndim == 1:
        found = tuple(map(str, given))
        if len(set(found)) == len(found) > 1 and all(name.strip() and name.isprintable() for name in found):
            return found
    raise BenchError(f"class_names in {place} are not two or more different printable names: save a list of texts.")


def channels_first(images: np.ndarray) -> np.ndarray:
    """Images (count, height, width[, channel]) as (count, channel, height, width)."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
