"""Which images stand for all: shares worked out by hand, and exact chances."""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
import torch

from bench.catalogue.suites import AttackCell
from bench.data.datasets import DATASET_PROTOCOLS
from bench.data.sampling import evenly_chosen
from bench.data.splits import Split
from bench.engine.groups import Group
from bench.engine.target import Target
from bench.interfaces import ThreatModel
from bench.trust.class_shares import class_shares


def labels_of(*counts):
    """Sorted by class, as image folders are."""
    return np.repeat(np.arange(len(counts)), counts)


def drawn(labels, limit):
    return np.bincount(labels[evenly_chosen(labels, limit)], minlength=labels.max() + 1).tolist()


def test_equal_classes_get_equal_shares():
    labels = labels_of(20, 20, 20, 20)
    assert [drawn(labels, limit) for limit in (4, 8, 80)] == [[1] * 4, [2] * 4, [20] * 4]
    assert sorted(drawn(labels, 10)) == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("counts", "limit", "seats"),
    [
        # 53, 24 and 23 take their k-th places at (k + 1/2) / n: the tenth is 5.5/53 = .1038, before 2.5/24 = .1042.
        ((53, 24, 23), 10, [6, 2, 2]),
        # 90 and 10: 0.5/10 = .05 comes after 3.5/90 and 4.5/90 = .05; at six all of 0.5/90 to 4.5/90 are in.
        ((90, 10), 6, [5, 1]),
        ((90, 10), 4, [4, 0]),
    ],
)
def test_other_classes_get_theirs_as_webster_shares_out_seats(counts, limit, seats):
    assert drawn(labels_of(*counts), limit) == seats


def test_equally_due_classes_are_not_taken_in_the_order_of_their_labels():
    """Of two classes of one, due at 1/2, where 49 of the 98 are in, one is taken; of 100 classes any ten."""
    *single, many = drawn(labels_of(1, 1, 98), 50)
    assert (sorted(single), many) == ([0, 1], 49)
    assert evenly_chosen(np.arange(100), 10).max() > 50


def test_a_smaller_part_lies_within_a_larger_one_and_in_the_order_of_the_file():
    labels = np.random.default_rng(0).integers(0, 7, 200)
    parts = [evenly_chosen(labels, limit) for limit in range(1, 201)]
    for smaller, larger in pairwise(parts):
        assert len(np.setdiff1d(larger, smaller)) == 1 and np.isin(smaller, larger).all()
        assert (np.diff(larger) > 0).all()
    assert parts[-1].tolist() == list(range(200))


def test_a_part_is_the_same_everywhere():
    """Another choice would give every stored result of such a part other images than its name says."""
    assert evenly_chosen(labels_of(4, 4, 4), 6).tolist() == PART_OF_TWELVE


PART_OF_TWELVE = [1, 2, 4, 6, 10, 11]


def test_sorted_data_give_one_class_and_a_warning():
    whole = labels_of(20, 20, 20, 20)
    found = class_shares(whole[:10], whole)
    # Ten of ten from one class: C(20, 10) of the C(80, 10) parts; two tails of four classes.
    assert found["value"] == pytest.approx(8 * comb(20, 10) / comb(80, 10), rel=1e-9)
    assert (found["severity"], found["threshold"]) == ("warning", 1e-3)
    assert found["message"].startswith("10 of 80 test images, of 1 of 4 classes; a random part has such shares")


def test_a_class_that_is_missing_by_chance_is_a_note_and_a_fair_part_passes():
    whole = labels_of(*[1000] * 10)
    first_of_cifar = np.array([3, 8, 8, 0, 6, 6, 1, 6, 3, 1])
    found = class_shares(first_of_cifar, whole)
    assert (found["severity"], found["message"]) == ("note", "10 of 10000 test images, of 5 of 10 classes")
    for part in (whole, whole[evenly_chosen(whole, 1000)], whole[evenly_chosen(whole, 10)]):
        assert class_shares(part, whole)["severity"] == "passed"
    # Nine classes in their shares and the tenth absent: no chance of (9000 over 500) / (10000 over 500), e**-53.
    without = whole[whole < 9]
    assert class_shares(without[evenly_chosen(without, 500)], whole)["severity"] == "warning"


def test_of_all_parts_no_more_are_called_improbable_than_the_level_says():
    whole = labels_of(5, 4, 3)
    chances = [class_shares(whole[list(rows)], whole)["value"] for rows in combinations(range(12), 6)]
    assert len(chances) == comb(12, 6)
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(chances) <= level) <= level


def split(sampling, count=12):
    pixels = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    return Split(pixels, torch.from_numpy(labels_of(4, 4, 4)), sampling=sampling)


def test_a_part_knows_where_it_is_from():
    first, even = split("first").take(5), split("stratified").take(6)
    assert (first.positions.tolist(), first.labels.tolist()) == ([0, 1, 2, 3, 4], [0, 0, 0, 0, 1])
    assert even.positions.tolist() == even.pixels.flatten().tolist() == PART_OF_TWELVE
    assert even.labels.tolist() == [0, 0, 1, 1, 2, 2]
    again = even.take(3)
    assert again.positions.tolist() == again.pixels.flatten().tolist()
    assert again.labels.tolist() == [0, 1, 2]
    whole = split("stratified").take(12)
    assert whole.positions.tolist() == list(range(12))


def test_an_image_has_the_same_draws_in_every_part():
    group = Group((AttackCell("PGD", "pgd", "linf", "8/255"),), ())
    target = Target(torch.nn.Flatten(), split("stratified").take(6))
    problem = target.problem(target.search_view(), torch.tensor([5, 2]), group)
    assert problem.threat == ThreatModel("linf", "8/255")
    assert problem.draws.indices.tolist() == [PART_OF_TWELVE[5], PART_OF_TWELVE[2]]


def test_the_first_images_stand_for_datasets_with_that_convention_and_some_of_each_class_for_others():
    stratified = {name for name, about in DATASET_PROTOCOLS.items() if about.sampling == "stratified"}
    assert stratified == {"npz", "folder", "hf", "tinyimagenet"}
    assert {about.sampling for about in DATASET_PROTOCOLS.values()} == {"first", "stratified"}
