"""Result files, and every number that is derived from them; no torch."""

from bench.results.file import (
    AttackRecord,
    CorruptionRecord,
    EvaluationResult,
    FeatureRecord,
    read_result,
    write_result,
)
