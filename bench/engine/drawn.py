"""Random models: attacked as the mean of many draws, and asked for every verdict many times.

A draw is one forward pass with the generators of torch, NumPy and Python started from a key. The draws of an image are
the rows of one batch of that image alone. So no outcome depends on which other images are beside it, on blocks, shards
or interruptions; on another kind of device the same key gives other numbers.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from bench.interfaces import NO_CLASS, Images, Labels, Logits, classes
from bench.system.randomness import start_generators, untouched_randomness


class Expected(nn.Module):
    """A random model as attacks see it: logits are the mean over some draws, and so are their gradients.

    This is EoT (Athalye et al. 2018, https://arxiv.org/abs/1802.00420, section 4.2): the gradient of a loss of
    E f(x) by way of the mean of the draws' gradients. What is drawn is keyed by the image itself: another image meets
    other draws, and the same image the same ones, wherever it is. With `held`, all images meet the same draws.
    """

    def __init__(self, model: nn.Module, draws: int, seed: int, held: bool = False) -> None:
        super().__init__()
        self.model, self.draws, self.seed, self.held = model, draws, seed, held

    def forward(self, images: Images) -> Logits:
        with untouched_randomness():
            return torch.cat([self._mean(image) for image in torch.split(images, 1)])

    def _mean(self, image: Images) -> Logits:
        content = b"" if self.held else image.detach().float().cpu().contiguous().numpy().tobytes()
        start_generators(_key(f"{self.seed}/search", content))
        return self.model(image.repeat(self.draws, 1, 1, 1)).mean(0, keepdim=True)


@dataclass(frozen=True)
class Drawn:
    """A random model, asked for its verdict on an image in several draws, which no attack has seen.

    They are keyed by the sample: clean and under every attack it meets the same ones.
    """

    model: nn.Module
    draws: int
    seed: int

    @torch.no_grad()
    def classes(self, images: Images, positions: np.ndarray) -> Int64[Tensor, "batch draw"]:
        """The class named by each draw for each image, which is of the sample at that position; or `NO_CLASS`."""
        with untouched_randomness():
            named = []
            for image, position in zip(torch.split(images, 1), positions, strict=True):
                start_generators(_key(f"{self.seed}/verdict/{position}"))
                named.append(classes(self.model(image.repeat(self.draws, 1, 1, 1))))
        return torch.stack(named) if named else torch.zeros((0, self.draws), dtype=torch.int64, device=images.device)


@dataclass(frozen=True)
class DrawnVerdicts:
    """The verdicts of several draws on each of some images."""

    prediction: Labels
    """The class named by the first draw that is wrong; else the label."""
    right: Labels
    """How many draws are right."""

    @classmethod
    def of(cls, named: Int64[Tensor, "batch draw"], labels: Labels, attacked: bool) -> "DrawnVerdicts":
        """Of the classes that draws name; no class is wrong, but no success of an attack."""
        wrong = named != labels[:, None]
        if attacked:
            wrong &= named != NO_CLASS
        first = named.gather(1, wrong.byte().argmax(1, keepdim=True)).squeeze(1)
        return cls(torch.where(wrong.any(1), first, labels), (~wrong).sum(1))


def _key(text: str, content: bytes = b"") -> int:
    """A seed of 63 bits."""
    digest = hashlib.blake2b(text.encode() + b"/" + content, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
