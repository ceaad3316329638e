"""Results on the same samples, compared sample by sample.

Two models meet the same images, so most of the luck of the draw is shared by both and says nothing about which is
better. What does are the samples on which they differ: those only the first has right, and those only the second.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import Float

from bench.errors import BenchError, unknown_name
from bench.metrics import Convention, Outcomes, PerSample, columns, corruption_columns
from bench.results import EvaluationResult, canonical_json

SIGNIFICANCE = 0.05
"""Two rows are told apart where the p-value is below this."""

_RESAMPLES = 9999
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
    """95 % bootstrap interval of the difference, in points."""
    p_value: float
    """Exact McNemar test of equal accuracy; paired t-test of equal means over corrupted versions."""
    holm_p_value: float
    """The same, corrected for the number of results that the first is compared with."""


def compare(
    names: Sequence[str],
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    titles: Sequence[str] | None = None,
) -> list[dict[str, PairedDifference]]:
    """The first result against each of the others, in their order, by column (None: all).

    Columns are those of `metrics.columns`, or of `metrics.corruption_columns`.

    Holm's correction (1979, https://www.jstor.org/stable/4615733) runs over the comparisons, for each column on its
    own; the intervals are not corrected.

    Raises:
        BenchError: fewer than two results or samples, results that do not compare, or no column has such a title.
    """
    if len(results) < 2:
        raise BenchError(f"{len(results)} result is nothing to compare. Give at least two result files.")
    refuse_mixture(names, results)
    if len(results[0].label) < 2:
        raise BenchError(f"a sample count of {len(results[0].label)} is too small to compare. Evaluate at least two.")
    outcomes = [corruption_columns(one) if one.corruptions else columns(one, convention) for one in results]
    for title in titles or ():
        if title not in outcomes[0]:
            raise unknown_name("column", title, outcomes[0])
    comparisons: list[dict[str, PairedDifference]] = [{} for _ in results[1:]]
    for title in outcomes[0] if titles is None else dict.fromkeys(titles):
        differences = [paired_difference(outcomes[0][title], other[title]) for other in outcomes[1:]]
        corrected = _holm([difference.p_value for difference in differences])
        for comparison, difference, p_value in zip(comparisons, differences, corrected, strict=True):
            comparison[title] = replace(difference, holm_p_value=p_value)
    return comparisons


def paired_difference(first: PerSample, second: PerSample) -> PairedDifference:
    """Two results in one column, as the only comparison; at least two samples, right or wrong, or shares of versions.

    The interval is that of the percentile bootstrap, 9,999 resamples of the pairs from a fixed seed. It has no width
    where the two never differ, and then understates what more samples could show.
    """
    from scipy.stats import bootstrap

    change = first * 1.0 - second * 1.0  # resampling pairs is resampling their differences
    bounds = bootstrap((change,), np.mean, n_resamples=_RESAMPLES, batch=1000, method="percentile", rng=0)
    low, high = bounds.confidence_interval
    p_value = mcnemar_p_value(first, second) if first.dtype == bool else t_test_p_value(change)
    return PairedDifference(
        accuracies=(100 * float(first.mean()), 100 * float(second.mean())),
        only_first=int((change > 0).sum()),
        only_second=int((change < 0).sum()),
        difference=100 * float(change.sum()) / change.size,
        interval=(100 * float(low), 100 * float(high)),
        p_value=p_value,
        holm_p_value=p_value,
    )


def mcnemar_p_value(first: Outcomes, second: Outcomes) -> float:
    """Exact test of equal accuracy on the same samples (McNemar 1947, https://doi.org/10.1007/BF02295996).

    Were the two models equally good, a sample that one alone has right would fall to either with probability 1/2.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
    return float(mcnemar(table, exact=True).pvalue)


def t_test_p_value(differences: Float[np.ndarray, " sample"]) -> float:
    """Student's test that paired differences, of at least two samples, have mean 0.

    1 where all are 0; 0 where all are another value, as the limit of ever smaller spreads.
    """
    from scipy.stats import ttest_1samp

    if not np.ptp(differences):
        return float(not differences[0])
    return float(ttest_1samp(differences, 0).pvalue)


def welch_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Test of equal means, for at least two values each (Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28).

    1 where all values are the same; 0 where only the means differ, as the limit of ever smaller spreads.
    """
    from scipy.stats import ttest_ind_from_stats

    moments = [moment for values in (first, second) for moment in (mean(values), stdev(values), len(values))]
    p_value = float(ttest_ind_from_stats(*moments, equal_var=False).pvalue)
    return 1.0 if np.isnan(p_value) else p_value


def refuse_mixture(names: Sequence[str], results: Sequence[EvaluationResult]) -> None:
    """Nothing, where results share suite, data, samples and attacks.

    Raises:
        BenchError: they do not; says what differs first.
    """
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
    """What the file says of the corrupted images: `name`, `generated`, `generator`, `digest`; empty where nothing."""
    return dict(result.run.get("corruptions", {}))


def _comparable(result: EvaluationResult) -> dict[str, str]:
    """What results that compare must share, as JSON by name, in the order in which to report it."""
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


def _holm(p_values: Sequence[float]) -> list[float]:
    from statsmodels.stats.multitest import multipletests

    return [float(p_value) for p_value in multipletests(p_values, method="holm")[1]]
