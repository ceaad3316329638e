"""Probes: the part of the trust report that needs the model. Some images, a few hundred passes each.

The rules follow Carlini et al. 2019 (https://arxiv.org/abs/1902.06705), Pintor et al. 2022
(https://arxiv.org/abs/2106.09947) and the flags of AutoAttack (https://github.com/fra31/auto-attack), which look at one
batch and one point only; here gradients are followed along a path.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.catalogue.suites import load_suite
from bench.data.splits import Split
from bench.engine.outcomes import Outcome
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import NO_CLASS, Draws, Images, Logits, ThreatModel
from bench.results.findings import Finding, Severity, finding, graded
from bench.system.devices import full_float32
from bench.system.randomness import untouched_randomness
from bench.trust.attack_comparisons import BLIND, outcome_findings
from bench.trust.challenges import MORE, challenge, unknown_images
from bench.trust.constancy import SAME, Witness, differing
from bench.trust.draws import more_draws, own_draws
from bench.trust.evidence import surely_above, surely_more
from bench.trust.gradients import slopes, vanishing
from bench.trust.report import examined
from bench.trust.sample import NOTHING, Sample, gradient_at, margin_of

WHOLE_BOX = "whole box"
REPEATS, OFTEN = 5, 25
"""Passes over all images, and over a few: one call in ten that is different is met."""
DRAWS = 100
"""Random images tried in the ball of each image: under linf half inside and half at corners, else on the sphere."""
BATCH, NORMALISED = 1e-3, 0.05


def probe(
    target: Target,
    threat: ThreatModel | None,
    count: int,
    witness: Witness | None = None,
    suite: Outcome | None = None,
    train: Split | None = None,
    random: Target | None = None,
) -> list[Finding]:
    """Findings from a look at a model on `count` images, as `Split.take` chooses; passed checks are among them.

    Args:
        target: the model and its images.
        threat: the suite's main threat model; None: attacks are left out.
        count: of images.
        witness: of the model's answers before the suite ran; None: as it answers now.
        suite: its outcomes; None: nothing ran but the probes.
        train: images that the model may know, other than those it is asked about; None: there are none.
        random: the target as the suite met it, where the model is random: `target` is then the mean of draws that are
            held, a model like any other but for its size. Attacks on it would say little of the random one; that
            gradients lead somewhere, and whether more draws would find more, is asked instead.
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
        if random is not None:
            looks.append(partial(own_draws, random))
        if threat is not None and threat.radius > 0 and random is not None and suite is not None:
            looks += [partial(vanishing, sample, threat), partial(slopes, sample)]
            looks.append(partial(more_draws, random, suite, count))
        elif threat is not None and threat.radius > 0:
            looks += [partial(look, sample, threat) for look in (_under_attack, vanishing)]
            looks.append(partial(slopes, sample))
            if suite is not None:
                looks.append(partial(challenge, target, threat, suite, witness.fresh(), MORE * count))
            looks.append(partial(unknown_images, target, threat, count, train))
        looks.append(witness.last_look)
        return [one for look in looks for one in examined(look)]


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
    most = 0.0
    for images, passes in ((sample.images, REPEATS), (sample.images[:8], OFTEN)):
        first, *others = (sample.target.judge(images) for _ in range(passes))
        most = max([most, *(_relative(other, first) for other in others)])
    limit = SAME if first.is_cuda else 0.0
    text = f"logits of {REPEATS} passes over the same images, or of {OFTEN} over eight, differ by up to {most:.2g}"
    return finding("not-deterministic", graded(error=most > limit), f"{text} of the largest", most, limit)


def _batches(sample: Sample) -> Finding:
    """Logits of images alone and among others, in batches of several sizes and orders; and so their gradients."""
    target, few = sample.target, sample.images[:32]
    alone = torch.cat([target.judge(image) for image in torch.split(few, 1)])
    worst, size_of_worst = 0.0, 1
    largest = min(2 * target.batch_size, target.room or 2 * target.batch_size)
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
        whole = gradient_at(sample, sample.images[rows], sample.labels[rows], margin_of)[: len(few)]
        own = gradient_at(sample, few, sample.labels[: len(few)], margin_of)
        own = own[: len(whole)]
        change = (whole - own).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1).clamp_min(NOTHING)
        changed = int((torch.nan_to_num(change) > 0.5).sum())
        if surely_above(changed, len(own), 0.1):
            severity = "error"
            text = f"gradients of {changed} of {len(own)} images differ from those among {size} by half"
    return finding("batch-dependent", severity, text, worst, BATCH)


@torch.no_grad()
def _answers(target: Target, images: Images) -> Logits:
    """Logits of a whole batch at once, whatever the batch size is."""
    logits: Logits = target.model(images)
    return logits


def _asked_for_gradients(sample: Sample) -> Finding:
    """An attack asks for gradients, the judge does not."""
    few = sample.images[: sample.target.room][:32]
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
    """The finding on a model that does better on images that someone normalised for it."""
    part = target.split.take(min(256, len(target.split)))
    images, labels = part.images(slice(None)), part.labels
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    raw = target.predict(images) == labels
    # One after the other: 256 large images given in every way at once would fill gigabytes.
    ways: dict[str, Callable[[Images], Images]] = {
        "(x - mean) / deviation": lambda given: (given - mean) / deviation,
        "2 x - 1": lambda given: 2 * given - 1,
        "255 x": lambda given: 255 * given,
    }
    right = {name: target.predict(way(images)) == labels for name, way in ways.items()}
    best = max(right, key=lambda name: int(right[name].sum()))
    gain = int(right[best].sum() - raw.sum()) / len(raw)
    severity = graded(error=surely_more(right[best], raw, NORMALISED))
    text = f"{100 * gain:+.1f} points of clean accuracy on images given as {best}"
    return finding("normalisation", severity, text, gain, NORMALISED)


def _under_attack(sample: Sample, threat: ThreatModel) -> Iterator[Finding]:
    outcome = _attacked(sample.target, threat)
    yield from (_no_radius(outcome), _whole_box(outcome), *outcome.findings)
    yield from outcome_findings(outcome, sample.images[:1].numel())
    yield _random_search(sample, threat, outcome)


def _attacked(part: Target, threat: ThreatModel) -> Outcome:
    """The part of the images under the suite `probes`."""
    suite = load_suite("probes")
    norm, size = threat.norm, math.prod(part.split.pixels.shape[1:])
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
    severity = graded(warning=surely_above(count, total, BLIND))
    return finding("random-search", severity, text, count / max(total, 1), BLIND)
