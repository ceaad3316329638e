"""What the measured checks of the trust report allow, in words: from the constants that they compare with."""

from collections.abc import Mapping
from types import MappingProxyType

from bench.trust.attack_comparisons import BLIND, GAIN, GAP, WIDE_GAP
from bench.trust.challenges import FAMILIAR, FAR_MORE
from bench.trust.gradients import FEW, FINITE_DIFFERENCE, ZERO_GRADIENTS
from bench.trust.outcome_checks import CHANCE
from bench.trust.probes import BATCH, NORMALISED
from bench.trust.watched_training import COLLAPSE


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


THRESHOLDS: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("near-chance",): "clean accuracy at most 1.5 times guessing (fewer than five classes: "
        f"{100 * CHANCE:g} points above it)",
        ("more-steps",): f"{_percent(GAIN)} of the images",
        ("more-draws",): f"{_percent(GAIN)} of the draws",
        ("single-step", "stronger-attack", "monotone"): f"{_percent(GAIN)} of the images: a warning; "
        f"{_percent(WIDE_GAP)}: an error",
        ("loss-gap", "cascade-gap"): f"{100 * GAP:g} points: a note; {100 * WIDE_GAP:g} points: a warning",
        ("worst-case",): f"{_percent(GAP)} of the images, or {_percent(BLIND)} without gradients: a warning; "
        f"{_percent(WIDE_GAP)}: an error",
        ("unknown-images",): f"{100 * FAMILIAR:g} points more than others stand, 5 % shared among comparisons: a "
        f"warning; {100 * FAR_MORE:g}: an error",
        ("blind-attacks", "random-search", "ensemble"): f"{_percent(BLIND)} of the images",
        ("gradients-cross-entropy", "gradients-margin"): f"{_percent(ZERO_GRADIENTS)} of the images",
        ("finite-differences", "gradient-path"): f"off by {_percent(FINITE_DIFFERENCE)} for half of the images, or by "
        f"half for {_percent(FEW)} of them: a warning; by half for half of them: an error",
        ("batch-dependent",): f"{_percent(BATCH)} of the largest logit",
        ("normalisation",): f"{100 * NORMALISED:g} points more clean accuracy on normalised images",
        ("catastrophic-overfitting",): f"{_percent(COLLAPSE)} of the best epoch's PGD accuracy lost, and FGSM accuracy "
        "still above all of it",
        ("robust-overfitting",): "any fall from the best epoch, and any rise on training images",
    }
)
"""By the names of the checks that share a threshold."""
