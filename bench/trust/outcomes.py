"""Trust: what the stored outcomes of an evaluation say about whether its numbers can be believed.

Everything here follows from a result file alone; `bench.trust.probes` looks at the model itself. A share of samples, or
a difference of two, raises a finding when the lower end of its 95 % interval does (`surely_above`), not a few of a
small test set.

The rules follow Carlini et al. 2019 (https://arxiv.org/abs/1902.06705) and Pintor et al. 2022
(https://arxiv.org/abs/2106.09947).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool

from bench.catalogue.plugins import make_attack
from bench.engine.observed import TOLERANCE, tolerance
from bench.errors import BenchError, cause, ran_out
from bench.interfaces import NO_CLASS, Attack, IterativeAttack, ThreatModel
from bench.results.file import AttackRecord, CorruptionRecord, EvaluationResult
from bench.results.findings import CHECKS, REFUTATIONS, SEVERITIES, Finding, Severity, finding

GAIN = 0.01
"""A point: what more steps, or an attack that should be no stronger, may break at most."""
BLIND = 0.002
"""Fifth of a point: what attacks without gradients may break alone; AutoAttack's own flag has the same margin."""
GAP, WIDE_GAP = 0.02, 0.05
"""What a margin loss may break beyond cross-entropy: two points are worth a note (many sound defenses have three or
four), five a warning."""
COMPARISONS = frozenset({"single-step", "stronger-attack", "monotone", "more-steps", "loss-gap", "blind-attacks"})
"""Checks that compare attacks with each other: a suite's outcomes answer them on all its samples."""
MASKED = frozenset(
    {"gradients-margin", "finite-differences", "gradient-path", "unbounded-attack", "random-search", "blind-attacks"}
    | {"single-step", "stronger-attack", "monotone", "worst-case"}
)
"""Checks that see gradients which lead nowhere, each in its own way."""
CERTAIN = 50
"""So many right images, none of them broken by any attack, say that something else than robustness keeps them."""
CHANCE = 0.1
"""Clean accuracy that beats guessing by less than this, or by less than half of it, counts as chance."""

Pairs: TypeAlias = Callable[[Sequence["Column"]], Iterator[tuple["Column", "Column"]]]


@dataclass(frozen=True)
class Column:
    """An attack's outcomes, with the attack itself where it is known here."""

    record: AttackRecord
    attack: Attack | None
    standing: Bool[np.ndarray, " sample"]
    """Right on the clean image and under the attack."""
    broken: Bool[np.ndarray, " sample"]
    """Right on the clean image and wrong under the attack."""

    @property
    def setting(self) -> tuple[str, float]:
        """Norm and radius."""
        return self.record.norm, ThreatModel(self.record.norm, self.record.epsilon).radius

    @property
    def transferred(self) -> bool:
        """Whether the images were crafted against another model."""
        return "source" in self.record.parameters

    @property
    def plain(self) -> bool:
        """An iterative attack on the model itself, with its own loss."""
        return isinstance(self.attack, IterativeAttack) and not self.transferred and self.record.objective == "default"

    @property
    def cascade(self) -> bool:
        """Several attacks, each on what those before it left."""
        return self.attack is not None and bool(self.attack.members(self.record.norm))

    def family(self, *ignored: str) -> tuple[Any, ...]:
        """Equal for attacks that differ in the ignored parameters only."""
        kept = {name: value for name, value in self.record.parameters.items() if name not in ignored}
        return (self.record.attack, self.record.norm, self.record.objective, *sorted(kept.items(), key=str))


@runtime_checkable
class Outcomes(Protocol):
    """What attacks did to every sample: an `EvaluationResult`, or an outcome that is not in a file yet."""

    @property
    def label(self) -> np.ndarray: ...
    @property
    def clean_prediction(self) -> np.ndarray: ...
    @property
    def attacks(self) -> Mapping[str, AttackRecord]: ...
    @property
    def corruptions(self) -> Mapping[str, CorruptionRecord]: ...


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


