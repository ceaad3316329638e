"""Is a result file true? Everything that a model, its data and the kept images can show is computed again, in float32.

A broken sample is proved by its image: inside the threat model, and misclassified. A sample that still stands cannot be
proved by anything in a file; nor are distances, losses, stages and the verdicts of the convention `final` replayed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.catalogue.names import suite_names
from bench.catalogue.plugins import make_attack
from bench.catalogue.suites import AttackCell, load_suite
from bench.data.datasets import load_dataset
from bench.data.splits import Dataset, Split
from bench.engine.adversarials import Adversarials, adversarials_path, read_adversarials, stored_images
from bench.engine.memory import room_for
from bench.engine.observed import allowed
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import NORMS, TRANSFORMATIONS, Logits, ThreatModel, classes
from bench.interop.contract import check_contract
from bench.interop.subjects import ModelReference, Subject
from bench.radii import exact
from bench.results.board_rows import ATTACK_FILE, Found, found_since, read_row
from bench.results.file import AttackRecord, EvaluationResult
from bench.system.devices import choose_device, full_float32
from bench.system.sealed import MalformedError

ROUNDING = 1e-4
"""Share of a sample's largest logit by which two devices may differ: convolutions add up in another order on each."""

# An exponent without a bound would make a forged radius a number of a billion digits.
_RADIUS = re.compile(r"\d{1,20}(\.\d{1,20})?(e-?\d{1,2})?|\d{1,20}/0*[1-9]\d{0,20}|\.\d{1,20}", re.ASCII)


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at."""

    name: str
    status: Literal["confirmed", "refuted", "noted", "not replayable", "not checked", "not provable"]
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.status}" + (f": {self.text}" if self.status == "refuted" else f" ({self.text})")


@dataclass(frozen=True)
class VerificationRequest(ModelReference):
    """A result file, and the model that it claims to be about."""

    result: Path
    _: KW_ONLY
    dataset: str | None = None
    """Where the data is now, if not under the name that the file gives."""
    data: Path = Path("data")
    batch_size: int = 256
    device: str = "auto"


def verify(request: VerificationRequest) -> Iterator[Verdict]:
    """Checks, cheapest first; those that a refuted one would make meaningless are left out.

    Raises:
        BenchError: what is named in the request does not exist or cannot be used.
    """
    if not request.result.is_file():
        raise BenchError(f"no result file at {request.result}.")
    try:
        result = read_row(request.result)
    except BenchError as error:
        yield Verdict("result file", "refuted", str(error))
        return
    size = f"{len(result.label)} samples, {len(result.attacks)} attacks"
    yield Verdict("result file", "confirmed", f"whole, its seal and digest are right; {size}")
    columns = _columns_check(result)
    yield columns
    if columns.status == "refuted":
        return
    yield _suite_check(result)
    if request.checkpoint is None and request.model is None:
        yield Verdict(
            "predictions", "not checked", "give --checkpoint RUN, or --model FILE.py:FACTORY with --weights W"
        )
        return
    subject = request.load(choose_device(request.device), str(result.run.get("dataset")))
    model = model_check(result, subject)
    yield model
    dataset = dataset_of(result, request)
    verdict, samples = samples_check(result, dataset)
    yield verdict
    if model.status == "refuted" or samples is None:
        return
    if result.draws is not None:
        text = "the model is random, and draws repeat on the same kind of device alone: evaluate again, compare digests"
        yield Verdict("predictions", "not replayable", text)
        return
    with full_float32():
        shown, guessed = samples.to(choose_device(request.device)), dataset.classes_from == "labels"
        outputs = check_contract(subject.model, shown.images(slice(0, 16)), dataset.num_classes, at_least=guessed)
        claimed, classes = result.run.get("num_classes"), dataset.seen_by(outputs).num_classes
        if claimed not in (None, classes):
            yield Verdict("classes", "refuted", f"the result says that there are {claimed}, here are {classes}")
        yield from _replay(result, request, subject, samples)


def conclusion(checks: list[Verdict]) -> str:
    """One sentence on all checks together."""
    statuses = [check.status for check in checks]
    if "refuted" in statuses:
        return f"Refuted: {statuses.count('refuted')} of {len(checks)} checks failed."
    if "not checked" in statuses:
        return "Nothing is refuted, and nothing was compared with a model."
    if "not replayable" in statuses:
        return "Nothing is refuted. The verdicts of attacks are unproved: no images were kept to replay them."
    return "Confirmed: every sample marked broken is broken by its image. Samples that still stand cannot be proved."


def _columns_check(result: EvaluationResult) -> Verdict:
    """Each record is of the cell that the suite in the file specifies, and under a threat model that exists."""
    cells = result.suite.get("cells", [])
    labels = [cell.get("label") for cell in cells]
    if labels != list(result.attacks):
        return Verdict("columns", "refuted", f"the suite has {labels!r}, the file has {list(result.attacks)!r}")
    for cell, record in zip(cells, result.attacks.values(), strict=True):
        given = {name: cell.get(name) for name in ("attack", "norm", "epsilon", "objective")}
        parameters = _specified(cell)
        wanted = {**given, **parameters}
        found = {name: getattr(record, name) for name in given} | {
            name: record.parameters.get(name) for name in parameters
        }
        different = [name for name in wanted if wanted[name] != found[name]]
        if different:
            name = different[0]
            return Verdict("columns", "refuted", f"{record.label} has {name} {found[name]!r}, not {wanted[name]!r}")
        if record.norm not in (*NORMS, *TRANSFORMATIONS) or not _RADIUS.fullmatch(record.epsilon):
            return Verdict("columns", "refuted", f"{record.label} is under {record.norm!r} {record.epsilon[:40]!r}")
    return Verdict("columns", "confirmed", "attacks, radii and parameters are those of the suite in the file")


def _specified(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a cell gives, as its attack reads them; as written, where the attack is not known here."""
    given = cell.get("parameters", {})
    try:
        values = asdict(make_attack(str(cell.get("attack")), given))
    except BenchError:
        return given
    names = (name.replace("-", "_") for name in given)
    return dict(json.loads(json.dumps({name: values[name] for name in names})))


