"""From a model and a suite to a result file. A stopped evaluation goes on; several processes can share one."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from bench.catalogue.plugins import find, load_python_file, make_attack, source_digest, sources_digest
from bench.catalogue.suites import Cell, Suite, load_suite
from bench.data.corruptions.sets import CorruptedSet
from bench.data.datasets import dataset_protocol, load_dataset
from bench.data.splits import Dataset, Split
from bench.engine.adversarials import ENDING, adversarials_path, owner_of, write_adversarials
from bench.engine.groups import plan
from bench.engine.memory import shortage
from bench.engine.outcomes import Outcome, Report
from bench.engine.run import run_suite, untried
from bench.engine.target import Target
from bench.errors import BenchError, cause, ran_out
from bench.evaluation.corrupted import describe_corrupted, find_corrupted, identify_corrupted, predict_corrupted
from bench.evaluation.features import FeatureAccumulator
from bench.interfaces import Classifier, Images, Labels, Objective, ObjectiveFactory, ThreatModel
from bench.interop.subjects import ModelReference, Subject, check_contract, from_checkpoint
from bench.launching import program
from bench.models.folding import folded
from bench.results.file import (
    CorruptionRecord,
    EvaluationResult,
    FeatureRecord,
    canonical_json,
    read_result,
    require_storable,
    write_result,
)
from bench.results.file import content_digest as result_digest
from bench.results.findings import Finding
from bench.system.blocks import PartStore
from bench.system.devices import choose_device, full_float32
from bench.system.environment import describe_environment
from bench.system.files import (
    AlreadyThereError,
    clear_temporaries,
    content_digest,
    require_no_other_thing,
    require_writable,
    which_file,
)
from bench.system.randomness import untouched_randomness
from bench.system.signals import Terminated, to_its_end
from bench.trust.class_shares import class_shares
from bench.trust.constancy import Witness
from bench.trust.outcomes import file_findings
from bench.trust.probes import probe
from bench.trust.report import concluded, examined, unmeasured

Precision: TypeAlias = Literal["fp32", "fp32-folded", "bf16"]
"""Of the search: `fp32-folded` and `bf16` fold BatchNorm into convolutions; every claim is judged in plain fp32."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate: a checkpoint, a `model` file (with `weights`) or `robustbench:NAME`, on a dataset."""

    suite: str
    checkpoint: Path | None = None
    model: str | None = None
    weights: Path | None = None
    threat_model: str | None = None
    """Which of RobustBench's lists; None: Linf."""
    model_dir: Path | None = None
    """RobustBench's files; None: in `models`."""
    name: str | None = None
    dataset: str | None = None
    classes: int | None = None
    """How many there are, where an `npz:PATH` does not say it; None: as many as the model has outputs."""
    data: Path = Path("data")
    limit: int | None = None
    """Evaluate so many test images, as `Split.take` chooses them; None: all."""
    epsilons: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 256
    convention: Literal["any", "final"] = "any"
    precision: Precision = "fp32"
    adaptive: str | None = None
    """FILE.py:FUNCTION, a loss of one's own; it adds a column."""
    transfer: tuple[Path, ...] = ()
    """Runs to craft transferred images against; each adds a column."""
    corruptions: Path | None = None
    """Folder of corrupted test images; None: where `bench.evaluation.corrupted.find_corrupted` looks for it."""
    save_adversarials: bool = False
    """Keep the image behind every broken sample, in a file beside the result."""
    shard: tuple[int, int] = (0, 1)
    probes: int = 64
    """Images that the trust report's probes look at; 0: no probes."""
    device: str = "auto"
    out: Path | None = None
    overwrite: bool = False
    command: str = ""

    @property
    def reference(self) -> ModelReference:
        """The model, as it was named."""
        return ModelReference(
            self.checkpoint, self.model, self.weights, self.dataset, self.threat_model, self.model_dir
        )


