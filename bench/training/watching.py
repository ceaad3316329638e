"""A look at a training after each epoch, which changes nothing of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bench.catalogue.protocol import TrainingProtocol
from bench.data.splits import Split
from bench.errors import BenchError
from bench.results.watched import UNDER, watched_row
from bench.training.held_out import right_answers


@dataclass(frozen=True)
class Watch:
    """The images that are looked at: as many that are trained on, unaugmented, as test images, which choose nothing."""

    train: Split
    test: Split
    protocol: TrainingProtocol
    seed: int

    def row(self, model: nn.Module) -> dict[str, Any]:
        """The model's part of an epoch's row of the history, under the suite `watch` with the protocol's radius."""
        seen = [right_answers(model, split, "watch", self.protocol, self.seed) for split in (self.train, self.test)]
        return watched_row(np.stack([[right[under] for under in UNDER] for right in seen]))


def watching(train: Split, test: Split, count: int, protocol: TrainingProtocol, seed: int) -> Watch:
    """A watch on `count` images of each split, as `Split.take` chooses them, on the device of the training images.

    Raises:
        BenchError: a split has fewer, or the count is below 1.
    """
    most = min(len(train), len(test))
    if not 1 <= count <= most:
        raise BenchError(
            f"--watch {count} does not fit: {len(train)} images are trained on, and {len(test)} are for tests. "
            f"Give 1 to {most}."
        )
    return Watch(train.take(count), test.take(count).to(train.labels.device), protocol, seed)