def concluded(looked: Sequence[Finding], outcomes: Sequence[Finding]) -> list[Finding]:
    """A trust report: what looking at the model found, and what the suite's own outcomes say.

    Where both compare attacks in the same way, the outcomes stand: they are of more samples. Warnings that agree on
    gradients that lead nowhere are one error.
    """
    answered = COMPARISONS & {str(one["name"]) for one in outcomes if one["severity"] != "note"}
    kept = [one for one in looked if one.get("name") not in {*answered, "masked-gradients"}]
    report = worst_of_each([*kept, *outcomes])
    found = [str(one.get("name")) for one in report if one.get("severity") in ("error", "warning")]
    agreeing = [name for name in found if name in MASKED]
    fired = len(agreeing) > 1
    text = f"{len(agreeing)} checks say so: {', '.join(agreeing)}" if agreeing else "no check says so"
    if not REFUTATIONS & set(found):
        for one in report:
            held = CHECKS[name].where_gradients_hold if (name := str(one.get("name"))) in CHECKS else None
            one["advice"] = held or one.get("advice")
    both = finding("masked-gradients", "error" if fired else "passed", text, len(agreeing), 1)
    return worst_of_each([*report, both])


def outcome_findings(outcomes: Outcomes, pixels: int) -> list[Finding]:
    """Findings from what attacks did to every sample, in comparison with each other; `pixels` is an image's number."""
    columns = _columns(outcomes)
    return [
        *_not_a_number(outcomes),
        _budget(columns, pixels),
        *_pairs(columns, "single-step", _single_step_pairs),
        *_pairs(columns, "stronger-attack", _stronger_pairs),
        *_worst(_more_steps(columns)),
        *_pairs(columns, "monotone", _wider_pairs),
        *_worst(_losses(columns)),
        *_worst(_cascades(columns)),
        *_worst(_blind(columns)),
        *_worst(_ensembles(columns)),
        *_stages(columns),
    ]


def examined(look: Callable[[], Finding | Iterable[Finding]]) -> list[Finding]:
    """What a look finds; where it fails, what it has found by then, and that it failed."""
    kept: list[Finding] = []
    try:
        found = look()
        for one in [found] if isinstance(found, dict) else found:
            kept.append(one)
    except Exception as error:
        kept.append(unmeasured(error))
    return kept


def unmeasured(error: Exception) -> Finding:
    """The finding that something failed after the attacks, which must not cost what they found.

    Raises:
        Exception: the error, where memory ran out: whoever asks for less then gets an answer.
    """
    if any(ran_out(known) for known in (error, error.__cause__) if known):
        raise error
    return finding("unmeasured", "error", f"a check failed: {cause(error)}")


def worst_of_each(findings: Sequence[Finding]) -> list[Finding]:
    """Per check, the worst of its findings, or the first of equal ones; worst checks first, then first to repair."""
    worst: dict[str, Finding] = {}
    for one in findings:
        name = str(one.get("name"))
        if name not in worst or _gravity(one) < _gravity(worst[name]):
            worst[name] = one
    places = {name: place for place, name in enumerate(CHECKS)}
    return sorted(worst.values(), key=lambda one: (_gravity(one), places.get(str(one.get("name")), len(places))))


def _gravity(one: Finding) -> int:
    """The place of a finding's severity among `SEVERITIES`; one that is not known is an error."""
    severity = one.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0


def surely_above(count: int, total: int, share: float, against: int | None = None) -> bool:
    """Whether `count` of `total` samples show, at 95 % confidence, a share above `share`; one sample never does.

    The lower end of the one-sided interval of Clopper & Pearson (1934) must lie above. With `against`, the number of
    samples that say the opposite, that of the difference of the two shares must: their exact limits combined as the
    method of variance estimates recovery does (Zou & Donner 2008, https://doi.org/10.1002/sim.3095), with the
    correlation of two counts of one multinomial.
    """
    from scipy.special import betaincinv

    if not total or count < 2:
        return False
    first = count / total
    below = first - betaincinv(count, total - count + 1, 0.05)
    if against is None:
        return bool(first - below > share)
    second = against / total
    above = betaincinv(against + 1, total - against, 0.95) - second
    correlation = -math.sqrt(first * second / ((1 - first) * (1 - second))) if against else 0.0
    return bool(first - second - math.sqrt(below**2 + above**2 - 2 * correlation * below * above) > share)


def surely_more(first: Any, second: Any, share: float) -> bool:
    """Whether, of the same samples, surely more are True in `first` than in `second`, by a share above `share`.

    Both are arrays or tensors of booleans.
    """
    return surely_above(int((first & ~second).sum()), len(first), share, against=int((second & ~first).sum()))


