"""Numbers kept as the text they were written as, such as 8/255."""

import re
from fractions import Fraction

_NUMBER = re.compile(r"\s*[-+]?[\d.]{1,40}(e[-+]?\d{1,2})?(/[\d.]{1,40})?\s*", re.IGNORECASE | re.ASCII)


def exact(text: str) -> Fraction:
    """The number that a text such as `8/255`, `0.15` or `1e-3` names, exactly.

    Raises:
        ValueError: it names none, or one so long that computing with it could take for ever.
        ZeroDivisionError: its denominator is 0.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return Fraction(text)
