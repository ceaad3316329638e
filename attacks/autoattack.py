"""AutoAttack, standard version (Croce & Hein 2020, https://arxiv.org/abs/2003.01690).

APGD on cross-entropy, targeted APGD on DLR, targeted FAB and Square, each on the images still standing.

`implementation=own` runs this project's parts: the same algorithms, checked step by step against the published code,
with draws keyed by sample, so that verdicts do not depend on batches, and with samples leaving as soon as they are
broken. `implementation=reference` runs the published code (https://github.com/fra31/auto-attack, or its PyPI build).

Deviations of the reference: with K < 10 classes the targeted attacks take K - 1 targets (the published code stops with
an IndexError); its draws come from its own seed and depend on the batch, which is why the batch is fixed.
"""

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from bench.attacks._survivors import classify, restrict
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.fab import FAB
from bench.attacks.square import Square
from bench.errors import BenchError
from bench.interfaces import Attack, Images, Problem, classes, fooled, hyperparameter

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
LOGGER = logging.getLogger("auto-attack")


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The ensemble of parameter-free attacks. Warnings of the reference are noted in `problem.warnings`."""

    paper: ClassVar[str] = "Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690"
    blind_stages: ClassVar[frozenset[int]] = frozenset({4})

    version: Literal["standard"] = hyperparameter("standard", "which attacks are run", choices=("standard",))
    implementation: Literal["own", "reference"] = hyperparameter(
        "own", "this project's parts, or the published package", "ours", choices=("own", "reference")
    )
    seed: int = hyperparameter(0, "of the reference's own draws", "convention")

    def __post_init__(self) -> None:
        if self.version != "standard":
            raise BenchError(f"unknown version {self.version!r} of autoattack. Choose from: standard.")

    @property
    def fixed_batch(self) -> int | None:
        return 500 if self.implementation == "reference" else None

    def members(self, norm: str) -> tuple[Attack, ...]:
        return standard(norm)

    def perturb(self, problem: Problem) -> Images:
        """Perturbed images where an attack succeeded, clean images elsewhere.

        Notes `stage`: the number of the attack that broke a sample (1 to 4), 0 where none did.

        Raises:
            BenchError: the model has fewer than 4 classes, an objective is given, or the package is missing.
        """
        if problem.objective is not None:
            raise BenchError("autoattack brings its own losses and takes no objective. Use pgd for an adaptive attack.")
        if not len(problem.images) or problem.threat.radius == 0:
            return problem.images
        count = count_classes(problem, "autoattack")
        if self.implementation == "own":
            return cascade(problem, standard(problem.threat.norm))
        with silence(problem.warnings), untouched(problem.model):
            adversary = package().AutoAttack(
                problem.model,
                norm=NAMES[problem.threat.norm],
                eps=problem.threat.radius,
                seed=self.seed,
                verbose=False,
                version=self.version,
                device=problem.images.device,
            )
            for targeted in (adversary.apgd_targeted, adversary.fab):
                targeted.n_target_classes = min(targeted.n_target_classes, count - 1)
            perturbed: Images = adversary.run_standard_evaluation(problem.images, problem.labels, bs=self.fixed_batch)
        return perturbed.detach()


def standard(norm: str) -> tuple[Attack, ...]:
    """The four attacks; under l1 APGD restarts five times and aims at five targets (Croce & Hein 2021)."""
    sparse = norm == "l1"
    return APGDCE(restarts=5 if sparse else 1), APGDT(targets=5 if sparse else 9), FAB(), Square()


def cascade(problem: Problem, stages: tuple[Attack, ...]) -> Images:
    """Each attack on the images that the ones before it left standing."""
    perturbed, stage = problem.images.clone(), torch.zeros_like(problem.labels)
    rows = (classes(classify(problem.model, problem.images)) == problem.labels).nonzero().flatten()
    for number, attack in enumerate(stages, start=1):
        if not len(rows):
            break
        part = restrict(problem, rows)
        images = problem.threat.project(attack.perturb(part), part.images)
        broken = fooled(images, classify(problem.model, images), part.labels)
        perturbed[rows[broken]], stage[rows[broken]] = images[broken], number
        rows = rows[~broken]
    problem.notes["stage"] = stage
    return perturbed


def package() -> Any:
    """The module `autoattack`, its count of `backward` calls reset: one dynamic model would flag all later ones.

    Raises:
        BenchError: neither the original nor its PyPI build is installed.
    """
    try:
        module = importlib.import_module("autoattack")
    except ModuleNotFoundError:
        raise BenchError("AutoAttack is not installed. Run: pip install pyautoattack.") from None
    module.checks.funcs.update(dict.fromkeys(module.checks.funcs, 0))
    return module


def count_classes(problem: Problem, attack: str) -> int:
    """Classes the model tells apart, from one forward pass, for the attack of this name.

    Raises:
        BenchError: fewer than 4, which the targeted DLR loss needs.
    """
    with torch.no_grad():
        count: int = problem.model(problem.images).shape[1]
    if count < 4:
        raise BenchError(f"{attack} needs 4 classes (targeted DLR), the model has {count}. Use pgd or cw instead.")
    return count


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what the package changes: torch's random state, gradients of parameters, the tracing hook."""
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tracer = sys.gettrace()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            for parameter in training:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in training:
                parameter.requires_grad_(True)
            sys.settrace(tracer)


class Notes(logging.Handler):
    """Appends what is logged to a list."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())


@contextlib.contextmanager
def silence(notes: list[str]) -> Iterator[None]:
    """Nothing on the terminal: the package's warnings are appended to `notes`."""
    propagate, handler = LOGGER.propagate, Notes(notes)
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        notes += [str(warning.message) for warning in caught]
        LOGGER.removeHandler(handler)
        LOGGER.propagate = propagate
