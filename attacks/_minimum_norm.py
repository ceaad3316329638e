"""What searches for the nearest adversarial image share: the nearest found so far, unit directions, and a schedule."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attacks._survivors import column, lengths
from bench.interfaces import Images, PerExample, Problem


@dataclass
class Nearest:
    """The nearest adversarial image that a search has seen of each sample; the clean one where it has seen none."""

    images: Images
    distance: PerExample
    """From the clean image, in the threat model's norm; infinite where none was seen."""

    @classmethod
    def of_none(cls, problem: Problem) -> "Nearest":
        """Nothing was seen yet."""
        return cls(problem.images.clone(), torch.full_like(problem.images[:, 0, 0, 0], torch.inf))

    def note(self, images: Images, distance: PerExample, adversarial: Tensor) -> None:
        """Keep those images that are adversarial and nearer than the ones before."""
        nearer = adversarial & (distance < self.distance)
        self.images = torch.where(column(nearer), images, self.images)
        self.distance = torch.where(nearer, distance, self.distance)


def farthest(problem: Problem) -> PerExample:
    """Distance of the corner of the box that lies farthest from each image, in the threat model's norm."""
    return lengths(torch.maximum(problem.images, 1.0 - problem.images), problem.threat.norm)


def unit(slopes: Images) -> Images:
    """Each row scaled to length 1 in l2; a row of zeros stays."""
    least = torch.finfo(slopes.dtype).tiny
    # The largest entry first: squares of a confident model's gradients would underflow.
    scaled = slopes / column(lengths(slopes, "linf").clamp_min(least))
    return scaled / column(lengths(scaled, "l2").clamp_min(least))


def annealed(first: float, last: float, step: int, steps: int) -> float:
    """The value at a step, counted from 0: half a cosine from the first value towards the last."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
