"""Checks on all that a result file holds; `bench.trust.probes` looks at the model itself.

The rules follow Carlini et al. 2019 (https://arxiv.org/abs/1902.06705) and Pintor et al. 2022
(https://arxiv.org/abs/2106.09947).
"""

import math
from collections.abc import Iterator

import numpy as np

from bench.errors import BenchError
from bench.interfaces import ThreatModel
from bench.results.file import EvaluationResult
from bench.results.findings import Finding, finding, graded
from bench.trust.attack_comparisons import Column, known_columns, outcome_findings
from bench.trust.evidence import surely_above, surely_more
from bench.trust.report import concluded

CERTAIN = 50
"""So many right images, none of them broken by any attack, say that something else than robustness keeps them."""
CHANCE = 0.1
"""Clean accuracy that beats guessing by less than this, or by less than half of it, counts as chance."""


def file_findings(result: EvaluationResult) -> list[Finding]:
    """Findings from all that a result file holds."""
    return [
        _threat_model(result),
        _every_cell(result),
        _near_chance(result),
        _adaptive(result),
        *_nothing_broken(result),
        *outcome_findings(result, math.prod(result.run.get("image_shape", ()))),
    ]


def reassessed(result: EvaluationResult) -> list[Finding]:
    """The trust report of a file: checks on outcomes made anew, the others as they were stored.

    An attack that is not known here, such as a plug-in's, leaves the stored finding as it is.
    """
    return concluded([dict(one) for one in result.findings], file_findings(result))


def _threat_model(result: EvaluationResult) -> Finding:
    wrong = []
    for record in result.attacks.values():
        try:
            ThreatModel(record.norm, record.epsilon)
        except BenchError as error:
            wrong.append(f"{record.label}: {error}")
    wrong += [
        f"run has no {name!r}" for name in ("dataset", "num_classes", "checkpoint_digest") if name not in result.run
    ]
    seen = "; ".join(wrong) or "norm, exact radius, dataset, classes and checkpoint are stated"
    return finding("threat-model", "error" if wrong else "passed", seen)


def _every_cell(result: EvaluationResult) -> Finding:
    wanted = [str(cell.get("label")) for cell in result.suite.get("cells", [])]
    missing = [label for label in wanted if label not in result.attacks]
    seen = f"{len(wanted) - len(missing)} of the suite's {len(wanted)} attacks were run"
    text = f"{seen}; missing: {', '.join(missing)}" if missing else seen
    return finding("every-attack", "error" if missing else "passed", text, len(missing), 0)


def _near_chance(result: EvaluationResult) -> Finding:
    stated = result.run.get("num_classes", 0)
    classes = stated if stated > 0 else max(len(np.unique(result.label)), 1)
    accuracy = float((result.clean_prediction == result.label).mean())
    limit = 1 / classes + min(0.5 / classes, CHANCE)
    text = f"clean accuracy is {100 * accuracy:.1f} %, guessing gives {100 / classes:.1f} %"
    surely_below = surely_above(int((result.clean_prediction != result.label).sum()), len(result.label), 1 - limit)
    low = not accuracy > limit  # also of no samples, whose accuracy is NaN
    return finding("near-chance", graded(error=low and surely_below, note=low), text, accuracy, limit)


def _nothing_broken(result: EvaluationResult) -> Iterator[Finding]:
    """Robust accuracy that is the clean one, near 100 %, in a ball that is not a point."""
    columns = [column for column in known_columns(result) if column.setting[1] > 0]
    if columns:
        right = int((columns[0].standing | columns[0].broken).sum())
        broken = int(np.logical_or.reduce([column.broken for column in columns]).sum())
        fired = not broken and right >= CERTAIN and right >= 0.95 * len(result.label)
        text = f"of {right} right images, all attacks together break {broken}"
        yield finding("nothing-broken", "warning" if fired else "passed", text, broken, 0)


def _adaptive(result: EvaluationResult) -> Finding:
    columns = known_columns(result)
    if not columns:
        return finding("adaptive-attack", "passed", "the suite holds no attacks")
    adaptive = [column for column in columns if column.record.objective != "default"]
    if not adaptive:
        return finding("adaptive-attack", "note", "no attack of this suite ascends a loss made for this defense")
    texts, weaker = [], False
    for column in adaptive:
        twins = [other for other in columns if other.plain and _same_but_for_the_objective(column, other)]
        for twin in twins[:1]:
            more = float(twin.standing.mean() - column.standing.mean())
            word = "more" if more >= 0 else "less"
            texts.append(f"{column.record.label} breaks {100 * abs(more):.1f} points {word} than {twin.record.label}")
            weaker |= surely_more(column.standing, twin.standing, 0.0)
    return finding("adaptive-attack", "note" if weaker else "passed", "; ".join(texts) or "present")


def _same_but_for_the_objective(first: Column, second: Column) -> bool:
    one, other = first.record, second.record
    settings = [(column.record.settings, column.transferred, column.setting) for column in (first, second)]
    return one.attack == other.attack and settings[0] == settings[1]
