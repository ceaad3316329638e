"""The batches of an epoch: every image once, or some of each batch from extra images.

With each come the indices of its images: rows of the split, and after them those of the extra images.
"""

from collections.abc import Iterator

import torch

from bench.data.splits import Split
from bench.interfaces import Images, Indices, Labels


def ordered_batches(split: Split, batch_size: int) -> Iterator[tuple[Images, Labels]]:
    """Batches of a split in its own order; the last one may be smaller."""
    for first in range(0, len(split), batch_size):
        rows = slice(first, first + batch_size)
        yield split.images(rows), split.labels[rows]


def shuffled_batches(
    split: Split, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Images, Labels, Indices]]:
    """Batches of one epoch, in random order; the last one may be smaller."""
    order = torch.randperm(len(split), generator=generator, device=split.labels.device)
    for rows in torch.split(order, batch_size):
        yield split.images(rows), split.labels[rows], rows


def mixed_batches(
    split: Split, extra: Split, share: float, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Images, Labels, Indices]]:
    """Batches of one epoch, of which a share, rounded down, is drawn from the extra images with replacement.

    As published code mixes them (https://github.com/wzekai99/DM-Improves-AT, core/data/semisup.py): an epoch has as
    many batches as without extra images, each of `batch_size`, and no image of the split occurs in it twice.
    """
    device = split.labels.device
    own = batch_size - int(batch_size * share)
    order = torch.randperm(len(split), generator=generator, device=device)
    for rows in torch.split(order, own)[: -(-len(split) // batch_size)]:
        drawn = torch.randint(len(extra), (batch_size - len(rows),), generator=generator, device=device)
        places = torch.randperm(batch_size, generator=generator, device=device)
        images = torch.cat([split.images(rows), extra.images(drawn)])
        labels = torch.cat([split.labels[rows], extra.labels[drawn]])
        yield images[places], labels[places], torch.cat([rows, len(split) + drawn])[places]
