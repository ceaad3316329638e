"""Crops and flips against every crop and flip there is, taken image by image."""

import itertools

import pytest
import torch
from scipy import stats
from torchvision.transforms import functional as reference

from bench.data.augmentation import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every_outcome(image, padding, flip):
    """(top, left, mirrored) to what torchvision makes of one image."""
    padded = reference.pad(image, padding)
    height, width = image.shape[1:]
    outcomes = {}
    offsets = range(2 * padding + 1)
    for top, left, mirrored in itertools.product(offsets, offsets, (False, True) if flip else (False,)):
        crop = reference.crop(padded, top, left, height, width)
        outcomes[top, left, mirrored] = reference.hflip(crop) if mirrored else crop
    return outcomes


def outcome_of(augmented, image, padding, flip):
    matches = [key for key, crop in every_outcome(image, padding, flip).items() if torch.equal(crop, augmented)]
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (2, True), (0, True)])
def test_every_image_is_a_crop_and_flip_of_itself(padding, flip):
    images = torch.rand(24, 3, 6, 9, generator=generator(1))
    augmented = augment(images, padding, flip, generator())
    outcomes = {outcome_of(*pair, padding, flip) for pair in zip(augmented, images, strict=True)}
    assert len(outcomes) >= (10 if padding else 2)


def test_offsets_and_flips_are_uniform_and_independent():
    image = torch.arange(1.0, 10.0).view(1, 3, 3)
    augmented = augment(image.expand(9000, 1, 3, 3), 1, True, generator())
    counts = [int((augmented == crop).all((1, 2, 3)).sum()) for crop in every_outcome(image, 1, True).values()]
    assert len(counts) == 18
    assert sum(counts) == 9000
    assert stats.chisquare(counts).pvalue > 0.01


def test_nothing_asked_nothing_done():
    images = torch.rand(5, 3, 4, 4)
    source = generator()
    before = source.get_state()
    assert torch.equal(augment(images, 0, False, source), images)
    assert torch.equal(source.get_state(), before)


def test_the_generator_decides_and_the_images_stay():
    images = torch.rand(16, 1, 8, 8)
    original = images.clone()
    first, again, other = (augment(images, 2, True, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, original)
