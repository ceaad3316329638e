"""Results that fill boards: models that compare, one on other data, models under corruptions, and their features."""

import math
from dataclasses import replace

from bench.results.file import EvaluationResult
from bench.results.findings import finding
from tests.support.example_results import (
    RUN,
    SUITE,
    corrupted,
    example,
    featured,
    predictions,
    probed,
    record,
    robust,
    with_attack,
    with_run,
)

FEW = {"fog": (8, 4), "frost": (6, 1)}
OTHER = (0.125, math.inf, 1.5, 1.75, 3.5, 3.0, 95.5, 70.25)


def models() -> list[EvaluationResult]:
    """AT; a TRADES that is better under AA, with a warning, on another backbone; a Masked that cannot be ranked."""
    warning = finding("gradients-cross-entropy", "warning", "zero on 31 %")
    trades = with_attack(with_run(probed(), model="TRADES", backbone="wrn"), "AA", prediction=predictions(0, 1, 2, 3))
    passed, fault = finding("budget", "passed", "inside"), finding("random-search", "error", "random images break 40 %")
    return [
        probed(findings=(passed,)),
        replace(trades, findings=(warning, passed)),
        replace(robust(probed(), 10, model="Masked"), findings=(fault,)),
    ]


def other_data() -> EvaluationResult:
    """A model on another dataset, with one attack at two radii."""
    records = [record("PGD 8/255", "pgd", (0,), (0,)), record("PGD 4/255", "pgd", (0, 1, 2), (0, 1, 2))]
    records[1] = replace(records[1], epsilon="4/255")
    run = {**RUN, "model": "Other", "dataset": "npz:/home/me/mine.npz"}
    return example(run=run, suite={**SUITE, "derived": []}, attacks={one.label: one for one in records}, findings=())


def measured() -> list[EvaluationResult]:
    """Two models under corruptions, and their features."""
    worse = corrupted({"fog": (8, 1), "frost": (6, 1)}, model="TRADES")
    return [worse, corrupted(FEW), featured(), featured(OTHER, model="TRADES")]
