"""Types of the JSON in a result file, so that whoever reads one need not ask. FORMAT.md says what it means.

A form is a tuple of types, a list of one form for arrays, or a dictionary of forms for objects. Keys may be absent, and
keys that are not named here may hold anything.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from bench.errors import BenchError

Form: TypeAlias = tuple[type, ...] | list[Any] | Mapping[str, Any]

_TEXT, _NUMBER, _COUNT, _TRUTH, _OBJECT = (str,), (int, float), (int,), (bool,), dict[str, Any]()
_TEXT_OR_NULL = (str, type(None))
_LARGEST = 2**63
_CHOSEN = {"class_names": [_TEXT], "kept_classes": [_COUNT], "preprocessing": _TEXT}

FORMS: Mapping[str, Form] = {
    "run": {
        **dict.fromkeys(("model", "dataset", "dataset_digest", "checkpoint_digest", "source", "command"), _TEXT),
        **dict.fromkeys(("defense", "backbone", "weights", "precision", "created", "sampling", "classes_from"), _TEXT),
        **dict.fromkeys(("dataset_size", "num_classes", "seed", "epoch", "processes"), _COUNT),
        **dict.fromkeys(("hyperparameters", "hyperparameters_given", "protocol", "protocol_given"), _OBJECT),
        **dict.fromkeys(("requirements", "zoo"), _OBJECT),
        "randomised": _TEXT,
        "backward_as": _OBJECT,
        "start": dict.fromkeys(("defense", "dataset", "digest", "path"), _TEXT),
        "recipe": {"name": _TEXT, "version": _COUNT, "file": _TEXT},
        **dict.fromkeys(("checkpoint", "defense_sha256"), _TEXT_OR_NULL),
        "named_by": [_TEXT],
        "image_shape": [_COUNT],
        **_CHOSEN,
        "seconds": _NUMBER,
        "finished": _TRUTH,
        "corruptions": {"name": _TEXT, "generated": _TRUTH, "digest": _TEXT, "generator": {"seed": _COUNT}},
        "training_data": {
            **dict.fromkeys(("name", "classes_from"), _TEXT),
            **dict.fromkeys(("train_size", "num_classes"), _COUNT),
            **_CHOSEN,
            "extra": {
                **dict.fromkeys(("name", "digest", "test_digest"), _TEXT),
                "size": _COUNT,
                "test_duplicates": _COUNT,
            },
        },
        "training_environment": {"device": _TEXT, "threads": _COUNT, "versions": _OBJECT},
        "earlier_environments": [{"until_epoch": _COUNT, "device": _TEXT, "threads": _COUNT, "versions": _OBJECT}],
        "evaluation": {
            **dict.fromkeys(("seed", "batch_size", "probes", "folded"), _COUNT),
            **dict.fromkeys(("convention", "precision"), _TEXT),
            "adversarials": _TRUTH,
            "passes": _OBJECT,
            "environment": {"device": _TEXT, "threads": _COUNT, "versions": _OBJECT},
        },
    },
    "suite": {
        **dict.fromkeys(("name", "about", "kind"), _TEXT),
        "version": _COUNT,
        "corruptions": [_TEXT],
        "threat": {"norm": _TEXT, "epsilon": _TEXT},
        "draws": {"search": _COUNT, "verdict": _COUNT},
        "derived": [{"label": _TEXT, "worst_of": [_TEXT]}],
        "cells": [
            {
                **dict.fromkeys(("label", "attack", "norm", "epsilon", "objective"), _TEXT),
                "parameters": _OBJECT,
                "measure_loss": _TRUTH,
                "source": _TEXT_OR_NULL,
            }
        ],
    },
    "findings": [dict.fromkeys(("name", "severity", "message", "meaning", "advice"), _TEXT)],
}


def require_forms(values: Mapping[str, Any]) -> None:
    """Refuse values that do not have the form of their name: another type, or a whole number beyond 64 bits."""
    for name, value in values.items():
        for place, form in _misfits(name, value, FORMS[name]):
            wanted = {list: "an array", dict: "an object"}.get(type(form)) or " or ".join(map(_word, form))
            raise BenchError(
                f"{place} is not {wanted}. Evaluate again; `bench explain result-file` is about such files."
            )


def _misfits(place: str, value: Any, form: Form) -> Iterator[tuple[str, Form]]:
    """Places in a value, and the forms that they do not have."""
    if isinstance(form, tuple):
        # An exact type, because true is an int to isinstance.
        if type(value) not in form or (type(value) is int and abs(value) >= _LARGEST):
            yield place, form
    elif isinstance(form, list):
        if not isinstance(value, list | tuple):
            yield place, form
            return
        for number, item in enumerate(value):
            yield from _misfits(f"{place}[{number}]", item, form[0])
    elif not isinstance(value, Mapping):
        yield place, form
    else:
        for name in [name for name in form if name in value]:
            yield from _misfits(f"{place}.{name}", value[name], form[name])


def _word(kind: type) -> str:
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "null")
