"""Whole files only: written under a temporary name, flushed to disk, and renamed into place."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.errors import BenchError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the folder of `path`, then rename: readers see old or new, never half.

    Raises:
        BenchError: the folder or file cannot be written.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        if os.name == "posix":
            _sync_folder(path.parent)
    except (OSError, ValueError, RuntimeError) as error:  # torch and safetensors raise RuntimeErrors for a full disk
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path, or no space left"
        raise BenchError(f"cannot write {str(path)!r}: {reason}. Give a file in a writable folder.") from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()


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
