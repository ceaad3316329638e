"""What is done to whole batches, on the images' device: crops and flips first, then one augmentation a file.

An augmentation is found by file name: `cutmix` is cutmix.py.
"""

import torch
from torch.nn import functional

from bench.interfaces import Images


def crop_and_flip(images: Images, crop_padding: int, flip: bool, generator: torch.Generator) -> Images:
    """Every image cropped at an offset of its own from its zero-padded self, then mirrored with probability 1/2.

    The offsets are uniform over (2 * crop_padding + 1)^2. Nothing waits for the device: `generator` must be on it.
    With `crop_padding` 0 and no `flip` the images come back as they are and no number is drawn.
    """
    batch = len(images)
    if crop_padding:
        height, width = images.shape[2:]
        padded = functional.pad(images, (crop_padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(2 * crop_padding + 1, (2, batch), generator=generator, device=images.device)
        images = windows[torch.arange(batch, device=images.device), :, top, left]
    if flip:
        mirrored = torch.rand(batch, generator=generator, device=images.device) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images
