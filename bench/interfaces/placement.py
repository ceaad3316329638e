"""Crops and flips of a batch: what is kept in the coordinates of the training images can be moved along, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from bench.interfaces.tensors import Images


@dataclass(frozen=True)
class Placement:
    """The place where each image of a batch was cropped from its zero-padded self, and whether it was then mirrored."""

    padding: int = 0
    """Pixels of zero padding on each side."""
    offsets: Int64[Tensor, "2 batch"] | None = None
    """The first row and column of each crop in the padded image; None: nothing was cropped."""
    mirrored: Bool[Tensor, " batch"] | None = None
    """None: nothing was."""

    def place(self, images: Images) -> Images:
        """Other images, cropped and mirrored like those of the batch."""
        if self.offsets is not None:
            height, width = images.shape[2:]
            padded = functional.pad(images, (self.padding,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            top, left = self.offsets
            images = windows[torch.arange(len(images), device=images.device), :, top, left]
        if self.mirrored is not None:
            images = torch.where(self.mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def put_back(self, placed: Images, onto: Images) -> Images:
        """`onto`, in the coordinates of the training images, with `placed` at the pixels that the crops show."""
        back = self._back()
        return torch.where(back.place(torch.ones_like(placed[:, :1])) > 0, back.place(placed), onto)

    def _back(self) -> "Placement":
        """The placement that undoes this one; 0 where that cannot be known."""
        if self.offsets is None:
            return self
        offsets = 2 * self.padding - self.offsets
        if self.mirrored is not None:
            offsets[1] = torch.where(self.mirrored, self.offsets[1], offsets[1])
        return Placement(self.padding, offsets, self.mirrored)

    def copied(self) -> "Placement":
        """The same, in tensors of its own."""
        copies = [None if tensor is None else tensor.clone() for tensor in (self.offsets, self.mirrored)]
        return Placement(self.padding, *copies)

    def rows(self, chosen: slice) -> "Placement":
        """That of some rows of the batch."""
        offsets = None if self.offsets is None else self.offsets[:, chosen]
        return Placement(self.padding, offsets, None if self.mirrored is None else self.mirrored[chosen])
