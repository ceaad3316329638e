"""Marks and what they stand for: on boards, on pages (which carry them for their script) and on the terminal."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

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
