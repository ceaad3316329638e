"""The effect of attacks on every sample, in comparison with each other.

A share of samples, or a difference of two, raises a finding when the lower end of its 95 % interval does, not a few of
a small test set (`bench.trust.evidence`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool

from bench.catalogue.plugins import make_attack
from bench.engine.observed import TOLERANCE, tolerance
from bench.errors import BenchError
from bench.interfaces import NO_CLASS, Attack, IterativeAttack, ThreatModel
from bench.results.file import AttackRecord, CorruptionRecord
from bench.results.findings import Finding, finding, graded
from bench.trust.evidence import surely_above, surely_more
from bench.trust.report import gravity

GAIN = 0.01
"""A point: more steps, or an attack that should be no stronger, may break no more."""
BLIND = 0.002
"""Fifth of a point: attacks without gradients may break no more alone; AutoAttack's own flag has the same margin."""
GAP, WIDE_GAP = 0.02, 0.05
"""Points that a margin loss breaks beyond cross-entropy: two are worth a note (many sound defenses have three or four),
five a warning."""

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
        """True if the images were crafted against another model."""
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
    """Outcomes of attacks on every sample: an `EvaluationResult`, or an outcome that is not in a file yet."""

    @property
    def label(self) -> np.ndarray: ...
    @property
    def clean_prediction(self) -> np.ndarray: ...
    @property
    def attacks(self) -> Mapping[str, AttackRecord]: ...
    @property
    def corruptions(self) -> Mapping[str, CorruptionRecord]: ...


def outcome_findings(outcomes: Outcomes, pixels: int) -> list[Finding]:
    """Findings from the outcomes of attacks, in comparison with each other; `pixels` is an image's number of them."""
    columns = known_columns(outcomes)
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


def _worst(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Of findings of one check, the worst, and of equally severe ones the largest; none of none."""
    yield from sorted(findings, key=lambda one: (gravity(one), -one["value"]))[:1]


def known_columns(result: Outcomes) -> list[Column]:
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


def _not_a_number(outcomes: Outcomes) -> Iterator[Finding]:
    shown = {"clean": outcomes.clean_prediction}
    shown |= {label: record.prediction for label, record in outcomes.attacks.items()}
    shown |= {label: record.prediction for label, record in outcomes.corruptions.items()}
    counts = {name: int((prediction == NO_CLASS).sum()) for name, prediction in shown.items()}
    found = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if found:
        text = f"logits that are NaN or infinite, counted as wrong: {found} of {len(outcomes.label)} images"
        yield finding("non-finite-logits", "error", text, sum(counts.values()), 0)


def _budget(columns: Sequence[Column], pixels: int) -> Finding:
    excess = {one.record.label: float(one.record.distance.max(initial=0.0)) - one.setting[1] for one in columns}
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
        worse, worst = (surely_above(alone, total, limit) for limit in (GAIN, WIDE_GAP))
        found.append(finding(name, graded(error=worst, warning=worse), text, share, GAIN))
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
    plain = [column for column in columns if column.plain]
    for one, other in combinations(sorted(plain, key=lambda column: column.setting), 2):
        if one.family("step_size") == other.family("step_size") and one.setting < other.setting:
            yield one, other


def _steps(column: Column) -> int:
    return column.attack.lengths[0] if isinstance(column.attack, IterativeAttack) else 0


def _more_steps(columns: Sequence[Column]) -> Iterator[Finding]:
    """Samples that only the longest search of a family breaks, of all attacks in its threat model."""
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
        yield finding("more-steps", graded(warning=surely_above(alone, total, GAIN)), text, alone / total, GAIN)


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
        yield finding("loss-gap", graded(warning=warned, note=noted), text, gap, WIDE_GAP)


def ascents(outcomes: Outcomes) -> set[str]:
    """The losses that the attacks of a suite ascend: `cross-entropy`, `margin`, `other`."""
    return {_ascends(column) for column in known_columns(outcomes)}


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
        severity = graded(warning=warned and cascade.record.norm == "linf", note=noted)
        yield finding("cascade-gap", severity, text, gap, WIDE_GAP)


def _ascends(column: Column) -> str:
    return column.attack.ascends if column.attack is not None else "other"


def _blind(columns: Sequence[Column]) -> Iterator[Finding]:
    """Samples that only attacks without this model's gradients break; where there is no such attack, a note."""
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
        yield finding("blind-attacks", graded(warning=surely_above(count, total, BLIND)), text, count / total, BLIND)
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
    """Samples that a member breaks alone, of all that its ensemble ran it on; draws differ, so a few may be chance."""
    for whole, part in product(columns, columns):
        members = whole.attack.members(whole.record.norm) if whole.attack is not None else ()
        if part.attack not in members or _origin(whole) != _origin(part):
            continue
        count, total = int((part.broken & whole.standing).sum()), len(part.broken)
        text = (
            f"{part.record.label} breaks {count} of {total} images that {whole.record.label}, which holds it, does not"
        )
        yield finding("ensemble", graded(error=surely_above(count, total, BLIND)), text, count / max(total, 1), BLIND)


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
