"""An outcome as a result: described, judged by the trust report, and written."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bench.catalogue.plugins import make_attack
from bench.catalogue.suites import Suite
from bench.data.splits import Split
from bench.engine.adversarials import adversarials_path, owner_of, write_adversarials
from bench.engine.outcomes import Outcome
from bench.engine.run import untried
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.corrupted import describe_corrupted
from bench.evaluation.features import feature_record
from bench.evaluation.prepare import Prepared, norms
from bench.models.checkpoints import find_checkpoint
from bench.results.file import (
    CorruptionRecord,
    EvaluationResult,
    canonical_json,
    content_digest,
    read_result,
    require_storable,
    write_result,
)
from bench.results.findings import Finding
from bench.system.files import AlreadyThereError, require_writable, which_file
from bench.text import time_text
from bench.trust.class_shares import class_shares
from bench.trust.extra_data import extra_data
from bench.trust.outcome_checks import file_findings
from bench.trust.report import concluded, examined, unmeasured
from bench.trust.watched_training import training_findings


def require_room(prepared: Prepared) -> None:
    """Refuse, before the work, a result that could not be kept: one of its form is written to memory and read."""
    outcome = untried(prepared.target, prepared.suite, prepared.request.convention)
    for corruption, severity in prepared.corrupted or ():
        shown = CorruptionRecord(corruption, severity, outcome.label, 0.0)
        outcome.corruptions[shown.label] = shown
    try:
        require_storable(_described(prepared, outcome, 0.0))
    except BenchError as error:
        raise BenchError(f"the result could not be kept: {str(error).removesuffix(' Evaluate again.')}") from error
    for path in (prepared.path, *([adversarials_path(prepared.path)] if prepared.request.save_adversarials else [])):
        require_writable(path)


def require_storable_suite(suite: Suite, samples: Split) -> None:
    """Refuse a resolved suite whose outcomes on some samples no file could hold, whatever the model."""
    require_storable(_outcomes({}, suite, samples, untried(Target(nn.Identity(), samples), suite)))


def make_result(prepared: Prepared, outcome: Outcome, probed: list[Finding], seconds: float) -> EvaluationResult:
    """The result of an outcome, with features and the trust report; what fails of these is a finding."""
    result = _described(prepared, outcome, seconds)
    failed: list[Finding] = []
    try:
        result = dataclasses.replace(result, features=feature_record(prepared.subject.model, outcome))
    except Exception as error:
        failed.append(unmeasured(error))
    shares = class_shares(prepared.target.split.labels.cpu().numpy(), prepared.dataset.test.labels.numpy())
    extra = examined(partial(extra_data, result.run, prepared.dataset.test))
    looked = [*outcome.findings, shares, *extra, *_of_the_training(prepared), *probed, *failed]
    return dataclasses.replace(result, findings=tuple(concluded(looked, examined(partial(file_findings, result)))))


def _of_the_training(prepared: Prepared) -> list[Finding]:
    checkpoint = prepared.request.checkpoint
    return [] if checkpoint is None else training_findings(find_checkpoint(checkpoint), prepared.subject.description)


def _described(prepared: Prepared, outcome: Outcome, seconds: float) -> EvaluationResult:
    """A description of the model, the images and the evaluation, and the outcomes."""
    request, dataset, split = prepared.request, prepared.dataset, prepared.target.split
    before, after = norms(prepared.subject.model), norms(prepared.target.search_model or prepared.subject.model)
    searched = {} if prepared.precision == "fp32" else {"folded": before - after}
    corrupted: dict[str, Any] = {}
    if prepared.corrupted is not None:
        corrupted["corruptions"] = {**describe_corrupted(prepared.corrupted), "digest": outcome.corrupted_digest}
    run = {
        **prepared.subject.description,
        "model": request.name or prepared.subject.name,
        "dataset": dataset.name,
        "dataset_digest": split.digest(),
        "dataset_size": len(dataset.test),
        "sampling": "all" if len(split) == len(dataset.test) else split.sampling,
        "num_classes": dataset.num_classes,
        "classes_from": dataset.classes_from,
        "image_shape": list(dataset.image_shape),
        "parameters": sum(parameter.numel() for parameter in prepared.subject.model.parameters()),
        **dataset.described(),
        **corrupted,
        **({} if prepared.target.drawn is None else {"randomised": _declared(prepared)}),
        "evaluation": {
            "seed": request.seed,
            "batch_size": prepared.target.batch_size,
            "convention": request.convention,
            "precision": prepared.precision,
            **searched,
            "probes": request.probes,
            "adversarials": request.save_adversarials,
            **_drawing(prepared),
            "environment": prepared.environment,
        },
        "created": time_text(),
        "command": request.command,
        "seconds": seconds,
    }
    return _outcomes(json.loads(canonical_json("run", run)), prepared.suite, split, outcome)


def _declared(prepared: Prepared) -> str:
    return "by the model" if prepared.subject.randomised else "by --randomised"


def _drawing(prepared: Prepared) -> dict[str, Any]:
    """Of a random model: by attack, how many passes through it an image takes at most, the verdict's included."""
    if prepared.suite.draws is None:
        return {}
    cells = {cell.label: make_attack(cell.attack, cell.parameters).passes() for cell in prepared.suite.cells}
    search, verdict = prepared.suite.draws["search"], prepared.suite.draws["verdict"]
    return {"passes": {label: search * sum(passes) + verdict for label, passes in cells.items()}}


