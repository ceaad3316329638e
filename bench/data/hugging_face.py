"""Datasets of the Hugging Face Hub, or saved by its library on disk: `hf:NAME`, with the extra `datasets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.data.splits import MOST_CLASSES, Dataset, Split
from bench.data.stored_images import Preprocessing, StoredImages, stored_images
from bench.errors import BenchError, cause

TESTS = ("test", "validation", "valid", "val")
"""Names of the split to test on, the first that is there."""


@dataclass(frozen=True, eq=False)
class HubImages:
    """Images in rows of a split."""

    rows: Any
    column: str
    place: str

    def opened(self, number: int) -> Any:
        return self.rows[number][self.column]

    def name(self, number: int) -> str:
        return f"row {number} of {self.place}"


def read_hugging_face(name: str, place: str, preprocessing: str | None, protocol: Mapping[str, Any]) -> Dataset:
    """The dataset `hf:NAME`, or `hf:NAME:CONFIGURATION`; a folder of that name is one that `save_to_disk` wrote.

    Images are its first column of type Image, labels its first of type ClassLabel. The library looks into its own
    cache, and downloads what is not there. Tests are on the split test, else validation.

    Raises:
        BenchError: the library is not installed, cannot load the dataset, or the dataset has no such columns.
    """
    try:
        library = import_module("datasets")
    except ImportError:
        raise BenchError(f"{name} takes the library datasets. Run: pip install datasets.") from None
    try:
        saved = Path(place).is_dir()
        splits = dict(library.load_from_disk(place) if saved else library.load_dataset(*place.split(":", 1)))
    except Exception as error:  # of the network, of the Hub, of a script that it would have to run
        raise BenchError(
            f"{name} cannot be loaded: {cause(error)}. Load it once with the network there, or save_to_disk() it, all "
            "splits together, and name the folder."
        ) from error
    tested = next((split for split in TESTS if split in splits), None)
    if tested is None:
        raise BenchError(f"{name} has no split to test on: it has {', '.join(splits)}, and one of {TESTS} is needed.")
    columns = {kind: _column(splits[tested], kind, name) for kind in ("Image", "ClassLabel")}
    classes = tuple(map(str, splits[tested].features[columns["ClassLabel"]].names))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise BenchError(f"{name} has {len(classes)} classes; give one of 2 to {MOST_CLASSES}.")
    chosen = Preprocessing(preprocessing or "none")
    parts = {"test": tested, **({"train": "train"} if "train" in splits else {})}
    found = {
        part: _split(splits[split], columns, f"{name}, {split}", chosen, protocol) for part, split in parts.items()
    }
    test = found["test"]
    train = found.get("train") or test.chosen(np.arange(0))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise BenchError(f"{name} has images of other sizes to train on than to test on: give --preprocessing.")
    return Dataset(name, len(classes), train, test, **protocol, class_names=classes, preprocessing=chosen.text)


def _column(rows: Any, kind: str, name: str) -> str:
    """The first column of a type."""
    for column, feature in rows.features.items():
        if type(feature).__name__ == kind:
            return str(column)
    raise BenchError(f"{name} has no column of type {kind}: its columns are {', '.join(rows.features)}.")


def _split(
    rows: Any, columns: Mapping[str, str], place: str, preprocessing: Preprocessing, protocol: Mapping[str, Any]
) -> Split:
    labels = np.array(list(rows[columns["ClassLabel"]]), dtype=np.int64)
    if len(labels) and labels.min() < 0:
        raise BenchError(f"{place} has images without a label ({int((labels < 0).sum())}). Take another split.")
    images: StoredImages = stored_images(HubImages(rows, columns["Image"], place), len(labels), preprocessing)
    return Split(images, torch.from_numpy(labels), sampling=protocol["sampling"])
