"""Training images that are held out, and how a model does on them: by that `best` is chosen."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn

from bench.catalogue.protocol import TrainingProtocol
from bench.catalogue.suites import load_suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split | None]:
    """The images to train on and `count` others, chosen by the seed; None instead of no others.

    Raises:
        BenchError: nothing would be left to train on.
    """
    if count == 0:
        return split, None
    if count >= len(split):
        raise BenchError(f"holdout {count} leaves nothing to train on: the training set has {len(split)} images.")
    # Drawn on the CPU, so that every device holds out the same images.
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).to(split.labels.device)
    kept, held = (
        dataclasses.replace(split, pixels=split.held()[rows], labels=split.labels[rows], origin=None)
        for rows in (order[count:], order[:count])
    )
    return kept, held


def held_out_accuracies(model: nn.Module, held_out: Split, protocol: TrainingProtocol, seed: int) -> dict[str, float]:
    """Clean and PGD accuracy in percent, under the suite `selection`."""
    right = right_answers(model, held_out, "selection", protocol, seed)
    return {
        "held_out_clean": 100.0 * float(right["clean"].mean()),
        "held_out_pgd": 100.0 * float(right["PGD-10"].mean()),
    }


def right_answers(
    model: nn.Module, split: Split, suite: str, protocol: TrainingProtocol, seed: int
) -> dict[str, Bool[np.ndarray, " image"]]:
    """The images that a model is right on, `clean` and also under each attack of a suite, by its label.

    Norm and radius are the protocol's. Random states are left as they are; the model is in eval mode afterwards.
    """
    asked = load_suite(suite)
    cells = tuple(dataclasses.replace(cell, norm=protocol.norm, epsilon=protocol.epsilon) for cell in asked.cells)
    outcome = run_suite(Target(model, split, seed=seed), dataclasses.replace(asked, cells=cells))
    right = outcome.clean_prediction == outcome.label
    attacked = {label: right & (record.prediction == outcome.label) for label, record in outcome.attacks.items()}
    return {"clean": right, **attacked}
