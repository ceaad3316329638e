"""What is done to whole batches, on the images' device: crops and flips first, then one augmentation a file.

An augmentation is found by file name: `cutmix` is cutmix.py.
"""

import torch

from bench.interfaces import Placement


def draw_placement(images: int, crop_padding: int, flip: bool, generator: torch.Generator) -> Placement:
    """For so many images a crop each, at an offset of its own in its zero-padded self, mirrored with probability 1/2.

    The offsets are uniform over (2 * crop_padding + 1)^2. Nothing waits for the device: that of `generator`.
    With `crop_padding` 0 and no `flip` images stay as they are and no number is drawn.
    """
    offsets = mirrored = None
    if crop_padding:
        offsets = torch.randint(2 * crop_padding + 1, (2, images), generator=generator, device=generator.device)
    if flip:
        mirrored = torch.rand(images, generator=generator, device=generator.device) < 0.5
    return Placement(crop_padding, offsets, mirrored)
