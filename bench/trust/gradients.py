"""Gradients: whether they vanish along a path of ascent, and whether they say how the model changes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from bench.interfaces import Draws, Images, Labels, Logits, PerExample, ThreatModel
from bench.results.findings import Finding, finding, graded
from bench.trust.evidence import surely_above
from bench.trust.sample import NOTHING, Sample, gradient_at, margin_of

PATH = 10
"""Steps along which gradients are watched."""
NUDGE = 1e-2
"""Length of the step of a finite difference, in l2: small against a pixel's level, large against rounding."""
POINTS = 32
"""Gradients on the way to another image."""
FAR_OFF, FEW = 0.5, 0.1
"""An image's gradients are refuted if they are off by half; a model's, if those of more than a tenth are."""
ZERO_GRADIENTS, FINITE_DIFFERENCE = 0.01, 0.2


def vanishing(sample: Sample, threat: ThreatModel) -> Iterator[Finding]:
    """Gradients of two losses along a path of ascent on cross-entropy, on images that are right at its start."""
    losses: dict[str, Callable[[Logits, Labels], PerExample]] = {
        "cross-entropy": lambda logits, labels: functional.cross_entropy(logits, labels, reduction="none"),
        "margin": margin_of,
    }
    rows = sample.right.nonzero().squeeze(1)
    clean, labels = sample.images[rows], sample.labels[rows]
    zero = {name: torch.zeros_like(labels, dtype=torch.bool) for name in losses}
    odd = {name: torch.zeros_like(labels, dtype=torch.bool) for name in losses}
    images = clean
    for _ in range(PATH if len(rows) else 0):
        gradients = {name: gradient_at(sample, images, labels, loss) for name, loss in losses.items()}
        for name, gradient in gradients.items():
            largest = gradient.flatten(1).abs().amax(1)
            odd[name] |= ~torch.isfinite(largest)
            zero[name] |= largest <= NOTHING
        length = 2.5 * threat.radius / PATH
        # A sign step, in any norm: the projection brings it inside.
        scale = {"linf": 1.0, "l2": clean[0].numel() ** -0.5, "l1": 1 / clean[0].numel()}[threat.norm]
        step = torch.nan_to_num(gradients["cross-entropy"]).sign() * length * scale
        images = threat.project(images + step, clean)
    for name in losses:
        advice = _advice(sample, threat, rows[zero[name] & ~odd[name]]) if name == "margin" else None
        yield _gradient_finding(name, int(zero[name].sum()), int(odd[name].sum()), len(rows), advice)
    yield _rounding(sample, images, clean, labels, threat)


def _advice(sample: Sample, threat: ThreatModel, rows: Tensor) -> str | None:
    """The advice on gradients that vanish, which depends on whether the margin moves all the same."""
    if not len(rows):
        return None
    clean, labels = sample.images[rows], sample.labels[rows]
    noise = 2 * Draws(sample.target.seed, "advice", rows.cpu().numpy()).uniform(clean) - 1
    corner = threat.project(clean + noise.sign(), clean)
    before, after = (margin_of(sample.target.judge(images), labels) for images in (clean, corner))
    still = int(((after - before).abs() <= 1e-6 * before.abs()).sum())
    if surely_above(still, len(rows), 0.5):
        return "the margin itself does not move: attack it before it saturates, divide the logits by their scale"
    return "the margin moves without a gradient: replace what cuts it by a smooth operation for the attack (BPDA)"


def _gradient_finding(loss: str, zero: int, odd: int, total: int, advice: str | None) -> Finding:
    share = (zero + odd) / max(total, 1)
    most = loss == "margin" and surely_above(zero + odd, total, 0.5)
    severity = graded(error=most, warning=surely_above(zero + odd, total, ZERO_GRADIENTS))
    text = f"gradients of the {loss} vanish for {zero} and are not finite for {odd} of {total} images"
    return finding(f"gradients-{loss}", severity, text, share, ZERO_GRADIENTS, advice)


