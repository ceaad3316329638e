"""Memory that a file may take, asked for before it is taken; for tensors and models, see `bench.models.weights`.

A small file can claim more than any machine has: zeros compress a thousandfold, a header states any shape, and one
array can stand under two hundred names.
"""

import json
import math
import os
import pickle
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError

GRANTED = 2**30
"""Bytes that any file may become."""
RATIO = 100
"""Times its size that a larger file may become. Predictions shrink tenfold, sparse perturbations fiftyfold at most."""
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Of this machine, in bytes."""
MOST_TEXT, MOST_JSON = 2**26, 2**24
"""Bytes of a board or a history, and of a JSON file, which takes up to sixty times as much once it is read."""
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, AssertionError, LookupError, HTTPException),
    *(pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error),
)
"""Errors of torchvision, NumPy and the network for files they cannot get or read."""


class Budget:
    """The bytes that one file may still become."""

    def __init__(self, path: Path | str, size: int, mend: str) -> None:
        """A budget of a file of `size` bytes; `mend` says what to do about one that claims too much."""
        self.path, self.size, self.mend, self.taken = path, size, mend, 0

    def take(self, what: str, size: int) -> None:
        """Spend bytes on a part of the file, which is refused where there would be too many."""
        self.taken += size
        most = min(max(GRANTED, RATIO * self.size), MEMORY)
        if self.taken > most:
            limit = "this machine has" if most == MEMORY else "it may become"
            raise BenchError(
                f"{what} claims {size} bytes, {self.taken} with what {str(self.path)!r} held before; the file has "
                f"{self.size}, and {limit} {most}. {self.mend}"
            )


def require_file(path: Path, most: int = MEMORY) -> int:
    """The size of a file in bytes.

    Raises:
        OSError: there is none, or it may not be looked at; a folder counts as a file here.
        BenchError: it is a pipe or device, which may never end, or larger than `most` bytes.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise BenchError(f"{str(path)!r} is a pipe or a device, which may never end. Give a file.")
    if found.st_size > most:
        limit = "this machine has memory for" if most == MEMORY else "such a file may have"
        raise BenchError(f"{str(path)!r} has {found.st_size} bytes; {limit} {most}. Give another file.")
    return found.st_size


def read_bytes(path: Path, most: int = MEMORY) -> bytes:
    """The contents of a file; errors are those of `require_file`."""
    require_file(path, most)
    return path.read_bytes()


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """The text of a file.

    Raises:
        OSError, BenchError: as `require_file`.
        UnicodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        OSError, BenchError: as `require_file`.
        ValueError, RecursionError: it holds none.
    """
    return json.loads(read_text(path, MOST_JSON))


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an archive of `numpy.savez`, of these names alone where they are given, as far as they are there.

    Raises:
        OSError, BenchError: as `require_file`; or it claims more than it can hold, or holds compressed too well.
        ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError: it is no archive of plain arrays.
    """
    budget = Budget(path, require_file(path), "Write it again with numpy.savez.")
    with zipfile.ZipFile(path) as archive:
        files = [item for item in archive.infolist() if item.filename.endswith(".npy")]
        members = {item.filename.removesuffix(".npy"): item for item in files}
        chosen = {name: item for name, item in members.items() if names is None or name in names}
        for name, item in chosen.items():
            budget.take(f"array {name!r}", item.file_size)
        return {name: _array(archive, item, path) for name, item in chosen.items()}


def _array(archive: zipfile.ZipFile, item: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with archive.open(item) as member:
        shape, dtype = _header(member)
        claimed, held = math.prod(shape) * dtype.itemsize, item.file_size - member.tell()
    if claimed != held:
        raise BenchError(
            f"{item.filename} in {str(path)!r} claims {claimed} bytes (shape {shape}, {dtype}) and has {held}. Write "
            "it again with numpy.savez."
        )
    with archive.open(item) as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that the head of an array states."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = readers[version](member)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    return shape, dtype
