"""Attacks of a result that differ in their radius alone: the lines of accuracy over the radius."""

from fractions import Fraction

from bench.results.file import AttackRecord, EvaluationResult, canonical_json


def radius_families(result: EvaluationResult) -> list[list[AttackRecord]]:
    """One attack each, with two radii or more, the smallest first; of equal radii the first counts."""
    families: dict[str, dict[Fraction, AttackRecord]] = {}
    for record in result.attacks.values():
        setting = [record.attack, record.norm, record.objective, record.parameters]
        families.setdefault(canonical_json("attack", setting), {}).setdefault(Fraction(record.epsilon), record)
    return [[family[radius] for radius in sorted(family)] for family in families.values() if len(family) > 1]
