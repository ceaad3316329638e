"""Names of a table's rows: models of one name are told apart by what differs in their training."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bench.errors import BenchError
from bench.leaderboard.tables.trainings import all_facts, checkpoint_kind, differing
from bench.results.file import EvaluationResult, content_digest


def row_names(results: Sequence[EvaluationResult]) -> list[str]:
    """Model names, with `best` and `average` for such checkpoints; equal ones with all that differs, then by digests.

    Raises:
        BenchError: the same result is among them twice.
    """
    names = [str(result.run.get("model", "unnamed")) for result in results]
    extras = [checkpoint_kind(result) for result in results]
    facts = [all_facts(result) for result in results]
    # Where recipes differ, their names stand for all that they hold.
    for telling in (_differing_recipes, differing):
        for rows in _alike(names, extras):
            told = telling([facts[row] for row in rows])
            for row in rows:
                extras[row] += [_worded(fact, facts[row][fact]) for fact in told if fact in facts[row]]
    for digests in (_checkpoint, _result):
        for rows in _alike(names, extras):
            for row in rows:
                extras[row] += [one for one in digests(results[row]) if one not in extras[row]]
    for rows in _alike(names, extras):
        raise BenchError(f"the result of {_shown(names, extras)[rows[0]]!r} was given twice. Give each result once.")
    return _shown(names, extras)


def _differing_recipes(facts: Sequence[Mapping[str, str]]) -> list[str]:
    return [fact for fact in differing(facts) if fact == "recipe"]


def _alike(names: Sequence[str], extras: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """Rows that are shown alike, group by group."""
    shown = _shown(names, extras)
    for name, count in Counter(shown).items():
        if count > 1:
            yield [row for row, other in enumerate(shown) if other == name]


def _shown(names: Sequence[str], extras: Sequence[Sequence[str]]) -> list[str]:
    return [f"{name} ({', '.join(extra)})" if extra else name for name, extra in zip(names, extras, strict=True)]


def _worded(fact: str, value: str) -> str:
    return value if fact in ("backbone", "recipe") else f"{fact} {value}" if fact == "seed" else f"{fact}={value}"


def _checkpoint(result: EvaluationResult) -> list[str]:
    """With its seed: the digest of a checkpoint alone tells nobody which it is."""
    seed = result.run.get("seed")
    return [*([] if seed is None else [f"seed {seed}"]), f"checkpoint {str(result.run.get('checkpoint_digest'))[:8]}"]


def _result(result: EvaluationResult) -> list[str]:
    return [f"result {content_digest(result)[:8]}"]
