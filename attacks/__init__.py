"""One attack per file, found by file name. What attacks and defenses share is exported here."""

from bench.attacks._ascent import (
    ascend,
    ascent_step,
    begin_ascent,
    check_search,
    craft,
    gaussian_start,
    input_gradient,
    random_start,
    uniform_start,
)
from bench.attacks._objectives import cross_entropy, divergence, full_precision, margin

__all__ = [
    "ascend",
    "ascent_step",
    "begin_ascent",
    "check_search",
    "craft",
    "cross_entropy",
    "divergence",
    "full_precision",
    "gaussian_start",
    "input_gradient",
    "margin",
    "random_start",
    "uniform_start",
]