def _suite_check(result: EvaluationResult) -> Verdict:
    name, version = result.suite.get("name"), result.suite.get("version")
    if name not in suite_names():
        return Verdict("suite", "noted", f"{name!r} is not a suite of this program: its cells are in the file")
    shipped = load_suite(str(name))
    if version != shipped.version:
        return Verdict("suite", "noted", f"{name} version {version!r}: this program has version {shipped.version}")
    # Shares of a radius differ under two radii, radii of a cell's own do not.
    unit, double = (shipped.resolve(dict.fromkeys(NORMS, radius), {}).cells for radius in ("1", "2"))
    radii: dict[str, Fraction] = {}
    same = len(unit) == len(result.attacks) and result.suite.get("derived") == shipped.describe()["derived"]
    for given, cell, twice in zip(result.suite.get("cells", []), unit, double, strict=False):
        same = same and _same_cell(given, cell, cell.epsilon != twice.epsilon, radii)
    same = same and result.suite.get("corruptions", []) == list(shipped.corruptions)
    if not same:
        return Verdict("suite", "noted", f"its cells are not those that this program calls {name} version {version}")
    shown = ", ".join(dict.fromkeys(f"{record.norm} {record.epsilon}" for record in result.attacks.values())) or "none"
    return Verdict("suite", "confirmed", f"{name} version {version} as this program has it; radii: {shown}")


def _same_cell(given: Mapping[str, Any], shipped: AttackCell, relative: bool, radii: dict[str, Fraction]) -> bool:
    """True if a cell of a file is a shipped one, at the radius that its other cells of the norm share."""
    wanted = json.loads(json.dumps(asdict(shipped)))
    if given.get("objective") == "default":  # an adaptive cell falls back to it where a defense has no objective
        wanted["objective"] = "default"
    try:
        radius = exact(str(given.get("epsilon"))) / (Fraction(wanted.pop("epsilon")) if relative else 1)
    except (ValueError, ZeroDivisionError):
        return False
    expected = radii.setdefault(shipped.norm, radius) if relative else Fraction(str(shipped.epsilon))
    others = {name: value for name, value in given.items() if name != "epsilon"}
    wanted.pop("epsilon", None)
    return others == wanted and radius == expected