@dataclass(frozen=True)
class Prepared:
    """A request, checked and loaded."""

    subject: Subject
    dataset: Dataset
    target: Target
    suite: Suite
    path: Path
    environment: Mapping[str, Any]
    corrupted: CorruptedSet | None = None
    replaced: tuple[int, ...] | None = None
    """Which file `--overwrite` means: the one that was there at the start."""


def prepare(request: EvaluationRequest) -> Prepared:
    """Load and check everything an evaluation needs.

    Raises:
        BenchError: bad input, or a result file that exists already.
    """
    device = choose_device(request.device)
    suite = load_suite(request.suite)
    suite.refuse_idle_radii(request.epsilons)
    subject = request.reference.load(device)
    path = result_path(request, suite, subject.dataset)
    request = dataclasses.replace(request, dataset=request.dataset or subject.dataset)
    if path.name.endswith(ENDING):
        raise BenchError(f"{path} has the name of a file of images ({ENDING}). Give the result another one.")
    for existing in (path, adversarials_path(path)):
        require_no_other_thing(existing)
        if os.path.lexists(existing) and not request.overwrite:
            raise BenchError(f"{existing} exists: add --overwrite to replace it, or --out for another file.")
    replaced = which_file(path) if request.overwrite else None
    if request.batch_size < 1:
        raise BenchError(f"batch size {request.batch_size} is below 1.")
    if abs(request.seed) >= 2**63:
        raise BenchError(f"seed {request.seed} is beyond the 64 bits of a result file. Give one below 2**63.")
    dataset = _dataset(request)
    test = (dataset.test if request.limit is None else dataset.test.take(request.limit)).to(device)
    corrupted = _corrupted(request, suite, dataset, test)
    if suite.kind == "features":
        _require_features(subject, test)
    objectives = _objectives(request, subject, test)
    suite = _extended(suite, request).resolve(dataset.epsilons, request.epsilons)
    if "adaptive" not in objectives:
        suite = dataclasses.replace(suite, cells=tuple(_without_adaptive(cell) for cell in suite.cells))
    with full_float32():
        guessed = dataset.classes_from == "labels"
        outputs = check_contract(
            subject.model, test.images(slice(0, request.batch_size)), dataset.num_classes, bool(suite.cells), guessed
        )
        dataset = dataset.seen_by(outputs)
        environment = describe_environment(device)
    sources = _sources(suite, test, dataset.num_classes, device, request.batch_size)
    target = Target(
        subject.model,
        test,
        seed=request.seed,
        batch_size=request.batch_size,
        half=request.precision == "bf16",
        search_model=None if request.precision == "fp32" else folded(subject.model, test.images(slice(0, 8))),
        objectives=objectives,
        sources={name: source.model for name, source in sources.items()},
        digests=_digests(sources, request.adaptive),
        keeps_images=request.save_adversarials,
        keeps_features=suite.kind == "features",
        another=lambda: request.reference.load(device).model,
    )
    return Prepared(subject, dataset, target, suite, path, environment, corrupted, replaced)


def evaluate(
    request: EvaluationRequest,
    report: Report = lambda name, done, total, standing: None,
    processes: int = 1,
) -> tuple[EvaluationResult, Path]:
    """Evaluate and write the result file; returns the result and its path.

    With several `processes`, this one shares the work with others of the same command and merges what they finish.

    Raises:
        BenchError: bad input, a result that could not be kept, or a result file that is there, at the start or the end.
    """
    started = time.perf_counter()
    prepared = prepare(request)
    _require_room(request, prepared)
    parts = PartStore(prepared.path, _identity(request, prepared))
    with shortage("Free memory, or take a smaller --probes or another --device."):
        witness = _witness(request, prepared)
        watching = _looking(witness, parts, report)
        run = partial(_run, prepared, convention=request.convention, parts=parts, report=watching)
        if processes > 1:
            _share(processes, partial(run, shard=(0, processes)))
        outcome = run(shard=request.shard)
        probed = _probed(request, prepared, outcome, witness, parts, report) if request.shard == (0, 1) else []
        result = _result(request, prepared, outcome, probed, time.perf_counter() - started)
    with to_its_end():
        if request.shard == (0, 1):
            _write(result, outcome, request, prepared)
            parts.clear()
            clear_temporaries(prepared.path.parent, {prepared.path.name, adversarials_path(prepared.path).name})
        else:
            parts.finish_shard(request.shard, prepared.subject.description["checkpoint_digest"])
    return result, prepared.path


