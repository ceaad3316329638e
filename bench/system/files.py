"""Whole files only: written under a temporary name, flushed to disk, and renamed into place.

A writer that was killed leaves a temporary file at most, which goes with the next writer of the same file.
"""

import errno
import fcntl
import filecmp
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.system.mounts import flock_spans_hosts

_TEMPORARY = ".tmp"
OLD = 3600.0
"""Seconds after which nobody writes to a file any more."""
_TEMPORARY_NAME = re.compile(rf"\.(.+)\.[0-9a-f]+\{_TEMPORARY}", re.DOTALL)


class AlreadyThereError(BenchError):
    """A file that was to be new exists."""


def write_whole(path: Path, write: Callable[[Path], object], replace: bool = True, durable: bool = True) -> None:
    """Call `write` with a temporary path in the folder of `path`, then rename: readers see old or new, never half.

    What need not outlive the machine's fall is not `durable`, and does not wait for the disk.

    Raises:
        AlreadyThereError: without `replace`, and there is a file of other bytes; it is left as it is, however late it
            came.
        BenchError: the folder or file cannot be written.
    """
    with _temporary_beside(path) as temporary:
        write(temporary)
        if durable:
            _flush(temporary)
        _put(temporary, path, replace)
        if durable:
            _flush_folder(path.parent)


def write_together(contents: Mapping[Path, bytes], replace: bool = True) -> None:
    """Write files that belong together: all are on disk under temporary names before the first is renamed.

    They are renamed in their order: the last one, which leads to the others, never leads to one that is not there. Who
    was killed in between gives the same command again: without `replace`, a file of the same content is left as it is.

    Raises:
        AlreadyThereError: without `replace`, and there is a file of another content; it is left as it is.
        BenchError: a file cannot be written; none is renamed before all could be.
    """
    with ExitStack() as stack:
        waiting = {path: stack.enter_context(_temporary_beside(path)) for path in contents}
        for path, temporary in waiting.items():
            with _refusing(path):
                temporary.write_bytes(contents[path])
                _flush(temporary)
        for path, temporary in waiting.items():
            if not replace and os.path.lexists(path) and not _alike(temporary, path):
                raise AlreadyThereError(f"{path} exists: add --overwrite to replace it.")
        for path, temporary in waiting.items():
            with _refusing(path):
                _put(temporary, path, replace)
                _flush_folder(path.parent)


def _alike(path: Path, other: Path) -> bool:
    """True if two files have the same bytes."""
    with suppress(OSError):
        return filecmp.cmp(path, other, shallow=False)
    return False


def followed(path: Path) -> Path:
    """The file that a path of a person's choice means: where it is a symbolic link, what that leads to.

    Links among files that are only found in a folder are replaced, not followed: whoever made the folder chose them.
    """
    with _refusing(path):
        return path.resolve() if path.is_symlink() else path


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


def temporaries(folder: Path, names: Collection[str] | None = None) -> list[Path]:
    """Temporary files in a folder, of all its files or of these."""
    try:
        with os.scandir(folder) as entries:
            found = [_TEMPORARY_NAME.fullmatch(entry.name) for entry in entries]
    except OSError:
        return []
    return sorted(folder / one[0] for one in found if one and (names is None or one[1] in names))


def clear_temporaries(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove temporary files that killed writers left in a folder: of all its files, or of these."""
    found = temporaries(folder, names)
    # Where another host's lock is not seen, who writes is known by the file's age.
    before = time.time() - (0 if not found or flock_spans_hosts(folder) else OLD)
    for path in found:
        with suppress(OSError), path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who writes it holds this lock, until it ends
            if path.stat().st_mtime <= before:
                path.unlink()


def is_locked(path: Path) -> bool:
    """True if a living process has locked a file, or that cannot be told."""
    try:
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # or it cannot be told
        return True
    return False


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What goes wrong in here is a refusal to write `path`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # Pillow and others have errors of their own for a full disk
        raise cannot_write(path, error) from error


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`; what goes wrong with it is a refusal to write `path`."""
    with _refusing(path):
        require_no_other_thing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_temporaries(path.parent, {path.name})
        with _locked_temporary(path) as temporary:
            yield temporary


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


def _put(temporary: Path, path: Path, replace: bool) -> None:
    """Rename; without `replace` no file is renamed over. Where there are no links, the name is taken first."""
    if replace:
        temporary.replace(path)
        return
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            path.touch(exist_ok=False)
            temporary.replace(path)
    except FileExistsError as error:
        if not _alike(temporary, path):
            raise AlreadyThereError(f"{path} exists. Give another file.") from error


def _flush(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
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
