"""Published datasets that torchvision reads, from their original files."""

import dataclasses
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.splits import Split, make_split
from bench.errors import BenchError
from bench.system.budgets import UNREADABLE, require_file


@dataclass(frozen=True)
class Archive:
    """A published dataset that torchvision reads."""

    reader: str
    """The class in `torchvision.datasets`."""
    num_classes: int
    folder: str
    """Below the data folder."""
    files: tuple[str, ...]
    arrays: Callable[[Any], tuple[Any, Any]]
    """Pixels (count, channel, height, width) and labels of what the reader returns."""
    train: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"train": False})
    class_names: tuple[str, ...] = ()

    def read(self, root: Path, part: Mapping[str, Any], download: bool) -> Any:
        """A part of the files below `root`, as torchvision reads it."""
        # torchvision takes seconds to import, and only these datasets need it.
        from torchvision import datasets

        return getattr(datasets, self.reader)(root, download=download, **part)


def _cifar_arrays(archive: Any) -> tuple[Any, Any]:
    return archive.data.transpose(0, 3, 1, 2), archive.targets


ARCHIVES = {
    "cifar10": Archive(
        "CIFAR10",
        10,
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
        _cifar_arrays,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Archive("CIFAR100", 100, "cifar-100-python", ("train", "test", "meta"), _cifar_arrays),
    "mnist": Archive(
        "MNIST",
        10,
        "MNIST/raw",
        tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        lambda archive: (archive.data[:, None].numpy(), archive.targets.numpy()),
    ),
    "svhn": Archive(
        "SVHN",
        10,
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        lambda archive: (archive.data, archive.labels),
        {"split": "train"},
        {"split": "test"},
    ),
}


def read_archive(name: str, root: Path) -> tuple[Split, Split]:
    """The training and the test split of a published dataset.

    Raises:
        BenchError: files are missing or damaged.
    """
    archive = ARCHIVES[name]
    folder = root / archive.folder
    fetch = f"bench data fetch {name} --data {root}"
    missing = [file for file in archive.files if not (folder / file).is_file()]
    if missing:
        raise BenchError(f"{name} is missing {', '.join(missing)} in {folder}. Run: {fetch}")
    try:
        for file in archive.files:
            require_file(folder / file)
        train, test = (_read_part(archive, root, part) for part in (archive.train, archive.test))
    except UNREADABLE:
        files = ", ".join(archive.files)
        raise BenchError(
            f"{name} is damaged in {folder}: its files are unreadable or not the published ones. "
            f"Delete {files}, then run: {fetch}"
        ) from None
    return train, test


def _read_part(archive: Archive, root: Path, part: Mapping[str, Any]) -> Split:
    pixels, labels = archive.arrays(archive.read(root, part, download=False))
    # MNIST's unpacked files have no checksum.
    if len(pixels) != len(labels) or not 0 <= int(np.min(labels)) <= int(np.max(labels)) < archive.num_classes:
        raise ValueError
    return make_split(pixels, labels)


def fetch_archive(name: str, root: Path) -> None:
    """Download a published dataset, unless it is there.

    Raises:
        BenchError: the download failed or was damaged.
    """
    archive = ARCHIVES[name]
    try:
        with _unpacked_inside():
            for part in (archive.train, archive.test):
                archive.read(root, part, download=True)
    except UNREADABLE as error:
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
