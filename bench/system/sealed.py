"""HDF5 files that are verified before the HDF5 library sees them: a seal of 512 bytes, then the body.

libhdf5 can loop for ever on damaged metadata, where no exception is left to catch. The seal, which is HDF5's user
block, holds format, version and the SHA-256 of the body. Whoever reads takes nothing from a file but what its format
says: no links, no external storage, and no more in all than a file of its size may become.
"""

import hashlib
import io
import json
import math
import os
import re
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.errors import BenchError
from bench.system.budgets import Budget, read_bytes, require_file
from bench.system.files import write_whole
from bench.system.later import LaterRows

T = TypeVar("T")
_SEAL_SIZE = 512
_READ_AT_ONCE = 2**20
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_LEVELS = 32
"""Of nested JSON: what is nested a thousand times can be read, and then ends every function that walks it."""
_JSON_GROWTH = 60
"""Bytes in memory for a byte of JSON, at most: of `[[],[],...`."""
_MOST_TEXT = 2**16
"""Characters of a text. Two attributes may share theirs, so that many take little room in a file."""


class MalformedError(BenchError):
    """A file that its seal fits does not hold what its format says."""


@dataclass(frozen=True)
class SealedFormat:
    """A kind of file, by name and version."""

    name: str
    version: int
    """The newest; all from 1 on are read."""
    on_disk: bool = False
    """Files may be larger than memory: they are written and read where they lie, and never whole in memory."""

    def write(self, path: Path, fill: Callable[[Any], None], version: int | None = None, replace: bool = True) -> None:
        """Write the whole file at once: `fill` puts attributes and arrays into an open HDF5 file.

        It states `version` (None: the newest).

        Raises:
            AlreadyThereError: a file is there that is not to be replaced.
            BenchError: the path cannot be written.
        """
        if not self.on_disk:
            content = self.sealed(fill, version)
            write_whole(path, lambda temporary: temporary.write_bytes(content), replace)
            return

        def write(temporary: Path) -> None:
            with temporary.open("w+b") as file:
                self._fill(file, fill, version or self.version)

        write_whole(path, write, replace)

    def sealed(self, fill: Callable[[Any], None], version: int | None = None) -> bytes:
        """The bytes of the file that `write` writes."""
        buffer = io.BytesIO()
        self._fill(buffer, fill, version or self.version)
        return buffer.getvalue()

    def _fill(self, target: io.BufferedIOBase, fill: Callable[[Any], None], version: int) -> None:
        import h5py

        with h5py.File(target, "w", userblock_size=_SEAL_SIZE, libver=("v110", "v110")) as file:
            file.attrs.update(format=self.name, format_version=version)
            fill(file)
        digest = _digest_of_body(target)
        target.seek(0)
        target.write(self._seal(digest, version))

    def read(self, path: str | Path, take: Callable[[Any, Budget], T]) -> T:
        """The value that `take` makes of the open HDF5 file and of the bytes that it may become.

        Raises:
            BenchError: the file is unreadable, of another format or version, altered, damaged or malformed.
        """
        try:
            if self.on_disk:
                size = require_file(Path(path), sys.maxsize)
                source = _held_open(Path(path))
            else:
                source, size = io.BytesIO(data := read_bytes(Path(path))), len(data)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
            raise BenchError(f"cannot read {str(path)!r}: {reason}. Give a result file.") from None
        try:
            return self._taken(source, Budget(path, size, "Evaluate again."), take)
        except BenchError as error:
            raise type(error)(f"{str(path)!r}: {error}") from None

    def opened(self, data: bytes, take: Callable[[Any, Budget], T]) -> T:
        """The value that `read` returns for a file of these bytes, and its errors."""
        return self._taken(io.BytesIO(data), Budget("memory", len(data), "Evaluate again."), take)

    def _taken(self, source: io.BufferedIOBase, budget: Budget, take: Callable[[Any, Budget], T]) -> T:
        import h5py

        version = self._verify(source)
        try:
            file = h5py.File(source, "r")
            try:
                kind = _single(file, "format")
                if not isinstance(kind, str) or kind != self.name:
                    raise BenchError(f"HDF5, but not of format {self.name}. Give a file that `bench eval` wrote.")
                stated = int(attribute(file, "format_version", np.integer))
                if stated != version:
                    raise BenchError(f"its seal is of version {version}, its format_version {stated}. Evaluate again.")
                return take(file, budget)
            finally:
                if not self.on_disk:  # else rows may be read later, and the last of them closes it
                    file.close()
        except BenchError:
            raise
        except Exception as error:  # h5py raises nearly every built-in exception on a malformed file
            raise _malformed(error) from error

    def _seal(self, digest: str, version: int) -> bytes:
        return f"{self.name} {version} {digest}\n".encode().ljust(_SEAL_SIZE, b"\0")

    def _verify(self, source: io.BufferedIOBase) -> int:
        """The version that the seal states, if the seal is right."""
        head, body = source.read(_SEAL_SIZE), source.read(len(_HDF5_SIGNATURE))
        if _HDF5_SIGNATURE not in (head[: len(_HDF5_SIGNATURE)], body):
            raise BenchError("not an HDF5 file, or cut short. Give a file that `bench eval` wrote.")
        found = re.match(rb"(bench-[a-z]{1,40}) (\d{1,9}) ", head)
        kind = found[1].decode() if found else None
        if found is None or kind != self.name:
            known = f" (it is {kind})" if kind else ""
            raise BenchError(f"HDF5, but not of format {self.name}{known}. Give a file that `bench eval` wrote.")
        version = int(found[2])
        if not 1 <= version <= self.version:
            known = ", ".join(map(str, range(1, self.version + 1)))
            raise BenchError(
                f"unknown format_version {version}. This program reads: {known}. Use the program that wrote it."
            )
        if head != self._seal(_digest_of_body(source), version):
            raise BenchError("the file was altered or damaged: its bytes do not match its seal. Evaluate again.")
        return version


