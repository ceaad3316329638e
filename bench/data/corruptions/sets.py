"""Folders in the layout of CIFAR-10-C: the published ones, and those that `bench data corrupt` writes.

`<corruption>.npy` holds uint8 images, NHWC, severity 1 first, each severity in the order of the test set; `labels.npy`
holds their labels. A generated folder also has `generated.json`, which says from what it was made.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Integer, UInt8

from bench.catalogue.corruption_names import COMMON_CORRUPTIONS
from bench.data.corruptions import SEVERITIES, require_corruption
from bench.data.splits import Split
from bench.errors import BenchError
from bench.system.budgets import Budget, read_json, require_file

MANIFEST = "generated.json"
FORMAT = "bench-corruptions"
PUBLISHED = {"cifar10": (10, "CIFAR-10-C"), "cifar100": (100, "CIFAR-100-C")}
"""Classes and name. Their files hold 5 x 10,000 images of 32x32x3."""
_STATED = {"dataset", "version", "samples", "labels"}
_UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, RecursionError, MemoryError)
"""Errors of NumPy for a file that is not a whole array."""


@dataclass(frozen=True, eq=False)
class CorruptedSet:
    """A test set under corruptions: `corrupted["fog", 3]` reads one `Split`, `items()` reads all, one by one.

    Keys are (corruption, severity), in the order of `corruptions`, severity 1 first. Every split has the same labels.
    """

    name: str
    """CIFAR-10-C for the published files, else <dataset>-C, or <dataset>-C-gen<version> if generated."""
    folder: Path
    corruptions: tuple[str, ...]
    labels: Integer[np.ndarray, " count"]
    rows: Int64[np.ndarray, " read"]
    """Those of each severity that are read."""
    manifest: Mapping[str, Any]
    """For a generated set: the source it was made from, as `samples`, the digest of the clean split; else empty."""

    def identity(self) -> dict[str, Any]:
        """Facts that tell one folder from another without reading its images."""
        files = {name: (self.folder / f"{name}.npy").stat() for name in self.corruptions}
        return {
            "name": self.name,
            "corruptions": list(self.corruptions),
            "blocks": self.manifest.get("blocks", {}),
            "files": {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()},
        }

    @property
    def generated(self) -> bool:
        """True if `bench data corrupt` wrote it; numbers on it are not numbers on the published files."""
        return bool(self.manifest)

    def __len__(self) -> int:
        return len(self.corruptions) * len(SEVERITIES)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((corruption, severity) for corruption in self.corruptions for severity in SEVERITIES)

    def items(self) -> Iterator[tuple[tuple[str, int], Split]]:
        """Every key with its images, read when its turn comes."""
        return ((key, self[key]) for key in self)

    def __getitem__(self, key: tuple[str, int]) -> Split:
        """Reads the images of one corruption and severity.

        Raises:
            KeyError: it is not among the keys.
            BenchError: the file is missing, damaged or not the one that was generated.
        """
        if key not in iter(self):
            raise KeyError(key)
        corruption, severity = key
        path = self.folder / f"{corruption}.npy"
        count = len(self.labels)
        block = _images(path, count * len(SEVERITIES))[(severity - 1) * count : severity * count]
        if self.generated and self.manifest["blocks"].get(corruption, {}).get(str(severity)) != block_digest(block):
            raise BenchError(
                f"{path} is not as it was generated at severity {severity}. Delete it and generate it again."
            )
        read = block[self.rows]
        Budget(path, block.nbytes, "Give a lower --limit.").take(f"severity {severity}", read.nbytes)
        pixels = np.array(read.transpose(0, 3, 1, 2), order="C")
        return Split(torch.from_numpy(pixels), torch.from_numpy(self.labels[self.rows].astype(np.int64)))


def load_corrupted(
    folder: Path, dataset: str, corruptions: tuple[str, ...] = COMMON_CORRUPTIONS, limit: int | None = None
) -> CorruptedSet:
    """The corrupted test set in a folder; images stay on disk until a key is asked for.

    The folder is as CIFAR-10-C unpacks, or written by `bench data corrupt`; `dataset` is of the clean images, such as
    cifar10; of each severity the first `limit` images are read (None: all). Published files are checked for their
    shape, type and labels, not for an md5 sum; generated ones by their digests.

    Raises:
        BenchError: a file is missing, cut short or of another form; the folder is of another dataset; the limit does
            not fit.
    """
    manifest = read_manifest(folder)
    _require_files(folder, dataset, corruptions, str(manifest.get("dataset", dataset)))
    labels = _labels(folder / "labels.npy")
    if manifest and labels_digest(labels) != manifest["labels"]:
        raise BenchError(f"{folder / 'labels.npy'} is not as it was generated. Delete the folder and generate again.")
    shapes = {_images(folder / f"{name}.npy", len(labels) * len(SEVERITIES)).shape[1:] for name in corruptions}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(("x".join(map(str, shape)) for shape in shapes), key=len))
        raise BenchError(f"{folder} holds images of {sizes}, expected one size. Download or generate it again.")
    name = f"{dataset.partition(':')[0]}-C" + (f"-gen{manifest['version']}" if manifest else "")
    if not manifest and dataset in PUBLISHED:
        name = _require_published(folder, dataset, corruptions, labels)
    read = len(labels) if limit is None else limit
    if not 1 <= read <= len(labels):
        raise BenchError(f"limit {limit} does not fit {len(labels)} images per severity. Give 1 to {len(labels)}.")
    return CorruptedSet(name, folder, corruptions, labels, np.arange(read), manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of `generated.json`; empty where there is none.

    Raises:
        BenchError: the file is not one that `bench data corrupt` wrote.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = read_json(path)
        blocks = manifest["blocks"]
        if manifest["format"] == FORMAT and set(manifest) >= _STATED and all(map(dict, blocks.values())):
            return dict(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise BenchError(f"{path} is damaged or not of `bench data corrupt`. Delete the folder and generate it again.")


def labels_digest(labels: Integer[np.ndarray, " count"]) -> str:
    """SHA-256 over labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").data).hexdigest()


