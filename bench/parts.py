"""Finished pieces of an evaluation on disk, so that a stopped one goes on, and several processes can share one.

A part is a small archive of plain arrays, written whole. It belongs to one evaluation: everything its numbers depend
on is digested into the folder's name, so parts of another model, suite, seed or set of samples are never picked up.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench.budgets import read_arrays
from bench.files import clear_temporaries, content_digest, write_whole

Arrays = dict[str, np.ndarray]


class PartStore:
    """Parts of one evaluation, in a folder beside its result file; in memory only, without one."""

    def __init__(self, result: Path | None, identity: Mapping[str, Any]) -> None:
        digest = content_digest(identity)[:16]
        self.folder = None if result is None else result.parent / f".{result.name}.{digest}.parts"
        self.stem = "" if result is None else result.stem

    def get(self, name: str) -> Arrays | None:
        """A finished part, or None where there is none (or one that cannot be read)."""
        if self.folder is None:
            return None
        try:
            return read_arrays(self.folder / f"{name}.npz")
        except Exception:
            return None

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep a finished part.

        Raises:
            BenchError: the folder cannot be written.
        """
        if self.folder is not None:
            write_whole(self.folder / f"{name}.npz", lambda path: _save(path, arrays))

    def finish_shard(self, shard: tuple[int, int], checkpoint: str) -> None:
        """Note that all blocks of shard (i, n) are there, and of which checkpoint they are."""
        self.put(_shard_name(shard), {"checkpoint": np.array(checkpoint)})

    def clear(self) -> None:
        """Remove all parts, and what killed writers of the result left: the result is on disk."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            clear_temporaries(self.folder.parent, self.stem)


def parts_folders(result: Path) -> list[Path]:
    """Folders of parts beside a result. Once it is written, they are of others: other settings, weights or code."""
    return sorted(path for path in result.parent.glob(".*.parts") if path.name.startswith(f".{result.name}."))


def is_finished(result: Path, shard: tuple[int, int], checkpoint: str) -> bool:
    """Whether all blocks of a shard of a result are there, of that checkpoint; a note that cannot be read is none."""
    for folder in parts_folders(result):
        with suppress(Exception):
            if str(read_arrays(folder / f"{_shard_name(shard)}.npz")["checkpoint"]) == checkpoint:
                return True
    return False


def _shard_name(shard: tuple[int, int]) -> str:
    return f"shard-{shard[0]}-of-{shard[1]}"


def _save(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