def _malformed(error: Exception) -> MalformedError:
    return MalformedError(f"the file is malformed ({type(error).__name__} in HDF5). Evaluate again.")


def _held_open(path: Path) -> io.BufferedIOBase:
    """The file, open until nobody refers to it any more, also where its name is given to another one meanwhile."""
    descriptor = os.open(path, os.O_RDONLY)
    file = open(descriptor, "rb", closefd=False)  # noqa: SIM115 - of a descriptor
    weakref.finalize(file, os.close, descriptor)
    return file


def _digest_of_body(file: io.BufferedIOBase) -> str:
    """SHA-256 of what follows the seal."""
    digest = hashlib.sha256()
    file.seek(_SEAL_SIZE)
    while piece := file.read(_READ_AT_ONCE):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


def slug(order: int, label: str) -> str:
    """The name of an attack's group, for people who browse a file; nothing reads it."""
    return f"{order:03d}-{re.sub('[^a-z0-9]+', '-', label.lower())[:40].strip('-')}"


def store(file: Any, name: str, values: np.ndarray | LaterRows, chunk: int | None = None) -> None:
    """Put an array into a file, compressed and checksummed, `chunk` rows at a time (None: all at once)."""
    rows = len(values) if chunk is None else min(chunk, len(values))
    storage = {"chunks": (rows, *values.shape[1:]), "compression": "gzip", "shuffle": True, "fletcher32": True}
    if isinstance(values, LaterRows) and len(values):
        stored = file.create_dataset(name, values.shape, values.dtype, **storage)
        for first in range(0, len(values), rows):
            stored[first : first + rows] = values[first : first + rows]
        return
    file.create_dataset(name, data=np.asarray(values), **(storage if math.prod(values.shape) else {}))


def child(group: Any, name: str) -> Any:
    """The member of this name in the file itself; soft and external links, which may lead elsewhere, are none."""
    import h5py

    return group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def subgroup(parent: Any, name: str) -> Any:
    """A group in a group; a missing one is refused."""
    import h5py

    group = child(parent, name)
    if not isinstance(group, h5py.Group):
        raise BenchError(f"group {name!r} is missing. Evaluate again.")
    return group