def _outcomes(run: Mapping[str, Any], suite: Suite, split: Split, outcome: Outcome) -> EvaluationResult:
    """Outcomes of these samples, under a description of the run."""
    return EvaluationResult(
        run=run,
        suite=json.loads(canonical_json("suite", suite.describe())),
        label=outcome.label,
        index=split.positions.astype(np.int64),
        clean_prediction=outcome.clean_prediction,
        attacks=outcome.attacks,
        corruptions=outcome.corruptions,
        clean_right_draws=outcome.clean_right_draws,
    )


def write(prepared: Prepared, result: EvaluationResult, outcome: Outcome) -> None:
    """The result, and beside it the images, which name the result. Images of a result that is replaced go with it.

    Raises:
        BenchError: a file cannot be written, or another evaluation wrote it meanwhile; that one is left as it is.
    """
    request, path, images = prepared.request, prepared.path, adversarials_path(prepared.path)
    digest, owner = content_digest(result), _owner_there(images)
    obsolete = not request.save_adversarials and owner is not None and owner == _digest_there(path)
    replace = prepared.replaced is not None and which_file(path) == prepared.replaced
    try:
        # The result comes first: if the disk is full, the old files are still there, and still belong together.
        write_result(result, path, replace)
    except AlreadyThereError as error:
        if _digest_there(path) != digest:  # else the same evaluation was run twice at once, to the same end
            raise _came_meanwhile(path) from error
    if request.save_adversarials:
        try:
            write_adversarials(outcome.adversarials, digest, images, request.overwrite)
        except BenchError as error:
            # The same evaluation, run twice at once, may have written them, and cleared the blocks that hold them.
            if _owner_there(images) != digest:
                if isinstance(error, AlreadyThereError):
                    raise _came_meanwhile(images) from error
                raise
    elif obsolete:
        with suppress(OSError):
            images.unlink()


def written(prepared: Prepared, digest: str | None) -> EvaluationResult | None:
    """The result of this content digest in its file, if it is all that was asked for but for the images beside it."""
    with suppress(BenchError):
        result = read_result(prepared.path)
        if content_digest(result) == digest and result.run["evaluation"]["probes"] == prepared.request.probes:
            return result
    return None


def is_whole(prepared: Prepared, digest: str | None) -> bool:
    """True if the images of a result of this content digest are there, or were not asked for."""
    return not prepared.request.save_adversarials or _owner_there(adversarials_path(prepared.path)) == digest


def _digest_there(path: Path) -> str | None:
    """The content digest of the result in a file; None where there is none that can be read."""
    with suppress(BenchError):
        return content_digest(read_result(path))
    return None


def _owner_there(images: Path) -> str | None:
    """The content digest that a file of images names; None where there is none that can be read."""
    with suppress(BenchError):
        return owner_of(images)
    return None


def _came_meanwhile(path: Path) -> BenchError:
    return BenchError(
        f"{path} was written by another evaluation meanwhile, and is left as it is. What this one has done is kept: "
        "move that file or add --overwrite, and give the same command again; it repeats no block."
    )
