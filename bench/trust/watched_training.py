"""Checks on the training of a checkpoint: on what `bench train --watch` saw of it, up to the checkpoint's epoch.

Of the epochs before, the one with the highest PGD accuracy on test images is compared with the checkpoint's, image by
image. As it is the best of several, every interval may miss with a chance of 5 % divided by their number (Bonferroni):
where none of them is better than the checkpoint's, one seems so in one training of twenty at most.

Sources: Rice et al. 2020 (https://arxiv.org/abs/2002.11569) and Wong et al. 2020 (https://arxiv.org/abs/2001.03994).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.catalogue.names import CHECKPOINTS
from bench.errors import BenchError
from bench.results.findings import Finding, finding, graded
from bench.results.trainings import read_history
from bench.results.watched import SPLITS, UNDER, Curve, watched_curve
from bench.trust.evidence import MISS, surely_more

COLLAPSE = 0.5
"""Share of the best epoch's PGD accuracy of which a collapse takes more."""
_TRAIN, _TEST = (SPLITS.index(split) for split in ("train", "test"))
_FGSM, _PGD = (UNDER.index(under) for under in ("FGSM", "PGD-10"))
_CHECKS = ("catastrophic-overfitting", "robust-overfitting")


def training_findings(checkpoint: Path, run: Mapping[str, Any]) -> list[Finding]:
    """Findings on the training of a checkpoint, which is described by `run`; notes where its history cannot be read.

    None where it was not watched, where its run folder has no history, or where it holds averaged weights, which nobody
    watched.
    """
    place = checkpoint.absolute().parent
    is_watched = "watch" in run and run.get("weights") != "average" and place.name in CHECKPOINTS
    if not is_watched or not (place.parent / "history.jsonl").is_file():
        return []
    try:
        return curve_findings(watched_curve(read_history(place.parent), run["epoch"], run["watch"]))
    except BenchError as error:
        return [finding(name, "note", f"not known: {str(error).rstrip('.')}") for name in _CHECKS]


def curve_findings(curve: Curve) -> list[Finding]:
    """Findings on the last epoch of a curve."""
    last = len(curve) - 1
    if not last:
        return [finding(name, "passed", "the first epoch has none before it") for name in _CHECKS]
    best = int(curve[:last, _TEST, _PGD].mean(axis=1).argmax())
    pgd, fgsm, trained = (
        (curve[best, split, under], curve[last, split, under])
        for split, under in ((_TEST, _PGD), (_TEST, _FGSM), (_TRAIN, _PGD))
    )
    epochs, miss = f"from epoch {best + 1} to {last + 1}", MISS / last
    fell, most = float(pgd[0].mean() - pgd[1].mean()), COLLAPSE * float(pgd[0].mean())
    # A model that is no good any more falls under FGSM as well: to below what stood under PGD.
    collapsed = surely_more(pgd[0], pgd[1], most, miss) and surely_more(fgsm[1], pgd[0], 0.0, miss)
    overfitted = surely_more(pgd[0], pgd[1], 0.0, miss) and surely_more(trained[1], trained[0], 0.0, miss)
    by_steps = f"{epochs} test images: {_change(pgd)} under PGD-10, {_change(fgsm)} under FGSM"
    by_split = f"{epochs} under PGD-10: {_change(pgd)} of test images, {_change(trained)} of training images"
    return [
        finding("catastrophic-overfitting", graded(warning=collapsed), by_steps, fell, most),
        finding("robust-overfitting", graded(note=overfitted), by_split, fell, 0.0),
    ]


def _change(answers: Sequence[np.ndarray]) -> str:
    return f"{100 * answers[0].mean():.1f} to {100 * answers[1].mean():.1f} %"
