"""Datasets of image files: a folder for each class, ImageNet's tests as RobustBench takes them, Tiny ImageNet."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.data.splits import MOST_CLASSES, Dataset, Split
from bench.data.stored_images import ImageFiles, Preprocessing, stored_images
from bench.errors import BenchError
from bench.system.budgets import read_json, read_text

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are taken for images, in any case: those of torchvision's `ImageFolder`."""
MOST_FILES = 2_000_000
"""Of a part of a dataset. ImageNet has 1.3 million to train on."""
_MOST_LEVELS = 8
"""Of folders within a class: links may lead in a circle."""
PARTS = ("train", "val", "test")

Files = list[tuple[str, int]]
"""Paths and labels."""


def read_folder(name: str, place: str, preprocessing: str | None, protocol: Mapping[str, Any]) -> Dataset:
    """The images in PLACE/CLASS/..., or in PLACE/train/CLASS/..., PLACE/val/CLASS/... and PLACE/test/CLASS/...

    As torchvision's `ImageFolder` does, classes and files are taken in the order of their names, folders within a class
    included, and every image has three channels. Tested is on `test`, else on `val`, else on all there is; labels are
    of the classes in that part and in `train`.

    Raises:
        BenchError: there is no such folder, no image in it, or one that cannot be used.
    """
    root = _folder(name, place)
    inside = _folders(root)
    parts = {part: root / part for part in PARTS if part in inside} if set(inside) <= set(PARTS) else {}
    if parts and not {"val", "test"} & parts.keys():
        raise BenchError(f"{name} has images to train on alone. Put those to test on in {root / 'val'}, by class.")
    tested = parts.get("test") or parts.get("val") or root
    folders = {"test": tested, **({"train": parts["train"]} if "train" in parts else {})}
    classes = sorted({one for folder in folders.values() for one in _folders(folder)})
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise BenchError(
            f"{name} has {len(classes)} folders of classes in {tested}, and 2 to {MOST_CLASSES} are needed: "
            f"{root}/CLASS/*.png, or {root}/{{train,val,test}}/CLASS/*.png."
        )
    label = {one: number for number, one in enumerate(classes)}
    files = {
        part: [(path, label[one]) for one in _folders(folder) for path in _images(folder / one, name)]
        for part, folder in folders.items()
    }
    return _dataset(name, classes, files, Preprocessing(preprocessing or "none"), protocol)


def read_imagenet(name: str, place: str, preprocessing: str | None, protocol: Mapping[str, Any]) -> Dataset:
    """The 5,000 images of ImageNet's validation set that RobustBench evaluates on, in its order; for tests alone.

    They are in PLACE/val/WNID/ILSVRC2012_val_*.JPEG, in PLACE/WNID/..., or, as the original archive unpacks, in one
    folder. The list, and the label of each WNID, are those of the package robustbench (`helper_files`).

    Raises:
        BenchError: there is no such folder, or files are missing.
    """
    root = _folder(name, place)
    root = root / "val" if (root / "val").is_dir() else root
    listed, label = published()
    flat = any(entry.startswith("ILSVRC2012_val_") for entry in _entries(root))
    paths = [str(root / (Path(one).name if flat else one)) for one in listed]
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 - five thousand of them
    if missing:
        raise BenchError(
            f"{name} lacks {len(missing)} of the {len(paths)} images that RobustBench evaluates on; the first is "
            f"{missing[0]}. Put ImageNet's validation images there; for all that are there, take folder:{root}."
        )
    files = [(path, label[one.partition("/")[0]]) for path, one in zip(paths, listed, strict=True)]
    classes = sorted(label, key=label.__getitem__)
    return _dataset(name, classes, {"test": files}, Preprocessing(preprocessing or "Res256Crop224"), protocol)