def model_check(result: EvaluationResult, subject: Subject) -> Verdict:
    """The verdict on a model: the one that the result says it is of, in the same adapters."""
    found, claimed = subject.description["checkpoint_digest"], result.run.get("checkpoint_digest")
    if found != claimed:
        kind = result.run.get("checkpoint")
        text = f"the result is of sha256 {str(claimed)[:16]!r} (checkpoint {kind!r}), this is {found[:16]}"
        return Verdict("model", "refuted", f"{text} (checkpoint {subject.description['checkpoint']!r})")
    ours, theirs = (" ".join(map(str, run.get("adapters", []))) or "none" for run in (subject.description, result.run))
    if ours != theirs:
        return Verdict(
            "model", "refuted", f"the result is of adapters {theirs}, this has {ours}: give the same --adapt"
        )
    return Verdict("model", "confirmed", f"{subject.digest_of}, sha256 {found[:16]}")


def dataset_of(result: EvaluationResult, request: VerificationRequest) -> Dataset:
    """The dataset that a result says it was evaluated on.

    Raises:
        BenchError: the result does not say it, or the dataset cannot be read.
    """
    name = request.dataset or result.run.get("dataset")
    if not isinstance(name, str):
        raise BenchError("the result does not say what it was evaluated on: give --dataset NAME.")
    run = result.run
    return load_dataset(name, request.data, run.get("kept_classes"), run.get("preprocessing"))


def samples_check(result: EvaluationResult, dataset: Dataset) -> tuple[Verdict, Split | None]:
    """The verdict on a result's samples; the samples, in its order, if they are what the file says."""
    test, index, label = dataset.test, result.index, result.label
    if len(index) == 0 or index.min() < 0 or index.max() >= len(test) or len(np.unique(index)) < len(index):
        text = f"positions are not {len(index)} different ones of the {len(test)} test images"
        return Verdict("samples", "refuted", text), None
    samples = test.chosen(index.astype(np.int64))
    different = np.flatnonzero(samples.labels.numpy() != label)
    if len(different):
        return Verdict("samples", "refuted", f"labels differ from the dataset's{_count(result, different)}"), None
    if samples.digest() != result.run.get("dataset_digest"):
        text = "images, or their order, are not those of the result (dataset_digest differs)"
        return Verdict("samples", "refuted", text), None
    text = f"{len(index)} images of {dataset.name}, in this order, sha256 {samples.digest()[:16]}"
    return Verdict("samples", "confirmed", text), samples


def _replay(
    result: EvaluationResult, request: VerificationRequest, subject: Subject, samples: Split
) -> Iterator[Verdict]:
    device = choose_device(request.device)
    room = room_for(tuple(samples.pixels.shape[1:]), device)
    target = Target(subject.model.eval(), samples, batch_size=request.batch_size, room=room)
    yield _clean_check(result, target, device)
    right = result.clean_prediction == result.label
    standing = right & np.all([record.prediction == result.label for record in result.attacks.values()], axis=0)
    path = adversarials_path(request.result)
    saved = result.run.get("evaluation", {}).get("adversarials")
    if not path.exists() and saved:
        yield Verdict("images", "refuted", f"the result was made with --save-adversarials, and {path} is missing")
    elif not path.exists():
        for label in result.attacks:
            yield Verdict(label, "not replayable", "evaluated without --save-adversarials")
    else:
        try:
            kept = read_adversarials(path, result, tuple(samples.pixels.shape[1:]))
        except BenchError as error:
            yield Verdict("images", "refuted", str(error))
            return
        for label, record in result.attacks.items():
            try:
                yield _cell_check(result, record, kept[label], target, device)
            except MalformedError as error:
                yield Verdict(label, "refuted", str(error))
    for found in found_since(result):
        yield _found_check(result, found, target, device)
    for suite in ("corruptions", "features"):
        if getattr(result, suite):
            yield Verdict(suite, "not replayable", f"evaluate again with --suite {suite} and compare the digests")
    text = f"{standing.sum()} of {len(right)}: that these attacks failed does not show that others would"
    yield Verdict("samples still standing", "not provable", text)


