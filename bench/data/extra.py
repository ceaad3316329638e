"""Extra training images, such as those that a generative model made of the training set: `--extra npz:PATH`."""

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bench.data.own_file import channels_first, check_images, checked_labels
from bench.data.splits import Dataset, Split, make_split
from bench.errors import BenchError
from bench.interfaces import Features, Images
from bench.system.budgets import UNREADABLE, read_arrays
from bench.system.files import followed, write_whole

LAYOUTS = (("x_train", "y_train"), ("image", "label"))
"""Names of images and labels: as in `npz:PATH` datasets, and as in published sets of generated images."""
_NAMED = 5
"""Pairs of equal images that a refusal names."""
_NUMBERS = 2**25
"""Numbers that each of the three arrays of a search may hold at once: 128 MiB in float32."""
_PART = 256
"""Images that are digested at once."""


def read_extra(name: str, dataset: Dataset) -> Split:
    """The images in `npz:PATH`, to be trained on beside a dataset's own, none of which is one of its test images.

    They are x_train and y_train, as in a dataset of one's own, or image and label, as in the sets that Rebuffi et al.
    (2021, https://arxiv.org/abs/2103.01946) and Wang et al. (2023, https://arxiv.org/abs/2302.04638) publish.

    Raises:
        BenchError: the file is missing or damaged, an array is not as described, images or labels are not of the
            dataset's shape and classes, or one of them is a test image.
    """
    extra = _read(name, dataset)
    found = _test_images(extra, dataset)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        pairs = ", ".join(f"image {row} is test image {test}" for row, test in list(found.items())[:_NAMED])
        raise BenchError(
            f"{name} holds test images of {dataset.name} ({pairs}{more}): a model that trains on them cannot be tested "
            f"on them. To leave them out: bench data exclude {name} --dataset {dataset.name} --out FILE.npz"
        )
    return extra


def write_without_test_images(name: str, dataset: Dataset, path: Path) -> tuple[int, int]:
    """Write the images in `npz:PATH` but those that are test images; returns how many were kept and left out.

    Raises:
        BenchError: as `read_extra`; or no image is left, or another file is there, or it cannot be written.
    """
    extra = _read(name, dataset)
    left_out = list(_test_images(extra, dataset))
    kept = np.delete(np.arange(len(extra)), left_out)
    if not len(kept):
        raise BenchError(f"every image of {name} is a test image of {dataset.name}: there is nothing to write.")
    pixels, labels = extra.held()[kept].permute(0, 2, 3, 1).numpy(), extra.labels[kept].numpy()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # savez gives a path another ending
            np.savez(file, x_train=pixels, y_train=labels)

    write_whole(followed(path), write, replace=False)
    return len(kept), len(left_out)


def _read(name: str, dataset: Dataset) -> Split:
    path = Path(name.removeprefix("npz:")).expanduser()
    if not name.startswith("npz:") or not path.is_file():
        raise BenchError(f"extra images {name!r} are no npz:PATH of a file that is there, such as npz:generated.npz.")
    needed = " or ".join(", ".join(pair) for pair in LAYOUTS)
    try:
        arrays = read_arrays(path, [array for pair in LAYOUTS for array in pair])
    except UNREADABLE:
        raise BenchError(
            f"{path} cannot be read as an archive of plain arrays. Write it with numpy.savez: {needed}."
        ) from None
    pair = next((pair for pair in LAYOUTS if all(isinstance(arrays.get(array), np.ndarray) for array in pair)), None)
    if pair is None:
        raise BenchError(f"{path} holds no extra images: it needs the arrays {needed}.")
    images, labels = (arrays[array] for array in pair)
    check_images(pair[0], path, images)
    labels = checked_labels(pair[1], path, labels, len(images))
    extra = make_split(channels_first(images), labels)
    shape = tuple(extra.pixels.shape[1:])
    if shape != dataset.image_shape:
        raise BenchError(
            f"{pair[0]} in {path} holds images of {shape}, expected {dataset.image_shape}: {dataset.name}."
        )
    if int(labels.max()) >= dataset.num_classes:
        raise BenchError(
            f"{pair[1]} in {path} holds the label {int(labels.max())}; {dataset.name} has {dataset.num_classes} "
            "classes, from 0."
        )
    return extra


def _test_images(extra: Split, dataset: Dataset) -> dict[int, int]:
    """Rows of extra images that are, in eight bits, test images of the dataset, and the rows of those."""
    known = {image: row for row, image in enumerate(_digests(dataset.test))}
    return {row: known[image] for row, image in enumerate(_digests(extra)) if image in known}


def _digests(split: Split) -> Iterator[bytes]:
    """SHA-256 of each image in eight bits."""
    for first in range(0, len(split), _PART):
        part = slice(first, first + _PART)
        pixels = split.pixels[part] if split.levels == 255 else (255 * split.images(part)).round().to(torch.uint8)
        yield from (hashlib.sha256(image.tobytes()).digest() for image in pixels.numpy())


def pixels_of(images: Images) -> Float[Tensor, "batch pixels"]:
    """Images as points in the space of their pixels."""
    return images.flatten(1)


def nearest(
    images: Split, among: Split, points_of: Callable[[Images], Features] = pixels_of
) -> tuple[Int64[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """For each of the images the row of the nearest one `among` others, and its l2 distance in a space.

    `points_of` gives a batch of images their places there. Memory does not grow with the number of images.
    """
    most = max(1, _NUMBERS // max(math.prod(images.pixels.shape[1:]), points_of(images.images(slice(0, 1))).shape[1]))
    starts = range(0, len(images), most)
    parts = [_nearest(points_of(images.images(slice(at, at + most))), among, points_of, most) for at in starts]
    rows, distances = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return rows, distances


def _nearest(
    points: Features, among: Split, points_of: Callable[[Images], Features], most: int
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The same for some points; at most so many others are looked at at once."""
    best = torch.full_like(points[:, 0], torch.inf)
    rows = torch.zeros(len(points), dtype=torch.long, device=points.device)
    size = max(1, min(most, _NUMBERS // len(points)))
    # Around a point among them: far from the origin, the products would round more than distances differ.
    centre = points.mean(0)
    shifted = points - centre
    for first in range(0, len(among), size):
        others = points_of(among.images(slice(first, first + size)))
        apart = others - centre
        # Without the square of the point itself, which is the same for all others.
        row = (apart.square().sum(1) - 2 * shifted @ apart.T).argmin(1)
        distance = torch.linalg.vector_norm(points - others[row], dim=1)
        rows = torch.where(distance < best, first + row, rows)
        best = torch.minimum(distance, best)
    return rows, best
