"""The images that broke samples, kept beside a result, so that anyone can show them to the model again.

An image is kept as eight-bit codes of its difference from the clean one: at 8/255 they are 2.5e-4 apart, and compress.
One whose decoded form the model would answer differently is kept as it is. FORMAT.md describes the file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int64
from torch import Tensor

from bench.catalogue.names import ADVERSARIALS
from bench.data.splits import Split
from bench.engine.observed import allowed, brought_inside
from bench.errors import BenchError
from bench.interfaces import Images, ThreatModel
from bench.results.file import EvaluationResult, content_digest
from bench.system.budgets import Budget
from bench.system.later import LaterRows, concatenated
from bench.system.sealed import SealedFormat, array, array_later, attribute, ordered_groups, slug, store, subgroup

ADVERSARIALS_FILE = SealedFormat("bench-adversarials", 1, on_disk=True)
ENDING = ADVERSARIALS
_LARGEST_CODE = 127
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Adversarials:
    """The images of one cell: one per sample that was right clean and is broken. A row is a place in the result.

    Those of a whole evaluation, or in a file, are read when they are asked for.
    """

    row: Int64[np.ndarray, " coded"]
    scale: Float32[np.ndarray, " coded"]
    """Largest absolute difference from the clean image, by 127."""
    code: Int8[np.ndarray, "coded channel height width"] | LaterRows
    exact_row: Int64[np.ndarray, " exact"]
    exact: Float32[np.ndarray, "exact channel height width"] | LaterRows
    """Images that lose their verdict when encoded."""

    @property
    def rows(self) -> Int64[np.ndarray, " sample"]:
        """Of all images, coded ones first."""
        return np.concatenate([self.row, self.exact_row])

    def images(self, clean: Split, threat: ThreatModel, size: int) -> Iterator[tuple[Tensor, Images]]:
        """Rows and images, at most `size` at a time, in the order of `rows`."""
        for rows, code, scale in _batches(size, self.row, self.code, self.scale):
            yield rows, decode(code, scale, clean.images(rows), threat)
        for rows, images in _batches(size, self.exact_row, self.exact):
            yield rows, images

    def arrays(self, number: int) -> dict[str, Any]:
        """For a part of an evaluation, named `adversarial_<field>-<number of the cell>`."""
        return {f"adversarial_{item.name}-{number}": getattr(self, item.name) for item in fields(self)}


def _batches(size: int, *arrays: np.ndarray | LaterRows) -> Iterator[tuple[Tensor, ...]]:
    """At most `size` rows of all arrays at a time; from disk as many are read together as were written together."""
    for first in range(0, len(arrays[0]), _CHUNK):
        read = [torch.from_numpy(array[first : first + _CHUNK]) for array in arrays]
        yield from zip(*(torch.split(part, size) for part in read), strict=True)


def image_arrays(names: Iterable[str]) -> list[str]:
    """Of the names of a part's arrays, those of images."""
    return [name for name in names if name.startswith(("adversarial_code-", "adversarial_exact-"))]


def joined(parts: Sequence[Mapping[str, Any]], number: int, shape: tuple[int, ...]) -> Adversarials:
    """A cell's images, of `shape` each, from the parts of an evaluation."""
    gathered: dict[str, Any] = {
        name: concatenated([values, *(part[f"adversarial_{name}-{number}"] for part in parts)])
        for name, values in vars(_none(shape)).items()
    }
    return Adversarials(**gathered)


def _none(shape: tuple[int, ...]) -> Adversarials:
    rows, images = np.zeros(0, np.int64), np.zeros((0, *shape), np.float32)
    return Adversarials(rows, np.zeros(0, np.float32), images.astype(np.int8), rows.copy(), images)


def encode(
    images: Images, clean: Images, threat: ThreatModel, rows: Tensor, holds: Callable[[Images], Tensor]
) -> Adversarials:
    """Images as codes where that is enough.

    Args:
        images: to be kept.
        clean: the images they were made from.
        threat: decoded images are brought inside it.
        rows: the samples' places in the result.
        holds: says of each decoded image, on the device of `images`, that it still has its verdict.
    """
    if not len(images):
        return _none(tuple(images.shape[1:]))
    device = images.device
    images, clean, rows = images.detach().float().cpu(), clean.cpu(), rows.cpu()
    difference = images - clean
    scale = difference.flatten(1).abs().amax(1) / _LARGEST_CODE
    steps = difference / scale.clamp_min(torch.finfo(scale.dtype).tiny).view(-1, 1, 1, 1)
    code = steps.nan_to_num().round().clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)
    decoded = decode(code, scale, clean, threat)
    coded = holds(decoded.to(device)).cpu() & allowed(decoded, clean, threat)
    return Adversarials(
        *(part.numpy() for part in (rows[coded], scale[coded], code[coded], rows[~coded], images[~coded]))
    )