def _share(processes: int, run: Callable[[], object]) -> None:
    """Run this process's share, and wait for those of the others; if it stops, they stop too."""
    helpers = _start_shards(processes)
    try:
        run()
    except BaseException as error:
        for helper in helpers:
            # What they have finished is on disk, and files are whole at any time.
            helper.terminate() if isinstance(error, Terminated) else helper.kill()
        raise
    finally:
        for helper in helpers:
            helper.wait()


def _run(
    prepared: Prepared, convention: Literal["any", "final"], parts: PartStore, report: Report, shard: tuple[int, int]
) -> Outcome:
    """The suite's cells, then its corruptions."""
    target, suite = prepared.target, prepared.suite
    try:
        outcome = run_suite(target, suite, convention=convention, parts=parts, shard=shard, report=report)
        if prepared.corrupted is None:
            return outcome
        with full_float32():
            records, digest = predict_corrupted(target, prepared.corrupted, parts, shard, report)
        return dataclasses.replace(outcome, corruptions=records, corrupted_digest=digest)
    except Exception as error:
        if isinstance(error, BenchError) or ran_out(error):
            raise
        raise BenchError(f"the evaluation failed: {cause(error)}. Its finished blocks are kept.") from error


def _witness(request: EvaluationRequest, prepared: Prepared) -> Witness | None:
    """Looks at the model before anything else is shown to it; None: without probes."""
    if not request.probes:
        return None
    try:
        with untouched_randomness(), full_float32():
            return Witness.call(prepared.target, _threat(prepared.suite), request.probes)
    except Exception as error:
        if ran_out(error):
            raise
        raise BenchError(f"the model cannot be looked at: {cause(error)}.") from error


def _looking(witness: Witness | None, parts: PartStore, report: Report) -> Report:
    """The report of progress, with a look of the witness after every group of cells."""

    def reporting(name: str, done: int, total: int, standing: int) -> None:
        report(name, done, total, standing)
        if witness is not None and done == total:
            witness.look(f"they were asked for after {name}")
            if witness.changed:
                # For the process that writes the report, which may be another one.
                parts.put("witness", {"changed": np.array(witness.changed), "when": np.array(witness.when)})

    return reporting


def _threat(suite: Suite) -> ThreatModel | None:
    """The main one; None: nothing is attacked."""
    return ThreatModel(suite.cells[0].norm, str(suite.cells[0].epsilon)) if suite.cells else None


def _probed(
    request: EvaluationRequest,
    prepared: Prepared,
    outcome: Outcome,
    witness: Witness | None,
    parts: PartStore,
    report: Report,
) -> list[Finding]:
    """The probes' findings, from disk where they are there."""
    if witness is None:
        return []
    # No outcome depends on how many images are probed, so that the number may change without another evaluation.
    name = f"probes-{request.probes}"
    known = parts.get(name)
    if known is None:
        report("trust report", 0, request.probes, 0)
        seen = parts.get("witness")
        if seen is not None and int(seen["changed"]) > witness.changed:
            witness.changed, witness.when = int(seen["changed"]), str(seen["when"])
        threat, train = _threat(prepared.suite), prepared.dataset.train
        found = examined(partial(probe, prepared.target, threat, request.probes, witness, outcome, train))
        known = {"findings": np.array(json.dumps(found))}
        parts.put(name, known)
    report("trust report", request.probes, request.probes, 0)
    findings: list[Finding] = json.loads(str(known["findings"]))
    return findings


