"""Random numbers of attacks: keyed by sample, the same wherever they are made; and devices that the processor leads.

On a processor numpy's generator makes them, one per sample. On other devices the same numbers, Philox4x64-10 (Salmon et
al. 2011, https://doi.org/10.1145/2063384.2063405, section 3.3) as numpy counts it, are made of whole tensors there.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

ASYNCHRONOUS = frozenset({"cuda"})
"""Kinds of device that work off a queue: reading a value, by `.any()` or a mask in brackets, waits for all of it."""

_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_BUMPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def runs_ahead(device: torch.device) -> bool:
    """True where the processor runs ahead of the device, so that an attack does well to read no value at every step."""
    return device.type in ASYNCHRONOUS


class Draws:
    """Random numbers keyed by (seed, stream, key, sample index).

    A sample's numbers do not depend on the batch it is in, so results are the same for every batch size,
    order and shard.
    """

    def __init__(self, seed: int, stream: str, indices: np.ndarray) -> None:
        self.seed, self.stream, self.indices = seed, stream, indices

    def _keys(self, key: object) -> list[bytes]:
        texts = (f"{self.seed}/{self.stream}/{key}/{index}" for index in self.indices)
        return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]

    def _stack(self, like: Tensor, key: object, draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> Tensor:
        rows = np.empty((len(self.indices), *like.shape[1:]), dtype=np.float32)
        for row, digest in enumerate(self._keys(key)):
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
            rows[row] = draw(generator, like.shape[1:])
        return torch.from_numpy(rows).to(device=like.device, dtype=like.dtype)

    def uniform(self, like: Tensor, key: object = 0) -> Tensor:
        """Numbers in [0, 1) of the shape, type and device of `like` (first axis: sample)."""
        if not runs_ahead(like.device):
            return self._stack(like, key, lambda generator, shape: generator.random(shape, dtype=np.float32))
        keys = torch.tensor(np.frombuffer(b"".join(self._keys(key)), "<i8").reshape(-1, 2)).to(like.device)
        return uniform_numbers(keys, like[0].numel() if len(like) else 0).view_as(like).to(like.dtype)

    def normal(self, like: Tensor, key: object = 0) -> Tensor:
        """Standard normal numbers of the shape, type and device of `like` (first axis: sample)."""
        return self._stack(like, key, lambda generator, shape: generator.standard_normal(shape, dtype=np.float32))


def uniform_numbers(keys: Int64[Tensor, "stream 2"], count: int) -> Tensor:
    """The first `count` numbers of `numpy.random.Generator(Philox(key)).random(dtype=float32)`, for each key.

    Args:
        keys: low and high word each, on the device on which the numbers are made.
        count: of float32 numbers in [0, 1): four 64-bit words at a time give eight.
    """
    blocks = torch.arange(1, -(-count // 8) + 1, device=keys.device).expand(len(keys), -1)
    words = [blocks, *(torch.zeros_like(blocks) for _ in range(3))]
    first, second = keys[:, :1], keys[:, 1:]
    for _ in range(_ROUNDS):
        (high, low), (other_high, other_low) = (_product(words[at], _FACTORS[at // 2]) for at in (0, 2))
        words = [other_high ^ words[1] ^ first, other_low, high ^ words[3] ^ second, low]
        first, second = first + _signed(_BUMPS[0]), second + _signed(_BUMPS[1])
    halves = [half for word in words for half in (word & _WORD, word >> 32 & _WORD)]
    # 24 bits of each half, as float32 holds them.
    return (torch.stack(halves, 2).flatten(1)[:, :count] >> 8).float() * 2.0**-24


def _product(words: Int64[Tensor, "..."], factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of 128-bit products, by halves: a tensor has neither unsigned words nor such products."""
    low, high, small, great = words & _WORD, words >> 32 & _WORD, factor & _WORD, factor >> 32
    inner, outer = low * great, high * small
    carried = ((low * small) >> 32 & _WORD) + (inner & _WORD) + (outer & _WORD)
    top = high * great + (inner >> 32 & _WORD) + (outer >> 32 & _WORD) + (carried >> 32)
    return top, words * _signed(factor)


def _signed(word: int) -> int:
    """The number of the same 64 bits that a tensor holds."""
    return word - 2**64 if word >> 63 else word
