"""A stored result, compared with the one that a training and an evaluation, as asked for, would have made."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.catalogue.plugins import imported_digest, make_defense
from bench.catalogue.recipes import protocol_for
from bench.catalogue.suites import load_suite
from bench.data.datasets import dataset_protocol
from bench.data.splits import Dataset
from bench.errors import BenchError
from bench.evaluation.request import EvaluationRequest, answers
from bench.models.checkpoints import find_checkpoint, load_checkpoint
from bench.results.file import EvaluationResult, read_result
from bench.results.trainings import recorded_protocol
from bench.training.request import TrainingRequest, needed_request

_LATER = {"precision": "fp32", "processes": 1, "finished": True, "checkpoint": "last", "start": None}
"""Facts that `run` of older files leaves out."""


def require_planned(
    path: Path,
    training: TrainingRequest,
    evaluation: EvaluationRequest,
    stored: bool = False,
    images: Mapping[str, str] | None = None,
) -> EvaluationResult:
    """The result in a file, where it is of this training's model and of this evaluation.

    Of a `stored` result the model may be missing, and its defense edited since, but all that is there must still fit;
    `images` are the `image_digests` of the data, where it is here.

    Raises:
        BenchError: the file cannot be read, or is of another model or evaluation; says what differs.
    """
    result = read_result(path)
    found = [*differences(result, training, evaluation, images or {})]
    found += _other_model(result, training, evaluation, stored)
    if found:
        raise BenchError(
            f"{path} is of another model or evaluation ({'; '.join(found)}): delete it, or choose another folder with "
            "--runs."
        )
    return result


def image_digests(dataset: Dataset, limit: int | None) -> dict[str, str]:
    """Digests of the training images, and of the test images that are evaluated."""
    test = dataset.test if limit is None else dataset.test.take(limit)
    return {"training images": dataset.train.digest(), "test images": test.digest()}


def differences(
    result: EvaluationResult, training: TrainingRequest, evaluation: EvaluationRequest, images: Mapping[str, str]
) -> list[str]:
    """Facts in a result's own record of its training and evaluation that are not as they are asked for.

    Raises:
        BenchError: the requests name what does not exist.
    """
    return [*_of_evaluation(result, training, evaluation, images), *_of_training(result, training, evaluation, images)]


def was_edited(result: EvaluationResult, training: TrainingRequest) -> bool:
    """True if the file of the defense is another one now than at the training; older results do not say."""
    now = imported_digest(type(make_defense(training.defense, training.dataset, training.hyperparameters)))
    then = result.run.get("defense_sha256")
    return None not in (now, then) and now != then


def _of_evaluation(
    result: EvaluationResult, training: TrainingRequest, request: EvaluationRequest, images: Mapping[str, str]
) -> Iterator[str]:
    run, evaluation = result.run, result.run.get("evaluation", {})
    count = run.get("dataset_size") if request.limit is None else request.limit
    yield from _differing({"dataset": training.dataset}, run)
    yield from (f"suite: {text}" for text in islice(_of_suite(result.suite, request, training.dataset), 1))
    yield from _differing({"number of images": count}, {"number of images": len(result.label)})
    sampling = request.sampling or dataset_protocol(training.dataset).sampling
    if sampling != "first" and request.limit not in (None, run.get("dataset_size")):
        yield from _differing({"sampling": sampling}, {"sampling": run.get("sampling", "first")})
    elif not np.array_equal(result.index, np.arange(len(result.index))):
        yield "its images are not the first ones"
    if "test images" in images:
        yield from _differing({"test images": images["test images"]}, {"test images": run.get("dataset_digest")})
    if request.convention == "final":  # which stores the outcomes of both
        yield from _differing({"convention": "final"}, evaluation)
    recorded = evaluation.get("precision")
    precision = recorded if answers(recorded, request.precision) else request.precision
    wanted = {"attack seed": request.seed, "attack precision": precision}
    yield from _differing(wanted, {name: evaluation.get(name.removeprefix("attack ")) for name in wanted})


def _of_suite(found: Mapping[str, Any], request: EvaluationRequest, dataset: str) -> Iterator[str]:
    suite = load_suite(request.suite).resolve(dataset_protocol(dataset).epsilons, request.epsilons)
    wanted = _plain(suite.describe())
    yield from _differing({key: wanted[key] for key in ("name", "version")}, found)
    columns = [{"columns": [cell.get("label") for cell in one.get("cells", [])]} for one in (wanted, found)]
    yield from _differing(*columns)
    for pair in zip(wanted["cells"], found.get("cells", []), strict=False):
        yield from _of_cell(*pair)
    parts = [{part: one.get(part, []) for part in ("derived", "kind", "corruptions")} for one in (wanted, found)]
    yield from _differing(*parts)


def _of_cell(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    names = {"epsilon": "radius", "source": "transfer source"}
    for key, value in wanted.items():
        # Where a defense has no adaptive objective, the attack's own loss takes its place.
        if key == "objective" and (value, found.get(key)) == ("adaptive", "default"):
            continue
        name = f"{names.get(key, key)} of {wanted['label']}"
        yield from _differing({name: value}, {name: found.get(key)})


def _of_training(
    result: EvaluationResult, training: TrainingRequest, request: EvaluationRequest, images: Mapping[str, str]
) -> Iterator[str]:
    run = {**_LATER, **result.run}
    other = list(_differing({"defense": training.defense}, run))
    yield from other
    if other:
        return
    about = dataset_protocol(training.dataset)
    own = (about.epsilons, about.crop_padding, about.flip)
    protocol = protocol_for(training.dataset, *own, training.protocol, training.recipe)
    defense = make_defense(training.defense, training.dataset, training.hyperparameters)
    facts = {"backbone": training.resolved_backbone, "seed": training.seed, "precision": training.precision_like(run)}
    yield from _differing({**facts, "processes": 1, "start": None}, run)
    yield from _differing(_plain(dataclasses.asdict(protocol)), recorded_protocol(run))
    recorded = {**defense.unrecorded, **run.get("hyperparameters", {})}
    yield from _differing(_plain(dataclasses.asdict(defense)), recorded)
    subject = request.checkpoint or training.run_folder
    which = "last" if subject == training.run_folder else subject.name
    # Of a best checkpoint `finished` says nothing of its training.
    yield from _differing({"checkpoint": which} | ({} if which == "best" else {"finished": True}), run)
    trained = run.get("training_data", {})
    yield from _differing({"training data": training.dataset}, {"training data": trained.get("name")})
    extra = trained.get("extra", {}).get("name", "none")
    yield from _differing({"extra images": training.extra or "none"}, {"extra images": extra})
    if "training images" in images:
        shown = {"training images": trained.get("train_digest")}
        yield from _differing({"training images": images["training images"]}, shown)


def _other_model(
    result: EvaluationResult, training: TrainingRequest, evaluation: EvaluationRequest, stored: bool
) -> Iterator[str]:
    """Checkpoints and a defense that are here and are others than those of the result."""
    if not stored and was_edited(result, training):
        yield f"{training.defense} was edited since"
    subject = evaluation.checkpoint or training.run_folder
    if _digest(subject, stored) not in (None, result.run.get("checkpoint_digest")):
        yield f"its model is not the one in {subject}"
    digests = result.run.get("requirements", {})
    for name in type(make_defense(training.defense, training.dataset, training.hyperparameters)).requires:
        needed = needed_request(training, name).run_folder
        if _digest(needed, stored) not in (None, digests.get(name)):
            yield f"it was trained with another {name} than the one in {needed}"


def _digest(folder: Path, optional: bool) -> str | None:
    """Of the model that is there; None: there is none, and there need not be."""
    try:
        find_checkpoint(folder)
    except BenchError:
        if optional:
            return None
        raise
    return load_checkpoint(folder).digest


def _differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        given = found.get(name)
        if given != value:
            yield f"{name} {_short(given)}, not {_short(value)}"


def _short(value: Any) -> str:
    """One line, for an error; files may say anything."""
    text = "unknown" if value is None else " ".join(str(value).split())
    if isinstance(value, Sequence) and not isinstance(value, str):
        text = ", ".join(map(str, value)) or "none"
    return text if len(text) <= 60 else f"{text[:12]}..." if " " not in text else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(value, default=str))