def decode(code: Tensor, scale: Tensor, clean: Images, threat: ThreatModel) -> Images:
    """Clean images plus scale times code in float32, brought inside the threat model. On the CPU: one set of bits."""
    return brought_inside(clean + scale.view(-1, 1, 1, 1) * code.float(), clean, threat)


def adversarials_path(result: Path) -> Path:
    """Where the images of a result file are: `<stem>.adversarials.h5` beside it."""
    return result.with_name(f"{result.stem}{ENDING}")


def write_adversarials(kept: Mapping[str, Adversarials], digest: str, path: Path, replace: bool = True) -> None:
    """Write the images of a result with this content digest, by label in the suite's order.

    Raises:
        AlreadyThereError: without `replace`, and there is a file; it is left as it is.
        BenchError: the path cannot be written.
    """

    def fill(file: Any) -> None:
        file.attrs["result_digest"] = digest
        file.require_group("attacks")
        for order, (label, images) in enumerate(kept.items()):
            group = file.require_group(f"attacks/{slug(order, label)}")
            group.attrs.update(label=label, order=order)
            store_images(group, images)

    ADVERSARIALS_FILE.write(path, fill, replace=replace)


def store_images(group: Any, images: Adversarials) -> None:
    """Put images into a group of an open file."""
    for name, values in vars(images).items():
        whole = isinstance(values, np.ndarray)
        little = values.astype(values.dtype.newbyteorder("<")) if whole else values
        store(group, name, little, _CHUNK if len(values.shape) > 1 else None)


def owner_of(path: Path) -> str:
    """The content digest of the result that a file's images belong to; a damaged file is refused, and no file."""
    return ADVERSARIALS_FILE.read(path, lambda file, budget: str(attribute(file, "result_digest", str)))


def read_adversarials(path: Path, result: EvaluationResult, shape: tuple[int, ...]) -> dict[str, Adversarials]:
    """The images of `result`, of `shape` each, by label.

    Raises:
        BenchError: the file is unreadable, altered, damaged, of another result, or does not fit the result; where
            images are asked for, they cannot be read.
    """

    def take(file: Any, budget: Budget) -> dict[str, Adversarials]:
        if attribute(file, "result_digest", str) != content_digest(result):
            raise BenchError("the images belong to another result. Evaluate again with --save-adversarials.")
        groups = ordered_groups(subgroup(file, "attacks"))
        labels = [attribute(group, "label", str) for group in groups]
        if labels != list(result.attacks):
            raise BenchError(f"its attacks {labels} are not those of the result. Evaluate again.")
        return {
            label: stored_images(group, len(result.label), shape, budget)
            for label, group in zip(labels, groups, strict=True)
        }

    return ADVERSARIALS_FILE.read(path, take)


def stored_images(group: Any, samples: int, shape: tuple[int, ...], budget: Budget) -> Adversarials:
    """The images in a group of an open file, of `shape` each, of a result of so many samples.

    Raises:
        BenchError: they are missing, malformed, or of samples that the result does not have; as `read_adversarials`.
    """
    rows, exact_rows = (array(group, name, "<i8", (None,), budget) for name in ("row", "exact_row"))
    every = np.concatenate([rows, exact_rows])
    if len(np.unique(every)) < len(every) or (every < 0).any() or (every >= samples).any():
        raise BenchError(f"{group.name!r} names a sample twice, or one that the result does not have. Evaluate again.")
    return Adversarials(
        row=rows,
        scale=array(group, "scale", "<f4", (len(rows),), budget),
        code=array_later(group, "code", "|i1", (len(rows), *shape), budget),
        exact_row=exact_rows,
        exact=array_later(group, "exact", "<f4", (len(exact_rows), *shape), budget),
    )
