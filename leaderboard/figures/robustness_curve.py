"""Accuracy over the radius, with the error that the samples leave: figure 4 of the paper.

Either of attacks that were run at several radii, or of the distances that attacks found, at every radius.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from bench.errors import BenchError, unknown_name
from bench.leaderboard.figures.canvas import (
    Figure,
    add_legend,
    colour,
    colour_and_mark,
    house_style,
    legend_width,
    name_axes,
    new_figure,
    require,
    require_some,
)
from bench.leaderboard.tables.attacks import radius_families
from bench.leaderboard.tables.row_names import row_names
from bench.results.comparison import refuse_mixture
from bench.results.distances import attacks_of_norm, nearest_found, stored_radius
from bench.results.file import AttackRecord, EvaluationResult
from bench.results.metrics import Convention, correct, wilson_interval

BEST_KNOWN = "best known"
"""In the place of an attack's name: the smallest distance that any attack found."""
LINE_STYLES: Mapping[str, str] = {"pgd": "-", "fgsm": "--", BEST_KNOWN: "-"}
"""By attack."""
_OTHER_LINE_STYLES: tuple[Any, ...] = (":", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))


@dataclass(frozen=True)
class RobustnessCurve:
    """Accuracy of one model under one attack over growing radii."""

    name: str
    attack: str
    """`pgd` is drawn solid, `fgsm` dashed."""
    epsilons: tuple[str, ...]
    """As result files hold them: `8/255` or `0.15`, in units of a pixel's range [0, 1]."""
    robust: tuple[int, ...]
    """Samples right clean and under attack, by radius."""
    total: int
    """Samples in all."""
    stepped: bool = False
    """True where each count holds from its radius up to the next."""


def robustness_curve(panels: Mapping[str, Sequence[RobustnessCurve]], measure: str = "Accuracy (%)") -> Figure:
    """Accuracy (percent) over epsilon with 95 % Wilson bands, a panel per dataset: figure 4 of the paper.

    `measure` names the vertical axis.

    Raises:
        BenchError: nothing to draw, a radius that is not a number, or counts that are not of the radii or samples.
    """
    require_some("dataset", panels)
    for title, curves in panels.items():
        require_some(f"curve of {title!r}", curves)
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    attacks = list(dict.fromkeys(curve.attack for curves in panels.values() for curve in curves))
    with house_style():
        from matplotlib.lines import Line2D

        figure, grid = new_figure(1, len(panels), 3.6 * len(panels) + legend_width(names), 3.4)
        for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
            for curve in curves:
                _draw_curve(axes, curve, names.index(curve.name), _line_style(curve.attack, attacks))
            name_axes(axes, title, y=measure if axes is grid[0, 0] else "")
            axes.set_ylim(0, 100)
            _epsilon_axis(axes, [text for curve in curves for text in curve.epsilons])
        series = [Line2D([], [], **colour_and_mark(number)) for number in range(len(names))]
        styles: list[Any] = [Line2D([], [], color="#555555") for _ in attacks]
        for style, attack in zip(styles, attacks, strict=True):
            style.set_linestyle(_line_style(attack, attacks))
        add_legend(figure, [*series, *styles], [*names, *map(str.upper, attacks)], "outside right center", 1)
    return figure


def _draw_curve(axes: Any, curve: RobustnessCurve, number: int, line_style: str) -> None:
    require(
        len(curve.epsilons) == len(curve.robust),
        f"curve {curve.name!r} has {len(curve.epsilons)} radii and {len(curve.robust)} counts. Give one for each.",
    )
    points = sorted(zip(map(_radius, curve.epsilons), curve.robust, strict=True))
    radii = [radius for radius, _ in points]
    bounds = [wilson_interval(robust, curve.total) for _, robust in points]
    low, high = ([100 * bound[side] for bound in bounds] for side in (0, 1))
    steps = {"step": "post"} if curve.stepped else {}
    axes.fill_between(radii, low, high, color=colour(number), alpha=0.18, linewidth=0, **steps)
    accuracy = [100 * robust / curve.total for _, robust in points]
    look = {"drawstyle": "steps-post", "marker": ""} if curve.stepped else {}
    axes.plot(radii, accuracy, **{**colour_and_mark(number), "linestyle": line_style, **look})


