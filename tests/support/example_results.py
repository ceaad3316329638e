"""Results of ten samples, small enough to work out every number by hand.

sample                0 1 2 3 4 5 6 7 8 9
right clean           x x x x x x x x . .    80 %
FGSM       any        x x x x x x . . x .    60 %, not 70: sample 8 is wrong clean
           final      x x x x x x x . x .    70 %
PGD-20     any        x x x x . . x . . .    50 %
           final      x x x x x . x . . .    60 %
AA         any, final x x . . x . . . . .    30 %
Ensemble   any        x x x x . . . . . .    40 %   FGSM and PGD-20
           final      x x x x x . x . . .    60 %
Worst case any        x x . . . . . . . .    20 %
           final      x x . . x . . . . .    30 %
Avg                   (80 + 30) / 2          55 %
"""

from dataclasses import replace
from typing import Any

import numpy as np

from bench.results.file import AttackRecord, CorruptionRecord, EvaluationResult, FeatureRecord

LABEL = np.arange(10, dtype=np.int16)
RUN = {
    "model": "AT",
    "defense": "at",
    "hyperparameters": {},
    "backbone": "resnet18",
    "protocol": {"epochs": 110, "batch_size": 128},
    "seed": 0,
    "versions": {"python": "3.11"},
    "device": "cpu",
    "dataset": "digits",
    "dataset_digest": "d" * 64,
    "checkpoint_digest": "c" * 64,
    "command": "bench eval at.pt",
    "created": "2026-01-01T00:00:00Z",
}
SUITE = {
    "name": "tiny",
    "version": 1,
    "threat": {"norm": "linf", "epsilon": "8/255"},
    "cells": [{"label": "FGSM"}, {"label": "PGD-20"}, {"label": "AA"}],
    "derived": [{"label": "Ensemble", "worst_of": ["FGSM", "PGD-20"]}],
}
FEATURES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 90.0, 80.0)


def predictions(*right: int) -> np.ndarray:
    """Right for these samples, off by one class for the others."""
    wrong = (LABEL + 1) % 10
    return np.where(np.isin(LABEL, right), LABEL, wrong).astype(np.int16)


def record(label: str, attack: str, found: tuple[int, ...], final: tuple[int, ...], **parameters: Any) -> AttackRecord:
    distance = np.full(10, 8 / 255, dtype=np.float32)
    prediction = predictions(*found)
    return AttackRecord(
        label, attack, parameters, "linf", "8/255", "default", prediction, predictions(*final), distance, seconds=1.5
    )


def example(**changes: Any) -> EvaluationResult:
    """The result of the table above; `changes` replace whole fields."""
    records = [
        record("FGSM", "fgsm", (0, 1, 2, 3, 4, 5, 8), (0, 1, 2, 3, 4, 5, 6, 8)),
        record("PGD-20", "pgd", (0, 1, 2, 3, 6), (0, 1, 2, 3, 4, 6), steps=20, step_size="2/255"),
        record("AA", "autoattack", (0, 1, 4), (0, 1, 4)),
    ]
    result = EvaluationResult(
        run=RUN,
        suite=SUITE,
        label=LABEL,
        index=np.arange(100, 110),
        clean_prediction=predictions(*range(8)),
        attacks={one.label: one for one in records},
        findings=({"name": "steps", "severity": "info", "message": "PGD converged"},),
    )
    return replace(result, **changes)


def probed(**changes: Any) -> EvaluationResult:
    """The example, as an evaluation whose probes looked at the model."""
    return with_run(example(**changes), evaluation={"probes": 64})


def robust(result: EvaluationResult, count: int, **run: Any) -> EvaluationResult:
    """`result`, right clean everywhere, and for the first so many samples under every attack."""
    changes = {"prediction": predictions(*range(count)), "final_prediction": predictions(*range(count))}
    for label in result.attacks:
        result = with_attack(result, label, **changes)
    return with_run(replace(result, clean_prediction=predictions(*range(10))), **run)


def with_distances() -> EvaluationResult:
    """The example at a radius of 1, broken at these distances; the nearest known are 0.5 0.2 0.1 0.1 0.4 0.2.

    sample   2    3    4    5    6    7
    FGSM                        0.4  0.2
    PGD-20             0.1  0.3      0.4
    AA       0.5  0.2       0.1  0.4  0.4
    """
    given = {
        "FGSM": {6: 0.4, 7: 0.2},
        "PGD-20": {4: 0.1, 5: 0.3, 7: 0.4},
        "AA": {2: 0.5, 3: 0.2, 5: 0.1, 6: 0.4, 7: 0.4},
    }
    result = example()
    for label, found in given.items():
        distance = np.zeros(10, dtype=np.float32)
        distance[list(found)] = list(found.values())
        result = with_attack(result, label, epsilon="1", distance=distance)
    return result


def in_pairs(result: EvaluationResult | None = None) -> EvaluationResult:
    """The example with two samples of each of five classes, 0 0 1 1 2 2 3 3 4 4; wrong ones are off by one class."""
    given = result or example()

    def paired(prediction: np.ndarray) -> np.ndarray:
        return ((LABEL // 2 + (prediction != LABEL)) % 5).astype(np.int16)

    attacks = {
        label: replace(one, prediction=paired(one.prediction), final_prediction=None)
        for label, one in given.attacks.items()
    }
    clean = paired(given.clean_prediction)
    return replace(given, label=(LABEL // 2).astype(np.int16), clean_prediction=clean, attacks=attacks)


def corrupted(right: dict[str, tuple[int, int]], **run: Any) -> EvaluationResult:
    """The example without attacks, under corruptions: how many samples are right at severities 1 and 2, by name."""
    records = [
        CorruptionRecord(name, severity, predictions(*range(count)), seconds=0.5)
        for name, counts in right.items()
        for severity, count in enumerate(counts, start=1)
    ]
    given = {"name": "CIFAR-10-C", "generated": False, "digest": "e" * 64}
    return example(
        attacks={},
        run={**RUN, "corruptions": given, **run},
        suite={"name": "corruptions", "version": 1, "kind": "corruptions"},
        corruptions={one.label: one for one in records},
    )


def featured(values: tuple[float, ...] = FEATURES, **run: Any) -> EvaluationResult:
    """The example with feature metrics of PGD-20: FDR, AFS, SCR (clean and adversarial each), MeanSep, MinSep."""
    features = FeatureRecord("PGD-20", "class_centres of LinearClassifier, 10 x 128", 10, 10, *values)
    return example(run={**RUN, **run}, suite={"name": "features", "version": 1, "kind": "features"}, features=features)


def with_attack(result: EvaluationResult, label: str, **changes: Any) -> EvaluationResult:
    """`result` with some fields of one attack replaced."""
    return replace(result, attacks={**result.attacks, label: replace(result.attacks[label], **changes)})


def with_run(result: EvaluationResult, **changes: Any) -> EvaluationResult:
    """`result` with some keys of its run replaced."""
    return replace(result, run={**result.run, **changes})


def single(right: bool) -> EvaluationResult:
    """One sample, no attack."""
    label = np.zeros(1, dtype=np.int16)
    suite = {"name": "none", "version": 1}
    return EvaluationResult(RUN, suite, label, np.zeros(1, dtype=np.int64), label if right else label + np.int16(1), {})
