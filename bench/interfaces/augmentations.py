"""Augmentations: what is done to training images after the crops and flips of the protocol."""

from typing import ClassVar

import torch

from bench.interfaces.tensors import Images, Labels


class Augmentation:
    """Changes a batch before each training step; made without arguments."""

    soft_labels: ClassVar[bool] = False
    """True if labels come back as distributions over classes: defenses that need class indices are refused then."""

    def apply(
        self, images: Images, labels: Labels, num_classes: int, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        """Images in [0, 1] and their labels, of images that were cropped and flipped. Default: as they are.

        All that is random comes from `generator`, which is on the images' device and a function of (seed, epoch).
        """
        return images, labels