def _epsilon_axis(axes: Any, epsilons: Sequence[str]) -> None:
    """Ticks in 255ths where every radius is written so."""
    from matplotlib.ticker import MaxNLocator

    if not all(text.replace(" ", "").endswith("/255") or _radius(text) == 0 for text in epsilons):
        axes.set_xlabel("ε")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        return
    widest = max(255 * _radius(text) for text in epsilons)
    ticks = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 4, 8, 10]).tick_values(0, max(widest, 1))
    axes.set_xticks([tick / 255 for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0, 1.03 * max(widest, 1) / 255)
    axes.set_xlabel("ε (units of 1/255)")


def _radius(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise BenchError(f"epsilon {text!r} is not a number. Write 8/255 or 0.15.") from None


def _line_style(attack: str, attacks: Sequence[str]) -> Any:
    others = [name for name in attacks if name not in LINE_STYLES]
    return LINE_STYLES.get(attack) or _OTHER_LINE_STYLES[others.index(attack) % len(_OTHER_LINE_STYLES)]


# ------------------------------------------------------------------------------------- from result files


def radius_figure(
    results: Sequence[EvaluationResult], convention: Convention = "any", suite: str | None = None
) -> Figure:
    """Accuracy over the radius: a panel per dataset and norm, a line per result and attack. Figure 4 of the paper.

    Lines begin at radius 0 with clean accuracy. Attacks that differ in anything but the radius are lines of their own.

    Args:
        results: with at least one attack at several radii each.
        convention: of success.
        suite: the suite that all must be of; None: any.

    Raises:
        BenchError: a result of another suite or without such an attack, or results of one dataset that do not compare.
    """

    def curves(name: str, result: EvaluationResult) -> dict[str, list[RobustnessCurve]]:
        _require_suite(name, result, suite)
        return _curves(name, result, convention)

    return robustness_curve(_panels(results, curves))


def distance_figure(results: Sequence[EvaluationResult], labels: Sequence[str] = ()) -> Figure:
    """Accuracy at every radius, from the distances that attacks found: a panel per dataset and norm.

    A line per result: the smallest distance that any of its attacks in the norm found; or, for each of `labels`, that
    of this attack. All are upper bounds of robust accuracy, as a nearer image may have been missed, and end at the
    largest radius that was searched.

    Raises:
        BenchError: a result without attacks or without one of `labels`, or results of one dataset that do not compare.
    """
    curves = partial(_distance_curves, labels=labels)
    return robustness_curve(_panels(results, curves), "Accuracy (%), upper bound")


def _panels(
    results: Sequence[EvaluationResult],
    curves: Callable[[str, EvaluationResult], Mapping[str, Sequence[RobustnessCurve]]],
) -> dict[str, list[RobustnessCurve]]:
    """By dataset and norm: the curves of each result, by norm, one result after the other."""
    panels: dict[str, list[RobustnessCurve]] = {}
    for dataset in dict.fromkeys(str(result.run.get("dataset")) for result in results):
        group = [result for result in results if str(result.run.get("dataset")) == dataset]
        names = row_names(group)
        refuse_mixture(names, group)
        for name, result in zip(names, group, strict=True):
            for norm, found in curves(name, result).items():
                panels.setdefault(f"{dataset}, {norm}", []).extend(found)
    return panels


def _distance_curves(name: str, result: EvaluationResult, labels: Sequence[str]) -> dict[str, list[RobustnessCurve]]:
    """By norm, of one result."""
    require(bool(result.attacks), f"{name!r} has no attacks, and so no distances. Evaluate with --suite curve.")
    for label in labels:
        if label not in result.attacks:
            raise unknown_name("attack", label, result.attacks)
    curves: dict[str, list[RobustnessCurve]] = {}
    for norm in dict.fromkeys(record.norm for record in result.attacks.values()):
        every = attacks_of_norm(result, norm)
        chosen = {label: [label] for label in labels if label in every} if labels else {BEST_KNOWN: every}
        for title, members in chosen.items():
            distances = nearest_found(result, members)
            reach = max(stored_radius(result.attacks[label].epsilon) for label in members)
            radii = [0.0, *np.unique(distances[(distances > 0) & (distances < reach)]).tolist(), reach]
            standing = [int((distances > radius).sum()) for radius in radii]
            texts = tuple(map(repr, radii))
            curves.setdefault(norm, []).append(
                RobustnessCurve(name, title, texts, tuple(standing), len(result.label), stepped=True)
            )
    return curves


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
