"""Probes: the part of the trust report that needs the model. Some images, a few hundred passes each.

The rules follow Carlini et al. 2019 (https://arxiv.org/abs/1902.06705), Pintor et al. 2022
(https://arxiv.org/abs/2106.09947) and the flags of AutoAttack (https://github.com/fra31/auto-attack), which look at one
batch and one point only; here gradients are followed along a path.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from bench.catalogue.suites import load_suite
from bench.data.splits import Split
from bench.engine.observed import ModelView
from bench.engine.outcomes import Outcome
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import NO_CLASS, Draws, Images, Labels, Logits, PerExample, ThreatModel
from bench.results.findings import Finding, Severity, finding
from bench.system.devices import full_float32
from bench.system.randomness import untouched_randomness
from bench.trust.challenges import MORE, challenge, unknown_images
from bench.trust.constancy import SAME, Witness, differing
from bench.trust.outcomes import BLIND, examined, outcome_findings, surely_above, surely_more

WHOLE_BOX = "whole box"
REPEATS, OFTEN = 5, 25
"""Passes over all images, and over a few: one call in ten that is different is met."""
PATH = 10
"""Steps along which gradients are watched."""
DRAWS = 100
"""Random images tried in the ball of each image: under linf half inside and half at corners, else on the sphere."""
NUDGE = 1e-2
"""Length of the step of a finite difference, in l2: small against a pixel's level, large against rounding."""
POINTS = 32
"""Gradients on the way to another image."""
FAR_OFF, FEW = 0.5, 0.1
"""An image's gradients are refuted if they are off by half; a model's, if those of more than a tenth are."""
NOTHING = 1e-12
"""A gradient whose largest entry is below this counts as zero."""

ZERO_GRADIENTS, FINITE_DIFFERENCE, BATCH, NORMALISED = 0.01, 0.2, 1e-3, 0.05


@dataclass(frozen=True)
class Sample:
    """The images that are probed."""

    target: Target
    images: Images
    labels: Labels
    right: Bool[Tensor, " batch"]
    """Whose clean image is classified correctly."""


def probe(
    target: Target,
    threat: ThreatModel | None,
    count: int,
    witness: Witness | None = None,
    suite: Outcome | None = None,
    train: Split | None = None,
) -> list[Finding]:
    """Findings from a look at a model on `count` images, as `Split.take` chooses; passed checks are among them.

    Args:
        target: the model and its images.
        threat: the suite's main threat model; None: attacks are left out.
        count: how many images.
        witness: what the model said before the suite ran; None: as it answers now.
        suite: what the suite did; None: nothing ran but the probes.
        train: images that the model may know, other than those it is asked about; None: there are none.
    """
    target.model.eval()
    part = dataclasses.replace(target, split=target.split.take(min(count, len(target.split))), sources={})
    with untouched_randomness(), full_float32():
        witness = witness or Witness.call(part, threat, count)
        images, labels = part.samples(torch.arange(len(part.split), device=part.split.labels.device))
        sample = Sample(part, images, labels, part.predict(images) == labels)
        checks = (_modes, _finite, _repeats, _batches, _asked_for_gradients, _probabilities, _dynamic, _pixels)
        looks: list[Callable[[], Finding | Iterable[Finding]]] = [partial(check, sample) for check in checks]
        looks.append(partial(_normalisation, target))
        if threat is not None and threat.radius > 0:
            looks += [partial(look, sample, threat) for look in (_under_attack, _gradients)]
            looks.append(partial(_slopes, sample))
            if suite is not None:
                looks.append(partial(challenge, target, threat, suite, witness.fresh(), MORE * count))
            looks.append(partial(unknown_images, target, threat, count, train))
        looks.append(witness.last_look)
        return [one for look in looks for one in examined(look)]


# --------------------------------------------------------------------------------------------- contract


def _modes(sample: Sample) -> Finding:
    training = [name or "the model" for name, module in sample.target.model.named_modules() if module.training]
    text = f"{len(training)} modules are in training mode after model.eval(): {', '.join(training[:5]) or 'none'}"
    return finding("train-mode", "error" if training else "passed", text, len(training), 0)


def _finite(sample: Sample) -> Finding:
    broken = int((sample.target.predict(sample.images) == NO_CLASS).sum())
    text = f"{broken} of {len(sample.images)} clean images give logits that are NaN or infinite"
    return finding("non-finite-logits", "error" if broken else "passed", text, broken, 0)


