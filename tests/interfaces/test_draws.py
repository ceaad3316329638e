"""Numbers made of whole tensors, as on a GPU, are those that numpy makes for each sample."""

import numpy as np
import pytest
import torch

from bench.interfaces import Draws, draws
from bench.interfaces.draws import uniform_numbers


@pytest.mark.parametrize("shape", [(6, 3, 5, 5), (6, 1), (6, 50, 3), (6, 8), (6, 9), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_device_makes_the_numbers_of_the_processor(shape, dtype, monkeypatch):
    keyed = Draws(3, "square/linf", np.array([5, 0, -1, 9, 2**40, 7])[: shape[0]])
    like = torch.empty(shape, dtype=dtype)
    expected = [keyed.uniform(like, key) for key in ("a", "b")]
    monkeypatch.setattr(draws, "ASYNCHRONOUS", {"cpu"})
    found = [keyed.uniform(like, key) for key in ("a", "b")]
    assert all(map(torch.equal, found, expected))
    assert found[0].dtype == dtype
    assert not len(like) or not torch.equal(*found)


def test_words_of_the_published_generator():
    # numpy's own stream for a key with all bits set, and for one that exceeds 2^63 in one word only.
    for key in (2**128 - 1, 2**127 + 5, 0):
        words = np.array([key & (2**64 - 1), key >> 64], dtype=np.uint64).view(np.int64)
        expected = np.random.Generator(np.random.Philox(key=key)).random(1001, dtype=np.float32)
        found = uniform_numbers(torch.from_numpy(words.reshape(1, 2)), 1001)[0]
        np.testing.assert_array_equal(found.numpy(), expected)
