"""Feature metrics: the equations in plain NumPy run beside them, closed forms, and every way to be undefined."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.evaluation.features import FeatureAccumulator, nearest_angles
from tests.support.refusals import refusal


def measure(clean, adversarial, labels, centres):
    gathered = FeatureAccumulator(torch.as_tensor(centres))
    gathered.add(torch.as_tensor(clean), torch.as_tensor(adversarial), torch.as_tensor(labels))
    return gathered.finish()


def random_problem(samples=300, classes=7, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    places = rng.normal(size=(classes, dim)) + 1.0
    clean = places[labels] + rng.normal(size=(samples, dim))
    adversarial = clean + 0.7 * rng.normal(size=(samples, dim))
    return clean.astype(np.float32), adversarial.astype(np.float32), labels, 3 * rng.normal(size=(classes, dim))


def equations(features, labels, centres):
    """Eqs. 8, 9 and 10 as printed, in float64, with loops over classes and samples."""
    f = features.astype(np.float64)
    classes = range(len(centres))
    members = {j: f[labels == j] for j in classes}
    mean = {j: members[j].mean(0) for j in classes}
    overall = f.mean(0)

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    fdr = 0.0
    for j in classes:
        within = sum(np.outer(x - mean[j], x - mean[j]) for x in members[j])
        between = len(members[j]) * np.outer(mean[j] - overall, mean[j] - overall)
        fdr += np.trace(within) / np.trace(between)
    above = sum(1 - cosine(x, mean[j]) for j in classes for x in members[j])
    below = sum(len(members[j]) * (1 - cosine(mean[j], overall)) for j in classes)
    terms = [
        min(np.linalg.norm(centres[k] - centres[j]) for k in classes if k != j)
        / np.mean([np.linalg.norm(x - centres[j]) for x in members[j]])
        for j in classes
    ]
    return fdr, above / below, np.mean(terms)


def separations(centres):
    """Eqs. 11 and 12, in degrees, of normalised centres."""
    unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    nearest = [
        min(math.degrees(math.acos(unit[j] @ unit[k])) for k in range(len(unit)) if k != j) for j in range(len(unit))
    ]
    return np.mean(nearest), min(nearest)


def numbers(found):
    views = [value for view in (found.clean, found.adversarial) for value in (view.fdr, view.afs, view.scr)]
    return [*views, found.mean_separation, found.min_separation]


@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_are_the_papers_equations(seed):
    clean, adversarial, labels, centres = random_problem(seed=seed)
    found = measure(clean, adversarial, labels, centres)
    expected = [*equations(clean, labels, centres), *equations(adversarial, labels, centres), *separations(centres)]
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-12)
    assert (found.samples, found.classes) == (300, 7)


def test_order_and_partition_change_nothing():
    clean, adversarial, labels, centres = random_problem(samples=1200)
    whole = numbers(measure(clean, adversarial, labels, centres))
    order = np.random.default_rng(1).permutation(len(labels))
    by_class = np.argsort(labels, kind="stable")
    places = np.arange(1200)
    for rows, cuts in ((order, range(1, 40)), (order, range(37, 1200, 37)), (by_class, (500, 1000)), (places, (1199,))):
        gathered = FeatureAccumulator(torch.as_tensor(centres))
        for block in np.split(rows, cuts):
            gathered.add(*(torch.as_tensor(values[block]) for values in (clean, adversarial, labels)))
        np.testing.assert_allclose(numbers(gathered.finish()), whole, rtol=1e-12)


def test_far_from_the_origin_no_digit_is_lost():
    # Sum of squares minus squared sum would lose 1e8^2 / 1e-16: everything.
    clean, adversarial, labels, centres = random_problem(dim=4)
    near = measure(clean.astype(np.float64), adversarial.astype(np.float64), labels, centres)
    far = measure(clean.astype(np.float64) + 1e6, adversarial.astype(np.float64) + 1e6, labels, centres + 1e6)
    assert far.clean.fdr == pytest.approx(near.clean.fdr, rel=1e-8)
    assert far.adversarial.fdr == pytest.approx(near.adversarial.fdr, rel=1e-8)
    assert far.clean.scr == pytest.approx(near.clean.scr, rel=1e-8)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_a_simplex_of_any_radii_has_the_widest_equal_angles(classes):
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    centres = simplex * torch.linspace(0.1, 40, classes, dtype=torch.float64)[:, None]
    angles = nearest_angles(centres)
    expected = math.degrees(math.acos(-1 / (classes - 1)))
    assert torch.allclose(angles, torch.full_like(angles, expected), rtol=1e-12)


CLOSE = torch.tensor([[1.0, 0.0], [math.cos(1e-9), math.sin(1e-9)]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("centres", "degrees", "rel"),
    [
        (torch.eye(4), [90.0] * 4, 1e-14),
        (torch.tensor([[2.0, 0.0], [-5.0, 0.0]]), [180.0] * 2, 0),
        (CLOSE, [math.degrees(1e-9)] * 2, 1e-9),
    ],
    ids=["orthogonal", "opposite", "tiny"],
)
def test_angles_keep_their_digits(centres, degrees, rel):
    assert nearest_angles(centres).tolist() == pytest.approx(degrees, rel=rel, abs=0)


def test_mean_and_minimum_differ_where_one_pair_is_close():
    # At 0, 10 and 90 degrees the nearest angles are 10, 10 and 80.
    centres = [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 10, 90)]
    found = measure(*random_problem(classes=3, dim=2)[:3], centres)
    assert (found.mean_separation, found.min_separation) == (pytest.approx(100 / 3), pytest.approx(10.0))


def test_two_classes_on_a_line_by_hand():
    # Class 0 at (1, 0) and (3, 0), class 1 at (0, 2) twice; means (2, 0), (0, 2) and (1, 1); centres on the axes.
    features = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    found = measure(features, features, np.array([0, 0, 1, 1]), [[4.0, 0.0], [0.0, 3.0]])
    # Eq. 8: 2 / (2 * 2) + 0. Eq. 9: no angle within. Eq. 10: 5 / mean(3, 1) and 5 / 1.
    assert found.clean.fdr == 0.5
    assert found.clean.afs == pytest.approx(0.0, abs=1e-15)
    assert found.clean.scr == pytest.approx((2.5 + 5.0) / 2)
    assert found.min_separation == 90.0
    assert found.adversarial == found.clean


def test_angles_within_and_between_by_hand():
    # Unit features at +-30 degrees around each axis: cos 30 within, cos 45 between the axis and the overall mean.
    turns = np.radians([30, -30, 120, 60])
    features = np.stack([np.cos(turns), np.sin(turns)], 1)
    found = measure(features, features, np.array([0, 0, 1, 1]), np.eye(2))
    assert found.clean.afs == pytest.approx((1 - math.sqrt(3) / 2) / (1 - math.sqrt(0.5)), rel=1e-12)


def test_collapsed_features_have_no_scatter_within():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(5, 8)).astype(np.float32)
    labels = rng.integers(0, 5, 999)
    found = measure(places[labels], places[labels], labels, places + 1)
    assert found.clean.fdr == 0.0
    assert found.clean.afs == pytest.approx(0.0, abs=1e-25)
    assert math.isinf(measure(places[labels], places[labels], labels, places).clean.scr)


def test_features_that_tell_no_classes_apart_are_the_worst_there_is():
    same = np.full((30, 4), 0.3, dtype=np.float32)
    found = measure(same, same, np.arange(30) % 3, np.eye(3, 4))
    assert math.isinf(found.clean.fdr)
    assert math.isinf(found.clean.afs)
    coinciding = measure(*random_problem(classes=2)[:3], np.ones((2, 12)))
    assert (coinciding.clean.scr, coinciding.min_separation) == (0.0, pytest.approx(0.0, abs=1e-7))


def test_equal_class_means_are_seen_as_equal_to_the_last_bit():
    # Forty classes repeat one set of samples; summed one by one, their equal means may miss the mean of all.
    rng = np.random.default_rng(0)
    for copies in rng.integers(1, 30, size=(20, 40)):
        alike = np.tile(rng.random((3, 1), dtype=np.float32), (copies.sum(), 1))
        centres = np.arange(1.0, 41.0)[:, None]
        assert math.isinf(measure(alike, alike, np.repeat(np.arange(40), 3 * copies), centres).clean.fdr)


def test_shuffled_labels_spoil_every_metric_but_the_angles():
    clean, adversarial, labels, _ = random_problem(samples=600, classes=3)
    centres = np.stack([clean[labels == j].astype(np.float64).mean(0) for j in range(3)])
    right = measure(clean, adversarial, labels, centres)
    shuffled = np.random.default_rng(5).permutation(labels)
    wrong = measure(clean, adversarial, shuffled, centres)
    np.testing.assert_allclose(numbers(wrong)[:3], equations(clean, shuffled, centres), rtol=1e-10)
    # With labels at random a class mean of N_j samples lies about v / N_j (1 - N_j / N) from the overall one, v the
    # variance: within over between is near N_j / (1 - 1/3) = 300 for each of three classes.
    assert 600 < wrong.clean.fdr < 1800
    assert wrong.clean.afs > 20 * right.clean.afs
    assert wrong.clean.scr < right.clean.scr
    assert wrong.min_separation == right.min_separation


def test_a_zero_feature_and_a_zero_class_mean_have_cosine_zero():
    # Class 0: (0, 0) and (2, 0), mean (1, 0); class 1: (0, 1); overall (2/3, 1/3).
    features, labels = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1])
    found = measure(features, features, labels, np.eye(2))
    below = 2 * (1 - 2 / math.sqrt(5)) + (1 - 1 / math.sqrt(5))
    assert found.clean.afs == pytest.approx(1 / below, rel=1e-12)
    # Class 0: (1, 0) and (-1, 0), mean 0; class 1: (0, 2), overall (0, 2/3).
    features = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    found = measure(features, features, labels, np.eye(2))
    assert found.clean.afs == pytest.approx((1 + 1) / (2 * 1 + 0), rel=1e-12)


def test_a_class_without_samples_is_left_out_and_stays_a_rival():
    clean, adversarial, labels, centres = random_problem(classes=4)
    extended = np.concatenate((centres, centres[:1] + 0.01))
    found = measure(clean, adversarial, labels, extended)
    fdr, afs, _ = equations(clean, labels, centres)
    assert found.classes == 4
    assert (found.clean.fdr, found.clean.afs) == (pytest.approx(fdr, rel=1e-12), pytest.approx(afs, rel=1e-12))
    gaps = [min(np.linalg.norm(extended[k] - extended[j]) for k in range(5) if k != j) for j in range(4)]
    spreads = [np.linalg.norm(clean[labels == j] - centres[j], axis=1).mean() for j in range(4)]
    assert gaps[0] == pytest.approx(0.01 * math.sqrt(12))
    assert found.clean.scr == pytest.approx(np.mean(np.array(gaps) / spreads), rel=1e-12)


def test_a_class_of_one_sample_has_no_scatter():
    features = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    found = measure(features, features, np.array([0, 1]), 2 * np.eye(2))
    assert (found.samples, found.clean.fdr) == (2, 0.0)
    assert found.clean.scr == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize(("samples", "text"), [(0, "0 samples of 0 classes"), (1, "1 samples of 1 class:")])
def test_fewer_than_two_classes_are_refused(samples, text):
    ones = np.ones((samples, 3))
    refusal(lambda: measure(ones, ones, np.zeros(samples, dtype=np.int64), np.eye(3)), text)


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("kind", ["clean", "adversarial"])
def test_features_that_are_no_numbers_are_named_and_leave_no_trace(value, shown, kind):
    clean, adversarial, labels, centres = random_problem(samples=40)
    gathered = FeatureAccumulator(torch.as_tensor(centres))
    gathered.add(*(torch.as_tensor(values) for values in (clean, adversarial, labels)))
    before = gathered.finish()
    broken = {"clean": clean.copy(), "adversarial": adversarial.copy()}
    broken[kind][3, 2] = value
    given = [torch.as_tensor(values) for values in (*broken.values(), labels)]
    refusal(lambda: gathered.add(*given), f"{kind} features of sample 43 (class {labels[3]}) hold {shown}:")
    assert gathered.finish() == before


def test_what_does_not_fit_is_one_line():
    for features, labels, text in ((3, [0, 1], "3 numbers and class centres 4"), (4, [0, 4], "label 4 is not in 0..3")):
        refusal(lambda f=features, y=labels: measure(np.ones((2, f)), np.ones((2, f)), np.array(y), np.eye(4)), text)
    for centres, text in (
        (torch.ones(1, 3), "1 class centres"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "class 1 has length 0.0"),
        (torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), "class 0 has length nan"),
    ):
        refusal(lambda centres=centres: FeatureAccumulator(centres), text)


def test_gradients_and_half_precision_pass():
    clean, adversarial, labels, centres = random_problem()
    halves = (torch.as_tensor(values).bfloat16() for values in (clean, adversarial))
    first, second = (value.requires_grad_() for value in halves)
    gathered = FeatureAccumulator(torch.as_tensor(centres).requires_grad_())
    gathered.add(first, second, torch.as_tensor(labels))
    expected = equations(first.detach().double().numpy(), labels, centres)
    np.testing.assert_allclose(numbers(gathered.finish())[:3], expected, rtol=1e-12)


class LargestAllocation(TorchDispatchMode):
    """Bytes of the largest storage made by any operation."""

    def __init__(self):
        super().__init__()
        self.known, self.size = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self.known.add(tensor.untyped_storage().data_ptr())
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return made


def test_thousands_of_samples_of_640_numbers_at_once_take_little_memory():
    rng = np.random.default_rng(0)
    labels = torch.arange(3000) % 100
    features = torch.as_tensor(rng.standard_normal((3000, 640), dtype=np.float32))
    features += 3 * torch.eye(100, 640)[labels]
    gathered = FeatureAccumulator(torch.eye(100, 640))
    with LargestAllocation() as largest:
        gathered.add(features, features, labels)
    assert largest.size == 1024 * 640 * 8
    assert gathered.finish().classes == 100
