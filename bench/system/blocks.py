"""Finished pieces of an evaluation on disk, so that a stopped one goes on, and several processes can share one.

A part is a small archive of plain arrays, written whole. It belongs to one evaluation: everything its numbers depend
on is digested into the folder's name, so parts of another model, suite, seed or set of samples are never picked up.
"""

import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.system.budgets import UNREADABLE, read_arrays
from bench.system.files import content_digest, write_whole
from bench.system.later import LaterRows

Arrays = dict[str, Any]
"""Arrays by name; those that stay on disk are `bench.system.later.LaterRows`."""
_END = "result"
_FOLDER = re.compile(r"\.(.+)\.[0-9a-f]{16}\.parts", re.DOTALL)


class PartStore:
    """Parts of one evaluation, in a folder beside its result file; in memory only, without one."""

    def __init__(self, result: Path | None, identity: Mapping[str, Any]) -> None:
        digest = content_digest(identity)[:16]
        self.folder = None if result is None else result.parent / f".{result.name}.{digest}.parts"

    @classmethod
    def at(cls, folder: Path) -> "PartStore":
        """The parts in a folder, of whatever evaluation."""
        parts = cls(None, {})
        parts.folder = folder
        return parts

    def get(self, name: str) -> Arrays | None:
        """A finished part, or None where there is none (or one that cannot be read)."""
        if self.folder is None:
            return None
        try:
            return read_arrays(self.folder / f"{name}.npz")
        except Exception:
            return None

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep a finished part."""
        if self.folder is None:
            return

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)

        keep = partial(write_whole, self.folder / f"{name}.npz", save)
        try:
            keep()
        except BenchError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            keep()  # the same evaluation, run by someone else as well, ended meanwhile and cleared the folder

    def lightened(self, name: str, arrays: Arrays, heavy: Collection[str]) -> Arrays:
        """The arrays of a finished part, of which the `heavy` ones are read again when they are asked for."""
        if self.folder is None:
            return arrays
        path = self.folder / f"{name}.npz"

        def read(one: str, rows: slice) -> np.ndarray:
            try:
                return read_arrays(path, [one])[one][rows]
            except (*UNREADABLE, BenchError):
                raise BenchError(f"{path} vanished or was damaged meanwhile. Give the same command again.") from None

        later = {one: LaterRows(arrays[one].shape, arrays[one].dtype, partial(read, one)) for one in heavy}
        return {**arrays, **later}

    def finish_shard(self, shard: tuple[int, int], checkpoint: str) -> None:
        """Note that all blocks of shard (i, n) are there, and of which checkpoint they are."""
        self.put(_shard_name(shard), {"checkpoint": np.array(checkpoint)})

    def note_end(self, digest: str) -> None:
        """Note the content digest of the result that is about to be written."""
        self.put(_END, {"digest": np.array(digest)})

    def noted_end(self) -> str | None:
        """The content digest that was noted; None where there is none: parts may be missing."""
        found = self.get(_END)
        return None if found is None or "digest" not in found else str(found["digest"])

    def clear(self) -> None:
        """Remove all parts: the result is on disk. The note of its end goes last, for whoever is killed meanwhile."""
        if self.folder is not None:
            with suppress(OSError):
                for path in sorted(self.folder.iterdir(), key=lambda path: path.stem == _END):
                    path.unlink()
            shutil.rmtree(self.folder, ignore_errors=True)


def parts_folders(result: Path) -> list[Path]:
    """Folders of parts beside a result. Once it is written, they are of others: other settings, weights or code."""
    return sorted(path for path in result.parent.glob(".*.parts") if whose_parts(path.name) == result.name)


def whose_parts(folder: str) -> str | None:
    """The file name of the result that a folder of this name holds parts of; None: it holds no parts."""
    found = _FOLDER.fullmatch(folder)
    return found[1] if found else None


def ended(result: Path, digest: str) -> list[PartStore]:
    """Parts of evaluations that have written this result, of this content digest, and have not cleared up yet."""
    found = [PartStore.at(folder) for folder in parts_folders(result)]
    return [parts for parts in found if parts.noted_end() == digest]


def is_finished(result: Path, shard: tuple[int, int], checkpoint: str | None) -> bool:
    """True if all blocks of a shard of a result are there, of that checkpoint (None: of any).

    A note that cannot be read is none.
    """
    for folder in parts_folders(result):
        with suppress(Exception):
            found = str(read_arrays(folder / f"{_shard_name(shard)}.npz")["checkpoint"])
            if checkpoint in (None, found):
                return True
    return False


def _shard_name(shard: tuple[int, int]) -> str:
    return f"shard-{shard[0]}-of-{shard[1]}"