def _require_room(request: EvaluationRequest, prepared: Prepared) -> None:
    """Nothing, where the result can be kept: it is made in form, written to memory and read; then its place is tried.

    Raises:
        BenchError: what would be refused after the work.
    """
    outcome = untried(prepared.target, prepared.suite, request.convention)
    for corruption, severity in prepared.corrupted or ():
        shown = CorruptionRecord(corruption, severity, outcome.label, 0.0)
        outcome.corruptions[shown.label] = shown
    try:
        require_storable(_recorded(request, prepared, outcome, 0.0))
    except BenchError as error:
        raise BenchError(f"the result could not be kept: {str(error).removesuffix(' Evaluate again.')}") from error
    for path in (prepared.path, *([adversarials_path(prepared.path)] if request.save_adversarials else [])):
        require_writable(path)


def require_storable_suite(suite: Suite, samples: Split) -> None:
    """Nothing, where a file could hold outcomes of a resolved suite on some samples, whatever the model.

    Raises:
        BenchError: it could not, or an attack or one of its parameters is unknown.
    """
    require_storable(_outcomes({}, suite, samples, untried(Target(nn.Identity(), samples), suite)))


def _write(result: EvaluationResult, outcome: Outcome, request: EvaluationRequest, prepared: Prepared) -> None:
    """The result, and beside it the images, which name the result. Images of a result that is replaced go with it.

    Raises:
        BenchError: a file cannot be written, or another evaluation wrote it meanwhile; that one is left as it is.
    """
    path, images = prepared.path, adversarials_path(prepared.path)
    digest, owner = result_digest(result), _owner_there(images)
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
        except AlreadyThereError as error:
            if _owner_there(images) != digest:
                raise _came_meanwhile(images) from error
    elif obsolete:
        with suppress(OSError):
            images.unlink()


def _digest_there(path: Path) -> str | None:
    """The content digest of the result in a file; None where there is none that can be read."""
    with suppress(BenchError):
        return result_digest(read_result(path))
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


def estimate(request: EvaluationRequest) -> list[tuple[str, int, float]]:
    """What an evaluation would cost at most: name, gradients and seconds of each group of cells.

    Measured on one block: its accuracy, and the time of a forward pass and of a gradient.

    Raises:
        BenchError: as `evaluate`.
    """
    prepared = prepare(request)
    target = prepared.target
    with full_float32():
        part = target.split.take(min(64, len(target.split)))
        images, labels = part.images(slice(None)), part.labels
        share = float((target.predict(images) == labels).float().mean())
        forward, gradient = _seconds_per_image(target, images, labels)
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in prepared.suite.cells}
    costs = []
    for group in plan(prepared.suite.cells, attacks):
        attacked = len(target.split) * (1.0 if group.measures_loss else share)
        gradients, forwards = (max(counts) for counts in zip(*(a.passes() for a in group.attacks), strict=True))
        costs.append((group.name, round(attacked * gradients), attacked * (gradients * gradient + forwards * forward)))
    if prepared.corrupted is not None:
        costs.append(("corruptions", 0, len(prepared.corrupted) * len(target.split) * forward))
    return costs


