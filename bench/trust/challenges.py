"""Challenges: short, strong attacks on what stands under a suite, and on images that the model cannot have kept.

An image that they break stands in the suite's worst case and should not. Whatever made the suite weak, masked
gradients, a flat loss, memory of what was shown: the model is attacked as a copy that saw nothing, with other batches,
with and without its gradients, and by way of the classifiers that it is made of.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn

from bench.catalogue.suites import AttackCell, load_suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import ThreatModel, classes
from bench.results.findings import Finding, finding, graded
from bench.trust.attack_comparisons import BLIND, GAP, WIDE_GAP, Outcomes, ascents
from bench.trust.evidence import MISS, surely_above, surely_more
from bench.trust.report import worst_of_each

Mask = Bool[np.ndarray, " sample"]

MORE = 4
"""How many times as many images are challenged as are probed: a few points can be told from none."""
BATCH_SIZE = 120
"""Another one than the suite's."""
PARTS = 4
"""Classifiers inside the model that images are crafted against, at most."""
FAMILIAR, FAR_MORE = 0.1, 0.15
"""By how much more of the images that a suite asks about may stand than of others; of sound models up to a tenth."""
BLEND = 0.3
"""Share of another image of the class."""
WIDE = 16
"""Pixels from which on a shift by one leaves the picture as it is; on 8 x 8 it halves sound robust accuracy."""


def challenge(target: Target, threat: ThreatModel, suite: Outcomes, fresh: nn.Module | None, count: int) -> Finding:
    """The finding on images that stand under a suite, and that short attacks break.

    The first `count` images are looked at. The model is attacked as `fresh`, a copy that saw nothing, if there is one.
    """
    count = min(count, len(target.split))
    labels = target.split.labels[:count].cpu().numpy()
    here = [
        record
        for record in suite.attacks.values()
        if (record.norm, ThreatModel(record.norm, record.epsilon).radius) == (threat.norm, threat.radius)
    ]
    standing = np.logical_and.reduce([record.prediction[:count] == labels for record in here] or [labels >= 0])
    standing &= suite.clean_prediction[:count] == labels
    margin_known = bool(ascents(suite) - {"cross-entropy"})
    challenger = dataclasses.replace(
        plain(target), model=fresh or target.model, batch_size=min(BATCH_SIZE, target.batch_size), seed=target.seed + 1
    )
    broken: dict[str, int] = {}
    for name, cell, sources in _cells(challenger, threat):
        rows = np.flatnonzero(standing)
        fallen = rows[_broken(challenger, cell, sources, rows)]
        standing[fallen] = False
        # What a loss that the suite does not ascend breaks is `loss-gap`, and the suite's own reader is told so.
        if margin_known or cell.label != "margin":
            broken[name] = broken.get(name, 0) + len(fallen)
    total, blind = sum(broken.values()), broken.get("no gradients", 0) + broken.get("parts of the model", 0)
    severity = graded(
        error=surely_above(total, count, WIDE_GAP),
        warning=surely_above(total, count, GAP) or surely_above(blind, count, BLIND),
    )
    shown = ", ".join(f"{name} {number}" for name, number in broken.items() if number) or "none"
    text = f"of {count} images, short attacks on a copy break {total} that stand under the suite: {shown}"
    return finding("worst-case", severity, text, total / max(count, 1), GAP)


def plain(target: Target) -> Target:
    """The target, searched on as it is judged, and nothing kept."""
    return dataclasses.replace(
        target, search_model=None, half=False, tf32=False, sources={}, keeps_images=False, keeps_features=False
    )


def _cells(target: Target, threat: ThreatModel) -> Iterator[tuple[str, AttackCell, Mapping[str, nn.Module]]]:
    """Name, cell, and the models that it crafts images against: attacks with gradients first."""
    *sighted, blind = _resolved(threat)
    for cell in sighted:
        yield "gradients", cell, {}
    _, margin, *_ = sighted
    for number, part in enumerate(_classifiers_inside(target)):
        source = f"part {number + 1}"
        yield "parts of the model", dataclasses.replace(margin, label=source, source=source), {source: part}
    yield "no gradients", blind, {}


