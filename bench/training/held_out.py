"""Training images that are held out, and how a model does on them: by that `best` is chosen."""

import dataclasses

import numpy as np
import torch
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
    """Clean and PGD accuracy in percent, under the suite `selection` with the protocol's threat model."""
    suite = load_suite("selection")
    cells = tuple(dataclasses.replace(cell, norm=protocol.norm, epsilon=protocol.epsilon) for cell in suite.cells)
    outcome = run_suite(Target(model, held_out, seed=seed), dataclasses.replace(suite, cells=cells))
    right = outcome.clean_prediction == outcome.label
    robust = [right & (record.prediction == outcome.label) for record in outcome.attacks.values()]
    return {
        "held_out_clean": 100.0 * float(right.mean()),
        "held_out_pgd": 100.0 * float(np.logical_and.reduce(robust).mean()),
    }