def _seconds_per_image(target: Target, images: Images, labels: Labels) -> tuple[float, float]:
    """Of a forward pass, and of a forward pass with the gradient of the images."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        target.judge(images).sum().item()
        middle = time.perf_counter()
        leaf = images.detach().requires_grad_()
        view = target.search_view().eval()
        torch.autograd.grad(nn.functional.cross_entropy(view(leaf), labels, reduction="sum"), leaf)[0].sum().item()
        times.append((middle - started, time.perf_counter() - middle))
    forward, gradient = (min(column) / len(images) for column in zip(*times, strict=True))
    return forward, gradient


def _start_shards(processes: int) -> list[subprocess.Popen[bytes]]:
    """The same command once more per further process, each with its share of the blocks (and its own GPU, if any)."""
    gpus = torch.cuda.device_count()
    helpers = []
    for number in range(1, processes):
        command = [*program(), *sys.argv[1:], "--processes", "1", "--shard", f"{number}/{processes}"]
        if gpus > 1:
            command += ["--device", f"cuda:{number % gpus}"]
        # A session of its own: Ctrl-C reaches this process alone, which ends the others.
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "start_new_session": True}
        helpers.append(subprocess.Popen(command, **options))
    return helpers


def result_path(request: EvaluationRequest, suite: Suite, trained_on: str | None = None) -> Path:
    """`--out`, else <run>/results/<suite>-v<version>.h5, else results/<model>-<suite>-v<version>.h5.

    What was chosen besides the suite is in the name (`_choices`), so that evaluations that differ in it have files of
    their own: linf-v1-first100-eps4_255-seed1-final.h5.

    A folder that holds a checkpoint itself, as `bench export huggingface` writes it, is a model and no run: it is left
    as it is.
    """
    if request.out is not None:
        return request.out
    file = _in_a_name("-".join([suite.name, f"v{suite.version}", *_choices(request, trained_on)]))
    if request.checkpoint is not None:
        folder = request.checkpoint.parent if request.checkpoint.is_file() else request.checkpoint
        run, best = (folder.parent, folder.name == "best") if folder.name in ("last", "best") else (folder, False)
        if (run / "model.safetensors").is_file():
            return Path("results") / f"{run.resolve().name}-{file}.h5"
        return run / "results" / f"{file}{'-best' if best else ''}.h5"
    stem = request.weights.stem if request.weights else str(request.model).rpartition(":")[2]
    if request.reference.from_zoo:
        stem += f"-{request.dataset}-{request.threat_model or 'Linf'}"
    return Path("results") / f"{stem}-{file}.h5"


def _choices(request: EvaluationRequest, trained_on: str | None) -> Iterator[str]:
    """What outcomes depend on besides model and suite, where it is not the default; not where files lie."""
    dataset = request.dataset or trained_on
    if request.checkpoint is not None and dataset != trained_on:
        yield f"on-{f'npz-{Path(str(dataset)).stem}' if str(dataset).startswith('npz:') else dataset}"
    if request.limit:
        first = dataset is None or dataset_protocol(dataset).sampling == "first"
        yield f"{'first' if first else 'limit'}{request.limit}"
    for norm, radius in sorted(request.epsilons.items()):
        yield f"{'' if norm == 'linf' else f'{norm}-'}eps{radius.strip()}"
    if request.seed:
        yield f"seed{request.seed}"
    if request.convention != "any":
        yield request.convention
    if request.precision != "fp32":
        yield request.precision
    if request.adaptive:
        yield f"loss-{_file_of(request.adaptive).stem}-{request.adaptive.rpartition(':')[2]}"
    for source in request.transfer:
        yield "-".join(("from", *source.resolve().parts[-2:]))


def _in_a_name(text: str) -> str:
    """As part of a file's name, the same everywhere: 4/255 becomes 4_255."""
    return re.sub(r"[^\w.+=-]+", "_", text).lstrip(".")


def _dataset(request: EvaluationRequest) -> Dataset:
    if request.dataset is None:
        raise BenchError("say what to evaluate on: --dataset NAME (see `bench list datasets`).")
    return load_dataset(request.dataset, request.data, request.classes)


def _corrupted(request: EvaluationRequest, suite: Suite, dataset: Dataset, test: Split) -> CorruptedSet | None:
    if not suite.corruptions:
        return None
    return find_corrupted(request.corruptions, dataset, test, suite.corruptions, request.data)


@torch.no_grad()
def _require_features(subject: Subject, test: Split) -> None:
    """Nothing, where features can be measured: tried as if all images had those of the first."""
    if not isinstance(subject.model, Classifier):
        raise BenchError(
            f"{subject.name} has no features to measure: give a checkpoint of `bench train`, or a module that is a "
            "bench.interfaces.Classifier (features, score, class_centres)."
        )
    try:
        features = subject.model.features(test.images(slice(0, 1))).expand(len(test), -1)
        gathered = FeatureAccumulator(subject.model.class_centres())
    except Exception as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"the features of {subject.name} cannot be measured: {cause(error)}") from error
    gathered.add(features, features, test.labels)
    gathered.finish()


