"""Extra training images, such as those that a generative model made of the training set: `--extra npz:PATH`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64

from bench.data.own_file import channels_first, check_images, checked_labels
from bench.data.splits import Dataset, Split, make_split
from bench.errors import BenchError
from bench.system.budgets import UNREADABLE, read_arrays

LAYOUTS = (("x_train", "y_train"), ("image", "label"))
"""Names of images and labels: as in `npz:PATH` datasets, and as in published sets of generated images."""
_PART = 256
"""Images that are digested at once."""
_ROWS, _VALUES = 4096, 2**24
"""Images whose distances to all others are held at once, and the values of these images, at most."""


def read_extra(name: str, dataset: Dataset) -> Split:
    """The images in `npz:PATH`, to be trained on beside a dataset's own.

    They are x_train and y_train, as in a dataset of one's own, or image and label, as in the sets that Rebuffi et al.
    (2021, https://arxiv.org/abs/2103.01946) and Wang et al. (2023, https://arxiv.org/abs/2302.04638) publish.

    Raises:
        BenchError: the file is missing or damaged, an array is not as described, images or labels are not of the
            dataset's shape and classes, or one of them is a test image.
    """
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
    refuse_test_images(name, extra, dataset)
    return extra


def refuse_test_images(name: str, extra: Split, dataset: Dataset) -> None:
    """Refuse extra images among which is, in eight bits, a test image of the dataset."""
    known = {image: row for row, image in enumerate(_digests(dataset.test))}
    found = [(row, known[image]) for row, image in enumerate(_digests(extra)) if image in known]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise BenchError(
            f"image {found[0][0]} of {name} is test image {found[0][1]} of {dataset.name}{more}: a model that trains "
            "on it cannot be tested on it. Leave such images out."
        )


def _digests(split: Split) -> Iterator[bytes]:
    """SHA-256 of each image in eight bits."""
    for first in range(0, len(split), _PART):
        part = slice(first, first + _PART)
        pixels = split.pixels[part] if split.levels == 255 else (255 * split.images(part)).round().to(torch.uint8)
        yield from (hashlib.sha256(image.tobytes()).digest() for image in pixels.numpy())


def nearest(images: Split, among: Split) -> tuple[Int64[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """For each of the images the row of the nearest one `among` others, and its l2 distance, in units of the range."""
    flat = images.images(slice(None)).flatten(1)
    best, rows = torch.full_like(flat[:, 0], torch.inf), torch.zeros_like(images.labels)
    size = max(1, min(_ROWS, _VALUES // flat.shape[1]))
    for first in range(0, len(among), size):
        others = among.images(slice(first, first + size)).flatten(1)
        # Without the square of the image itself, which is the same for all others.
        distance, row = (others.square().sum(1) - 2 * flat @ others.T).min(1)
        rows = torch.where(distance < best, first + row, rows)
        best = torch.minimum(distance, best)
    # The sum above rounds where images are close: their distance is taken again.
    distances = torch.linalg.vector_norm(flat - among.images(rows).flatten(1), dim=1)
    return rows.cpu().numpy(), distances.cpu().numpy()
