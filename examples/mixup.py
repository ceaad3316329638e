"""An augmentation of one's own: mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

bench train --augmentation examples/mixup.py --defense at --dataset digits
"""

import torch
from torch.nn import functional

from bench.interfaces import Augmentation, Images, Labels


class Mixup(Augmentation):
    """Each image, and its label, is averaged with another one's of the batch, in shares that are uniform in [0, 1)."""

    soft_labels = True

    def apply(
        self, images: Images, labels: Labels, num_classes: int, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        share = torch.rand(len(images), 1, generator=generator, device=images.device)
        others = torch.randperm(len(images), generator=generator, device=images.device)
        targets = functional.one_hot(labels, num_classes).float()
        mixed = torch.lerp(images, images[others], share[:, :, None, None])
        return mixed, torch.lerp(targets, targets[others], share)