def _repeats(sample: Sample) -> Finding:
    """Kernels on a GPU may add in another order; on a processor they do not."""
    difference = 0.0
    for images, passes in ((sample.images, REPEATS), (sample.images[:8], OFTEN)):
        first, *others = (sample.target.judge(images) for _ in range(passes))
        difference = max([difference, *(_relative(other, first) for other in others)])
    limit = SAME if first.is_cuda else 0.0
    text = (
        f"logits of {REPEATS} passes over the same images, or of {OFTEN} over eight, differ by up to {difference:.2g}"
    )
    text += " of the largest"
    return finding("not-deterministic", "error" if difference > limit else "passed", text, difference, limit)


def _batches(sample: Sample) -> Finding:
    """Logits of images alone and among others, in batches of several sizes and orders; and so their gradients."""
    target, few = sample.target, sample.images[:32]
    alone = torch.cat([target.judge(image) for image in torch.split(few, 1)])
    worst, size_of_worst = 0.0, 1
    largest = target.room or 2 * target.batch_size
    for size in sorted({min(size, largest) for size in (2, 32, len(sample.images), target.batch_size, largest)}):
        rows = torch.arange(size, device=few.device) % len(sample.images)
        for order in (rows, rows.flip(0)):
            answers = _answers(target, sample.images[order])
            here = order < len(few)
            difference = _relative(answers[here], alone[order[here]]) if here.any() else 0.0
            if difference > worst:
                worst, size_of_worst = difference, size
    text = f"logits of images alone and among {size_of_worst} differ by up to {worst:.2g} of the largest"
    severity: Severity = "error" if worst > BATCH else "passed"
    if severity == "passed":
        size = min(target.batch_size, largest)
        rows = torch.arange(size, device=few.device) % len(sample.images)
        whole = _gradient(sample, sample.images[rows], sample.labels[rows], _margin)[: len(few)]
        own = _gradient(sample, few, sample.labels[: len(few)], _margin)
        change = (whole - own).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1).clamp_min(NOTHING)
        changed = int((torch.nan_to_num(change) > 0.5).sum())
        if surely_above(changed, len(few), 0.1):
            severity = "error"
            text = f"gradients of {changed} of {len(few)} images differ from those among {size} by half"
    return finding("batch-dependent", severity, text, worst, BATCH)


@torch.no_grad()
def _answers(target: Target, images: Images) -> Logits:
    """Logits of a whole batch at once, whatever the batch size is."""
    logits: Logits = target.model(images)
    return logits


def _asked_for_gradients(sample: Sample) -> Finding:
    """An attack asks for gradients, the judge does not."""
    few = sample.images[:32]
    with torch.enable_grad():
        asked = sample.target.model(few.clone().requires_grad_()).detach()
    changed = int(differing(asked, _answers(sample.target, few), SAME).sum())
    text = f"{changed} of {len(few)} images get another answer when gradients are asked for"
    return finding("gradient-mode", "error" if changed else "passed", text, changed, 0)


def _relative(found: Logits, expected: Logits) -> float:
    """The largest difference by the largest logit; infinite where only one of the two is finite."""
    known = expected.isfinite()
    if not torch.equal(known, found.isfinite()):
        return math.inf
    difference, size = (torch.where(known, part, 0.0).abs().max() for part in (found - expected, expected))
    return float(difference / size.clamp_min(1e-30))


def _probabilities(sample: Sample) -> Finding:
    logits = sample.target.judge(sample.images)
    likely = bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4)
    text = "outputs are not negative and sum to 1" if likely else "outputs are not probabilities"
    return finding("probabilities", "error" if likely else "passed", text)


