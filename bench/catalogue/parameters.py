"""Named parameters of plug-ins and protocols: frozen dataclass fields, overridden by name, checked by type."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from bench.errors import BenchError, unknown_name

T = TypeVar("T")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def override(owner: type[T], given: Mapping[str, Any], kind: str = "hyperparameter") -> T:
    """An instance of the dataclass `owner` with the fields that `given` names; text is read as the field's type.

    Raises:
        BenchError: a name is not a field (the nearest one is offered), or a value is not of the field's type.
    """
    return owner(**typed_values(owner, given, kind))


def typed_values(owner: type[Any], given: Mapping[str, Any], kind: str = "hyperparameter") -> dict[str, Any]:
    """The given values by the name of their field, of the fields' types; refuses as `override` does."""
    fields = {field.name: field for field in dataclasses.fields(owner)}
    values = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in fields:
            if not fields:
                raise BenchError(f"{owner.__name__} has no {kind}s, so {name!r} cannot be set.")
            raise unknown_name(f"{kind} of {owner.__name__}", name, fields)
        values[key] = convert(fields[key], value, kind)
    return values


def convert(field: dataclasses.Field[Any], value: Any, kind: str = "hyperparameter") -> Any:
    """`value` as the type of `field`; text, as given on a command line, is parsed.

    Raises:
        BenchError: the value is not of that type, or not among the field's choices.
    """
    choices = field.metadata.get("choices") or (get_args(field.type) if get_origin(field.type) is Literal else ())
    if choices and not isinstance(value, bool) and str(value) in map(str, choices):
        return next(choice for choice in choices if str(choice) == str(value))
    try:
        if choices:
            raise ValueError
        return _parse(field.type, value)
    except (KeyError, StopIteration, TypeError, ValueError):
        allowed = f"one of {', '.join(map(str, choices))}" if choices else describe_type(field.type)
        raise BenchError(f"{kind} {field.name}={value!r} is not {allowed}.") from None


def _parse(annotation: Any, value: Any) -> Any:  # noqa: C901, PLR0911 - one branch per type
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        if value is None or str(value).lower() in ("none", "auto", ""):
            return None
        for option in options[:-1]:
            try:
                return _parse(option, value)
            except (KeyError, StopIteration, TypeError, ValueError):
                continue
        return _parse(options[-1], value)
    if get_origin(annotation) is tuple:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        return tuple(_parse(get_args(annotation)[0], item) for item in items)
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if str(choice) == str(value))
    if annotation is bool:
        return _TRUTH[str(value).lower()]
    if annotation is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value)
    if annotation is float:
        number = float(value)
        if isinstance(value, bool) or math.isnan(number):
            raise ValueError
        return number
    if annotation is str and isinstance(value, dict | list):
        raise ValueError
    return str(value)


def describe_type(annotation: Any) -> str:
    """A person's words for a field's type."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if annotation in words:
        return words[annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join("none" if option is type(None) else describe_type(option) for option in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"a list such as 100,105 ({describe_type(get_args(annotation)[0])} each)"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    return str(annotation)