def _extended(suite: Suite, request: EvaluationRequest) -> Suite:
    """The suite, with a column for each transfer source and for a loss of one's own; then it is another suite."""
    pgd = next((cell for cell in suite.cells if "steps" in cell.parameters), None)
    wanted = [("transfer", path) for path in dict.fromkeys(request.transfer)] + (
        [("own", None)] if request.adaptive else []
    )
    if not wanted:
        return suite
    if pgd is None:
        raise BenchError(f"suite {suite.name} has no iterative attack to add a column to: choose quick or another one.")
    added = [
        dataclasses.replace(pgd, label=f"{pgd.label} from {path}", source=str(path), measure_loss=False)
        if path is not None
        else dataclasses.replace(pgd, label=f"{pgd.label} own loss", objective=str(request.adaptive))
        for _, path in wanted
    ]
    return dataclasses.replace(suite, name=f"{suite.name}+", cells=(*suite.cells, *added))


def _sources(suite: Suite, test: Split, num_classes: int, device: torch.device, batch_size: int) -> dict[str, Subject]:
    """The models that cells craft images against, by run folder, checked like the model itself."""
    names = dict.fromkeys(cell.source for cell in suite.cells if cell.source)
    sources = {name: from_checkpoint(Path(name), device) for name in names}
    for source in sources.values():
        check_contract(source.model, test.images(slice(0, batch_size)), num_classes, True)
    return sources


def _digests(sources: Mapping[str, Subject], adaptive: str | None) -> dict[str, str]:
    """Of the sources' checkpoints, and of the file of a loss of one's own: a path alone does not say what it held."""
    digests = {name: source.description["checkpoint_digest"] for name, source in sources.items()}
    if adaptive:
        digests[adaptive] = hashlib.sha256(_file_of(adaptive).read_bytes()).hexdigest()
    return digests


def _file_of(adaptive: str) -> Path:
    return Path(adaptive.rpartition(":")[0])


def _objectives(request: EvaluationRequest, subject: Subject, test: Split) -> dict[str, ObjectiveFactory]:
    """The defense's adaptive objective, where it declares one, and the loss of one's own."""
    objectives: dict[str, ObjectiveFactory] = {}
    one = slice(0, 1)
    if subject.adaptive and subject.adaptive(subject.model, test.images(one), test.labels[one]) is not None:
        objectives["adaptive"] = subject.adaptive
    if request.adaptive:
        objectives[request.adaptive] = own_objective(request.adaptive)
    return objectives


def _without_adaptive(cell: Cell) -> Cell:
    """The cell with the attack's own loss: nothing better is known against this model, and the record says so."""
    return dataclasses.replace(cell, objective="default") if cell.objective == "adaptive" else cell


def own_objective(reference: str) -> ObjectiveFactory:
    """`FILE.py:FUNCTION` as an objective. The function gets (model, perturbed, clean, labels); its file is run.

    Raises:
        BenchError: no such file or function.
    """
    path, _, name = reference.rpartition(":")
    function = getattr(load_python_file(Path(path)), name, None) if path else None
    if not callable(function):
        raise BenchError(f"adaptive loss {reference!r} is not FILE.py:FUNCTION with such a function in the file.")

    def make(model: nn.Module, images: Images, labels: Labels) -> Objective:
        def objective(view: nn.Module, perturbed: Images) -> Any:
            try:
                values = function(view, perturbed, images, labels)
            except Exception as error:
                raise BenchError(f"{reference}(model, perturbed, clean, labels) failed: {cause(error)}") from error
            if not isinstance(values, torch.Tensor) or values.shape != labels.shape:
                raise BenchError(f"{reference} must return one value per image, shape ({len(labels)},).")
            return values

        return objective

    return make