def read_tiny_imagenet(name: str, place: str, preprocessing: str | None, protocol: Mapping[str, Any]) -> Dataset:
    """Tiny ImageNet as its archive unpacks: PLACE/train/WNID/images/*.JPEG, and tests in PLACE/val with annotations.

    `val/val_annotations.txt` names the class of each of `val/images/*.JPEG`. Labels are in the order of WNIDs.

    Raises:
        BenchError: there is no such folder, or something in it is missing.
    """
    root = _folder(name, place)
    annotations = root / "val" / "val_annotations.txt"
    try:
        rows = [line.split("\t") for line in read_text(annotations).splitlines() if line.strip()]
    except (OSError, ValueError):
        raise BenchError(
            f"{annotations} is missing or no text. Unpack tiny-imagenet-200.zip, and name the folder that it makes."
        ) from None
    if not rows or any(len(row) < 2 for row in rows):
        raise BenchError(f"{annotations} has lines without a file and a class, with a tabulator between them.")
    classes = sorted({row[1] for row in rows} | set(_folders(root / "train") if (root / "train").is_dir() else ()))
    label = {one: number for number, one in enumerate(classes)}
    files = {"test": [(str(root / "val" / "images" / Path(row[0]).name), label[row[1]]) for row in rows]}
    if (root / "train").is_dir():
        files["train"] = [
            (path, label[one]) for one in _folders(root / "train") for path in _images(root / "train" / one, name)
        ]
    return _dataset(name, classes, files, Preprocessing(preprocessing or "none"), protocol)


def _dataset(
    name: str,
    classes: Sequence[str],
    files: Mapping[str, Files],
    preprocessing: Preprocessing,
    protocol: Mapping[str, Any],
) -> Dataset:
    if not files["test"]:
        raise BenchError(f"{name} has no image to test on: files end in {', '.join(ENDINGS)}.")
    found = {part: files.get(part, []) for part in ("train", "test")}
    # One source for both parts, so that their images are of one size.
    source = ImageFiles([path for part in ("test", "train") for path, _ in found[part]])
    images = stored_images(source, len(source.paths), preprocessing)
    splits: dict[str, Split] = {}
    first = 0
    for part in ("test", "train"):
        rows = np.arange(first, first + len(found[part]))
        labels = torch.tensor([label for _, label in found[part]], dtype=torch.int64)
        splits[part] = Split(images.chosen(rows), labels, sampling=protocol["sampling"])
        first += len(rows)
    return Dataset(
        name,
        len(classes),
        splits["train"],
        splits["test"],
        **protocol,
        class_names=tuple(classes),
        preprocessing=preprocessing.text,
    )


def _folder(name: str, place: str) -> Path:
    root = Path(place).expanduser()
    if not place or not root.is_dir():
        raise BenchError(f"{name} is no folder that is there. Name one, such as {name.partition(':')[0]}:data/mine.")
    return root


def _entries(folder: Path) -> list[str]:
    """Names in a folder, but for hidden ones, in their order."""
    try:
        return sorted(entry for entry in os.listdir(folder) if entry[0] != ".")  # noqa: PTH208 - millions of them
    except OSError as error:
        raise BenchError(f"{folder} cannot be looked into: {error.strerror}.") from None


def _folders(folder: Path) -> list[str]:
    return [entry for entry in _entries(folder) if (folder / entry).is_dir()]


def _images(folder: Path, name: str) -> list[str]:
    found: list[str] = []
    for path in _below(str(folder), _MOST_LEVELS):
        found.append(path)
        if len(found) > MOST_FILES:
            raise BenchError(f"{name} has more than {MOST_FILES} images in {folder}. Name a smaller folder.")
    return found


def _below(folder: str, levels: int) -> Iterator[str]:
    """Images in a folder, then in those within it: the order of torchvision's `ImageFolder`."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise BenchError(f"{folder} cannot be looked into: {error.strerror}.") from None
    entries = [entry for entry in entries if entry.name[0] != "."]
    yield from (entry.path for entry in entries if entry.name.lower().endswith(ENDINGS) and not entry.is_dir())
    for entry in entries:
        if levels and entry.is_dir():
            yield from _below(entry.path, levels - 1)


def published() -> tuple[list[str], dict[str, int]]:
    """WNID/FILE of RobustBench's 5,000 images, and the label of each WNID; robustbench itself is not imported."""
    found = find_spec("robustbench")
    folder = Path(str(found.origin)).parent / "helper_files" if found else Path("helper_files")
    try:
        listed = read_text(folder / "imagenet_test_image_ids.txt").split()
        label = {str(wnid): int(number) for wnid, number in read_json(folder / "imagenet_class_to_id_map.json").items()}
    except (OSError, ValueError, json.JSONDecodeError):
        raise BenchError(
            "the list of the images that RobustBench evaluates on is not there. Run: pip install 'robustbench>=1.1.1'."
        ) from None
    return listed, label
