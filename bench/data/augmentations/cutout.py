"""Cutout (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552)."""

import torch

from bench.data.augmentations._boxes import boxes
from bench.interfaces import Augmentation, Images, Labels


class Cutout(Augmentation):
    """A square around a random pixel is black: of half the image's smaller side, 16 pixels on CIFAR-10 as published.

    Deviation: the authors fill it with the mean colour, to which they normalise; adversarial training that takes pixels
    as they are fills it with 0 (https://github.com/locuslab/robust_overfitting).
    """

    def apply(
        self, images: Images, labels: Labels, num_classes: int, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        side = min(images.shape[2:]) // 2
        return images.masked_fill(boxes(images, side, side, generator), 0.0), labels
