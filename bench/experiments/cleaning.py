"""What a folder of runs holds that no command needs any more: states, parts, and what killed processes left.

What somebody may be at work on is left: files younger than an hour, and what a living process locks.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.experiments.status import MOST_FOLDERS
from bench.models.checkpoints import load_checkpoint, older_state
from bench.system.blocks import PartStore, whose_parts
from bench.system.files import OLD, is_locked, temporaries
from bench.system.locks import LOCK_FILE, is_stale, sole_writer
from bench.training.run_folder import RunFolder

KINDS = {
    "state": "training state of a finished run",
    "parts": "blocks of an evaluation whose result is there",
    "unfinished": "blocks of an evaluation that was stopped",
    "temporary": "file that a killed process had begun",
    "sign": "sign of life of a process that is gone",
    "lock": "lock of a process that is gone",
}


@dataclass(frozen=True)
class Removable:
    """A file, or a folder of parts, that can go."""

    path: Path
    kind: str
    """One of KINDS."""
    size: int
    """Bytes."""

    def remove(self) -> None:
        """Remove it; a file that cannot be removed is refused."""
        try:
            if self.kind == "lock":
                with sole_writer(self.path.parent):  # who holds it removes it
                    return
            if self.path.is_dir():
                PartStore.at(self.path).clear()
                if self.path.exists():
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise BenchError(f"cannot remove {str(self.path)!r}: {error.strerror}.") from error


def removables(runs: Path, unfinished: bool = False) -> list[Removable]:
    """All that can go below a folder; blocks that a stopped evaluation would go on from only if `unfinished`.

    Raises:
        BenchError: there is no such folder.
    """
    if not runs.is_dir():
        raise BenchError(f"there is no folder {str(runs)!r}. Give the folder of the runs, such as runs.")
    found: list[Removable] = []
    before = time.time() - OLD
    for count, (place, folders, files) in enumerate(os.walk(runs)):
        if count >= MOST_FOLDERS:
            break
        folder = Path(place)
        parts = [name for name in folders if whose_parts(name)]
        folders[:] = sorted(set(folders) - set(parts))
        found += _states(folder, files)
        for name in sorted(parts):
            kind = _kind_of_parts(folder, name, files, before)
            if kind == "parts" or (kind and unfinished):
                found.append(_removable(folder / name, kind))
        for path in temporaries(folder):
            if _changed(path) < before and not is_locked(path):
                found.append(_removable(path, "temporary"))
        signs = [name for name in files if name.startswith(".") and name.endswith("status.json")]
        found += [_removable(folder / name, "sign") for name in sorted(signs) if _changed(folder / name) < before]
        if LOCK_FILE in files and is_stale(folder / LOCK_FILE):
            found.append(_removable(folder / LOCK_FILE, "lock"))
    return found


def _states(folder: Path, files: list[str]) -> Iterator[Removable]:
    """The training states of a run that is finished and whole, and in which nobody is at work."""
    state = folder / "training_state.pt"
    states = [path for path in (state, older_state(state)) if path.name in files]
    if states and not (LOCK_FILE in files and not is_stale(folder / LOCK_FILE)):
        with suppress(BenchError, KeyError, TypeError, ValueError):
            run = RunFolder(folder, load_checkpoint(folder / "last").config, lambda line: None)
            if run.exported_epoch() == run.epochs and not run.damaged():
                yield from (_removable(path, "state") for path in states)


def _kind_of_parts(folder: Path, name: str, files: list[str], before: float) -> str:
    """The kind of a folder of parts; empty where an evaluation may be at work on them."""
    result = whose_parts(name) or ""
    signs = [folder / file for file in files if file.startswith(f".{result}.") and file.endswith("status.json")]
    if any(_changed(path) >= before for path in [*signs, folder / name, *_below(folder / name)]):
        return ""
    return "parts" if result in files else "unfinished"


def _removable(path: Path, kind: str) -> Removable:
    return Removable(path, kind, sum(_size(one) for one in (_below(path) if path.is_dir() else [path])))


def _below(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _changed(path: Path) -> float:
    """When a file was written, in seconds since 1970; of one that is gone, now."""
    with suppress(OSError):
        return path.lstat().st_mtime
    return time.time()