def _found_check(result: EvaluationResult, found: Found, target: Target, device: torch.device) -> Verdict:
    """The verdict on images that others found: as on those of the suite's attacks."""
    shape = tuple(target.split.pixels.shape[1:])
    try:
        kept = ATTACK_FILE.read(found.file, lambda file, budget: stored_images(file, len(result.label), shape, budget))
        return _cell_check(result, found.record, kept, target, device)
    except BenchError as error:
        return Verdict(found.record.label, "refuted", str(error))


def _clean_check(result: EvaluationResult, target: Target, device: torch.device) -> Verdict:
    rows = torch.arange(len(target.split))
    differing, ties = [], 0
    for block in torch.split(rows, target.at_once):
        claimed = torch.from_numpy(result.clean_prediction)[block]
        refuted, tied = _compared(target.judge(target.split.images(block).to(device)), claimed)
        differing.append(block[refuted])
        ties += int(tied.sum())
    found = torch.cat(differing).numpy()
    if len(found):
        return Verdict("clean predictions", "refuted", f"the model answers differently{_count(result, found)}")
    return Verdict("clean predictions", "confirmed", f"all {len(rows)}{_ties(ties)}")


def _cell_check(
    result: EvaluationResult, record: AttackRecord, kept: Adversarials, target: Target, device: torch.device
) -> Verdict:
    """Every broken sample has an image and the other way round; each is allowed and classified as recorded."""
    broken = np.flatnonzero((result.clean_prediction == result.label) & (record.prediction != result.label))
    threat = ThreatModel(record.norm, record.epsilon)
    # Masks, not a list of rows: what stays between tensors that come and go keeps their memory from being used again.
    outside, differing = (np.zeros(len(record.prediction), dtype=bool) for _ in range(2))
    ties = 0
    for rows, images in kept.images(target.split, threat, target.at_once):
        outside[rows] = ~allowed(images, target.split.images(rows), threat)
        claimed = torch.from_numpy(record.prediction)[rows]
        refuted, tied = _compared(target.judge(images.to(device)), claimed)
        differing[rows] = refuted
        ties += int(tied.sum())
    problems = {
        "marked broken, without an image": np.setdiff1d(broken, kept.rows),
        "with an image, not marked broken": np.setdiff1d(kept.rows, broken),
        f"whose image is outside {record.norm} {record.epsilon} or [0, 1]": np.flatnonzero(outside),
        "whose image the model classifies otherwise than recorded": np.flatnonzero(differing),
    }
    texts = [f"{what}{_count(result, np.sort(rows))}" for what, rows in problems.items() if len(rows)]
    if texts:
        return Verdict(record.label, "refuted", "samples " + "; samples ".join(texts))
    return Verdict(record.label, "confirmed", f"{len(broken)} broken samples, each by its image{_ties(ties)}")


def _compared(logits: Logits, claimed: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample: the claimed class is not the predicted one; it is not, but by no more than rounding."""
    logits, claimed = logits.double().cpu(), claimed.long()
    other = classes(logits) != claimed
    known = claimed.clamp(0, logits.shape[1] - 1)
    gap = logits.amax(1) - logits.gather(1, known[:, None]).squeeze(1)
    tied = other & (known == claimed) & (gap <= ROUNDING * logits.abs().amax(1))
    return other & ~tied, tied


def _count(result: EvaluationResult, rows: np.ndarray) -> str:
    return f": {len(rows)}, the first is sample {result.index[rows[0]]}"


def _ties(count: int) -> str:
    return f"; {count} of them tied with another class within float32 rounding" if count else ""
