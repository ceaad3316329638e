"""From a model and a suite to a result file."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import Dataset, load_dataset
from bench.engine import Outcome, full_float32, run_suite
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.models import Subject, check_contract, from_checkpoint, from_file, near_chance
from bench.results import EvaluationResult, write_result
from bench.suites import Suite, load_suite
from bench.training import choose_device


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate: a checkpoint, or a `model` file (with `weights`) on a dataset."""

    suite: str
    checkpoint: Path | None = None
    model: str | None = None
    weights: Path | None = None
    name: str | None = None
    dataset: str | None = None
    data: Path = Path("data")
    limit: int | None = None
    epsilons: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 256
    device: str = "auto"
    out: Path | None = None
    overwrite: bool = False
    command: str = ""


def evaluate(
    request: EvaluationRequest, report: Callable[[str, int, int], None] = lambda label, done, total: None
) -> tuple[EvaluationResult, Path]:
    """Evaluate and write the result file; returns the result and its path.

    Raises:
        BenchError: bad input, or a result file that exists already.
    """
    device = choose_device(request.device)
    suite = load_suite(request.suite)
    path = result_path(request, suite)
    if path.exists() and not request.overwrite:
        raise BenchError(f"{path} exists: add --overwrite to replace it, or --out for another file.")
    if request.batch_size < 1:
        raise BenchError(f"batch size {request.batch_size} is below 1.")
    subject = _subject(request, device)
    dataset = _dataset(request, subject)
    suite = suite.resolve(dataset.epsilons, request.epsilons)
    test = dataset.test if request.limit is None else dataset.test.take(request.limit)
    test = test.to(device)
    with full_float32():
        findings = check_contract(subject.model, test, dataset.num_classes)
        described = describe_environment(device)
    outcome = run_suite(
        subject.model,
        test,
        suite,
        seed=request.seed,
        batch_size=request.batch_size,
        adaptive=subject.adaptive,
        report=report,
    )
    findings += [*outcome.findings, *near_chance(outcome.clean_prediction, outcome.label, dataset.num_classes)]
    run = {
        **subject.description,
        "model": request.name or subject.name,
        "dataset": dataset.name,
        "dataset_digest": test.digest(),
        "dataset_size": len(dataset.test),
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "evaluation": {"seed": request.seed, "batch_size": request.batch_size, "environment": described},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": request.command,
    }
    result = _result(run, suite, outcome, findings)
    write_result(result, path)
    return result, path


def result_path(request: EvaluationRequest, suite: Suite) -> Path:
    """`--out`, else <run>/results/<suite>-v<version>.h5, else results/<model>-<suite>-v<version>.h5."""
    if request.out is not None:
        return request.out
    file = f"{suite.name}-v{suite.version}" + (f"-first{request.limit}" if request.limit else "")
    if request.checkpoint is not None:
        folder = request.checkpoint.parent if request.checkpoint.is_file() else request.checkpoint
        run, best = (folder.parent, folder.name == "best") if folder.name in ("last", "best") else (folder, False)
        return run / "results" / f"{file}{'-best' if best else ''}.h5"
    stem = request.weights.stem if request.weights else str(request.model).rpartition(":")[2]
    return Path("results") / f"{stem}-{file}.h5"


def _subject(request: EvaluationRequest, device: Any) -> Subject:
    if (request.checkpoint is None) == (request.model is None):
        raise BenchError("name one model: a CHECKPOINT of `bench train`, or --model FILE.py:FACTORY.")
    if request.checkpoint is not None:
        if request.weights is not None:
            raise BenchError("--weights goes with --model; a checkpoint brings its own.")
        return from_checkpoint(request.checkpoint, device)
    return from_file(str(request.model), request.weights, device)


def _dataset(request: EvaluationRequest, subject: Subject) -> Dataset:
    name = request.dataset or subject.dataset
    if name is None:
        raise BenchError("say what to evaluate on: --dataset NAME (see `bench list datasets`).")
    return load_dataset(name, request.data)


def _result(run: dict[str, Any], suite: Suite, outcome: Outcome, findings: list[dict[str, Any]]) -> EvaluationResult:
    plain = json.loads(json.dumps(run, default=os.fspath))
    return EvaluationResult(
        run=plain,
        suite=json.loads(json.dumps(suite.describe())),
        label=outcome.label,
        index=np.arange(len(outcome.label), dtype=np.int64),
        clean_prediction=outcome.clean_prediction,
        attacks=outcome.attacks,
        findings=tuple(findings),
    )
