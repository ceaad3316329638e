"""Whole files only: written under a temporary name, flushed to disk, and renamed into place."""

import errno
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.errors import BenchError

_TEMPORARY = ".tmp"


class AlreadyThereError(BenchError):
    """A file that was to be new exists."""


def write_whole(path: Path, write: Callable[[Path], object], replace: bool = True, durable: bool = True) -> None:
    """Call `write` with a temporary path in the folder of `path`, then rename: readers see old or new, never half.

    What need not outlive the machine's fall is not `durable`, and does not wait for the disk.

    Raises:
        AlreadyThereError: without `replace`, and there is a file; it is left as it is, however late it came.
        BenchError: the folder or file cannot be written.
    """
    with _temporary_beside(path) as temporary:
        write(temporary)
        if durable:
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
        if replace:
            temporary.replace(path)
        else:
            _put_new(temporary, path)
        if durable and os.name == "posix":
            _sync_folder(path.parent)


def require_writable(path: Path) -> None:
    """Refuse a file that `write_whole` could not write now: its folder is made, a temporary file comes and goes."""
    with _temporary_beside(path):
        pass


def require_writable_folder(folder: Path) -> None:
    """Refuse a folder that no file can be written into; it is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked_temporary(folder / "file"):
            pass
    except (OSError, ValueError) as error:
        raise cannot_write(folder, error) from error


def require_no_other_thing(path: Path) -> None:
    """Refuse a path with something else than a file, which is never replaced, or one too long to be a path."""
    try:
        if path.is_file() or not path.exists():
            return
    except OSError as error:
        raise cannot_write(path, error) from error
    reason = errno.EISDIR if path.is_dir() else errno.EEXIST
    raise cannot_write(path, OSError(reason, os.strerror(reason)))


def which_file(path: Path) -> tuple[int, ...] | None:
    """Tells a file from one that was written to its path later; None where there is none."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def cannot_write(path: Path, error: Exception) -> BenchError:
    """The refusal for a path that cannot be written."""
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path, or no space left"
    mend = "Give a file in a writable folder."
    if number in (errno.ENOSPC, errno.EDQUOT):
        mend = "Free some and give the same command again: what was there before is as it was."
    elif number == errno.ENAMETOOLONG:
        mend = "Give a shorter one."
    return BenchError(f"cannot write {str(path)!r}: {reason}. {mend}")


def clear_temporaries(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove temporary files that killed writers left in a folder: of all its files, or of these."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        if names is None or path.name[1:].rsplit(".", 2)[0] in names:
            with suppress(OSError), path.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who writes it holds this lock, until it ends
                path.unlink()


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`; what goes wrong with it is a refusal to write `path`."""
    try:
        require_no_other_thing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked_temporary(path) as temporary:
            yield temporary
    except (OSError, ValueError, RuntimeError) as error:  # Pillow and others have errors of their own for a full disk
        raise cannot_write(path, error) from error


@contextmanager
def _locked_temporary(path: Path) -> Iterator[Path]:
    """A new file of a name that is nobody else's, locked, so that `clear_temporaries` knows that its writer lives."""
    while True:
        # Not the process's number: that of another container or host may be the same.
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}"
        try:  # before the file is there: Ctrl-C may come as soon as it is
            with temporary.open("xb") as owner:
                with suppress(OSError):  # a file system without locks, where none is cleared either
                    fcntl.flock(owner, fcntl.LOCK_EX)
                if temporary.exists():  # not cleared before it was locked
                    yield temporary
                    return
        finally:
            with suppress(OSError):
                temporary.unlink()


def _put_new(temporary: Path, path: Path) -> None:
    """Rename, unless there is a file: no link is made over one. Where there are no links, the name is taken first."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            path.touch(exist_ok=False)
            temporary.replace(path)
    except FileExistsError as error:
        raise AlreadyThereError(f"{path} exists. Give another file.") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """`write_whole` for text."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=durable)


def content_digest(value: Any) -> str:
    """sha256 of nested dictionaries, lists, tensors, arrays and plain values; the order of keys does not matter."""
    digest = hashlib.sha256()
    _absorb(value, digest.update)
    return digest.hexdigest()


def _absorb(value: Any, update: Callable[[bytes], None]) -> None:
    if isinstance(value, Mapping):
        update(f"map {len(value)};".encode())
        for key in sorted(value, key=repr):
            update(f"key {key!r};".encode())
            _absorb(value[key], update)
    elif isinstance(value, (list, tuple)):
        update(f"list {len(value)};".encode())
        for item in value:
            _absorb(item, update)
    elif hasattr(value, "detach"):
        import torch  # only where there are tensors: results are read without it

        array = value.detach().cpu().contiguous()
        update(f"tensor {array.dtype} {tuple(array.shape)};".encode())
        update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    else:
        update(json.dumps(value, sort_keys=True).encode() + b";")
