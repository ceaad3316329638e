"""The room on disk that sweeps need, before they start."""

import math
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bench.catalogue.plugins import make_defense
from bench.catalogue.protocol import TrainingProtocol
from bench.data.splits import Dataset
from bench.errors import BenchError
from bench.models.backbones import make_backbone
from bench.text import amount
from bench.training.request import TrainingRequest

_NUMBER = 4
"""Bytes of a float32."""
_PER_IMAGE = 200
"""Bytes of a result file for each image it is of, and as many for its blocks."""


@dataclass(frozen=True)
class Room:
    """Bytes that are needed, at least, and those that are free."""

    needed: int
    free: int

    def require(self, place: Path) -> None:
        """Refuse to begin where there is too little."""
        if self.needed > self.free:
            raise BenchError(
                f"the sweep needs at least {amount(self.needed)} in {str(place)!r}, where {amount(self.free)} are "
                "free. Free some (`bench clean` lists what can go), or give another --runs."
            )


def room(place: Path, trainings: Iterable[tuple[TrainingRequest, Dataset, TrainingProtocol, int]]) -> Room:
    """What these trainings, each with its number of evaluated images, will add to a folder, and what is free."""
    needed = largest = 0
    for request, dataset, protocol, images in trainings:
        whole, state = run_size(request, dataset, protocol)
        needed += max(0, whole + 2 * _PER_IMAGE * images - _size(request.run_folder))
        largest = max(largest, state)
    there = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    return Room(needed + largest if needed else 0, shutil.disk_usage(there).free)


def run_size(request: TrainingRequest, dataset: Dataset, protocol: TrainingProtocol) -> tuple[int, int]:
    """Bytes of a run folder, at least, and those of one of its two training states.

    A checkpoint is the weights; a state is the weights, the optimizer's numbers (one for each weight, Adam two), tables
    of the defense, and what `best` and `average` are written from. Networks that only the defense has are not counted.
    """
    weights = _NUMBER * numbers(request.resolved_backbone, dataset.image_shape)
    others = (protocol.holdout > 0) + (protocol.average != "none")
    tables = make_defense(request.defense, request.dataset, request.hyperparameters).tables(dataset.image_shape)
    stored = sum(_NUMBER * len(dataset.train) * math.prod(shape) for shape in tables.values())
    state = weights * (1 + others + (1 if protocol.optimizer == "sgd" else 2)) + stored
    return weights * (1 + others) + 2 * state, state


@cache
def numbers(backbone: str, image_shape: tuple[int, int, int]) -> int:
    """How many numbers a backbone has; 0 where it cannot be built without memory."""
    channels, height, width = image_shape
    with suppress(Exception), torch.device("meta"):  # a file of a person's own may do anything
        model = make_backbone(backbone, channels, (height, width), "relu", True)
        return sum(tensor.numel() for tensor in model.state_dict().values())
    return 0


def _size(folder: Path) -> int:
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
