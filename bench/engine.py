"""A model under a suite. The harness projects, classifies and times; an attack's word counts for nothing.

Every forward pass an attack makes on the images of its problem is watched: the first image on the way that is
inside the threat model and misclassified is kept, and classified once more at the end. So both conventions of
success come out of one run: `any` (an adversarial image found on the way counts) and `final` (only the image the
attack returned).
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.datasets import Split
from bench.errors import BenchError
from bench.interfaces import (
    Attack,
    Classifier,
    Draws,
    Features,
    Images,
    Labels,
    Logits,
    Objective,
    Problem,
    ThreatModel,
)
from bench.registry import make_attack
from bench.results import AttackRecord
from bench.suites import Cell, Suite

TOLERANCE = 1e-6
"""How far beyond its radius an image may lie, in float64: clamping in float32 overshoots 8/255 by up to 3e-8."""

ObjectiveFactory = Callable[[nn.Module, Images, Labels], Objective | None]


@dataclass(frozen=True)
class Outcome:
    """What a suite did to a model, per sample."""

    label: np.ndarray
    clean_prediction: np.ndarray
    attacks: dict[str, AttackRecord]
    findings: tuple[dict[str, Any], ...]


class WatchedModel(nn.Module):
    """A model that keeps the first adversarial image it is shown for each sample of a problem."""

    def __init__(self, model: nn.Module, images: Images, labels: Labels, threat: ThreatModel) -> None:
        super().__init__()
        self.model, self.images, self.labels, self.threat = model, images, labels, threat
        self.first = images.clone()
        self.found = torch.zeros_like(labels, dtype=torch.bool)
        self._shown: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        self._watch(images, logits)
        return logits

    def features(self, images: Images) -> Features:
        """The model's features; a following `score` of them is watched like a forward pass."""
        self._shown = images
        return self._classifier().features(images)

    def score(self, features: Features) -> Logits:
        """The model's logits of features."""
        logits = self._classifier().score(features)
        if self._shown is not None and len(self._shown) == len(logits):
            self._watch(self._shown, logits)
        return logits

    def _classifier(self) -> Classifier:
        if not isinstance(self.model, Classifier):
            raise BenchError("this attack needs a model with features and prototypes; yours has only forward().")
        return self.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    @torch.no_grad()
    def _watch(self, images: Tensor, logits: Tensor) -> None:
        # Only rows in the order of the problem can be told apart; others are judged by what they return.
        if images.shape != self.images.shape:
            return
        shown = images.detach()
        fooled = (logits.argmax(1) != self.labels) & allowed(shown, self.images, self.threat) & ~self.found
        self.first = torch.where(fooled.view(-1, 1, 1, 1), shown, self.first)
        self.found = self.found | fooled


def allowed(perturbed: Images, clean: Images, threat: ThreatModel) -> Tensor:
    """Per image: inside the threat model, up to `TOLERANCE` in float64."""
    inside_box = ((perturbed >= -TOLERANCE) & (perturbed <= 1 + TOLERANCE)).flatten(1).all(1)
    return inside_box & (threat.distance(perturbed, clean) <= threat.radius + TOLERANCE)


def run_suite(
    model: nn.Module,
    split: Split,
    suite: Suite,
    *,
    seed: int = 0,
    batch_size: int = 256,
    adaptive: ObjectiveFactory | None = None,
    report: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Outcome:
    """Classify a split clean and under every cell of a resolved suite.

    Args:
        model: images to logits; put in eval mode here.
        split: the test images, on the model's device.
        suite: with every radius filled in (`Suite.resolve`).
        seed: of all attacks. A sample's draws depend on it and on the sample's index, not on its batch.
        batch_size: images per forward pass.
        adaptive: makes the objective of cells that ask for `adaptive`.
        report: called with a cell's label, samples done, and samples in all.

    Raises:
        BenchError: an unknown attack or parameter, or an attack that returns images of another shape.
    """
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in suite.cells}
    model.eval()
    findings: list[dict[str, Any]] = []
    with untouched_randomness(), full_float32():
        clean = predict(model, split, batch_size)
        labels = split.labels.cpu().numpy().astype(np.int16)
        records = {}
        for cell in suite.cells:
            before = state_digest(model)
            saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            run = CellRun(model, split, cell, attacks[cell.label], clean, seed, batch_size, adaptive, report)
            records[cell.label] = run.record()
            if state_digest(model) != before:
                model.load_state_dict(saved)
                findings.append(_changed(cell.label))
            model.eval()
    return Outcome(labels, clean, records, tuple(findings))