def block_digest(block: UInt8[np.ndarray, "count height width channel"]) -> str:
    """SHA-256 over shape and pixels of the images of one severity."""
    digest = hashlib.sha256(str(block.shape).encode())
    digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _require_files(folder: Path, dataset: str, corruptions: tuple[str, ...], made_from: str) -> None:
    for corruption in corruptions:
        require_corruption(corruption)
    if made_from.partition(":")[0] != dataset.partition(":")[0]:
        raise BenchError(f"{folder} holds corruptions of {made_from}, not of {dataset}. Give the folder of {dataset}.")
    missing = [f"{name}.npy" for name in (*corruptions, "labels") if not (folder / f"{name}.npy").is_file()]
    if missing:
        raise BenchError(
            f"{folder} has no {', '.join(missing)}. Put the published files there, or run: "
            f"bench data corrupt --dataset {dataset} --out DIR"
        )


def _opened(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE:
        raise BenchError(
            f"{path} is missing, cut short or not an array of NumPy. Download or generate it again."
        ) from None


def _images(path: Path, count: int) -> np.ndarray:
    images = _opened(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise BenchError(f"{path} holds {images.dtype} {images.shape}, expected uint8 (count, height, width, 1 or 3).")
    if len(images) != count:
        raise BenchError(
            f"{path} holds {len(images)} images, but labels.npy implies {count}. Get both from one source."
        )
    return images


def _labels(path: Path) -> Integer[np.ndarray, " count"]:
    """The labels of one severity."""
    require_file(path)
    labels = _opened(path)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not len(labels) or len(labels) % len(SEVERITIES):
        raise BenchError(
            f"{path} holds {labels.dtype} {labels.shape}, expected integers, as many for each of 5 severities."
        )
    blocks = np.asarray(labels).reshape(len(SEVERITIES), -1)
    if (blocks != blocks[0]).any():
        raise BenchError(f"{path} has other labels at one severity than at another. Download or generate it again.")
    return blocks[0].copy()


def _require_published(
    folder: Path, dataset: str, corruptions: tuple[str, ...], labels: Integer[np.ndarray, " count"]
) -> str:
    """The published set's name, once the folder has its form."""
    classes, name = PUBLISHED[dataset]
    shapes = {_opened(folder / f"{corruption}.npy").shape for corruption in corruptions}
    if not shapes <= {(50_000, 32, 32, 3)} or len(np.unique(labels)) != classes or labels.max() >= classes:
        raise BenchError(
            f"{folder} is not {name}: expected 50,000 images of 32x32x3 with labels of {classes} classes in each file. "
            f"A set of one's own needs its {MANIFEST}."
        )
    return name
