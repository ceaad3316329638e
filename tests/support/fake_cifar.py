"""CIFAR-10 and CIFAR-10-C as their authors lay them out, small and made up, and passed off to torchvision."""

import hashlib
import pickle

import numpy as np
from torchvision.datasets import CIFAR10

CORRUPTION_ROWS = 10_000
"""Of one severity in a file of CIFAR-10-C."""


def write_cifar10(root, patch, images, labels):
    """The same `images` (count, 3, 32, 32) uint8 with `labels` as test set and, five times, as training set."""
    entry = {"data": images.reshape(len(images), 3072), "labels": [int(label) for label in labels]}
    return write_archive(root, patch, CIFAR10, 10, lambda file, number: entry)


def write_archive(root, patch, reader, classes, entry):
    """The files of torchvision's CIFAR10 or CIFAR100: `entry(file, number)` is the content of one, by part from 0."""
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    for part in ("train_list", "test_list"):
        files = enumerate(name for name, _ in getattr(reader, part))
        patch.setattr(
            reader, part, [[name, write_pickle(folder / name, entry(name, number))] for number, name in files]
        )
    meta = {reader.meta["key"]: [str(label) for label in range(classes)]}
    md5 = write_pickle(folder / reader.meta["filename"], meta)
    patch.setattr(reader, "meta", {**reader.meta, "md5": md5})
    return root


def write_pickle(path, content):
    """Its md5 sum."""
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar10c(root, corruptions, bright):
    """Grey images of one pixel. `bright(corruption, severity)` says how many of the first ten are white, others black.

    Labels are 0, as unsigned bytes like those of the published files.
    """
    folder = root / "CIFAR-10-C"
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", np.zeros(5 * CORRUPTION_ROWS, np.uint8))
    for number, corruption in enumerate(corruptions):
        images = np.zeros((5 * CORRUPTION_ROWS, 1, 1, 3), np.uint8)
        for severity in range(1, 6):
            first = (severity - 1) * CORRUPTION_ROWS
            images[first : first + bright(number, severity)] = 255
        np.save(folder / f"{corruption}.npy", images)