def _changed(label: str) -> dict[str, Any]:
    return {
        "name": "model-changed",
        "severity": "error",
        "message": f"parameters or buffers changed while {label} ran (they were put back): "
        "BatchNorm or another layer updates its state in eval mode.",
    }


class CellRun:
    """One cell of a suite on the samples that are classified correctly; the others are never attacked."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        cell: Cell,
        attack: Attack,
        clean: np.ndarray,
        seed: int,
        batch_size: int,
        adaptive: ObjectiveFactory | None,
        report: Callable[[str, int, int], None],
    ) -> None:
        self.model, self.split, self.cell, self.attack, self.clean = model, split, cell, attack, clean
        self.seed, self.batch_size, self.adaptive, self.report = seed, batch_size, adaptive, report
        self.threat = ThreatModel(cell.norm, str(cell.epsilon))

    def record(self) -> AttackRecord:
        """Run the attack, batch by batch."""
        started = time.perf_counter()
        any_prediction, final_prediction = self.clean.copy(), self.clean.copy()
        distance = np.zeros(len(self.clean), dtype=np.float32)
        standing = np.flatnonzero(self.clean == self.split.labels.cpu().numpy())
        size = self.attack.fixed_batch or self.batch_size
        for first in range(0, len(standing), size):
            indices = standing[first : first + size]
            self.report(self.cell.label, first, len(standing))
            any_prediction[indices], final_prediction[indices], distance[indices] = self.run_batch(indices)
        self.report(self.cell.label, len(standing), len(standing))
        return AttackRecord(
            label=self.cell.label,
            attack=self.cell.attack,
            parameters=asdict(self.attack),
            norm=self.cell.norm,
            epsilon=str(self.cell.epsilon),
            objective=self.cell.objective,
            prediction=any_prediction,
            final_prediction=final_prediction,
            distance=distance,
            seconds=time.perf_counter() - started,
        )

    def run_batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions under both conventions and the distance of the image behind the first of them."""
        rows = torch.from_numpy(indices).to(self.split.labels.device)
        images, labels = self.split.images(rows), self.split.labels[rows]
        watched = WatchedModel(self.model, images, labels, self.threat).eval()
        stream = f"{self.cell.attack}/{self.cell.norm}"
        problem = Problem(
            model=watched,
            images=images.clone(),
            labels=labels.clone(),
            threat=self.threat,
            draws=Draws(self.seed, stream, indices),
            objective=self._objective(images, labels),
        )
        returned = self._checked(self.attack.perturb(problem), images)
        final = logits_of(self.model, returned, self.batch_size).argmax(1)
        first = logits_of(self.model, watched.first, self.batch_size).argmax(1)
        # A sighting counts only if the image is still misclassified, and still allowed, on its own.
        confirmed = watched.found & (first != labels) & allowed(watched.first, images, self.threat)
        shown = torch.where(confirmed.view(-1, 1, 1, 1), watched.first, returned)
        prediction = torch.where(confirmed, first, final)
        distance = self.threat.distance(shown, images)
        return _int16(prediction), _int16(final), distance.cpu().numpy().astype(np.float32)

    def _objective(self, images: Images, labels: Labels) -> Objective | None:
        if self.cell.objective == "default":
            return None
        objective = self.adaptive(self.model, images, labels) if self.adaptive else None
        if objective is None:
            raise BenchError(f"{self.cell.label} needs an adaptive objective, and this model's defense declares none.")
        return objective

    def _checked(self, returned: Any, images: Images) -> Images:
        if not isinstance(returned, Tensor) or returned.shape != images.shape:
            shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            raise BenchError(f"attack {self.cell.attack!r} returned {shape}; it must return {tuple(images.shape)}.")
        finite = torch.isfinite(returned).flatten(1).all(1).view(-1, 1, 1, 1)
        return self.threat.project(torch.where(finite, returned.detach().to(images.dtype), images), images)


def _int16(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.int16)


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, batch_size: int) -> Logits:
    """Logits in batches."""
    return torch.cat([model(part) for part in torch.split(images, batch_size)])


def predict(model: nn.Module, split: Split, batch_size: int) -> np.ndarray:
    """Predicted class of every image of a split, int16."""
    rows = torch.arange(len(split), device=split.labels.device)
    return np.concatenate(
        [_int16(logits_of(model, split.images(part), batch_size).argmax(1)) for part in torch.split(rows, batch_size)]
    )


def state_digest(model: nn.Module) -> str:
    """sha256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put back the state of Python's, NumPy's and torch's generators, whatever an attack does to them."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32: on recent GPUs convolutions would otherwise round to 10 bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
