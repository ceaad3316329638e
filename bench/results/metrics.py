"""Accuracies, derived from stored outcomes. A sample is robust only when it is right clean and under attack.

A label names an attack of the suite or one of its derived columns (`worst_of` several attacks).
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int16

from bench.catalogue.corruption_names import ALL_CORRUPTIONS, COMMON_CORRUPTIONS
from bench.errors import BenchError, unknown_name
from bench.results.file import AttackRecord, CorruptionRecord, EvaluationResult

Convention: TypeAlias = Literal["any", "final"]
"""`any`: an adversarial image found anywhere on the way breaks a sample. `final`: only the one returned does."""

Outcomes: TypeAlias = Bool[np.ndarray, " sample"]
PerSample: TypeAlias = Bool[np.ndarray, " sample"] | Float[np.ndarray, " sample"]
"""Right or not, or the share of a sample's corrupted versions that are right."""

CLEAN = "Clean"
WORST_CASE = "Worst case"
PAPER_MEAN = "Avg Acc 19"
"""Over nineteen corruptions: the Adv-DPNP paper, Table 5."""
ROBUSTBENCH_MEAN = "mCA 15"
"""Over the fifteen that RobustBench averages."""


def correct(result: EvaluationResult, label: str | None = None, convention: Convention = "any") -> Outcomes:
    """Per sample: right on the clean image (label None), or right clean and under what the label names.

    Raises:
        BenchError: no attack or derived column has this label.
    """
    clean = result.clean_prediction == result.label
    if label is None:
        return clean
    derived = derived_columns(result)
    if label in derived:
        return worst_case(result, derived[label], convention)
    return clean & (predictions(result, label, convention) == result.label)


def predictions(result: EvaluationResult, label: str, convention: Convention = "any") -> Int16[np.ndarray, " sample"]:
    """Per sample: the class that the image counting as an attack's outcome is given.

    Raises:
        BenchError: no attack has this label, or the convention was not measured.
    """
    if label not in result.attacks:
        raise unknown_name("column", label, [*result.attacks, *derived_columns(result)])
    record = result.attacks[label]
    prediction = {"any": record.prediction, "final": record.final_prediction}[convention]
    if prediction is None:
        raise BenchError(f"{label} was evaluated under the convention `any` only. Evaluate with --convention final.")
    return prediction


def one_draw(result: EvaluationResult) -> dict[str, PerSample]:
    """Per sample the share of draws that are right, in [0, 1], by column title; none where the model is not random.

    Clean and under each attack, on its last image; of the worst case, the lowest share of these.
    """
    if result.clean_right_draws is None or result.draws is None:
        return {}
    counts = {CLEAN: result.clean_right_draws}
    counts |= {record.label: record.right_draws for record in result.attacks.values() if record.right_draws is not None}
    shares = {label: count / result.draws for label, count in counts.items()}
    worst = {
        title: np.min([shares[label] for label in (CLEAN, *held)], axis=0)
        for title, held in worst_cases(result).items()
    }
    return {f"{title}: one draw": share for title, share in {CLEAN: shares[CLEAN], **worst, **shares}.items()}


def worst_case(
    result: EvaluationResult, labels: Iterable[str] | None = None, convention: Convention = "any"
) -> Outcomes:
    """Per sample: right clean and under every named attack (default: every attack of the suite)."""
    outcomes = correct(result)
    for label in result.attacks if labels is None else labels:
        outcomes = outcomes & correct(result, label, convention)
    return outcomes


def clean_accuracy(result: EvaluationResult) -> float:
    """Share of samples that are right on the clean image, in [0, 1]."""
    return _share(correct(result))


def robust_accuracy(result: EvaluationResult, label: str, convention: Convention = "any") -> float:
    """Share of all samples that are right clean and under what the label names, in [0, 1]."""
    return _share(correct(result, label, convention))


def worst_case_accuracy(
    result: EvaluationResult, labels: Iterable[str] | None = None, convention: Convention = "any"
) -> float:
    """Share of samples that are right clean and under every named attack (default: all), in [0, 1]."""
    return _share(worst_case(result, labels, convention))


def main_autoattack(result: EvaluationResult) -> AttackRecord | None:
    """The first AutoAttack cell under the suite's main threat model."""
    main = main_threat(result)
    matching = (record for record in result.attacks.values() if (record.norm, record.epsilon) == main)
    return next((record for record in matching if record.attack == "autoattack"), None)


def main_threat(result: EvaluationResult) -> tuple[Any, Any] | None:
    """Norm and radius that `suite["threat"]` states, else those of the suite's first attack; None: it has no attack."""
    stated = result.suite.get("threat")
    if isinstance(stated, Mapping):
        return stated.get("norm"), stated.get("epsilon")
    return next(((record.norm, record.epsilon) for record in result.attacks.values()), None)


