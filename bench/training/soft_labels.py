"""A trial of a defense with distributions over classes for labels, as an augmentation that mixes labels gives them."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch.nn import functional

from bench.errors import BenchError, cause, ran_out
from bench.interfaces import Indices, Labels, Scalar, evaluation_mode
from bench.system.randomness import seeded
from bench.training.averages import Averages
from bench.training.run import TrainingRun

_IMAGES = 3


def require_soft_labels(run: TrainingRun) -> None:
    """Refuse a defense that needs class indices: one whose terms are others where these are given as distributions."""
    rows = (torch.arange(_IMAGES, device=run.device) % len(run.train_split)).repeat(run.defense.views)
    labels = run.train_split.labels[rows]
    one_hot = functional.one_hot(labels, run.config["dataset"]["num_classes"]).float()
    expected = _terms(run, rows, labels)
    try:
        found = _terms(run, rows, one_hot)
        reason = "its loss is another one with distributions"
        same = found.keys() == expected.keys() and all(
            torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected
        )
    except Exception as error:  # whatever it does with them
        if ran_out(error):
            raise
        same, reason = False, cause(error)
    if not same:
        raise BenchError(
            f"augmentation {run.protocol.augmentation!r} mixes labels, and {run.config['defense']} needs class indices "
            f"({reason}): choose an augmentation that keeps them, such as crop-flip, or a defense of cross-entropy."
        )


def _terms(run: TrainingRun, rows: Indices, labels: Labels) -> dict[str, Scalar]:
    """The terms of a step of a copy of the run, on some training images, in its first and in its last epoch."""
    terms: dict[str, Scalar] = {}
    for epoch in {0, run.protocol.epochs - 1}:  # a defense may come to need more of labels
        model, optimizer, state = deepcopy((run.model, run.optimizer, dict(run.kept.items)))
        context = run.context(epoch, Averages())
        context = replace(context, steps=1, view=evaluation_mode, half=False, state=state, indices=rows)
        with seeded(run.seed):
            model.train()
            run.defense.begin_epoch(model, context)
            found = run.defense.update(model, optimizer, run.train_split.images(rows), labels, context)
        terms |= {f"{name} of epoch {epoch}": value for name, value in found.items()}
    return terms