def _rounding(sample: Sample, images: Images, clean: Images, labels: Labels, threat: ThreatModel) -> Finding:
    """Adversarial images as a file with 8 bits per pixel would keep them."""
    found = sample.target.fooled(images, labels) if len(images) else labels < 0
    levels = sample.target.split.levels
    rounded = threat.project((images[found] * levels).round() / levels, clean[found])
    lost = int((sample.target.predict(rounded) == labels[found]).sum()) if found.any() else 0
    total = int(found.sum())
    text = f"{lost} of {total} adversarial images no longer are when rounded to {levels + 1} levels"
    return finding("rounding", graded(note=surely_above(lost, total, 0.5)), text, lost / max(total, 1), 0.5)


def slopes(sample: Sample) -> Iterator[Finding]:
    """Findings on whether gradients of the margin say how it changes: close by, and on the way to other images."""
    right = sample.right.nonzero().squeeze(1)
    if not len(right):
        return
    images, labels = sample.images[right], sample.labels[right]
    close, farther = (_local_errors(sample, images, labels, length) for length in (NUDGE, 10 * NUDGE))
    # The longer step sees past steps in forward that are finer than any attack's: those are no refutation.
    yield _refutation("finite-differences", "close by, along the gradient", close, torch.minimum(close, farther))
    errors = _path_errors(sample, images, labels)
    if errors is not None:
        yield _refutation("gradient-path", "on the way to an image of another class", errors, errors)


def _refutation(check: str, where: str, errors: PerExample, least: PerExample) -> Finding:
    """A finding from the share by which gradients are off for each image, and the least that can be said of it."""
    off, far, total = int((errors > FINITE_DIFFERENCE).sum()), int((least > FAR_OFF).sum()), len(errors)
    worse = surely_above(far, total, FEW) or surely_above(off, total, 0.5)
    severity = graded(error=surely_above(far, total, 0.5), warning=worse)
    middle = float(errors.median())
    text = f"gradients of the margin and its change differ by {100 * middle:.1f} % (median, {where}); by half for {far}"
    return finding(check, severity, f"{text} of {total} images", middle, FINITE_DIFFERENCE)


def _local_errors(sample: Sample, images: Images, labels: Labels, nudge: float) -> PerExample:
    """Share by which the gradient's length and the slope along it, over l2 length `nudge` both ways, differ."""
    # Inside the box by the length of a step: a model may clamp what it is given.
    inner = images.clamp(nudge, 1 - nudge)
    gradient = torch.nan_to_num(gradient_at(sample, inner, labels, margin_of), posinf=0.0, neginf=0.0)
    length = gradient.flatten(1).norm(dim=1)
    direction = gradient / length.clamp_min(1e-30).view(-1, 1, 1, 1)
    above, below = (sample.target.judge(inner + sign * nudge * direction) for sign in (1, -1))
    slope = (margin_of(above, labels) - margin_of(below, labels)) / (2 * nudge)
    return ((slope - length).abs() / torch.maximum(length, slope.abs()).clamp_min(1e-30)).nan_to_num(1.0)


def _path_errors(sample: Sample, images: Images, labels: Labels) -> PerExample | None:
    """Share of a margin's change towards another image that gradients do not account for; None: all of one class."""
    different = labels[:, None] != labels[None]
    if not different.any(1).all():
        return None
    # The next image of another class, in a circle.
    place = torch.arange(len(labels), device=labels.device)
    distance = (place[None] - place[:, None]) % len(labels)
    goals = images[torch.where(different, distance, len(labels)).argmin(1)]
    step = (goals - images) / POINTS
    sum_of_slopes = torch.zeros_like(labels, dtype=images.dtype)
    for point in range(POINTS):
        gradient = gradient_at(sample, images + (point + 0.5) * step, labels, margin_of)
        sum_of_slopes += (torch.nan_to_num(gradient, posinf=0.0, neginf=0.0) * step).flatten(1).sum(1)
    change = margin_of(sample.target.judge(goals), labels) - margin_of(sample.target.judge(images), labels)
    return ((sum_of_slopes - change).abs() / change.abs().clamp_min(1e-30)).nan_to_num(1.0)
