"""Models as attacks see them: every forward pass is looked at, and nothing an attack says is believed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import (
    Attack,
    Classifier,
    Features,
    Images,
    Labels,
    Logits,
    PerExample,
    ThreatModel,
    fooled,
    runs_ahead,
    within,
)

TOLERANCE = 1e-6
"""How far beyond its radius an image may lie, in float64, and by what share of it."""
PIXEL_ROUNDING = 2**-25
"""By how much a pixel between 1/2 and 1 is rounded in float32, at most: no projection can do better."""


def tolerance(norm: str, radius: float, pixels: int) -> float:
    """How far beyond its radius an image may lie: `TOLERANCE`, and the length of one rounding per pixel in the norm.

    At 3,072 pixels the latter is 9e-5 in l1, where 4.5e-5 was seen, 2e-6 in l2, and 3e-8 in linf.
    """
    roundings = {"l2": pixels**0.5, "l1": float(pixels)}.get(norm, 1.0)
    return TOLERANCE * (1 + radius) + PIXEL_ROUNDING * roundings


def allowed(perturbed: Images, clean: Images, threat: ThreatModel) -> Tensor:
    """Per image: inside the threat model, up to `TOLERANCE` in the box and `tolerance` in the ball, in float64.

    No image by itself, where a transformation says what is allowed.
    """
    if threat.transformation is not None:
        return torch.zeros(len(perturbed), dtype=torch.bool, device=perturbed.device)
    inside_box = ((perturbed >= -TOLERANCE) & (perturbed <= 1 + TOLERANCE)).flatten(1).all(1)
    limit = threat.radius + tolerance(threat.norm, threat.radius, clean[0].numel() if len(clean) else 0)
    return inside_box & (threat.distance(perturbed, clean) <= limit)


def strayed(returned: Images, clean: Images, attack: Attack, threat: ThreatModel) -> Tensor:
    """Per image that an attack returned: outside the threat model; for a search beyond its radius, outside the box."""
    # No image in the box is further away than this one's norm.
    everywhere = str(clean[0].numel() if len(clean) else 0)
    return ~allowed(returned, clean, ThreatModel(threat.norm, everywhere) if attack.minimum_norm else threat)


def brought_inside(images: Images, clean: Images, threat: ThreatModel) -> Images:
    """Images projected onto the threat model; one that is not finite falls back to the clean image."""
    finite = torch.isfinite(images).flatten(1).all(1).view(-1, 1, 1, 1)
    return threat.project(torch.where(finite, images, clean), clean)


def made_of(parameters: Tensor, clean: Images, threat: ThreatModel) -> tuple[Images, PerExample, Tensor]:
    """The images that a transformation makes of parameters cut to the budget, the budget taken, and which strayed."""
    transformation = threat.transformation
    assert transformation is not None
    inside = transformation.limit(parameters, threat.radius)
    outside = ~(transformation.size(parameters) <= threat.radius + tolerance(threat.norm, threat.radius, 0))
    return transformation.apply(clean, inside), transformation.size(inside), outside


@dataclass
class Faults:
    """Flags of a search that met values that are not finite; on their device, so that raising one waits for nothing."""

    logits: Tensor | bool = False
    """Of an image in [0, 1]."""
    gradients: Tensor | bool = False

    def look(self, images: Images, logits: Logits) -> None:
        """Note logits that are not finite."""
        odd = within(images, -TOLERANCE, 1 + TOLERANCE) & ~logits.isfinite().all(1)
        self.logits = self.logits | odd.any()

    def unite(self, other: "Faults") -> None:
        """Note what others met."""
        self.logits, self.gradients = self.logits | other.logits, self.gradients | other.gradients

    def mend(self, gradient: Images) -> Images:
        """The gradient, with 0 where it is NaN or infinite, which is noted."""
        self.gradients = self.gradients | ~within(gradient, -torch.inf, torch.inf).all()
        return gradient.nan_to_num(0.0, 0.0, 0.0)


class ModelView(nn.Module):
    """A model that remembers the last images it was shown and its logits of them.

    A classifier's `features` followed by `score` is remembered like a forward pass; any other attribute is the
    model's own. With `half`, it computes in bfloat16 where autocast does. With `cut`, the model's logits do not depend
    on its input as far as autograd knows; gradients are then 0, so that attacks run and the trust report can say so.
    A gradient with respect to images is 0 where it would be NaN or infinite; `faults` know of it.
    """

    def __init__(self, model: nn.Module, half: bool = False, cut: bool = False, faults: Faults | None = None) -> None:
        super().__init__()
        self.model, self.half_precision, self.cut, self.faults = model, half, cut, faults or Faults()
        self.shown: Tensor | None = None
        self.logits: Tensor | None = None
        self._pending: tuple[Images, Features, int] | None = None

    def forward(self, images: Tensor) -> Tensor:
        self._mend_gradients(images)
        with self._precision(images):
            logits: Tensor = self.model(images)
        return self._remember(images, logits)

    def features(self, images: Images) -> Features:
        """The model's features."""
        self._mend_gradients(images)
        with self._precision(images):
            features = self._classifier().features(images).to(images.dtype)
        self._pending = images, features, features._version
        return features

    def score(self, features: Features) -> Logits:
        """The model's logits of features; those of images only where `features` are untouched, not mixed or moved."""
        with self._precision(features):
            logits = self._classifier().score(features)
        if self._pending is None:
            return logits
        images, own, version = self._pending
        return self._remember(images, logits) if features is own and features._version == version else logits

    def seen(self, images: Tensor) -> Tensor | None:
        """The logits of exactly these images, if they were the last ones shown."""
        if self.shown is None or self.shown.data_ptr() != images.data_ptr():
            return None
        same = self.shown.shape == images.shape and self.shown.stride() == images.stride()
        return self.logits if same else None

    def _remember(self, images: Tensor, logits: Tensor) -> Tensor:
        logits = logits.to(images.dtype)
        if self.cut and images.requires_grad:
            logits = logits.detach().clone() + 0 * images.flatten(1).sum(1, keepdim=True)
        self.shown, self.logits = images.detach(), logits.detach()
        self.faults.look(self.shown, self.logits)
        return logits

    def _mend_gradients(self, images: Tensor) -> None:
        if images.requires_grad and torch.is_grad_enabled():
            images.register_hook(self.faults.mend)  # type: ignore[no-untyped-call]

    def _precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self.half_precision)

    def _classifier(self) -> Classifier:
        if not isinstance(self.model, Classifier):
            raise BenchError("this attack needs a model with features and prototypes; yours has only forward().")
        return self.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class WatchedModel(ModelView):
    """A model that keeps the first adversarial image it is shown for each sample of a problem."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        labels: Labels,
        threat: ThreatModel,
        half: bool = False,
        cut: bool = False,
    ) -> None:
        super().__init__(model, half, cut)
        self.images, self.labels, self.threat = images, labels, threat
        self.first = images.clone()
        self.found = torch.zeros_like(labels, dtype=torch.bool)

    def _remember(self, images: Tensor, logits: Tensor) -> Tensor:
        logits = super()._remember(images, logits)
        # Only rows in the order of the problem can be told apart; others are judged by what the attack returns.
        if images.shape == self.images.shape:
            with torch.no_grad():
                shown = images.detach()
                new = fooled(shown, logits.detach(), self.labels) & ~self.found
                if runs_ahead(new.device) or new.any():
                    new &= allowed(shown, self.images, self.threat)
                    self.first = torch.where(new.view(-1, 1, 1, 1), shown, self.first)
                    self.found = self.found | new
        return logits
