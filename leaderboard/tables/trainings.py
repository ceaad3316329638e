"""Facts of how the rows of a table were trained, and notes on those that differ."""

from collections.abc import Mapping, Sequence

from bench.leaderboard.wording.paths import without_folders
from bench.results.file import EvaluationResult
from bench.results.trainings import UNUSED, own_recipe, recipe_of, recorded_recipe, recorded_start, shown_protocol
from bench.text import setting_text

UNRECORDED = "not recorded"


def training_notes(names: Sequence[str], results: Sequence[EvaluationResult]) -> list[tuple[str, list[int]]]:
    """Notes on what differs in the training of a table's rows: a text each, and the rows that it names.

    Hyperparameters are each defense's own, and seeds and environments are no part of a method. What more than half of
    the rows share is not said of each of them; what all share is said once, if it is extra images or a recipe by name.
    """
    facts = [_of_any_defense(result) for result in results]
    recorded = [row for row, found in enumerate(facts) if found]
    notes = []
    for fact in differing([facts[row] for row in recorded]):
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
    if common := _told_of_all(results, facts):
        notes.append((f"Training of every row: {'; '.join(common)}", []))
    unknown = [row for row in range(len(results)) if row not in recorded]
    if unknown and len(results) > 1:
        text = f"Training is not recorded, and may differ in anything: {', '.join(names[row] for row in unknown)}"
        notes.append((text, unknown))
    return notes


def _told_of_all(results: Sequence[EvaluationResult], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Facts that all rows share and that no row has unless it was asked for."""
    shared = {fact: value for fact, value in facts[0].items() if all(one.get(fact) == value for one in facts)}
    asked = ["recipe"] if own_recipe(results[0].run) else []
    if shared.get("extra images", "none") != "none":
        asked += ["extra images", "extra images (sha256)", "extra_share"]
    return [f"{fact} {shared[fact]}" for fact in asked if fact in shared]


def is_best(result: EvaluationResult) -> bool:
    """True if the checkpoint is the best on held-out images, not the last."""
    return bool(result.run.get("checkpoint") == "best")


def checkpoint_kind(result: EvaluationResult) -> list[str]:
    """`best` or `average`, where the checkpoint is that; empty for the last weights, and where nothing is recorded."""
    if is_best(result):
        return ["best"]
    return [str(result.run["weights"])] if "weights" in result.run else []


def _of_any_defense(result: EvaluationResult) -> dict[str, str]:
    """The recorded facts of a training apart from hyperparameters, seed and environment; empty: nothing is recorded."""
    run = result.run
    protocol, data = shown_protocol(run), run.get("training_data", {})
    if not protocol and not data:
        return {}
    facts = {"recipe": recorded_recipe(run), "backbone": run.get("backbone"), **protocol}
    facts |= {"processes": run.get("processes", 1), "first weights": recorded_start(run)}
    if data:
        facts["training images"] = f"{data.get('train_size', '?')} of {without_folders(data.get('name', '?'))}"
        facts["training images (sha256)"] = str(data.get("train_digest"))[:8]
        extra = data.get("extra", {})
        of_file = f"{extra.get('size', '?')} of {without_folders(extra.get('name', '?'))}"
        facts["extra images"] = of_file if extra else "none"
        facts["extra images (sha256)"] = str(extra.get("digest"))[:8]
    facts |= {"precision": run["precision"]} if "precision" in run else {}
    return {name: setting_text(value) for name, value in facts.items()}


def all_facts(result: EvaluationResult) -> dict[str, str]:
    """The facts that tell models and evaluations of one name apart, digests excepted."""
    run, evaluation = result.run, result.run.get("evaluation", {})
    trained = {name: value for name, value in _of_any_defense(result).items() if value != UNUSED}
    if "milestones" not in run.get("protocol_given", ["milestones"]):
        trained.pop("milestones", None)  # nobody chose them: they follow from the recipe and the epochs
    facts = {
        "defense": run.get("defense"),
        **run.get("hyperparameters", {}),
        "backbone": run.get("backbone"),
        **trained,
        "recipe": recipe_of(run) if trained else None,
        "code": str(run.get("defense_sha256", ""))[:8] or None,
        "epoch": None if is_best(result) or run.get("finished") else run.get("epoch"),
        "seed": run.get("seed"),
        "adapters": " ".join(map(str, run.get("adapters", []))) or None,
        "evaluation seed": evaluation.get("seed"),
        "evaluation precision": evaluation.get("precision"),
    }
    return {name: setting_text(value) for name, value in facts.items() if value is not None}


def differing(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the facts that are not the same in all, in their order."""
    names = dict.fromkeys(name for one in facts for name in one)
    found = [name for name in names if len({one.get(name, UNRECORDED) for one in facts}) > 1]
    # Another number of images has another digest, which says no more.
    return [name for name in found if not (name.endswith(" (sha256)") and name.removesuffix(" (sha256)") in found)]