def _resolved(threat: ThreatModel) -> list[AttackCell]:
    suite = load_suite("challenge")
    cells = tuple(dataclasses.replace(cell, norm=threat.norm) for cell in suite.cells)
    return list(dataclasses.replace(suite, cells=cells).resolve({}, {threat.norm: threat.epsilon}).cells)


def _broken(target: Target, cell: AttackCell, sources: Mapping[str, nn.Module], rows: np.ndarray) -> Mask:
    """Mask of those of some samples that an attack breaks; an attack that such a model cannot be given breaks none."""
    if not len(rows):
        return np.zeros(0, dtype=bool)
    part = dataclasses.replace(target, split=target.split.chosen(rows), sources=sources)
    suite = dataclasses.replace(load_suite("challenge"), cells=(cell,))
    with suppress(BenchError):
        outcome = run_suite(part, suite)
        record = outcome.attacks[cell.label]
        return np.asarray((outcome.clean_prediction == outcome.label) & (record.prediction != outcome.label))
    return np.zeros(len(rows), dtype=bool)


@torch.no_grad()
def _classifiers_inside(target: Target) -> Iterator[nn.Module]:
    """Parts of the model that classify its images by themselves, as the network behind a filter of inputs does."""
    images, labels = target.samples(torch.arange(min(64, len(target.split)), device=target.split.labels.device))
    whole = target.judge(images)
    least = (classes(whole) == labels).float().mean() / 2
    found = 0
    for name, module in target.model.named_modules():
        if not name or found == PARTS:
            continue
        with suppress(Exception):  # most parts take something else than images
            logits = module(images)
            if logits.shape == whole.shape and (classes(logits) == labels).float().mean() >= least:
                found += 1
                yield module


def unknown_images(target: Target, threat: ThreatModel, count: int, train: Split | None) -> Finding:
    """The finding on images that stand because they are asked about: others are made of them, or are of training."""
    split = target.split.take(min(2 * count, len(target.split)))
    right, stands = _under_attack(target, threat, split)
    others = {"blends of two of a class": _blended(split)}
    if min(split.pixels.shape[2:]) >= WIDE:
        others["the same images, shifted by a pixel"] = _shifted(split)
    if train is not None and len(train) >= len(split):
        others["training images"] = train.take(len(split)).to(split.labels.device)
    found = []
    for name, other in others.items():
        other_right, other_stands = _under_attack(target, threat, other)
        both = right & other_right
        shares = [float(mask[both].mean()) if both.any() else 0.0 for mask in (stands, other_stands)]
        # The worst of several comparisons is reported, so each may miss more rarely (Bonferroni).
        more, far_more = (
            surely_more(stands[both], other_stands[both], limit, MISS / len(others)) for limit in (FAMILIAR, FAR_MORE)
        )
        text = f"of right images {100 * shares[0]:.0f} % stand, of {name} {100 * shares[1]:.0f} %"
        severity = graded(error=far_more, warning=more)
        found.append(finding("unknown-images", severity, text, shares[0] - shares[1], FAMILIAR))
    return worst_of_each(found)[0]


def _under_attack(target: Target, threat: ThreatModel, split: Split) -> tuple[Mask, Mask]:
    """Masks of images that are right, and of those that stand."""
    _, cell, *_ = _resolved(threat)  # the margin, which a saturated cross-entropy does not hide
    part = dataclasses.replace(plain(target), split=split)
    outcome = run_suite(part, dataclasses.replace(load_suite("challenge"), cells=(cell,)))
    right = outcome.clean_prediction == outcome.label
    return right, right & (outcome.attacks[cell.label].prediction == outcome.label)


def _blended(split: Split) -> Split:
    """Images with a part of the next one of their class: outside their ball, and hardly another picture."""
    count = len(split)
    place = torch.arange(count, device=split.labels.device)
    distance = (place[None] - place[:, None]) % count
    same = (split.labels[:, None] == split.labels[None]) & (distance > 0)
    held = split.held()
    next_one = held[torch.where(same, distance, count).argmin(1)].float()
    pixels = ((1 - BLEND) * held.float() + BLEND * next_one).round().to(held.dtype)
    return dataclasses.replace(split, pixels=pixels)


def _shifted(split: Split) -> Split:
    """Images moved by a pixel; what comes in repeats the edge."""
    held = split.held()
    pixels = torch.cat([held[..., :1], held[..., :-1]], dim=-1)
    return dataclasses.replace(split, pixels=pixels)
