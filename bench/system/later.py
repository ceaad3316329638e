"""Rows of arrays that stay on disk until they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class LaterRows:
    """An array whose rows are read when a slice asks for them; as a whole it is `numpy.asarray` of it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[slice], np.ndarray]
    """The rows of a slice with a start and a stop inside the array."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows of a slice in steps of 1, or those that a mask or numbers name, one by one."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            chosen = np.arange(len(self))[rows].tolist()
            return np.concatenate([self[:0], *(self.read(slice(row, row + 1)) for row in chosen)])
        start, stop, _ = rows.indices(len(self))
        if start >= stop:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        return self.read(slice(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def concatenated(pieces: Sequence[np.ndarray | LaterRows]) -> np.ndarray | LaterRows:
    """The pieces as one array; one that is read later, if a piece is."""
    later = [piece for piece in pieces if isinstance(piece, LaterRows)]
    if not later:
        return np.concatenate(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])

    def read(rows: slice) -> np.ndarray:
        found = []
        for piece, end in zip(pieces, ends.tolist(), strict=True):
            first = end - len(piece)
            if first < rows.stop and rows.start < end:
                found.append(piece[max(rows.start - first, 0) : rows.stop - first])
        return np.concatenate(found)

    return LaterRows((int(ends[-1]), *later[0].shape[1:]), later[0].dtype, read)
