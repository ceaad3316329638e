"""Per-sample losses on logits, for attacks to ascend and defenses to descend. Computed in at least float32."""

import torch
from torch import Tensor
from torch.nn import functional

from bench.interfaces import Labels, Logits, PerExample


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """-log softmax(logits)[label], per sample."""
    return functional.cross_entropy(full_precision(logits), labels, reduction="none")


def margin(logits: Logits, labels: Labels, confidence: float = 0.0) -> PerExample:
    """-max(z_y - max_{j != y} z_j + confidence, 0), per sample (Carlini & Wagner 2017, f6, negated).

    At most 0; a sample stops being pushed once a rival leads by `confidence`.
    """
    logits = full_precision(logits)
    true = logits.gather(1, labels[:, None]).squeeze(1)
    rival = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return -(true - rival + confidence).clamp_min(0.0)


def divergence(reference: Logits, other: Logits) -> PerExample:
    """KL(softmax(reference) || softmax(other)), per sample, differentiable in both.

    Both sides are log-softmaxes: a probability that underflows to 0 gives 0, where p * log(p) gives NaN.
    """
    log_p = full_precision(reference).log_softmax(1)
    log_q = full_precision(other).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def full_precision(values: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
