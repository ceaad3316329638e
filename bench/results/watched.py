"""Outcomes of a training that was watched: which images were answered rightly after each epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool

from bench.errors import BenchError

SPLITS = ("train", "test")
UNDER = ("clean", "FGSM", "PGD-10")
"""Conditions under which an image was answered: as it is, or under an attack of the suite `watch`, by its label."""
Epoch: TypeAlias = Bool[np.ndarray, "split under image"]
"""True where the model was right after an epoch."""
Curve: TypeAlias = Bool[np.ndarray, "epoch split under image"]
OUTCOMES = "watched_outcomes"
"""The part of a row of the history that holds them: bits in the order of `Epoch`, eight a byte, in hexadecimal."""


def watched_key(split: str, under: str) -> str:
    """The name of an accuracy in a row of the history, such as `watched_test_pgd_10`."""
    return f"watched_{split}_{under.lower().replace('-', '_')}"


def watched_row(right: Epoch) -> dict[str, Any]:
    """The part of an epoch's row of the history: six accuracies in percent, and the outcomes they are of."""
    accuracies = {
        watched_key(split, under): 100.0 * float(answers.mean())
        for split, both in zip(SPLITS, right, strict=True)
        for under, answers in zip(UNDER, both, strict=True)
    }
    return {**accuracies, OUTCOMES: np.packbits(right).tobytes().hex()}


def watched_text(row: Mapping[str, Any]) -> str:
    """The accuracies of a row in short: `clean/FGSM/PGD-10 train 98.0/61.2/55.0 test 90.1/52.3/47.0`."""
    shown = (f"{split} {'/'.join(f'{row[watched_key(split, under)]:.1f}' for under in UNDER)}" for split in SPLITS)
    return f"{'/'.join(UNDER)} {' '.join(shown)}"


def watched_curve(rows: Sequence[Mapping[str, Any]], epochs: int, images: Any) -> Curve:
    """The outcomes of the first epochs, on so many images of each split, from rows of the history, which may lie.

    Raises:
        BenchError: they are missing, or of other epochs or of another number of images.
    """
    if type(images) is not int or images < 1 or epochs < 1:
        raise BenchError(f"{epochs} epochs on {images} images are no history of a watched training")
    size = len(SPLITS) * len(UNDER) * images
    packed = []
    for epoch in range(1, epochs + 1):
        row = rows[epoch - 1] if epoch <= len(rows) else {}
        content = _bytes(row.get(OUTCOMES))
        if row.get("epoch") != epoch or len(content) != -(-size // 8):
            raise BenchError(f"the history does not hold the outcomes of {images} images after epoch {epoch}")
        packed.append(np.frombuffer(content, dtype=np.uint8))
    bits = np.unpackbits(np.stack(packed), axis=1, count=size)
    return bits.astype(bool).reshape(len(packed), len(SPLITS), len(UNDER), images)


def _bytes(text: object) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""
