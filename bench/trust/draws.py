"""Draws: whether a model that declares itself random is, image by image, and whether more draws would find more."""

import dataclasses

import numpy as np
import torch

from bench.catalogue.suites import AttackCell, Suite
from bench.engine.drawn import Expected
from bench.engine.outcomes import Outcome
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.results.findings import Finding, finding, graded
from bench.system.randomness import seeded
from bench.trust.attack_comparisons import GAIN
from bench.trust.challenges import plain

FEW = 8
ONE_SIDED = 1.645
"""Standard errors below which a normal mean lies with 95 %."""


@torch.no_grad()
def own_draws(random: Target) -> Finding:
    """The finding on whether each row of a batch is answered by a draw of its own."""
    assert random.drawn is not None
    images = random.split.images(slice(0, FEW))
    count, twice, apart = len(images), 0, 0
    for image in torch.split(images, 1):
        first, second = (Expected(random.drawn.model, 1, seed, held=True)(image) for seed in (0, 1))
        with seeded(random.drawn.seed):
            rows = random.drawn.model(image.repeat(2, 1, 1, 1))
        twice += int(not torch.equal(rows[0], rows[1]))
        apart += int(not torch.equal(first, second))
    text = f"of {count} images, two in one batch are answered otherwise for {twice}, in two calls for {apart}"
    return finding("own-draws", graded(error=apart > 0 and not twice, note=not apart and not twice), text, twice, 1)


def more_draws(random: Target, suite: Outcome, count: int) -> Finding:
    """The finding on an attack whose search looks at the mean of twice as many draws, on the first `count` images.

    It is the suite's first attack. Verdicts are in the same draws as before, so that what differs is the search.
    """
    assert random.drawn is not None and isinstance(random.model, Expected)
    record = next(iter(suite.attacks.values()))
    assert record.right_draws is not None
    rows = np.arange(min(count, len(random.split)))
    cell = AttackCell(
        record.label, record.attack, record.norm, record.epsilon, record.settings, objective=record.objective
    )
    doubled = Expected(random.drawn.model, 2 * random.model.draws, random.model.seed)
    target = dataclasses.replace(plain(random), model=doubled, split=random.split.chosen(rows))
    again = run_suite(target, Suite("more draws", 1, "", (cell,), {})).attacks[record.label].right_draws
    assert again is not None
    fewer = (record.right_draws[rows].astype(float) - again) / random.drawn.draws
    change = float(fewer.mean())
    surely = change - ONE_SIDED * float(fewer.std(ddof=1)) / len(rows) ** 0.5 if len(rows) > 1 else 0.0
    text = (
        f"{record.label} on the mean of {doubled.draws} draws instead of {random.model.draws} leaves "
        f"{100 * abs(change):.1f} points {'less' if change >= 0 else 'more'} of {len(rows)} images (one draw)"
    )
    return finding("more-draws", graded(warning=surely > GAIN), text, change, GAIN)
