"""Threat models: which images an adversary may submit."""

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.interfaces.tensors import Images, PerExample
from bench.interfaces.transformations import TRANSFORMATIONS, Transformation
from bench.radii import exact

NORMS: tuple[str, ...] = ("linf", "l2", "l1")
"""The norms that a threat model can have."""

_STEP = re.compile(r"(?:(?P<factor>[0-9.]+(?:/[0-9.]+)?)\*?)?eps(?:/(?P<divisor>[0-9.]+))?")


@dataclass(frozen=True)
class ThreatModel:
    """The images an adversary may submit: within `epsilon` of the original in `norm`, and inside [0, 1].

    In the place of a norm may stand one of `TRANSFORMATIONS`; allowed is then what it makes of the original with
    parameters of at most `epsilon`.

    `epsilon` stays the text it was given as (`8/255`, `0.15`), so that it is recorded exactly.

    Raises:
        BenchError: the norm is unknown, or epsilon is not a number or fraction of at least 0.
    """

    norm: str = "linf"
    epsilon: str = "8/255"

    def __post_init__(self) -> None:
        if self.norm not in (*NORMS, *TRANSFORMATIONS):
            raise BenchError(f"unknown norm {self.norm!r}. Choose from: {', '.join((*NORMS, *TRANSFORMATIONS))}.")
        try:
            value = exact(self.epsilon)
        except (ValueError, ZeroDivisionError):
            raise BenchError(
                f"epsilon {self.epsilon!r} is not a number. Write a fraction such as 8/255 or a decimal such as 0.15."
            ) from None
        if value < 0:
            raise BenchError(f"epsilon {self.epsilon} is below 0. It is a radius: give 0 or more, such as 8/255.")

    @property
    def transformation(self) -> Transformation | None:
        """What makes the allowed images; None: a norm says which are allowed."""
        return TRANSFORMATIONS.get(self.norm)

    def _require_a_norm(self) -> None:
        if self.transformation is not None:
            raise BenchError(
                f"{self.norm} is no norm: nothing can be projected onto it. Choose from: {', '.join(NORMS)}."
            )

    def require_a_pixel_range(self) -> None:
        """Refuse a person's radius above 1 in linf, which allows every image; a suite's own, as 4*eps, may be more."""
        value = exact(self.epsilon)
        if self.norm == "linf" and value > 1:
            levels = value.denominator == 1 and value < 255
            hint = f"did you mean {value}/255?" if levels else "1 is the whole range: give less, such as 8/255."
            raise BenchError(f"epsilon {self.epsilon} is wider than the whole pixel range [0, 1]; {hint}")

    @property
    def radius(self) -> float:
        """Epsilon as a float, in units of a pixel's range [0, 1]."""
        return float(exact(self.epsilon))

    def scaled(self, factor: float) -> "ThreatModel":
        """The threat model of the same norm whose radius is `factor` times this one's."""
        return replace(self, epsilon=str(exact(self.epsilon) * exact(str(factor))))

    def length(self, text: str) -> float:
        """The length that `text` names: `2/255`, `0.01`, `eps/4`, `0.1*eps` or `2.5*eps/20`.

        Raises:
            BenchError: the text is none of these, or the length is negative.
        """
        relative = _STEP.fullmatch(text.replace(" ", ""))
        try:
            if relative:
                factor = exact(relative["factor"] or "1")
                return float(factor * exact(self.epsilon) / exact(relative["divisor"] or "1"))
            value = exact(text)
        except (ValueError, ZeroDivisionError):
            raise BenchError(f"step size {text!r} is not a length. Write 2/255, 0.01, eps/4 or 2.5*eps/20.") from None
        if value < 0:
            raise BenchError(f"step size {text!r} is below 0. Write a length such as 2/255 or eps/4.")
        return float(value)

    def distance(self, perturbed: Images, clean: Images) -> PerExample:
        """Distance of each pair in this norm, computed in float64; none where a transformation is in its place."""
        self._require_a_norm()
        difference = (perturbed.double() - clean.double()).flatten(1)
        order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[self.norm]
        return torch.linalg.vector_norm(difference, ord=order, dim=1)

    def project(self, perturbed: Images, clean: Images) -> Images:
        """The nearest images that the threat model allows (for l2: onto the ball, then onto the box).

        Raises:
            BenchError: a transformation stands in the place of a norm.
        """
        self._require_a_norm()
        if self.norm == "linf":
            nearest = torch.minimum(torch.maximum(perturbed, clean - self.radius), clean + self.radius)
        elif self.norm == "l2":
            difference = perturbed - clean
            length = torch.linalg.vector_norm(difference.flatten(1), dim=1)
            factor = (self.radius / length.clamp_min(1e-12)).clamp_max(1.0)
            nearest = clean + difference * factor.view(-1, 1, 1, 1)
        else:
            nearest = _project_l1(perturbed, clean, self.radius)
        return nearest.clamp(0.0, 1.0)


def _project_l1(perturbed: Images, clean: Images, radius: float) -> Images:
    """Exact projection onto the l1 ball intersected with [0, 1] (Croce & Hein 2021, "Mind the box", section 2).

    The projection shrinks every |difference| by one threshold per image and cuts it at the room left inside
    the box; the threshold is the root of a piecewise linear, decreasing function, found here by bisection.
    """
    difference = (perturbed - clean).flatten(1)
    size = difference.abs()
    flat = clean.flatten(1)
    room = torch.where(difference > 0, 1.0 - flat, flat).clamp_min(0.0)

    def shrunk(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold).clamp_min(0.0), room)

    low = torch.zeros_like(size[:, :1])
    high = torch.where(shrunk(low).sum(1, keepdim=True) > radius, size.amax(1, keepdim=True), low)
    for _ in range(40):
        middle = (low + high) / 2
        too_long = shrunk(middle).sum(1, keepdim=True) > radius
        low = torch.where(too_long, middle, low)
        high = torch.where(too_long, high, middle)
    return clean + (difference.sign() * shrunk(high)).view_as(clean)
