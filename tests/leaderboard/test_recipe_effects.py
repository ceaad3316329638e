"""What recipes change, worked out by hand: differences within seeds."""

import numpy as np
import pytest

from bench.leaderboard.paper import recipe_effects
from bench.leaderboard.paper.recipe_effects import effects_table, paired_by_seed
from tests.support.example_results import example, predictions, with_attack, with_run
from tests.support.markdown_tables import cells


def test_a_difference_has_the_error_of_seeds_and_of_images():
    """One of four images is gained, by one of two seeds: 50 points of that image, 25 of that seed."""
    first = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    second = np.array([[0, 1, 0, 0], [1, 0, 0, 0]], bool)
    found = paired_by_seed(first, second)
    assert found.value == pytest.approx(12.5)
    assert found.seeds == pytest.approx(np.var([25, 0], ddof=1) / 2)
    assert found.samples == pytest.approx(np.var([50, 0, 0, 0], ddof=1) / 4)
    assert found.degrees == 1


def test_every_way_is_compared_with_plain_training_of_its_own_defense(monkeypatch):
    monkeypatch.setattr(recipe_effects, "TITLES", ("Clean", "FGSM"))

    def result(defense, seed, count, awp=0.0, **way):
        found = with_attack(example(), "FGSM", prediction=predictions(*range(count)))
        protocol = {"awp": awp} if awp else {}
        return with_run(found, defense=defense, seed=seed, backbone="net", protocol=protocol, **way)

    results = [result("at", seed, count) for seed, count in ((0, 2), (1, 4))]
    results += [result("at", seed, count, awp=0.005, weights="average") for seed, count in ((1, 6), (0, 4))]
    results += [result("trades", seed, 8) for seed in (0, 1)]
    _, plain, averaged, other = cells(effects_table(results))
    assert plain == ["net", "at", "", "last", "80.0", "", "30.0", ""]
    assert averaged[:5] == ["net", "at", "0.005", "average", "80.0"] and averaged[6] == "50.0"
    assert averaged[5] == "+0.0 [+0.0, +0.0], p = 1"
    # Both seeds gain 20 points, on images of their own, so that images alone leave an error.
    gains = [50.0] * 4 + [0.0] * 6
    half = 1.959964 * np.std(gains, ddof=1) / np.sqrt(10)
    assert averaged[7].startswith(f"+20.0 [{20 - half:+.1f}, {20 + half:+.1f}], p = ")
    assert other[:4] == ["net", "trades", "", "last"] and other[6] == "80.0"
