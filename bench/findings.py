"""Findings: what was noticed about an evaluation, and what it means. The trust report of a result is a list of them.

A finding is a plain dictionary, so that a result file carries it whole:
`name`, `severity`, `value`, `threshold`, `message` (what was seen), `meaning` and `advice`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["passed", "note", "warning", "error"]
Finding: TypeAlias = dict[str, Any]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note", "passed")
"""Worst first. `error`: the numbers cannot be believed, and the row is not ranked. `warning`: they may be too high."""


@dataclass(frozen=True)
class Check:
    """A question that the trust report answers."""

    meaning: str
    """What it means when the check fires."""
    advice: str


def finding(name: str, severity: Severity, message: str, value: Any = None, threshold: Any = None) -> Finding:
    """One finding, with the meaning and the advice of its check.

    Args:
        name: of a check in `CHECKS`.
        severity: `passed` for a check that looked and found nothing.
        message: what was seen.
        value: what was measured.
        threshold: what it was compared with.
    """
    check = CHECKS[name]
    return {
        "name": name,
        "severity": severity,
        "message": message,
        "value": value,
        "threshold": threshold,
        "meaning": check.meaning,
        "advice": check.advice,
    }


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "model-changed": Check(
            "parameters or buffers changed while the model was evaluated (they were put back)",
            "find the layer that updates its state in eval mode, BatchNorm for one, and stop it",
        ),
        "attack-outside-ball": Check(
            "an attack returned images outside the threat model; they were projected onto it before they counted",
            "repair the attack's own projection: what it finds outside the ball is wasted",
        ),
        "unconfirmed-success": Check(
            "successes that an attack claimed, or that were seen on the way, did not repeat in a later forward pass",
            "look for randomness or state in the model, and do not let the attack grade itself",
        ),
        "attack-warning": Check(
            "an attack reported something about the model itself",
            "see the documentation of the attack; for AutoAttack: https://github.com/fra31/auto-attack flags_doc.md",
        ),
    }
)
