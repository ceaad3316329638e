"""What a maintainer does before a row goes on a board: everything that can be computed again, is.

`bench.trust.verification` replays what is broken. Here the rest: whether the files of a bundle belong together, whether
samples that still stand do so once more, whether the trust report hides something, and whether the row is new. A
sample that stands is evaluated again with the seed that the row names, so that a true row differs by rounding at most.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import nn

import bench
from bench.catalogue.names import ADVERSARIALS
from bench.data.splits import Dataset, Split
from bench.engine.memory import room_for
from bench.engine.outcomes import Outcome
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import ThreatModel
from bench.interop.subjects import ModelReference
from bench.results.board_rows import CHECKED, CHECKED_FORMAT, CHECKED_VERSION, row_files
from bench.results.file import EvaluationResult, content_digest, read_result
from bench.results.findings import SEVERITIES
from bench.results.metrics import worst_case
from bench.submissions.bundle import (
    CARD,
    IMAGES,
    MODEL,
    RECIPE,
    Bundle,
    copy,
    identity,
    json_text,
    open_bundle,
    papers,
    read_paper,
    read_provenance,
    row_name,
)
from bench.system.devices import choose_device
from bench.system.environment import describe_environment
from bench.system.files import write_text
from bench.text import one_line, time_text
from bench.trust.evidence import surely_above
from bench.trust.outcome_checks import file_findings
from bench.trust.probes import probe
from bench.trust.report import concluded, gravity
from bench.trust.verification import Verdict, VerificationRequest, dataset_of, samples_check, verify

SHARE = 0.05
"""Of the samples that still stand, so many are evaluated again, and one at least."""
ROUNDING = 0.01
"""Share of these that another device may break, where sums are taken in another order."""
_NOT_ENOUGH = ("refuted", "not checked", "not replayable")
_GRAVE = ("error", "warning")
_UNTRIED = "its model or loss is not in the bundle"


def check(
    request: VerificationRequest, board: Path | None, seed: int, shown: Callable[[EvaluationResult], str]
) -> Iterator[Verdict]:
    """Checks of a bundle, cheapest first; those that a refuted one would make meaningless are left out.

    Args:
        request: of the result in a bundle; where it names no model, it is that of the bundle.
        board: the folder of the rows it is to stand beside; None: it is compared with none.
        seed: chooses the samples that are evaluated again.
        shown: makes the row Markdown, as the bundle's card shows it.

    Raises:
        BenchError: what is named does not exist or cannot be used.
    """
    try:
        bundle = open_bundle(request.result.parent)
    except BenchError as error:
        yield Verdict("bundle", "refuted", str(error))
        return
    yield Verdict("bundle", "confirmed", f"{len(bundle.files)} files as listed, sha256 {bundle.digest[:16]}")
    if request.checkpoint is None and request.model is None and MODEL in bundle.files:
        request = replace(request, checkpoint=bundle.folder / MODEL)
    try:
        result = read_result(request.result)
    except BenchError as error:
        yield Verdict("result file", "refuted", str(error))
        return
    refuted = False
    for verdict in chain(_papers_checks(bundle, result, shown), duplicates(result, board), verify(request)):
        refuted |= verdict.status == "refuted"
        yield verdict
    if not refuted and (request.checkpoint or request.model):
        dataset = dataset_of(result, request)
        _, samples = samples_check(result, dataset)
        assert samples is not None  # as verified above
        yield _standing_check(result, request, dataset, samples, seed)
        yield _trust_check(result, request, dataset, samples)


def conclusion(checks: Sequence[Verdict]) -> str:
    """One sentence on all checks of a bundle together."""
    refuted = [verdict.name for verdict in checks if verdict.status == "refuted"]
    open_ones = [verdict.name for verdict in checks if verdict.status in _NOT_ENOUGH]
    if refuted:
        return f"Refuted: {', '.join(refuted)}."
    if open_ones:
        return f"Nothing is refuted, and this is left open: {', '.join(open_ones)}."
    return "Confirmed: the row may go on the board. Samples that still stand cannot be proved."


def chosen_again(result: EvaluationResult, seed: int) -> Int64[np.ndarray, " chosen"]:
    """Rows of the samples that are evaluated again: a random `SHARE` of those that no attack of the suite broke."""
    standing = np.flatnonzero(worst_case(result))
    count = math.ceil(SHARE * len(standing))
    return np.sort(np.random.default_rng(seed).choice(standing, count, replace=False)).astype(np.int64)


def accept(request: VerificationRequest, board: Path, checks: Sequence[Verdict], seed: int, by: str) -> Path:
    """The path of the row on the board: result, images and a record of who checked what are written there.

    Raises:
        BenchError: a check failed or was left out, or the row is there.
    """
    if any(verdict.status in _NOT_ENOUGH for verdict in checks):
        raise BenchError(f"the row is not accepted. {conclusion(checks)}")
    bundle, result = open_bundle(request.result.parent), read_result(request.result)
    row = board / f"{row_name(result)}.h5"
    provenance = read_provenance(bundle)
    record = {
        "format": CHECKED_FORMAT,
        "version": CHECKED_VERSION,
        "row": content_digest(result),
        "bundle": bundle.digest,
        "submitted_by": provenance["submitted_by"],
        "link": provenance["link"],
        "by": one_line(by),
        "created": time_text(),
        "checks": [asdict(verdict) for verdict in checks],
        "seed": seed,
        "again": result.index[chosen_again(result, seed)].tolist(),
        "environment": describe_environment(choose_device(request.device)),
    }
    if row.exists():
        raise BenchError(f"{row} exists: the row is on this board.")
    # The row comes last: there is none without its images and the record.
    write_text(row.with_name(f"{row.stem}{CHECKED}"), json_text(record))
    copy(bundle.folder / IMAGES, row.with_name(f"{row.stem}{ADVERSARIALS}"))
    copy(request.result, row, replace=False)
    return row


def _papers_checks(
    bundle: Bundle, result: EvaluationResult, shown: Callable[[EvaluationResult], str]
) -> Iterator[Verdict]:
    """The provenance, the card and the recipe are of this row, and say what it says."""
    try:
        provenance = read_provenance(bundle)
        expected = papers(result, bundle.folder / MODEL if MODEL in bundle.files else None, shown(result))
    except BenchError as error:
        yield Verdict("papers", "refuted", str(error))
        return
    same = {name: provenance[name] for name in identity(result)} == identity(result)
    by = one_line(provenance["submitted_by"]) or "nobody by name"
    text = f"of this row and model, sent by {by}" if same else "it is of another row or model"
    yield Verdict("provenance", "confirmed" if same else "refuted", text)
    for name, what in ((CARD, "model card"), (RECIPE, "recipe")):
        if read_paper(bundle, name) == expected.get(name):
            yield Verdict(
                what, "confirmed", "says what the row says" if name in expected else "no training is recorded"
            )
        elif provenance["program"] != bench.__version__:
            yield Verdict(what, "noted", f"written by version {provenance['program']}, and not compared")
        else:
            yield Verdict(what, "refuted", f"{name} does not say what the row says")


def duplicates(result: EvaluationResult, board: Path | None) -> Iterator[Verdict]:
    """The row is none of those on the board; nothing is said without a board."""
    if board is None:
        return
    rows = row_files(board)
    same = {path: text for path in rows if (text := _sameness(result, read_result(path)))}
    for path, text in same.items():
        yield Verdict("duplicates", "refuted", f"{text}: {path}")
    if not same:
        yield Verdict("duplicates", "confirmed", f"unlike the {len(rows)} rows of {board}")


def _sameness(result: EvaluationResult, other: EvaluationResult) -> str:
    """In what way two results are one row; empty: they are not."""
    if content_digest(result) == content_digest(other):
        return "the same result is there"
    ours, theirs = (
        [one.run.get(name) for name in ("checkpoint_digest", "adapters", "dataset_digest")]
        + [one.suite.get(name) for name in ("name", "version")]
        for one in (result, other)
    )
    if ours == theirs:
        return "the same model is there, under the same suite on the same samples"
    return "a model with the same outcomes, sample by sample, is there" if _same_outcomes(result, other) else ""


def _same_outcomes(result: EvaluationResult, other: EvaluationResult) -> bool:
    """True if all predictions and distances are equal: weights under another name, and no chance."""
    if list(result.attacks) != list(other.attacks) or result.run["dataset_digest"] != other.run.get("dataset_digest"):
        return False
    pairs = [(result.clean_prediction, other.clean_prediction)]
    for label, record in result.attacks.items():
        twin = other.attacks[label]
        pairs += [(record.prediction, twin.prediction), (record.distance, twin.distance)]
    return all(np.array_equal(one, another) for one, another in pairs)


def _standing_check(
    result: EvaluationResult, request: VerificationRequest, dataset: Dataset, samples: Split, seed: int
) -> Verdict:
    """A random part of the samples that stand is attacked again, as the row says it was."""
    name, rows, standing = "samples still standing, again", chosen_again(result, seed), int(worst_case(result).sum())
    if not len(rows):
        return Verdict(name, "confirmed", "none stands")
    cells = [cell for cell in result.suite["cells"] if cell.get("objective") in ("default", "adaptive")]
    cells = [cell for cell in cells if not cell.get("source")]
    if not cells:
        return Verdict(name, "not checked", _UNTRIED)
    try:
        again = _evaluated_again(result, request, replace(dataset, test=samples.chosen(rows)), cells)
    except BenchError as error:
        return Verdict(name, "not checked", str(error))
    broken = np.flatnonzero(~worst_case(again))
    looked = f"{len(rows)} of {standing} evaluated again (chosen by seed {seed})"
    if len(cells) < len(result.attacks):
        looked += f", under {len(cells)} of {len(result.attacks)} attacks"
    if not len(broken):
        return Verdict(name, "confirmed", f"{looked}, and all still stand")
    text = f"{looked}, and {len(broken)} break, the first is sample {again.index[broken[0]]}"
    return Verdict(name, "refuted" if surely_above(len(broken), len(rows), ROUNDING) else "noted", text)


def _evaluated_again(
    result: EvaluationResult, request: VerificationRequest, dataset: Dataset, cells: Sequence[Mapping[str, Any]]
) -> EvaluationResult:
    """The outcomes of some samples under some cells of the row's suite, with the row's own seed."""
    recorded = result.run.get("evaluation", {})
    precision = recorded.get("precision", "fp32")
    named = {item.name: getattr(request, item.name) for item in fields(ModelReference)}
    with tempfile.TemporaryDirectory() as place:
        suite = Path(place) / "suite.json"
        suite.write_text(json.dumps({"name": "again", "version": 1, "cells": cells}), encoding="utf-8")
        again = EvaluationRequest(
            str(suite),
            **named,
            dataset=dataset.name,
            held=dataset,
            seed=recorded.get("seed", 0),
            batch_size=recorded.get("batch_size"),
            convention=recorded.get("convention", "any"),
            precision="auto" if precision == "tf32" else precision,
            probes=0,
            device=request.device,
            out=Path(place) / "again.h5",
        )
        return evaluate(again)[0]


def _trust_check(result: EvaluationResult, request: VerificationRequest, dataset: Dataset, samples: Split) -> Verdict:
    """The trust report, made anew with the model, says nothing graver than the row does."""
    recorded = result.run.get("evaluation", {})
    count = int(recorded.get("probes", 0))
    if not count:
        return Verdict("trust report", "noted", "evaluated with --probes 0: nobody looked at the model")
    device = choose_device(request.device)

    def load() -> nn.Module:
        return request.load(device, dataset.name).model.eval()

    target = Target(load(), samples.to(device), recorded.get("seed", 0), request.batch_size, another=load)
    target.room = room_for(dataset.image_shape, device)
    cell = next(iter(result.attacks.values()))
    outcome = Outcome(result.label, result.clean_prediction, dict(result.attacks), ())
    looked = probe(target, ThreatModel(cell.norm, cell.epsilon), count, suite=outcome, train=dataset.train)
    told = {str(one.get("name")): gravity(dict(one)) for one in result.findings}
    hidden = [
        f"{one['name']} ({one['severity']}: {one['message']})"
        for one in concluded(looked, file_findings(result))
        if one["severity"] in _GRAVE and gravity(one) < told.get(str(one["name"]), len(SEVERITIES))
    ]
    if hidden:
        return Verdict("trust report", "refuted", f"the row does not say: {'; '.join(hidden)}")
    grave = [f"{one.get('name')} ({one.get('severity')})" for one in result.findings if one.get("severity") in _GRAVE]
    text = f"made anew on {count} images, and nothing graver than the row says: {', '.join(grave) or 'it is sound'}"
    return Verdict("trust report", "noted" if grave else "confirmed", text)
