"""How the interval of an accuracy, or of a difference of two, is shown beside it."""

from collections.abc import Iterable

_EXCESS = 0.5
"""Points by which a centred interval may leave 0 to 100 before it misleads."""

BOUNDS = "(its bounds) where that would leave 0 to 100"


def bounds_legend(shown: Iterable[tuple[float, tuple[float, float]]]) -> str:
    """The words that a legend of `±` adds where one of these values is shown with its bounds; else none."""
    return f", or {BOUNDS}" if any(is_one_sided(*one) for one in shown) else ""


def error_text(percent: float, interval: tuple[float, float], decimals: int = 1) -> str:
    """`± half` of an interval in percent, or its bounds where it is too near an end to be centred on `percent`."""
    if is_one_sided(percent, interval):
        return f"({interval[0]:.{decimals}f} to {interval[1]:.{decimals}f})"
    return f"± {(interval[1] - interval[0]) / 2:.{decimals}f}"


def difference_text(difference: float, interval: tuple[float, float], p_value: float) -> str:
    """A difference in points, its interval in brackets, and p."""
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
    return f"{difference:+.1f} [{interval[0]:+.1f}, {interval[1]:+.1f}], {shown}"


def is_one_sided(percent: float, interval: tuple[float, float]) -> bool:
    """True if an interval within 0 to 100 would leave that range, were it centred on `percent`."""
    low, high = interval
    half = (high - low) / 2
    return low >= 0 and high <= 100 and not -_EXCESS <= percent - half <= percent + half <= 100 + _EXCESS
