"""Refusals: one line that names the value, what is allowed and the way out."""

import pytest

from bench.errors import BenchError


def refusal(call, *texts):
    """The one line in which a call is refused; it holds the texts."""
    with pytest.raises(BenchError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert [text for text in texts if text not in line] == [], line
    return line


def raising(error):
    """A function that raises `error`, whatever it is given."""

    def fail(*arguments, **options):
        raise error

    return fail
