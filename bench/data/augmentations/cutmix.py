"""CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899)."""

import torch
from torch.nn import functional

from bench.data.augmentations._boxes import boxes
from bench.interfaces import Augmentation, Images, Labels


class CutMix(Augmentation):
    """A box of each image is another one's of the batch, and its label that one's by the box's share of the area.

    The box has the image's shape and a share of its area that is uniform in [0, 1), the authors' Beta(1, 1), before it
    is cut at the border.

    Deviation: box and share are drawn for each image, and every batch is mixed; the authors draw one for a batch, and
    mix every second one.
    """

    soft_labels = True

    def apply(
        self, images: Images, labels: Labels, num_classes: int, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        batch, _, height, width = images.shape
        side = torch.rand(batch, 1, generator=generator, device=images.device).sqrt()
        box = boxes(images, (height * side).long(), (width * side).long(), generator)
        others = torch.randperm(batch, generator=generator, device=images.device)
        share = box.float().mean((2, 3))
        targets = functional.one_hot(labels, num_classes).float()
        return torch.where(box, images[others], images), (1 - share) * targets + share * targets[others]
