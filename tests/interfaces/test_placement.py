"""Crops and flips can be done to other images of the same batch, and be undone."""

import torch

from bench.data.augmentations import draw_placement
from bench.interfaces import Placement

EVERY = [(top, left, mirrored) for top in range(3) for left in range(3) for mirrored in (False, True)]
IMAGE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


def every_placement():
    """All crops of one pixel of padding, each mirrored and not."""
    top, left, mirrored = zip(*EVERY, strict=True)
    return Placement(1, torch.tensor([top, left]), torch.tensor(mirrored))


def test_a_crop_and_a_flip_by_hand():
    """The window that begins at row 2 and column 0 of the padded image: a row down, a column to the left; mirrored."""
    placed = Placement(1, torch.tensor([[2], [0]]), torch.tensor([True])).place(IMAGE.view(1, 1, 3, 3))
    assert placed[0, 0].tolist() == [[5, 4, 0], [8, 7, 0], [0, 0, 0]]


def test_what_a_crop_shows_is_put_back_and_the_rest_stays():
    placement = every_placement()
    images = IMAGE.expand(len(EVERY), 2, 3, 3)
    back = placement.put_back(placement.place(images), onto=-images)
    for (top, left, _), found in zip(EVERY, back, strict=True):
        rows, columns = (torch.arange(3) + 1 - offset for offset in (top, left))
        shown = ((rows >= 0) & (rows < 3))[:, None] & ((columns >= 0) & (columns < 3))
        assert torch.equal(found, torch.where(shown, IMAGE, -IMAGE).expand(2, 3, 3)), (top, left)


def test_without_crops_all_is_put_back():
    images = IMAGE.expand(2, 1, 3, 3)
    for placement in (Placement(), Placement(0, None, torch.tensor([True, False]))):
        assert torch.equal(placement.put_back(placement.place(images), onto=-images), images)
    assert Placement().place(images) is images


def test_rows_have_their_own_placements():
    placement, images = every_placement(), torch.rand(len(EVERY), 1, 3, 3)
    rows = slice(5, 11)
    assert torch.equal(placement.rows(rows).place(images[rows]), placement.place(images)[rows])
    assert Placement().rows(rows) == Placement()
    assert draw_placement(4, 0, False, torch.Generator()) == Placement()
