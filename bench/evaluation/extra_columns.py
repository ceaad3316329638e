"""Columns that a request adds to a suite: images transferred from other models, and a loss of one's own."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.catalogue.plugins import load_python_file
from bench.catalogue.suites import Suite
from bench.data.splits import Split
from bench.errors import BenchError, cause
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import Images, Labels, Objective, ObjectiveFactory
from bench.interop.contract import check_contract
from bench.interop.subjects import Subject, from_checkpoint


def extended(suite: Suite, request: EvaluationRequest) -> Suite:
    """The suite with a column for each transfer source and for a loss of one's own; then it is another suite.

    Raises:
        BenchError: it has no attack to make such columns of.
    """
    changes: dict[str, dict[str, Any]] = {
        f"from {path}": {"source": str(path), "measure_loss": False} for path in request.transfer
    }
    if request.adaptive:
        changes["own loss"] = {"objective": request.adaptive}
    if not changes:
        return suite
    pgd = next((cell for cell in suite.cells if "steps" in cell.parameters), None)
    if pgd is None:
        raise BenchError(f"suite {suite.name} has no iterative attack to add a column to: choose quick or another one.")
    added = [dataclasses.replace(pgd, label=f"{pgd.label} {name}", **change) for name, change in changes.items()]
    return dataclasses.replace(suite, name=f"{suite.name}+", cells=(*suite.cells, *added))


def known_objectives(request: EvaluationRequest, subject: Subject, test: Split) -> dict[str, ObjectiveFactory]:
    """The defense's adaptive objective, where it declares one, and the loss of one's own, by name.

    Raises:
        BenchError: that loss cannot be used.
    """
    objectives: dict[str, ObjectiveFactory] = {}
    one = slice(0, 1)
    if subject.adaptive and subject.adaptive(subject.model, test.images(one), test.labels[one]) is not None:
        objectives["adaptive"] = subject.adaptive
    if request.adaptive:
        objectives[request.adaptive] = own_objective(request.adaptive)
    return objectives


def without_adaptive(suite: Suite) -> Suite:
    """The suite under the attacks' own losses: nothing better is known against a model, and the record says so."""
    cells = (
        dataclasses.replace(one, objective="default") if one.objective == "adaptive" else one for one in suite.cells
    )
    return dataclasses.replace(suite, cells=tuple(cells))


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


def load_sources(suite: Suite, shown: Images, num_classes: int, device: torch.device) -> dict[str, Subject]:
    """The models that cells craft images against, by run folder, each checked like the model itself.

    Raises:
        BenchError: one cannot be loaded, or does not take such images to so many classes.
    """
    names = dict.fromkeys(cell.source for cell in suite.cells if cell.source)
    sources = {name: from_checkpoint(Path(name), device) for name in names}
    for source in sources.values():
        check_contract(source.model, shown, num_classes, True)
    return sources


def origin_digests(sources: Mapping[str, Subject], request: EvaluationRequest) -> dict[str, str]:
    """Of the sources' checkpoints, and of the file of a loss of one's own: a path alone does not say what it held."""
    digests = {name: source.description["checkpoint_digest"] for name, source in sources.items()}
    if request.adaptive and request.adaptive_file:
        digests[request.adaptive] = hashlib.sha256(request.adaptive_file.read_bytes()).hexdigest()
    return digests
