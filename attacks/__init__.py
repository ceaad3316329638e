"""One attack per file, found by file name. What attacks and defenses share is exported here."""

from attacks._ascent import (
    ascend,
    check_search,
    craft,
    gaussian_start,
    input_gradient,
    random_start,
    search,
    uniform_start,
)
from attacks._objectives import cross_entropy, divergence, margin

__all__ = [
    "ascend",
    "check_search",
    "craft",
    "cross_entropy",
    "divergence",
    "gaussian_start",
    "input_gradient",
    "margin",
    "random_start",
    "search",
    "uniform_start",
]
