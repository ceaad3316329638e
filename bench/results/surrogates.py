"""Cheap surrogates of AutoAttack: what attacks at a fraction of its cost say, and on which images it says otherwise.

They are told beside AutoAttack, never in its place: which images a surrogate misses is known only where both ran.
"""

from collections.abc import Sequence

from bench.errors import BenchError
from bench.results.file import AttackRecord, EvaluationResult
from bench.results.metrics import Convention, Outcomes, correct, main_autoattack, worst_case


def surrogate_error(result: EvaluationResult, labels: Sequence[str], convention: Convention = "any") -> Outcomes:
    """Per sample: the worst case of these attacks and AutoAttack, in the main norm, say different things.

    Raises:
        BenchError: an attack or AutoAttack is missing.
    """
    autoattack = require_autoattack(result)
    return worst_case(result, labels, convention) != correct(result, autoattack.label, convention)


def cost_share(result: EvaluationResult, labels: Sequence[str]) -> float:
    """The time of these attacks by AutoAttack's, as it was measured; cells that shared a run share its time equally."""
    return sum(result.attacks[label].seconds for label in labels) / require_autoattack(result).seconds


def require_autoattack(result: EvaluationResult) -> AttackRecord:
    """AutoAttack's record in the main norm, else an error."""
    record = main_autoattack(result)
    if record is None:
        raise BenchError(
            "a surrogate is compared with AutoAttack, which this suite does not hold. Evaluate under full."
        )
    return record
