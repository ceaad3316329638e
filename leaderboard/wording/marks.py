"""Marks and what they stand for: on boards, on pages (which carry them for their script) and on the terminal."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

MARKS: Mapping[str, str] = MappingProxyType(
    {"error": "✗", "warning": "!", "note": "·", "passed": "✓", "unchecked": "?"}
)
"""By severity of a finding, the worst first; `unchecked`: there is no trust report."""
TRUST: Mapping[str, str] = MappingProxyType(
    {
        "passed": "no error or warning",
        "warning": "the numbers may be too high",
        "error": "the numbers cannot be believed",
        "unchecked": "not checked",
    }
)
"""The meaning of a row's mark, by `leaderboard.tables.table.Row.trust`, the best first."""
NORMS: Mapping[str, str] = MappingProxyType({"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"})  # noqa: RUF001 - the script l is meant


def trust_legend(present: Collection[str] = tuple(TRUST)) -> str:
    """`Trust: ✓ no error or warning, ...`, of the marks that a board shows."""
    return f"Trust: {', '.join(f'{MARKS[trust]} {TRUST[trust]}' for trust in TRUST if trust in present)}."


def trust_verdict(trust: str, findings: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """`Trust: ✓ no error or warning`, by a row's mark, and ` (2 notes, 7 passed)`: how many findings there are."""
    counts = Counter(str(finding.get("severity")) for finding in findings)
    words = {"error": "error", "warning": "warning", "note": "note"}
    found = [f"{counts[one]} {word}{'s' * (counts[one] > 1)}" for one, word in words.items() if counts[one]]
    found += [f"{counts['passed']} passed"] if counts["passed"] else []
    told = ", ".join(found) if findings else "no trust report; evaluate again to get one"
    return f"Trust: {MARKS[trust]} {TRUST[trust]}", f" ({told})"
