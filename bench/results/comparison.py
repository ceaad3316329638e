"""Results on the same samples, compared sample by sample.

Two models meet the same images, so most of the luck of the draw is shared by both and says nothing about which is
better. The samples on which they differ do: those only the first has right, and those only the second.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.errors import BenchError, unknown_name
from bench.results.estimates import Counts, Numbers, differences
from bench.results.file import EvaluationResult, canonical_json
from bench.results.metrics import Convention, PerSample, columns, corruption_columns, one_draw

_SIZE = "number of samples"


@dataclass(frozen=True)
class PairedDifference:
    """Two results in one column."""

    accuracies: tuple[float, float]
    """Of the first and of the second, in percent."""
    only_first: int
    """Samples that only the first has right; of corrupted versions, those of which it has more right."""
    only_second: int
    difference: float
    """First minus second, in points."""
    interval: tuple[float, float]
    """Of 95 %, for the difference, in points; as `bench.results.estimates` has it."""
    p_value: float
    """Exact McNemar test of equal accuracy; over corrupted versions the test that goes with the interval."""
    holm_p_value: float
    """The same, corrected for the number of results that the first is compared with."""


def compare(
    names: Sequence[str],
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    titles: Sequence[str] | None = None,
) -> list[dict[str, PairedDifference]]:
    """The first result against each of the others, in their order, by column (None: all).

    Columns are those of `metrics.columns`, or of `metrics.corruption_columns`. Holm's correction runs over the
    comparisons, for each column on its own; the intervals are not corrected.

    Raises:
        BenchError: fewer than two results or samples, results that do not compare, or no column has such a title.
    """
    outcomes = _comparable_columns(names, results, convention, titles or ())
    comparisons: list[dict[str, PairedDifference]] = [{} for _ in results[1:]]
    for title in outcomes[0] if titles is None else dict.fromkeys(titles):
        found = [paired_difference(outcomes[0][title], other[title]) for other in outcomes[1:]]
        corrected = holm([difference.p_value for difference in found])
        for comparison, difference, p_value in zip(comparisons, found, corrected, strict=True):
            comparison[title] = replace(difference, holm_p_value=float(p_value))
    return comparisons


def compare_by_class(
    names: Sequence[str], results: Sequence[EvaluationResult], title: str, convention: Convention = "any"
) -> list[dict[int, PairedDifference]]:
    """The first result against each of the others in one column, by true class, of those that samples have.

    Holm's correction runs over all classes of all comparisons, which are read together.

    Raises:
        BenchError: as `compare`.
    """
    outcomes = [columns[title] for columns in _comparable_columns(names, results, convention, [title])]
    places = {int(number): results[0].label == number for number in np.unique(results[0].label)}
    found = [
        {number: paired_difference(outcomes[0][place], other[place]) for number, place in places.items()}
        for other in outcomes[1:]
    ]
    corrected = iter(holm([difference.p_value for one in found for difference in one.values()]).tolist())
    return [
        {number: replace(difference, holm_p_value=next(corrected)) for number, difference in one.items()}
        for one in found
    ]


def _comparable_columns(
    names: Sequence[str], results: Sequence[EvaluationResult], convention: Convention, titles: Sequence[str]
) -> list[dict[str, PerSample]]:
    """Outcomes by column title of each result, where the results compare and have columns of these titles."""
    if len(results) < 2:
        raise BenchError(f"{len(results)} result is nothing to compare. Give at least two result files.")
    refuse_mixture(names, results)
    if len(results[0].label) < 2:
        raise BenchError(f"a sample count of {len(results[0].label)} is too small to compare. Evaluate at least two.")
    outcomes = [
        corruption_columns(one) if one.corruptions else {**columns(one, convention), **one_draw(one)} for one in results
    ]
    for title in titles:
        if title not in outcomes[0]:
            raise unknown_name("column", title, outcomes[0])
    return outcomes


def paired_difference(first: PerSample, second: PerSample) -> PairedDifference:
    """Two results in one column, as the only comparison: right or wrong per sample, or shares of versions.

    The interval is Bonett and Price's; of the 95 % they promise, at least 93 hold down to one differing sample in a
    hundred, which a bootstrap of the same samples does not.
    """
    change = first * 1.0 - second * 1.0
    only_first, only_second = int((change > 0).sum()), int((change < 0).sum())
    estimate = differences([first[None], second[None]])
    low, high = (100 * float(end[0, 1]) for end in estimate.interval(-1.0, 1.0))
    p_value = float(mcnemar_p_value(only_first, only_second) if first.dtype == bool else estimate.p_value()[0, 1])
    return PairedDifference(
        accuracies=(100 * float(first.mean()), 100 * float(second.mean())),
        only_first=only_first,
        only_second=only_second,
        difference=100 * float(change.sum()) / change.size,
        interval=(low, high),
        p_value=p_value,
        holm_p_value=p_value,
    )


def mcnemar_p_value(only_first: int | Counts, only_second: int | Counts) -> Numbers:
    """Exact test of equal accuracy on the same samples (McNemar 1947, https://doi.org/10.1007/BF02295996).

    Were the two models equally good, a sample that one alone has right would fall to either with probability 1/2.
    """
    from scipy.special import bdtr

    fewer = np.minimum(only_first, only_second)
    return np.asarray(np.minimum(2 * bdtr(fewer, np.add(only_first, only_second), 0.5), 1))


def refuse_mixture(names: Sequence[str], results: Sequence[EvaluationResult]) -> None:
    """Refuse results that do not share suite, data, samples and attacks; the error says what differs first."""
    first = _comparable(results[0])
    for name, result in zip(names[1:], results[1:], strict=True):
        other = _comparable(result)
        for fact in [*first, *(other.keys() - first.keys())]:
            if first.get(fact) != other.get(fact):
                way_out = "Make one table for each; `bench leaderboard FILES --out board.html` shows them on one page."
                raise BenchError(
                    f"{names[0]!r} and {name!r} do not compare: {fact} is {first.get(fact, 'not set')} for the first "
                    f"and {other.get(fact, 'not set')} for the second. "
                    + ("Evaluate both with the same --limit." if fact == _SIZE else way_out)
                )


def groups_that_compare(results: Sequence[EvaluationResult]) -> list[list[EvaluationResult]]:
    """Results by what they must share to be in one table, in the order of their first ones."""
    groups: dict[str, list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault(canonical_json("facts", _comparable(result)), []).append(result)
    return list(groups.values())


def corrupted_set(result: EvaluationResult) -> Mapping[str, Any]:
    """The file's facts of the corrupted images: `name`, `generated`, `generator`, `digest`; empty where none."""
    return dict(result.run.get("corruptions", {}))


def _comparable(result: EvaluationResult) -> dict[str, str]:
    """Facts that results which compare must share, as JSON by name, in the order in which to report them."""
    samples = hashlib.sha256(result.index.tobytes() + result.label.tobytes()).hexdigest()[:12]
    facts: dict[str, Any] = {
        "suite": result.suite.get("name"),
        "suite version": result.suite.get("version"),
        "suite threat": result.suite.get("threat"),
        "dataset": result.run.get("dataset"),
        _SIZE: len(result.label),
        "dataset digest": result.run.get("dataset_digest"),
        "sample set (digest of index and label)": samples,
        "list of attacks": list(result.attacks),
        "list of derived columns": result.suite.get("derived", []),
    }
    if result.corruptions:
        given = corrupted_set(result)
        facts["set of corrupted images"] = [given.get(key) for key in ("name", "generated", "digest")]
        facts["list of corruptions"] = list(result.corruptions)
    for label, record in result.attacks.items():
        facts[f"attack of column {label!r}"] = record.attack
        facts[f"threat model of column {label!r}"] = f"{record.norm} {record.epsilon}"
        # Each defense may have its own adaptive loss: tables note which, and compare all the same.
        for name, value in record.shared.items():
            facts[f"parameter {name!r} of column {label!r}"] = value
    return {name: canonical_json(name, value) for name, value in facts.items()}


def holm(p_values: Sequence[float] | Numbers) -> Numbers:
    """p-values of tests that are read together, corrected (Holm 1979, https://www.jstor.org/stable/4615733).

    As `statsmodels.stats.multitest.multipletests` does, which collects garbage for 0.3 s each time.
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given)
    corrected = np.empty_like(given)
    corrected[order] = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    return np.minimum(corrected, 1)
