"""How the rows of a table were trained: what differs is noted, and tells rows of one model apart."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bench.errors import BenchError
from bench.results.file import EvaluationResult, content_digest

UNRECORDED = "not recorded"


def row_names(results: Sequence[EvaluationResult]) -> list[str]:
    """Model names, with `best` for such checkpoints; equal ones with all that differs, then by digests.

    Raises:
        BenchError: the same result is among them twice.
    """
    names = [str(result.run.get("model", "unnamed")) for result in results]
    extras = [["best"] if is_best(result) else [] for result in results]
    facts = [_facts(result) for result in results]
    for rows in _alike(names, extras):
        differing = _differing([facts[row] for row in rows])
        for row in rows:
            extras[row] += [_worded(fact, facts[row][fact]) for fact in differing if fact in facts[row]]
    for digests in (_checkpoint, _result):
        for rows in _alike(names, extras):
            for row in rows:
                extras[row] += [one for one in digests(results[row]) if one not in extras[row]]
    for rows in _alike(names, extras):
        raise BenchError(f"the result of {_shown(names, extras)[rows[0]]!r} was given twice. Give each result once.")
    return _shown(names, extras)


def training_notes(names: Sequence[str], results: Sequence[EvaluationResult]) -> list[tuple[str, list[int]]]:
    """What differs in the training of a table's rows: a text each, and the rows that it names.

    Hyperparameters are each defense's own, and seeds and environments are no part of a method. What more than half of
    the rows share is not said of each of them.
    """
    facts = [_of_any_defense(result) for result in results]
    recorded = [row for row, found in enumerate(facts) if found]
    notes = []
    for fact in _differing([facts[row] for row in recorded]):
        rows: dict[str, list[int]] = {}
        for row in recorded:
            rows.setdefault(facts[row].get(fact, UNRECORDED), []).append(row)
        usual = next((value for value, those in rows.items() if 2 * len(those) > len(recorded)), None)
        told = {value: those for value, those in rows.items() if value != usual}
        texts = [f"{value} for {', '.join(names[row] for row in those)}" for value, those in told.items()]
        texts += [] if usual is None else [f"{usual} for the others"]
        notes.append(
            (f"Training differs in {fact}: {'; '.join(texts)}", [row for those in told.values() for row in those])
        )
    unknown = [row for row in range(len(results)) if row not in recorded]
    if unknown and len(results) > 1:
        text = f"Training is not recorded, and may differ in anything: {', '.join(names[row] for row in unknown)}"
        notes.append((text, unknown))
    return notes


def is_best(result: EvaluationResult) -> bool:
    """Whether the checkpoint is the best on held-out images, not the last."""
    return bool(result.run.get("checkpoint") == "best")


def _of_any_defense(result: EvaluationResult) -> dict[str, str]:
    """What is recorded of a training apart from hyperparameters, seed and environment; empty: nothing is."""
    run = result.run
    protocol, data = run.get("protocol", {}), run.get("training_data", {})
    if not protocol and not data:
        return {}
    facts = {"backbone": run.get("backbone"), **protocol, "processes": run.get("processes", 1)}
    if data:
        facts["training images"] = f"{data.get('train_size', '?')} of {data.get('name', '?')}"
        facts["training images (sha256)"] = str(data.get("train_digest"))[:8]
    facts |= {"precision": run["precision"]} if "precision" in run else {}
    return {name: _text(value) for name, value in facts.items()}


def _facts(result: EvaluationResult) -> dict[str, str]:
    """All that tells models and evaluations of one name apart, a digest excepted."""
    run, evaluation = result.run, result.run.get("evaluation", {})
    facts = {
        "defense": run.get("defense"),
        **run.get("hyperparameters", {}),
        "backbone": run.get("backbone"),
        **_of_any_defense(result),
        "code": str(run.get("defense_sha256", ""))[:8] or None,
        "epoch": None if is_best(result) or run.get("finished") else run.get("epoch"),
        "seed": run.get("seed"),
        "evaluation seed": evaluation.get("seed"),
        "evaluation precision": evaluation.get("precision"),
    }
    return {name: _text(value) for name, value in facts.items() if value is not None}


def _differing(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the facts that are not the same in all, in their order."""
    names = dict.fromkeys(name for one in facts for name in one)
    found = [name for name in names if len({one.get(name, UNRECORDED) for one in facts}) > 1]
    # Another number of images has another digest, which says no more.
    return [name for name in found if not (name.endswith("(sha256)") and "training images" in found)]


def _alike(names: Sequence[str], extras: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """Rows that are shown alike, group by group."""
    shown = _shown(names, extras)
    for name, count in Counter(shown).items():
        if count > 1:
            yield [row for row, other in enumerate(shown) if other == name]


def _shown(names: Sequence[str], extras: Sequence[Sequence[str]]) -> list[str]:
    return [f"{name} ({', '.join(extra)})" if extra else name for name, extra in zip(names, extras, strict=True)]


def _worded(fact: str, value: str) -> str:
    return value if fact == "backbone" else f"{fact} {value}" if fact == "seed" else f"{fact}={value}"


def _checkpoint(result: EvaluationResult) -> list[str]:
    """With its seed: the digest of a checkpoint alone tells nobody which it is."""
    seed = result.run.get("seed")
    return [*([] if seed is None else [f"seed {seed}"]), f"checkpoint {str(result.run.get('checkpoint_digest'))[:8]}"]


def _result(result: EvaluationResult) -> list[str]:
    return [f"result {content_digest(result)[:8]}"]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
