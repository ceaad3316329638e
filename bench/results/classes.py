"""What stored outcomes say of each class, of how samples were mistaken, and of which attack broke what first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from bench.errors import BenchError, unknown_name
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention, Outcomes, PerSample, correct, predictions

WORST_SHARE = (3, 10)
"""Of the classes, those of lowest accuracy: three in ten, as in papers on fairness of adversarial training."""
_MOST_CLASSES = 1000
"""Of a table of confusions, whose size is their square."""


@dataclass(frozen=True)
class Confusion:
    """Samples by true class and by the class that the model takes them for."""

    true: tuple[int, ...]
    """Those that samples have, in ascending order."""
    predicted: tuple[int, ...]
    """These and those that predictions name, in ascending order; -1: no class."""
    counts: Int[np.ndarray, "true predicted"]


def of_class(result: EvaluationResult, number: int) -> Bool[np.ndarray, " sample"]:
    """Per sample: its true class is this one.

    Raises:
        BenchError: no sample is of that class.
    """
    found = result.label == number
    if not found.any():
        raise unknown_name("class", str(number), map(str, np.unique(result.label)))
    return np.asarray(found)


def class_accuracies(result: EvaluationResult, outcomes: PerSample) -> dict[int, float]:
    """Mean outcome in [0, 1] by true class, of those that samples have, in ascending order."""
    present, place, counts = np.unique(result.label, return_inverse=True, return_counts=True)
    means = np.bincount(place, outcomes) / counts
    return dict(zip(present.tolist(), means.tolist(), strict=True))


def worst_class(accuracies: Mapping[int, float]) -> int:
    """The class of lowest accuracy; of equal ones the first."""
    return min(accuracies, key=lambda number: (accuracies[number], number))


def worst_share_accuracy(accuracies: Mapping[int, float]) -> float:
    """Mean accuracy of the worst `WORST_SHARE` of the classes, rounded up to whole ones; every class counts equally."""
    above, below = WORST_SHARE
    count = -(-above * len(accuracies) // below)
    return float(np.mean(sorted(accuracies.values())[:count]))


def first_broken(
    result: EvaluationResult, labels: Iterable[str] | None = None, convention: Convention = "any"
) -> dict[str, Outcomes]:
    """Per sample: right clean and broken by this attack, and by none before it (default: every attack of the suite).

    Attacks are in the suite's order. No two of them have the same sample; together they have all that are broken.
    """
    standing = correct(result)
    found: dict[str, Outcomes] = {}
    for label in result.attacks if labels is None else labels:
        found[label] = standing & ~correct(result, label, convention)
        standing = standing & ~found[label]
    return found


def broken_by_stage(result: EvaluationResult, label: str, number: int) -> Outcomes:
    """Per sample: right clean and broken by this stage, from 1, of a cascade of attacks.

    Raises:
        BenchError: no attack has this label, or no stages are recorded of it.
    """
    broken = correct(result) & ~correct(result, label)
    stage = result.attacks[label].stage if label in result.attacks else None
    if stage is None:
        raise BenchError(f"no stages are recorded of {label!r}. Choose a cascade of attacks, such as AutoAttack.")
    return np.asarray(broken & (stage == number))


def worst_prediction(
    result: EvaluationResult, labels: Iterable[str] | None = None, convention: Convention = "any"
) -> Int[np.ndarray, " sample"]:
    """Per sample, the class that the first of the attacks which breaks it leads to; of one that stands, its label.

    A sample that is wrong already keeps the clean prediction. Default: every attack of the suite, in its order.
    """
    given = result.clean_prediction.copy()
    for label in result.attacks if labels is None else labels:
        open_still = given == result.label
        given[open_still] = predictions(result, label, convention)[open_still]
    return given


def confusion(result: EvaluationResult, prediction: Int[np.ndarray, " sample"]) -> Confusion:
    """Counts of samples by true class and by predicted class.

    Raises:
        BenchError: more than a thousand classes.
    """
    true, predicted = np.unique(result.label), np.unique([result.label, prediction])
    if len(predicted) > _MOST_CLASSES:
        raise BenchError(f"{len(predicted)} classes are too many for a table. Up to {_MOST_CLASSES} are shown.")
    counts = np.zeros((len(true), len(predicted)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(true, result.label), np.searchsorted(predicted, prediction)), 1)
    return Confusion(tuple(true.tolist()), tuple(predicted.tolist()), counts)
