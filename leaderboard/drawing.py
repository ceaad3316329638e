"""Figures from result files: the numbers of `bench.results.metrics`, given to `leaderboard.figures`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.leaderboard.families import radius_families
from bench.leaderboard.figures import RobustnessCurve, robustness_curve, severity_bars
from bench.leaderboard.measured import corrupted_name
from bench.leaderboard.trainings import row_names
from bench.results.comparison import refuse_mixture
from bench.results.file import AttackRecord, EvaluationResult
from bench.results.metrics import Convention, correct, severity_accuracies

if TYPE_CHECKING:
    import matplotlib.figure


def severity_figure(results: Sequence[EvaluationResult], lowest: float = 0.0) -> "matplotlib.figure.Figure":
    """Accuracy under corruptions by severity, a bar per result: figure 3 of the Adv-DPNP paper.

    Args:
        results: of the suite `corruptions`, on the same images.
        lowest: where the vertical axis begins, in percent (the paper: 60).

    Raises:
        BenchError: a result without corruptions, results that do not compare, or an accuracy below `lowest`.
    """
    without = [result.run.get("model") for result in results if not result.corruptions]
    if without:
        raise BenchError(f"{without[0]!r} has no corruptions: `bench eval --suite corruptions` measures them.")
    names = row_names(results)
    refuse_mixture(names, results)
    count = len({shown.corruption for shown in results[0].corruptions.values()})
    percents = [[100 * share for share in severity_accuracies(result).values()] for result in results]
    title = f"{corrupted_name(results[0])}, {count} corruptions"
    return severity_bars(dict(zip(names, percents, strict=True)), title, lowest)


def radius_figure(
    results: Sequence[EvaluationResult], convention: Convention = "any", suite: str | None = None
) -> "matplotlib.figure.Figure":
    """Accuracy over the radius: a panel per dataset and norm, a line per result and attack. Figure 4 of the paper.

    Lines begin at radius 0 with clean accuracy. Attacks that differ in anything but the radius are lines of their own.

    Args:
        results: with at least one attack at several radii each.
        convention: of success.
        suite: the suite that all must be of; None: any.

    Raises:
        BenchError: a result of another suite or without such an attack, or results of one dataset that do not compare.
    """
    panels: dict[str, list[RobustnessCurve]] = {}
    for dataset in dict.fromkeys(str(result.run.get("dataset")) for result in results):
        group = [result for result in results if str(result.run.get("dataset")) == dataset]
        names = row_names(group)
        refuse_mixture(names, group)
        for name, result in zip(names, group, strict=True):
            _require_suite(name, result, suite)
            for norm, curves in _curves(name, result, convention).items():
                panels.setdefault(f"{dataset}, {norm}", []).extend(curves)
    return robustness_curve(panels)


def _require_suite(name: str, result: EvaluationResult, suite: str | None) -> None:
    if suite is not None and result.suite.get("name") != suite:
        raise BenchError(
            f"{name!r} is a result of suite {result.suite.get('name')}: evaluate with --suite {suite}, or draw it with "
            "`bench figure curve`."
        )


def _curves(name: str, result: EvaluationResult, convention: Convention) -> dict[str, list[RobustnessCurve]]:
    """By norm, of one result: every attack that has two radii or more."""
    families = radius_families(result)
    if not families:
        raise BenchError(f"{name!r} has no attack at several radii. Evaluate with --suite figure4 or table3.")
    curves: dict[str, list[RobustnessCurve]] = {}
    for records, attack in zip(families, _attack_names([family[0] for family in families]), strict=True):
        points = {"0": int(correct(result).sum())}
        points |= {one.epsilon: int(correct(result, one.label, convention).sum()) for one in records}
        curve = RobustnessCurve(name, attack, tuple(points), tuple(points.values()), len(result.label))
        curves.setdefault(records[0].norm, []).append(curve)
    return curves


def _attack_names(records: Sequence[AttackRecord]) -> list[str]:
    """The attack; where two families of a norm share it, with the parameters in which they differ."""
    count = Counter((record.attack, record.norm) for record in records)
    names = []
    for record in records:
        twins = [_facts(other) for other in records if (other.attack, other.norm) == (record.attack, record.norm)]
        own = _facts(record)
        differing = [key for key in own if any(other.get(key) != own[key] for other in twins)]
        extra = " ".join(f"{key}={own[key]}" for key in differing)
        names.append(f"{record.attack} {extra}" if count[record.attack, record.norm] > 1 else record.attack)
    return names


def _facts(record: AttackRecord) -> Mapping[str, Any]:
    facts = {
        name: value for name, value in record.parameters.items() if name not in ("source_digest", "objective_sha256")
    }
    return {**facts, "objective": record.objective}