def _dynamic(sample: Sample) -> Finding:
    """A forward pass that is asked for no gradients keeps nothing for a backward pass, unless it runs its own."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 1
        return tensor

    try:
        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sample.target.model(sample.images[:8])
    except RuntimeError:
        kept = -1
    text = "forward computes gradients of its own" if kept else "forward computes no gradients of its own"
    return finding("dynamic", "warning" if kept else "passed", text)


def _pixels(sample: Sample) -> Finding:
    low, high = float(sample.images.min()), float(sample.images.max())
    text = f"pixels lie in [{low:.3g}, {high:.3g}]"
    return finding("pixel-range", "error" if low < 0 or high > 1 else "passed", text, [low, high], [0.0, 1.0])


def _normalisation(target: Target) -> Finding:
    """Does the model do better on images that someone normalised for it?"""
    part = target.split.take(min(256, len(target.split)))
    images, labels = part.images(slice(None)), part.labels
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    raw = target.predict(images) == labels
    ways = {"(x - mean) / deviation": (images - mean) / deviation, "2 x - 1": 2 * images - 1, "255 x": 255 * images}
    right = {name: target.predict(inputs) == labels for name, inputs in ways.items()}
    best = max(right, key=lambda name: int(right[name].sum()))
    gain = int(right[best].sum() - raw.sum()) / len(raw)
    severity: Severity = "error" if surely_more(right[best], raw, NORMALISED) else "passed"
    text = f"{100 * gain:+.1f} points of clean accuracy on images given as {best}"
    return finding("normalisation", severity, text, gain, NORMALISED)


# ---------------------------------------------------------------------------------------------- attacks


def _under_attack(sample: Sample, threat: ThreatModel) -> Iterator[Finding]:
    outcome = _attacked(sample.target, threat)
    yield from (_no_radius(outcome), _whole_box(outcome), *outcome.findings)
    yield from outcome_findings(outcome, sample.images[:1].numel())
    yield _random_search(sample, threat, outcome)


def _attacked(part: Target, threat: ThreatModel) -> Outcome:
    """The part of the images under the suite `probes`."""
    suite = load_suite("probes")
    norm, size = threat.norm, part.split.pixels[0].numel()
    # The radius within which every image in [0, 1] lies.
    box = {"linf": "1", "l2": str(math.ceil(math.sqrt(size))), "l1": str(size)}[norm]
    cells = [
        dataclasses.replace(cell, norm=norm, epsilon=box if cell.label == WHOLE_BOX else cell.epsilon)
        for cell in suite.cells
        if cell.objective == "default" or cell.objective in part.objectives
    ]
    suite = dataclasses.replace(suite, cells=tuple(cells)).resolve({}, {norm: threat.epsilon})
    return run_suite(part, suite)


def _no_radius(outcome: Outcome) -> Finding:
    changed = int((outcome.attacks["no radius"].prediction != outcome.clean_prediction).sum())
    text = f"{changed} of {len(outcome.label)} predictions differ from the clean ones at radius 0"
    return finding("zero-radius", "error" if changed else "passed", text, changed, 0)


def _whole_box(outcome: Outcome) -> Finding:
    standing = int((outcome.attacks[WHOLE_BOX].prediction == outcome.label).sum())
    text = f"{standing} of {len(outcome.label)} images stand where any image in [0, 1] may be chosen"
    return finding("unbounded-attack", "warning" if standing else "passed", text, standing, 0)


def _gradients(sample: Sample, threat: ThreatModel) -> Iterator[Finding]:
    """Gradients of two losses along a path of ascent on cross-entropy, on images that are right at its start."""
    losses: dict[str, Callable[[Logits, Labels], PerExample]] = {
        "cross-entropy": lambda logits, labels: functional.cross_entropy(logits, labels, reduction="none"),
        "margin": _margin,
    }
    rows = sample.right.nonzero().squeeze(1)
    clean, labels = sample.images[rows], sample.labels[rows]
    zero = {name: torch.zeros_like(labels, dtype=torch.bool) for name in losses}
    odd = {name: torch.zeros_like(labels, dtype=torch.bool) for name in losses}
    images = clean
    for _ in range(PATH if len(rows) else 0):
        gradients = {name: _gradient(sample, images, labels, loss) for name, loss in losses.items()}
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
    """What to do about gradients that vanish: whether the margin does not move, or moves all the same."""
    if not len(rows):
        return None
    clean, labels = sample.images[rows], sample.labels[rows]
    noise = 2 * Draws(sample.target.seed, "advice", rows.cpu().numpy()).uniform(clean) - 1
    corner = threat.project(clean + noise.sign(), clean)
    before, after = (_margin(sample.target.judge(images), labels) for images in (clean, corner))
    still = int(((after - before).abs() <= 1e-6 * before.abs()).sum())
    if surely_above(still, len(rows), 0.5):
        return "the margin itself does not move: attack it before it saturates, divide the logits by their scale"
    return "the margin moves without a gradient: replace what cuts it by a smooth operation for the attack (BPDA)"


def _gradient_finding(loss: str, zero: int, odd: int, total: int, advice: str | None) -> Finding:
    share = (zero + odd) / max(total, 1)
    severity: Severity = "warning" if surely_above(zero + odd, total, ZERO_GRADIENTS) else "passed"
    if loss == "margin" and surely_above(zero + odd, total, 0.5):
        severity = "error"
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
    severity: Severity = "note" if surely_above(lost, total, 0.5) else "passed"
    return finding("rounding", severity, text, lost / max(total, 1), 0.5)


def _slopes(sample: Sample) -> Iterator[Finding]:
    """Whether gradients of the margin say how it changes: close by, and on the way to other images."""
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
    severity: Severity = "passed"
    if surely_above(far, total, 0.5):
        severity = "error"
    elif surely_above(far, total, FEW) or surely_above(off, total, 0.5):
        severity = "warning"
    middle = float(errors.median())
    text = f"gradients of the margin and its change differ by {100 * middle:.1f} % (median, {where}); by half for {far}"
    return finding(check, severity, f"{text} of {total} images", middle, FINITE_DIFFERENCE)


def _local_errors(sample: Sample, images: Images, labels: Labels, nudge: float) -> PerExample:
    """Share by which the gradient's length and the slope along it, over l2 length `nudge` both ways, differ."""
    # Inside the box by the length of a step: a model may clamp what it is given.
    inner = images.clamp(nudge, 1 - nudge)
    gradient = torch.nan_to_num(_gradient(sample, inner, labels, _margin), posinf=0.0, neginf=0.0)
    length = gradient.flatten(1).norm(dim=1)
    direction = gradient / length.clamp_min(1e-30).view(-1, 1, 1, 1)
    above, below = (sample.target.judge(inner + sign * nudge * direction) for sign in (1, -1))
    slope = (_margin(above, labels) - _margin(below, labels)) / (2 * nudge)
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
        gradient = _gradient(sample, images + (point + 0.5) * step, labels, _margin)
        sum_of_slopes += (torch.nan_to_num(gradient, posinf=0.0, neginf=0.0) * step).flatten(1).sum(1)
    change = _margin(sample.target.judge(goals), labels) - _margin(sample.target.judge(images), labels)
    return ((sum_of_slopes - change).abs() / change.abs().clamp_min(1e-30)).nan_to_num(1.0)


