"""Intervals over test images and training seeds: by hand, and how often they hold the truth where it is known."""

import numpy as np
import pytest
from scipy.stats import norm, t

from bench.results.estimates import Estimate, differences, mean_estimate, unbounded_estimate

Z = 1.959963984540054


def rows(*counts: int, samples: int = 10) -> np.ndarray:
    """A row of seeds: of each, the first so many samples are right."""
    return np.stack([np.arange(samples) < count for count in counts])


def test_one_seed_is_agresti_and_coulls_interval() -> None:
    # 8 of 10, and 2 of 4 more: 10 / 14 -+ z sqrt(10 / 14 * 4 / 14 / 14)
    low, high = mean_estimate(rows(8)).interval(0.0, 1.0)
    half = Z * (40 / 14**3) ** 0.5
    assert (low, high) == pytest.approx((10 / 14 - half, 10 / 14 + half))
    assert mean_estimate(rows(0)).interval(0.0, 1.0)[0] == 0


def test_the_halves_of_seeds_and_of_samples_are_squared_and_added() -> None:
    # Means 0.5 and 0.1 of two seeds: their standard error is 0.2, and t(0.975, 1) is 12.7062.
    found = mean_estimate(rows(5, 1))
    means = np.array([1, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0])
    assert float(found.value) == pytest.approx(means.mean())
    assert float(found.half_width()) == pytest.approx(np.hypot(12.7062 * 0.2, Z * means.std() / 14**0.5), abs=1e-4)


def test_a_difference_over_seeds_is_welchs_beside_that_of_samples() -> None:
    first, second = rows(80, 82, samples=100), rows(70, 72, samples=100)
    found = differences([first, second])
    change = np.r_[first.mean(axis=0) - second.mean(axis=0), 1, -1]
    assert found.value[0, 1] == pytest.approx(change.mean()) and found.value[1, 0] == -found.value[0, 1]
    assert found.samples[0, 1] == pytest.approx(change.var() / 102)
    # Standard errors 0.01 and 0.01 of one degree each: two degrees.
    assert (found.seeds[0, 1], found.degrees[0, 1]) == (pytest.approx(2e-4), pytest.approx(2))
    half = np.hypot(t.ppf(0.975, 2) * 0.02**0.5 / 10, Z * found.samples[0, 1] ** 0.5)
    assert found.half_width()[0, 1] == pytest.approx(half)


def test_a_p_value_is_the_level_at_which_the_interval_ends_at_zero() -> None:
    zero, one = np.array(0.0), np.array(1.0)
    by_samples = Estimate(np.array(2.5), one, zero, one)
    assert float(by_samples.p_value()) == pytest.approx(2 * norm.sf(2.5), rel=1e-9)
    by_seeds = Estimate(np.array(-2.5), zero, one, np.array(4.0))
    assert float(by_seeds.p_value()) == pytest.approx(2 * t.sf(2.5, 4), rel=1e-9)
    both = Estimate(np.array([3.0, -3.0, 0.0]), np.ones(3), np.ones(3), np.full(3, 2.0))
    p_values = both.p_value()
    assert both.half_width(p_values[0])[0] == pytest.approx(3)
    assert (p_values[0], p_values[2]) == (p_values[1], 1)


def test_losses_have_no_image_added() -> None:
    # Variance 10 / 9, and one value has none.
    found = unbounded_estimate(np.array([[0.0, 2.0] * 5]))
    assert (float(found.value), float(found.samples)) == (1, pytest.approx(1 / 9))
    assert float(unbounded_estimate(np.array([[3.0]])).half_width()) == 0


@pytest.mark.parametrize(
    ("mean", "images", "seeds", "noise"),
    [(1, 1, 0.02, 0.3), (0.5, 1, 0.2, 0.3), (0, 1, 0, 0.2), (0, 0, 0, 1), (-2.5, 1, 0.3, 0.3), (-3.5, 1, 0, 1)],
    ids=["images", "seeds", "equal seeds", "coins", "few right", "hardly any right"],
)
def test_the_interval_of_a_mean_over_three_seeds_holds_the_truth(mean, images, seeds, noise) -> None:
    """An image is right where the sum of its own, its seed's and their common luck is above 0: a probit."""
    draws = np.random.default_rng(1)
    count = (400, 3, 200)
    luck = mean + images * draws.standard_normal((400, 1, 200)) + seeds * draws.standard_normal((400, 3, 1))
    outcomes = luck + noise * draws.standard_normal(count) > 0
    truth = norm.cdf(mean / np.sqrt(images**2 + seeds**2 + noise**2))
    intervals = np.array([mean_estimate(one).interval(0.0, 1.0) for one in outcomes])
    assert np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])) >= 0.93
