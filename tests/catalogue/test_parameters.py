"""Fields by name, checked by type, with the nearest name for a wrong one."""

from dataclasses import dataclass
from typing import Literal

import pytest

from bench.catalogue.parameters import override
from bench.errors import BenchError
from bench.interfaces import hyperparameter


@dataclass(frozen=True)
class Example:
    beta: float = 6.0
    steps: int = 10
    live: bool = True
    mode: Literal["clean", "both"] = "clean"
    decay: float | None = None
    milestones: tuple[int, ...] = (100, 105)
    kind: str = hyperparameter("mean", "how to reduce", choices=("mean", "sum"))


def test_text_is_read_as_the_type_of_the_field():
    given = dict(beta="4", steps="3", live="false", mode="both", decay="0.1", milestones="5,7", kind="sum")
    assert override(Example, given) == Example(4.0, 3, False, "both", 0.1, (5, 7), "sum")
    assert override(Example, {"decay": "none"}).decay is None


def test_names_may_be_written_with_hyphens():
    @dataclass(frozen=True)
    class Weights:
        lambda_dpp: float = 0.1

    assert override(Weights, {"lambda-dpp": "1"}).lambda_dpp == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"betta": "4"}, "Did you mean 'beta'"),
        ({"beta": "high"}, "beta='high' is not a number"),
        ({"steps": "2.5"}, "steps='2.5' is not a whole number"),
        ({"steps": 2.5}, "not a whole number"),
        ({"steps": True}, "steps=True is not a whole number"),
        ({"beta": False}, "beta=False is not a number"),
        ({"live": "maybe"}, "not true or false"),
        ({"mode": "none"}, "not one of clean, both"),
        ({"kind": "median"}, "not one of mean, sum"),
        ({"milestones": "5,x"}, "a list such as"),
    ],
)
def test_a_wrong_name_or_value_is_one_line(given, message):
    with pytest.raises(BenchError, match=message) as caught:
        override(Example, given)
    assert "\n" not in str(caught.value)


def test_a_plugin_without_parameters_says_so():
    @dataclass(frozen=True)
    class Bare:
        pass

    with pytest.raises(BenchError, match="has no hyperparameters"):
        override(Bare, {"beta": 1})