def ordered_groups(parent: Any) -> list[Any]:
    """The groups in a group, by their attribute `order`.

    Raises:
        BenchError: a member is no group, or two have the same `order` or `label`.
    """
    groups = {attribute(group, "order", np.integer): group for group in (subgroup(parent, name) for name in parent)}
    if len({attribute(group, "label", str) for group in groups.values()}) < len(parent):
        raise BenchError("two attacks have the same label or order. Evaluate again.")
    return [groups[order] for order in sorted(groups)]


def array(group: Any, name: str, kind: str, shape: tuple[int | None, ...], budget: Budget) -> np.ndarray:
    """An array of exactly this type and shape (None: any length), if the file may still become so much.

    Raises:
        BenchError: it is missing, outside the file, or of another type, shape or size.
    """
    values, where = _dataset(group, name, kind, shape)
    # What is compressed is unpacked a chunk at a time, however small the array.
    budget.take(where, max(values.nbytes, _chunk_size(values)))
    return values[...].astype(np.dtype(kind).newbyteorder("="))


def array_later(group: Any, name: str, kind: str, shape: tuple[int | None, ...], budget: Budget) -> LaterRows:
    """As `array`, of a format `on_disk`, with rows that are read when they are asked for.

    Raises:
        BenchError: as `array`; where rows are read, a MalformedError.
    """
    values, where = _dataset(group, name, kind, shape)
    budget.take(where, _chunk_size(values))
    file = values.file  # open as long as somebody may ask

    def read(rows: slice) -> np.ndarray:
        try:
            return np.asarray(file[values.name][rows].astype(np.dtype(kind).newbyteorder("=")))
        except Exception as error:  # as h5py raises them on a malformed file
            raise _malformed(error) from error

    return LaterRows(values.shape, np.dtype(kind).newbyteorder("="), read)


def _chunk_size(values: Any) -> int:
    return math.prod(values.chunks or ()) * values.dtype.itemsize


def _dataset(group: Any, name: str, kind: str, shape: tuple[int | None, ...]) -> tuple[Any, str]:
    """A dataset of exactly this type and shape, and its name in a message."""
    import h5py

    where = f"dataset {group.name + '/' + name!r}"
    values = child(group, name)
    if not isinstance(values, h5py.Dataset) or values.external or values.is_virtual:
        raise BenchError(f"{where} is missing or kept in another file. Evaluate again.")
    if values.dtype != np.dtype(kind):
        raise BenchError(f"{where} has type {values.dtype}, not {np.dtype(kind)}. Evaluate again.")
    if values.ndim != len(shape) or not all(
        want in (None, size) for want, size in zip(shape, values.shape, strict=True)
    ):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        wanted = "one value per sample" if len(shape) == 1 else wanted
        raise BenchError(f"{where} has shape {values.shape}, not {wanted}. Evaluate again.")
    return values, where


def attribute(node: Any, name: str, kind: type) -> Any:
    """An attribute of this type; a missing one is refused, or one of another type."""
    value = _single(node, name)
    if not isinstance(value, kind) or (isinstance(value, str) and len(value) > _MOST_TEXT):
        raise BenchError(f"attribute {name!r} of {node.name!r} is missing or of the wrong type. Evaluate again.")
    return value


def _single(node: Any, name: str) -> Any:
    """An attribute's value; None where there is none, or an array, whose members may all be one long text."""
    return node.attrs[name] if name in node.attrs and node.attrs.get_id(name).shape == () else None


def parsed(node: Any, name: str, kind: type[dict] | type[list], budget: Budget) -> Any:
    """A JSON attribute: an object, or an array of objects.

    Raises:
        BenchError: it is missing, no such JSON, nested too deeply, or more than the file may still become.
    """
    text, value = _single(node, name), None
    if not isinstance(text, str):
        raise BenchError(f"attribute {name!r} of {node.name!r} is missing or of the wrong type. Evaluate again.")
    budget.take(f"attribute {name!r} of {node.name!r}", _JSON_GROWTH * len(text))
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    objects = value if isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(item, dict) for item in objects) or _deeper(value):
        raise BenchError(f"attribute {name!r} of {node.name!r} is not the JSON it should be. Evaluate again.")
    return value


def _deeper(value: Any, levels: int = _MOST_LEVELS) -> bool:
    """True if JSON is nested in more levels than these."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not levels or any(_deeper(item, levels - 1) for item in inner)