def _identity(request: EvaluationRequest, prepared: Prepared) -> dict[str, Any]:
    """Everything that outcomes, or the borders of blocks, depend on."""
    adaptive = _file_of(request.adaptive) if request.adaptive else None
    own_files = [path for path in (request.reference.python_file, adaptive) if path]
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in prepared.suite.cells}
    corrupted = {} if prepared.corrupted is None else {"corrupted": identify_corrupted(prepared.corrupted)}
    return {
        **corrupted,
        "checkpoint": prepared.subject.description["checkpoint_digest"],
        "source": prepared.subject.description.get("source"),
        "samples": prepared.target.split.digest(),
        "positions": hashlib.sha256(prepared.target.split.positions.astype("<i8").tobytes()).hexdigest(),
        "suite": json.loads(json.dumps(prepared.suite.describe())),
        "attacks": {label: [repr(attack), source_digest(type(attack))] for label, attack in attacks.items()},
        "files": [sources_digest(path) for path in own_files],
        "defense": source_digest(find("defense", prepared.subject.name)) if request.checkpoint else None,
        "sources": {name: content_digest(dict(model.state_dict())) for name, model in prepared.target.sources.items()},
        "seed": request.seed,
        "batch_size": request.batch_size,
        "convention": request.convention,
        "precision": request.precision,
        "images": request.save_adversarials,
        "versions": prepared.environment["versions"],
        "device": prepared.environment["device"],
    }


def _result(
    request: EvaluationRequest, prepared: Prepared, outcome: Outcome, probed: list[Finding], seconds: float
) -> EvaluationResult:
    """The record of an outcome, with features and the trust report; what fails of these is a finding."""
    result = _recorded(request, prepared, outcome, seconds)
    failed: list[Finding] = []
    try:
        result = dataclasses.replace(result, features=_feature_record(prepared, outcome))
    except Exception as error:
        failed.append(unmeasured(error))
    shares = class_shares(prepared.target.split.labels.cpu().numpy(), prepared.dataset.test.labels.numpy())
    looked = [*outcome.findings, shares, *probed, *failed]
    return dataclasses.replace(result, findings=tuple(concluded(looked, examined(partial(file_findings, result)))))


def _recorded(request: EvaluationRequest, prepared: Prepared, outcome: Outcome, seconds: float) -> EvaluationResult:
    """What was evaluated, how, and the outcomes."""
    dataset, split = prepared.dataset, prepared.target.split
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
        **_corrupted_facts(prepared, outcome),
        "evaluation": {
            "seed": request.seed,
            "batch_size": request.batch_size,
            "convention": request.convention,
            "precision": request.precision,
            "probes": request.probes,
            "adversarials": request.save_adversarials,
            "environment": prepared.environment,
        },
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": request.command,
        "seconds": seconds,
    }
    return _outcomes(json.loads(canonical_json("run", run)), prepared.suite, split, outcome)


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
    )


def _corrupted_facts(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    if prepared.corrupted is None:
        return {}
    return {"corruptions": {**describe_corrupted(prepared.corrupted), "digest": outcome.corrupted_digest}}


def _feature_record(prepared: Prepared, outcome: Outcome) -> FeatureRecord | None:
    """Metrics of the features that the suite's first cell left; None where it left none."""
    model = prepared.subject.model
    pair = next(iter(outcome.features.values()), None)
    if pair is None or not isinstance(model, Classifier):
        return None
    centres = model.class_centres()
    gathered = FeatureAccumulator(centres)
    labels = torch.from_numpy(outcome.label.astype(np.int64))
    gathered.add(torch.from_numpy(pair.clean), torch.from_numpy(pair.adversarial), labels)
    found = gathered.finish()
    return FeatureRecord(
        attack=next(iter(outcome.features)),
        centres=f"class_centres of {type(model).__name__}, {len(centres)} x {centres.shape[1]}",
        samples=found.samples,
        classes=found.classes,
        fdr_clean=found.clean.fdr,
        fdr_adversarial=found.adversarial.fdr,
        afs_clean=found.clean.afs,
        afs_adversarial=found.adversarial.afs,
        scr_clean=found.clean.scr,
        scr_adversarial=found.adversarial.scr,
        mean_separation=found.mean_separation,
        min_separation=found.min_separation,
    )
