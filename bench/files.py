"""Whole files only: written under a temporary name, flushed to disk, and renamed into place."""

import errno
import glob
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.errors import BenchError

_TEMPORARY = ".tmp"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the folder of `path`, then rename: readers see old or new, never half.

    Raises:
        BenchError: the folder or file cannot be written.
    """
    # Not the process's number: that of another container or host may be the same.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        if os.name == "posix":
            _sync_folder(path.parent)
    except (OSError, ValueError, RuntimeError) as error:  # Pillow and others have errors of their own for a full disk
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()


def cannot_write(path: Path, error: Exception) -> BenchError:
    """The refusal for a path that cannot be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path, or no space left"
    mend = "Give a file in a writable folder."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "Free some and give the same command again: what was there before is as it was."
    return BenchError(f"cannot write {str(path)!r}: {reason}. {mend}")


def clear_temporaries(folder: Path, stem: str | None = None) -> None:
    """Remove what killed writers left in a folder: of all files, or of those of a stem, that nobody else writes."""
    for path in folder.glob(f".*{_TEMPORARY}" if stem is None else f".{glob.escape(stem)}.*{_TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
        array = value.detach().cpu().contiguous()
        update(f"tensor {array.dtype} {tuple(array.shape)};".encode())
        update(array.flatten().view(dtype=_byte_type()).numpy().tobytes() if array.numel() else b"")
    else:
        update(json.dumps(value, sort_keys=True).encode() + b";")


def _byte_type() -> Any:
    import torch

    return torch.uint8
