"""The images that are probed, and gradients at them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from bench.engine.observed import ModelView
from bench.engine.target import Target
from bench.interfaces import Images, Labels, Logits, PerExample

NOTHING = 1e-12
"""A gradient whose largest entry is below this counts as zero."""


@dataclass(frozen=True)
class Sample:
    """The images that are probed."""

    target: Target
    images: Images
    labels: Labels
    right: Bool[Tensor, " batch"]
    """Mask of the images that are classified correctly."""


def gradient_at(sample: Sample, images: Images, labels: Labels, loss: Callable[[Logits, Labels], PerExample]) -> Images:
    """The gradient of a loss at some images, as the model gives it: nothing is mended."""
    size = sample.target.room or max(1, len(images))
    parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
    return torch.cat([_gradient_at(sample, *part, loss) for part in parts])


def _gradient_at(
    sample: Sample, images: Images, labels: Labels, loss: Callable[[Logits, Labels], PerExample]
) -> Images:
    leaf = images.detach().requires_grad_()
    seen: list[Images] = []
    # Hooks run in the order in which they were registered: this one sees what the view will mend.
    leaf.register_hook(seen.append)  # type: ignore[no-untyped-call]
    view = ModelView(sample.target.model, cut=sample.target.cut)
    torch.autograd.grad(loss(view(leaf), labels).sum(), leaf)
    return seen[0]


def margin_of(logits: Logits, labels: Labels) -> PerExample:
    """Largest wrong logit less the true one."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - true