def _random_search(sample: Sample, threat: ThreatModel, outcome: Outcome) -> Finding:
    """Random images in the ball, of what stands under gradients."""
    attacked = [outcome.attacks[name].prediction for name in ("cross-entropy", "margin", "one step")]
    standing = np.logical_and.reduce([prediction == outcome.label for prediction in attacked])
    rows = (torch.from_numpy(standing).to(sample.right.device) & sample.right).nonzero().squeeze(1)
    images, labels = sample.images[rows], sample.labels[rows]
    draws = Draws(sample.target.seed, "probes", sample.target.split.positions[rows.cpu().numpy()])
    broken = torch.zeros_like(labels, dtype=torch.bool)
    for number in range(DRAWS if len(rows) else 0):
        noise = 2 * draws.uniform(images, number) - 1
        noise = noise.sign() if number % 2 else noise
        if threat.norm != "linf":
            order = {"l2": 2.0, "l1": 1.0}[threat.norm]
            noise = noise / noise.flatten(1).norm(p=order, dim=1).view(-1, 1, 1, 1)
        broken |= sample.target.fooled(threat.project(images + threat.radius * noise, images), labels)
    count, total = int(broken.sum()), int(sample.right.sum())
    text = f"{count} of {total} images are broken by {DRAWS} random images each and not with gradients"
    severity: Severity = "warning" if surely_above(count, total, BLIND) else "passed"
    return finding("random-search", severity, text, count / max(total, 1), BLIND)


def _gradient(sample: Sample, images: Images, labels: Labels, loss: Callable[[Logits, Labels], PerExample]) -> Images:
    leaf = images.detach().requires_grad_()
    seen: list[Images] = []
    # Hooks run in the order in which they were registered: this one sees what the view will mend.
    leaf.register_hook(seen.append)  # type: ignore[no-untyped-call]
    view = ModelView(sample.target.model, cut=sample.target.cut)
    torch.autograd.grad(loss(view(leaf), labels).sum(), leaf)
    return seen[0]


def _margin(logits: Logits, labels: Labels) -> PerExample:
    """Largest wrong logit less the true one."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - true
