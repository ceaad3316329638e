"""What averaged weights and weight perturbation change: each against plain training from the same seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from bench.leaderboard.render.markdown import bare_table
from bench.leaderboard.wording.intervals import difference_text
from bench.results.estimates import Estimate, Seeds, unbounded_estimate
from bench.results.file import EvaluationResult
from bench.results.metrics import columns

TITLES = ("Clean", "AutoAttack")
Way: TypeAlias = tuple[float, str]
"""How weights were made: the length of the weight perturbation, and `last` or `average`."""
PLAIN: Way = (0.0, "last")


def effects_table(results: Sequence[EvaluationResult]) -> str:
    """A row for each network, defense and way: means over seeds, and the difference from the plain way.

    Results are of the same seeds for every way of a defense, and on the same samples.
    """
    methods: dict[tuple[str, str], dict[Way, list[EvaluationResult]]] = {}
    for result in sorted(results, key=lambda one: int(one.run["seed"])):
        method = str(result.run["backbone"]), str(result.run["defense"])
        way = float(result.run["protocol"].get("awp", 0.0)), str(result.run.get("weights", "last"))
        methods.setdefault(method, {}).setdefault(way, []).append(result)
    headers = ["Network", "Defense", "AWP", "Weights", *(text for title in TITLES for text in (title, "Difference"))]
    return bare_table(headers, [row for method, ways in sorted(methods.items()) for row in _rows(method, ways)])


def _rows(method: tuple[str, str], ways: Mapping[Way, Sequence[EvaluationResult]]) -> Iterator[list[str]]:
    for way in sorted(ways, key=lambda one: (one[0], one[1] != "last")):
        cells = []
        for title in TITLES:
            ours, plain = outcomes(ways[way], title), outcomes(ways[PLAIN], title)
            cells += [f"{100 * ours.mean():.1f}", "" if way == PLAIN else _difference(paired_by_seed(ours, plain))]
        yield [*method, f"{way[0]:g}" if way[0] else "", way[1], *cells]


def outcomes(results: Iterable[EvaluationResult], title: str) -> Seeds:
    """A row of outcomes for each result, in the order given."""
    return np.stack([columns(result)[title] for result in results])


def paired_by_seed(first: Seeds, second: Seeds) -> Estimate:
    """The mean difference of two models, in points; rows have the same seeds, columns the same samples."""
    return unbounded_estimate(100.0 * first - 100.0 * second)


def _difference(found: Estimate) -> str:
    low, high = map(float, found.interval(-100.0, 100.0))
    return difference_text(float(found.value), (low, high), float(found.p_value()))