def _worst(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Of findings of one check, the worst, and of equally severe ones the largest; none of none."""
    yield from sorted(findings, key=lambda one: (_gravity(one), -one["value"]))[:1]


def _columns(result: Outcomes) -> list[Column]:
    """Columns with a threat model; `threat-model` reports the others."""
    columns = []
    for record in result.attacks.values():
        with suppress(BenchError):
            ThreatModel(record.norm, record.epsilon)
            columns.append(_column(result, record))
    return columns


def _column(result: Outcomes, record: AttackRecord) -> Column:
    clean, under_attack = result.clean_prediction == result.label, record.prediction == result.label
    attack: Attack | None = None
    with suppress(BenchError):
        attack = make_attack(record.attack, record.settings)
    return Column(record, attack, clean & under_attack, clean & ~under_attack)


# --------------------------------------------------------------------------------------------- the file


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


def _not_a_number(outcomes: Outcomes) -> Iterator[Finding]:
    shown = {"clean": outcomes.clean_prediction}
    shown |= {label: record.prediction for label, record in outcomes.attacks.items()}
    shown |= {label: record.prediction for label, record in outcomes.corruptions.items()}
    counts = {name: int((prediction == NO_CLASS).sum()) for name, prediction in shown.items()}
    found = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if found:
        text = f"logits that are NaN or infinite, counted as wrong: {found} of {len(outcomes.label)} images"
        yield finding("non-finite-logits", "error", text, sum(counts.values()), 0)


def _near_chance(result: EvaluationResult) -> Finding:
    stated = result.run.get("num_classes", 0)
    classes = stated if stated > 0 else max(len(np.unique(result.label)), 1)
    accuracy = float((result.clean_prediction == result.label).mean())
    limit = 1 / classes + min(0.5 / classes, CHANCE)
    text = f"clean accuracy is {100 * accuracy:.1f} %, guessing gives {100 / classes:.1f} %"
    surely_below = surely_above(int((result.clean_prediction != result.label).sum()), len(result.label), 1 - limit)
    severity: Severity = "passed" if accuracy > limit else "error" if surely_below else "note"
    return finding("near-chance", severity, text, accuracy, limit)


def _nothing_broken(result: EvaluationResult) -> Iterator[Finding]:
    """Robust accuracy that is the clean one, near 100 %, in a ball that is not a point."""
    columns = [column for column in _columns(result) if column.setting[1] > 0]
    if columns:
        right, broken = (int(mask.sum()) for mask in (columns[0].standing | columns[0].broken, _broken_by_any(columns)))
        fired = not broken and right >= CERTAIN and right >= 0.95 * len(result.label)
        text = f"of {right} right images, all attacks together break {broken}"
        yield finding("nothing-broken", "warning" if fired else "passed", text, broken, 0)


def _broken_by_any(columns: Sequence[Column]) -> Bool[np.ndarray, " sample"]:
    return np.asarray(np.logical_or.reduce([column.broken for column in columns]))


def _adaptive(result: EvaluationResult) -> Finding:
    columns = _columns(result)
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


# ----------------------------------------------------------------------------------------- the outcomes


def _budget(columns: Sequence[Column], pixels: int) -> Finding:
    excess = {
        column.record.label: float(column.record.distance.max(initial=0.0)) - column.setting[1] for column in columns
    }
    # Distances are stored in float32, whose rounding is relative.
    over = {
        label: value
        for (label, value), column in zip(excess.items(), columns, strict=True)
        if not value <= tolerance(*column.setting, pixels) + TOLERANCE * column.setting[1]
    }
    seen = ", ".join(f"{label} by {value:.3g}" for label, value in over.items())
    text = f"beyond the radius: {seen}" if over else "every adversarial image lies within its radius"
    return finding("budget", "error" if over else "passed", text, max(excess.values(), default=0.0), TOLERANCE)


def _pairs(columns: Sequence[Column], name: str, pairs: Pairs) -> Iterator[Finding]:
    """The first attack of a pair may break what the second does not for `GAIN` of the samples, no more.

    More is a warning; more than `WIDE_GAP` is an error: the second attack did not work.
    """
    found = []
    for one, other in pairs(columns):
        alone, total = int((one.broken & other.standing).sum()), len(one.standing)
        share = alone / max(total, 1)
        text = f"{one.record.label} breaks {100 * share:.1f} % of the images that {other.record.label} does not"
        severity: Severity = "passed"
        if surely_above(alone, total, GAIN):
            severity = "error" if surely_above(alone, total, WIDE_GAP) else "warning"
        found.append(finding(name, severity, text, share, GAIN))
    yield from _worst(found)


def _single_step_pairs(columns: Sequence[Column]) -> Iterator[tuple[Column, Column]]:
    """On the same loss and within the same threat model."""
    plain = [column for column in columns if column.plain]
    for one, other in product(plain, plain):
        if one.setting == other.setting and _ascends(one) == _ascends(other) and _steps(one) == 1 < _steps(other):
            yield one, other


def _stronger_pairs(columns: Sequence[Column]) -> Iterator[tuple[Column, Column]]:
    """A search against one with more steps and restarts, and every search against a cascade of attacks."""
    for one, other in product(columns, columns):
        if one is other or one.setting != other.setting or not one.plain:
            continue
        longer = other.plain and one.family("steps", "restarts") == other.family("steps", "restarts")
        if (longer and _no_shorter(other, one)) or other.cascade:
            yield one, other


def _no_shorter(one: Column, other: Column) -> bool:
    lengths = [column.attack.lengths for column in (one, other) if isinstance(column.attack, IterativeAttack)]
    return len(lengths) == 2 and all(first >= second for first, second in zip(*lengths, strict=True))


def _wider_pairs(columns: Sequence[Column]) -> Iterator[tuple[Column, Column]]:
    for one, other in combinations(sorted(columns, key=lambda column: column.setting), 2):
        if (
            one.plain
            and other.plain
            and one.family("step_size") == other.family("step_size")
            and one.setting < other.setting
        ):
            yield one, other


def _steps(column: Column) -> int:
    return column.attack.lengths[0] if isinstance(column.attack, IterativeAttack) else 0


def _more_steps(columns: Sequence[Column]) -> Iterator[Finding]:
    """What only the longest search of a family finds, of all attacks in its threat model: more steps find more."""
    families: dict[tuple[Any, ...], list[Column]] = {}
    for column in columns:
        if column.plain and _steps(column) > 1:
            families.setdefault((*column.family("steps"), column.setting), []).append(column)
    for members in families.values():
        *_, shorter, longest = [None, *sorted(members, key=_steps)]
        if shorter is None:
            continue
        gained = int((longest.broken & shorter.standing).sum())
        others = [c.standing for c in columns if c is not longest and c.setting == longest.setting]
        alone, total = int((longest.broken & np.logical_and.reduce(others)).sum()), len(longest.broken)
        text = (
            f"{longest.record.label} breaks {100 * gained / total:.1f} % of the images that {shorter.record.label} "
            f"does not, and {100 * alone / total:.1f} % that nothing else in the suite does"
        )
        severity: Severity = "warning" if surely_above(alone, total, GAIN) else "passed"
        yield finding("more-steps", severity, text, alone / total, GAIN)


def _losses(columns: Sequence[Column]) -> Iterator[Finding]:
    """All attacks on cross-entropy against all on a margin, within one threat model."""
    for setting in dict.fromkeys(column.setting for column in columns):
        standing = {
            loss: [c.standing for c in columns if c.plain and c.setting == setting and _ascends(c) == loss]
            for loss in ("cross-entropy", "margin")
        }
        if not all(standing.values()):
            continue
        entropy, margin = (np.logical_and.reduce(rows) for rows in standing.values())
        gap = float(entropy.mean() - margin.mean())
        noted, warned = (surely_more(entropy, margin, limit) for limit in (GAP, WIDE_GAP))
        text = f"{100 * gap:+.1f} points of accuracy between cross-entropy and margin losses ({setting[0]})"
        severity: Severity = "warning" if warned else "note" if noted else "passed"
        yield finding("loss-gap", severity, text, gap, WIDE_GAP)


def ascents(outcomes: Outcomes) -> set[str]:
    """The losses that the attacks of a suite ascend: `cross-entropy`, `margin`, `other`."""
    return {_ascends(column) for column in _columns(outcomes)}


def _cascades(columns: Sequence[Column]) -> Iterator[Finding]:
    """All searches against a cascade of attacks, within one threat model.

    Under l1 and l2 a large gap says nothing of the model: with a fixed step, PGD is 5 to 15 points weak on sound ones.
    """
    for cascade in (column for column in columns if column.cascade):
        searches = [column.standing for column in columns if column.plain and column.setting == cascade.setting]
        if not searches:
            continue
        standing = np.logical_and.reduce(searches)
        gap = float(standing.mean() - cascade.standing.mean())
        noted, warned = (surely_more(standing, cascade.standing, limit) for limit in (GAP, WIDE_GAP))
        text = f"{cascade.record.label} leaves {100 * gap:.1f} points less than all other attacks together"
        severity: Severity = "passed"
        if noted:
            severity = "warning" if warned and cascade.record.norm == "linf" else "note"
        yield finding("cascade-gap", severity, text, gap, WIDE_GAP)


def _ascends(column: Column) -> str:
    return column.attack.ascends if column.attack is not None else "other"


def _blind(columns: Sequence[Column]) -> Iterator[Finding]:
    """What attacks without this model's gradients break alone; where no threat model has such an attack, a note."""
    silent: list[Finding] = []
    found = False
    for setting in dict.fromkeys(column.setting for column in columns):
        here = [column for column in columns if column.setting == setting]
        blind = [_blindly_broken(column) for column in here]
        sighted = [mask is None or column.record.stage is not None for column, mask in zip(here, blind, strict=True)]
        if not any(sighted):
            continue
        if all(mask is None for mask in blind):
            text = "no attack of this suite works without gradients: it cannot tell robustness from masked gradients"
            silent.append(finding("blind-attacks", "note", text, 0.0, BLIND))
            continue
        found = True
        alone = np.logical_or.reduce([mask for mask in blind if mask is not None])
        for column, mask in zip(here, blind, strict=True):
            alone &= ~column.broken if mask is None else mask | ~column.broken
        count, total = int(alone.sum()), len(alone)
        text = f"{count} of {total} images are broken without gradients and not with them ({setting[0]})"
        severity: Severity = "warning" if surely_above(count, total, BLIND) else "passed"
        yield finding("blind-attacks", severity, text, count / total, BLIND)
    if not found:
        yield from silent


def _blindly_broken(column: Column) -> np.ndarray | None:
    """Samples that the column broke without looking at this model's gradients; None: it always looks at them."""
    if column.transferred:
        return column.broken
    if column.attack is None or not column.attack.blind_stages:
        return None
    if column.record.stage is None:
        return column.broken
    return column.broken & np.isin(column.record.stage, list(column.attack.blind_stages))


def _ensembles(columns: Sequence[Column]) -> Iterator[Finding]:
    """What a member breaks alone, of all that its ensemble ran it on; their draws differ, so a few may be chance."""
    for whole, part in product(columns, columns):
        members = whole.attack.members(whole.record.norm) if whole.attack is not None else ()
        if part.attack not in members or _origin(whole) != _origin(part):
            continue
        count, total = int((part.broken & whole.standing).sum()), len(part.broken)
        text = (
            f"{part.record.label} breaks {count} of {total} images that {whole.record.label}, which holds it, does not"
        )
        severity: Severity = "error" if surely_above(count, total, BLIND) else "passed"
        yield finding("ensemble", severity, text, count / max(total, 1), BLIND)


def _origin(column: Column) -> tuple[Any, ...]:
    parameters = column.record.parameters
    return column.setting, column.record.objective, parameters.get("source"), parameters.get("source_digest")


def _stages(columns: Sequence[Column]) -> Iterator[Finding]:
    """Samples that stand although a stage is named that broke them."""
    staged = [
        (column.record.label, column.standing & (column.record.stage > 0))
        for column in columns
        if column.record.stage is not None
    ]
    found = ", ".join(f"{label} {rows.sum()}" for label, rows in staged if rows.any())
    if staged:
        count = sum(int(rows.sum()) for _, rows in staged)
        text = f"images that stand although a stage is said to have broken them: {found or 'none'}"
        yield finding("stage", "error" if found else "passed", text, count, 0)


def worst_severity(findings: Sequence[Finding]) -> str | None:
    """The worst severity among findings; None: there are none."""
    found = {str(one.get("severity")) for one in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)