def worst_cases(result: EvaluationResult) -> dict[str, list[str]]:
    """Attacks by title of the column that combines them: those in the main norm, and all, in all norms.

    A union over norms is shown only where a cascade of attacks ran in each: what PGD alone leaves under l1 or l2 is
    several points too high, and the union with it.
    """
    attacks = result.attacks
    main = main_threat(result)
    if main is None or all(record.norm == main[0] for record in attacks.values()):
        return {WORST_CASE: list(attacks)}
    cascaded = {record.norm for record in attacks.values() if record.stage is not None}
    union = {WORST_CASE: list(attacks)} if {record.norm for record in attacks.values()} == cascaded else {}
    inside = [label for label, record in attacks.items() if record.norm == main[0]]
    return {**union, **({f"{WORST_CASE} ({main[0]})": inside} if inside else {})}


def members(result: EvaluationResult) -> dict[str, list[str]]:
    """Attack labels by title of the column that shows them: each attack alone, the worst cases, derived columns."""
    return {**{label: [label] for label in result.attacks}, **worst_cases(result), **derived_columns(result)}


def columns(result: EvaluationResult, convention: Convention = "any") -> dict[str, Outcomes]:
    """Outcomes by column title: Clean, the worst cases, each attack in the suite's order, derived columns.

    Raises:
        BenchError: two columns have the same title, or a derived column is malformed.
    """
    worst = worst_cases(result)
    labels = [*result.attacks, *derived_columns(result)]
    titles = [CLEAN, *worst, *labels]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise BenchError(f"the suite has two columns {twice[0]!r}. Give each column a label of its own.")
    vectors = [correct(result, label, convention) for label in labels]
    cases = [worst_case(result, members, convention) for members in worst.values()]
    return dict(zip(titles, [correct(result), *cases, *vectors], strict=True))


def severity_accuracies(result: EvaluationResult) -> dict[int, float]:
    """By severity: the mean of accuracies over all corruptions of the result, in [0, 1]. Figure 3 of the paper."""
    return {
        severity: _mean([shown for shown in result.corruptions.values() if shown.severity == severity], result)
        for severity in sorted({shown.severity for shown in result.corruptions.values()})
    }


def corruption_columns(result: EvaluationResult) -> dict[str, PerSample]:
    """Per sample the share of its corrupted versions that are right, in [0, 1], by column title.

    The mean over all corruptions first, by its name if it has one, other means that have one, Clean, each severity.

    Raises:
        BenchError: the severities are unequal, or there is no corruption.
    """
    every = _records(result, None)
    if not every:
        raise BenchError(f"{result.run.get('model')!r} has corruptions of unequal severities, or none. Evaluate again.")
    named = _named_records(result)
    severities = sorted({shown.severity for shown in every})
    records = {
        **({} if PAPER_MEAN in named else {f"Avg Acc {len({shown.corruption for shown in every})}": every}),
        **named,
        CLEAN: [],
        **{f"Severity {severity}": [one for one in every if one.severity == severity] for severity in severities},
    }
    return {
        title: np.mean([one.prediction == result.label for one in shown], axis=0) if shown else correct(result)
        for title, shown in records.items()
    }


def _named_records(result: EvaluationResult) -> dict[str, list[CorruptionRecord]]:
    named = {PAPER_MEAN: _records(result, ALL_CORRUPTIONS), ROBUSTBENCH_MEAN: _records(result, COMMON_CORRUPTIONS)}
    return {title: shown for title, shown in named.items() if shown}


def _records(result: EvaluationResult, corruptions: Collection[str] | None) -> list[CorruptionRecord]:
    """Those of some corruptions (None: all of the result); none where any is missing at a severity."""
    wanted = {shown.corruption for shown in result.corruptions.values()} if corruptions is None else set(corruptions)
    shown = [shown for shown in result.corruptions.values() if shown.corruption in wanted]
    severities = {one.severity for one in shown}
    return shown if len(shown) == len(wanted) * len(severities) else []


def _mean(shown: Collection[CorruptionRecord], result: EvaluationResult) -> float:
    accuracies = [_share(record.prediction == result.label) for record in shown]
    return sum(accuracies) / len(accuracies)


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, in [0, 1] (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Raises:
        BenchError: total is below 1 or successes not in 0..total.
    """
    from scipy.special import ndtri

    if not 0 <= successes <= total or total < 1:
        raise BenchError(f"{successes} of {total} samples is not a proportion. Evaluate at least one sample.")
    share, square = successes / total, ndtri((1 + confidence) / 2) ** 2
    middle = (2 * successes + square) / (2 * (total + square))
    half = (square * (4 * successes * (1 - share) + square)) ** 0.5 / (2 * (total + square))
    # Exact at both ends, where rounding would leave 0 and 1 by a little.
    return float(middle - half if successes else 0.0), float(middle + half if successes < total else 1.0)


def _share(outcomes: Outcomes) -> float:
    if not outcomes.size:
        raise BenchError("the result has no samples. Evaluate at least one.")
    return float(outcomes.mean())


def derived_columns(result: EvaluationResult) -> dict[str, list[str]]:
    """Attack labels by the label of the derived column that combines them."""
    derived: dict[str, list[str]] = {}
    for column in result.suite.get("derived", []):
        label, members = column.get("label"), column.get("worst_of")
        if label is None or members is None or label in derived:
            raise BenchError(f'derived column {column!r} is not of the form {{"label": text, "worst_of": [texts]}}.')
        for member in members:
            if member not in result.attacks:
                raise unknown_name(f"attack of column {label!r}:", member, result.attacks)
        derived[label] = list(members)
    return derived
