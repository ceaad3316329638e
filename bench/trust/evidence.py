"""Conclusions from counts of samples, of which a few might be chance."""

import math
from typing import Any

MISS = 0.05
"""How rarely the true share may be no higher where a conclusion says so."""


def surely_above(count: int, total: int, share: float, against: int | None = None, miss: float = MISS) -> bool:
    """True if `count` of `total` samples show, at 95 % confidence, a share above `share`; one sample never does.

    Another confidence is 1 - `miss`. The lower end of the one-sided interval of Clopper & Pearson (1934) must lie
    above. With `against`, the number of samples that say the opposite, that of the difference of the two shares must:
    their exact limits combined as the method of variance estimates recovery does (Zou & Donner 2008,
    https://doi.org/10.1002/sim.3095), with the correlation of two counts of one multinomial.
    """
    from scipy.special import betaincinv

    if not total or count < 2:
        return False
    first = count / total
    below = first - betaincinv(count, total - count + 1, miss)
    if against is None:
        return bool(first - below > share)
    second = against / total
    above = betaincinv(against + 1, total - against, 1 - miss) - second
    correlation = -math.sqrt(first * second / ((1 - first) * (1 - second))) if against else 0.0
    return bool(first - second - math.sqrt(below**2 + above**2 - 2 * correlation * below * above) > share)


def surely_more(first: Any, second: Any, share: float, miss: float = MISS) -> bool:
    """True if, of the same samples, surely more are True in `first` than in `second`, by a share above `share`.

    Both are arrays or tensors of booleans.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return surely_above(only_first, len(first), share, only_second, miss)
