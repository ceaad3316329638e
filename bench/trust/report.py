"""The trust report: findings of all checks, joined into one list."""

from collections.abc import Callable, Iterable, Sequence

from bench.errors import cause, ran_out
from bench.results.findings import CHECKS, REFUTATIONS, SEVERITIES, Finding, finding

COMPARISONS = frozenset({"single-step", "stronger-attack", "monotone", "more-steps", "loss-gap", "blind-attacks"})
"""Checks that compare attacks with each other: a suite's outcomes answer them on all its samples."""
MASKED = frozenset(
    {"gradients-margin", "finite-differences", "gradient-path", "unbounded-attack", "random-search", "blind-attacks"}
    | {"single-step", "stronger-attack", "monotone", "worst-case"}
)
"""Checks that see gradients which lead nowhere, each in its own way."""


def concluded(looked: Sequence[Finding], outcomes: Sequence[Finding]) -> list[Finding]:
    """A trust report, of what looking at the model found and of what the suite's own outcomes say.

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


def examined(look: Callable[[], Finding | Iterable[Finding]]) -> list[Finding]:
    """The findings of a look; where it fails, those until then, and one that it failed."""
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
        if name not in worst or gravity(one) < gravity(worst[name]):
            worst[name] = one
    places = {name: place for place, name in enumerate(CHECKS)}
    return sorted(worst.values(), key=lambda one: (gravity(one), places.get(str(one.get("name")), len(places))))


def gravity(one: Finding) -> int:
    """The place of a finding's severity among `SEVERITIES`; one that is not known is an error."""
    severity = one.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0
