"""The outcomes of a suite on a model, per sample, and the faults under its attacks."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from bench.engine.adversarials import Adversarials
from bench.results.file import AttackRecord, CorruptionRecord
from bench.results.findings import Finding, finding, graded
from bench.system.blocks import Arrays

Report: TypeAlias = Callable[[str, int, int, int | None], None]
"""Called with a group's name, samples done, samples in all, how many of those done still stand; None: no attack."""


@dataclass(frozen=True)
class Outcome:
    """The outcomes of a suite on a model, per sample."""

    label: np.ndarray
    clean_prediction: np.ndarray
    attacks: dict[str, AttackRecord]
    findings: tuple[Finding, ...]
    adversarials: dict[str, Adversarials] = field(default_factory=dict)
    """By label, where the target keeps images: of every sample that is right clean and broken by the cell."""
    features: dict[str, "FeaturePair"] = field(default_factory=dict)
    """By label, where the target keeps features, of finished searches that attack every sample."""
    corruptions: dict[str, CorruptionRecord] = field(default_factory=dict)
    """By label; `run_suite` leaves them to `bench.evaluation.corrupted`."""
    corrupted_digest: str = ""
    """Of the images under those corruptions."""
    clean_right_draws: np.ndarray | None = None
    """Of a random model: how many draws of its verdict on each clean image are right."""


@dataclass(frozen=True)
class FeaturePair:
    """Features of every sample."""

    clean: Float32[np.ndarray, "sample dim"]
    adversarial: Float32[np.ndarray, "sample dim"]
    """Of the last iterate, of the first restart."""


@dataclass
class AttackFaults:
    """Faults under attacks, summed over blocks."""

    outside: Counter[str] = field(default_factory=Counter)
    """Images that an attack returned outside the threat model, by group."""
    unconfirmed: Counter[str] = field(default_factory=Counter)
    """Successes claimed or sighted that a later forward pass did not confirm, by group."""
    odd_logits: Counter[str] = field(default_factory=Counter)
    """Above 0 where a group met logits that are not finite."""
    odd_gradients: Counter[str] = field(default_factory=Counter)
    """Above 0 where a group was given gradients that are not finite."""
    warnings: dict[str, None] = field(default_factory=dict)

    def add(self, name: str, arrays: Arrays) -> None:
        """Take in a block of a group."""
        for key in ("outside", "unconfirmed", "odd_logits", "odd_gradients"):
            getattr(self, key)[name] += int(arrays.get(key, 0))
        self.warnings |= dict.fromkeys(f"{name}: {text}" for text in arrays.get("warnings", ()))

    def findings(self) -> Iterator[Finding]:
        """One per check; of logits only where there is a fault: a check of its own looks at clean images."""
        for check, counts, what in (
            ("attack-outside-ball", self.outside, "images returned outside the threat model"),
            ("unconfirmed-success", self.unconfirmed, "successes not confirmed by a later forward pass"),
        ):
            seen = ", ".join(f"{name} {count}" for name, count in (+counts).items()) or "none"
            yield finding(check, "warning" if +counts else "passed", f"{what}: {seen}", counts.total(), 0)
        seen_by = +self.odd_gradients
        text = f"attacks that were given gradients that are NaN or infinite: {', '.join(seen_by) or 'none'}"
        yield finding("non-finite-gradients", graded(warning=bool(seen_by)), text, len(seen_by), 0)
        if +self.odd_logits:
            text = f"attacks that met logits that are NaN or infinite: {', '.join(+self.odd_logits)}"
            yield finding("non-finite-logits", "error", text, len(+self.odd_logits), 0)
        for text in self.warnings:
            yield finding("attack-warning", "warning", text)
