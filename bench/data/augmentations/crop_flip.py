"""Crops and flips alone."""

from bench.interfaces import Augmentation


class CropFlip(Augmentation):
    """No more than the crops and flips of the dataset's protocol."""
