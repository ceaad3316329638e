"""Suites: named, versioned lists of attacks. They are data, in `suites/*.json` beside this file, or in your own.

    {"name": "quick", "version": 1, "about": "...", "include": ["other"],
     "cells": [{"label": "PGD-20", "attack": "pgd", "norm": "linf",
                "parameters": {"steps": 20, "step_size": "eps/8"}}],
     "worst_of": {"Ensemble": ["FGSM", "PGD-20"]}}

With `"draws": {"search": 16, "verdict": 20}` it is for models that declare themselves random: attacks search on the
mean of so many draws, and each last image is classified so many times.

With `"kind": "corruptions"` a suite has no cells but a list of `corruptions`, each meant at all five severities. With
`"kind": "features"` its one cell makes the adversarial images whose features are measured: a cell that measures the
loss, so that every sample is attacked, and to the end.

A cell without `epsilon` takes the dataset's radius for its norm; `0.25*eps` or `eps/4` is that share of it. The version
rises whenever a number could change.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.catalogue.names import SUITES, suite_names
from bench.errors import BenchError, unknown_name
from bench.radii import exact
from bench.system.budgets import read_json

_MOST_CELLS = 1000
_MOST_DRAWS = 10_000
_SHARE = re.compile(r"(?:(?P<factor>\d+(?:\.\d+)?)\*)?eps(?:/(?P<divisor>[1-9]\d*))?")


@dataclass(frozen=True)
class AttackCell:
    """One attack of a suite: one column of a table."""

    label: str
    attack: str
    norm: str = "linf"
    epsilon: str | None = None
    """Exact text, or a share of the dataset's radius for the norm, such as `0.25*eps`; None: that radius."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "default"
    """`default`: the attack's own loss. `adaptive`: the defense's."""
    measure_loss: bool = False
    """Also store the cross-entropy at the last iterate; then every sample is attacked, and to the end."""
    source: str | None = None
    """A run folder: images are crafted against that model instead, and only tried on this one."""


@dataclass(frozen=True)
class Suite:
    """Attacks to run, and the columns derived from them per sample."""

    name: str
    version: int
    about: str
    cells: tuple[AttackCell, ...]
    worst_of: Mapping[str, tuple[str, ...]]
    """Column label to the labels it is the per-sample worst case of."""
    kind: str = "attacks"
    """`attacks`, `corruptions` or `features`."""
    corruptions: tuple[str, ...] = ()
    draws: Mapping[str, int] | None = None
    """For random models: how many draws a `search` looks at the mean of, and how many a `verdict` is of."""

    def refuse_idle_radii(self, given: Mapping[str, str]) -> None:
        """Refuse radii for norms under which no cell takes one."""
        taken = dict.fromkeys(cell.norm for cell in self.cells if _share(_text(cell)))
        for norm in given.keys() - taken:
            takes = f"its attacks take one under {', '.join(taken)}" if taken else "its attacks take none"
            raise BenchError(f"--eps {norm}={given[norm]} would change nothing in suite {self.name}: {takes}.")

    def resolve(self, epsilons: Mapping[str, str], given: Mapping[str, str]) -> "Suite":
        """The suite with every radius filled in: the cell's own, else `given` for its norm, else the dataset's.

        A share becomes a number: 2/255 is a quarter of 8/255.

        Raises:
            BenchError: a radius is missing or not valid.
        """
        cells = []
        for cell in self.cells:
            base = given.get(cell.norm) or epsilons.get(cell.norm)
            cells.append(dataclasses.replace(cell, epsilon=_radius(_text(cell), cell.norm, base)))
        return dataclasses.replace(self, cells=tuple(cells))

    def describe(self) -> dict[str, Any]:
        """Plain values for a result file."""
        described = dataclasses.asdict(self)
        derived = [{"label": label, "worst_of": list(labels)} for label, labels in self.worst_of.items()]
        if self.kind == "attacks":
            del described["kind"], described["corruptions"]
        if self.draws is None:
            del described["draws"]
        return {**described, "cells": list(described["cells"]), "worst_of": {}, "derived": derived}


def _text(cell: AttackCell) -> str:
    """Its radius as it is written: a number, or a share of the dataset's."""
    return "eps" if cell.epsilon is None else str(cell.epsilon)


def _share(text: str) -> re.Match[str] | None:
    return _SHARE.fullmatch(text.replace(" ", ""))


def _radius(text: str, norm: str, base: str | None) -> str:
    """The text, or the share of `base` that it names."""
    from bench.interfaces import ThreatModel  # imports torch, which a list of suites does without

    share = _share(text)
    if not share:
        ThreatModel(norm, text).require_a_pixel_range()
        return text
    if base is None:
        raise BenchError(f"the dataset has no default radius for {norm}: give --eps {norm}=VALUE.")
    ThreatModel(norm, base)
    try:
        radius = exact_share(exact(share["factor"] or "1") / exact(share["divisor"] or "1"), base)
    except ValueError:
        raise BenchError(f"epsilon {text[:40]!r} is not a share of the radius. Write eps/4 or 0.25*eps.") from None
    ThreatModel(norm, radius)
    return radius


def exact_share(factor: Fraction, base: str) -> str:
    """Factor times a radius, exactly, and written as the radius is where that is possible.

    A quarter of 8/255 is 2/255, of 0.15 it is 0.0375; a third of 8/255 is 8/765, of 0.1 it is 1/30.
    """
    value = factor * Fraction(base)
    denominator = base.partition("/")[2].strip()
    if factor == 1:
        return base
    if denominator:
        numerator = value * int(denominator)
        return f"{numerator}/{denominator}" if numerator.denominator == 1 else str(value)
    decimal = Decimal(value.numerator) / value.denominator
    return f"{decimal.normalize():f}" if Fraction(decimal) == value else str(value)


def load_suite(name: str) -> Suite:
    """A suite by name, or from the JSON file that `name` ends in.

    Raises:
        BenchError: an unknown name, or a file that is not a suite.
    """
    return _load(name, {})


def _load(name: str, known: dict[str, Suite | None]) -> Suite:
    """A suite, read once however often others include it; `known` are those that were read, None: is being read."""
    if not name.endswith(".json") and name not in suite_names():
        raise unknown_name("suite", name, suite_names())
    if name not in known:
        known[name] = None
        known[name] = _read(Path(name) if name.endswith(".json") else SUITES / f"{name}.json", known)
    suite = known[name]
    if suite is None:
        raise BenchError(f"suite {name!r} includes itself. Leave it out of its `include`, or of those it includes.")
    return suite


def _cell(given: Mapping[str, Any]) -> AttackCell:
    """A cell of a file. A file's types are not to be trusted, and cells go into result files as they are."""
    kinds: dict[str, tuple[type, ...]] = {
        "epsilon": (str, int, float, type(None)),
        "parameters": (dict,),
        "measure_loss": (bool,),
        "source": (str, type(None)),
    }
    for name, value in given.items():
        # An exact type, because true is an int to isinstance.
        if type(value) not in kinds.get(name, (str,)):
            raise ValueError(f"{name} {value!r} of a cell is of the wrong type")
    radius = given.get("epsilon")
    return AttackCell(**{**given, "epsilon": None if radius is None else str(radius)})


def _draws(given: Any) -> dict[str, int] | None:
    if given is None:
        return None
    if set(given) != {"search", "verdict"} or not all(
        type(number) is int and 0 < number <= _MOST_DRAWS for number in given.values()
    ):
        raise ValueError(f"draws {given!r} are not a search and a verdict of 1 to {_MOST_DRAWS} each")
    return dict(given)


def _read(path: Path, known: dict[str, Suite | None]) -> Suite:
    try:
        content = read_json(path)
        included = [_load(name, known) for name in content.get("include", [])]
        own = tuple(_cell(cell) for cell in content.get("cells", []))
        if len(own) + sum(len(other.cells) for other in included) > _MOST_CELLS:
            raise ValueError(f"more than {_MOST_CELLS} cells")
        worst_of = {label: tuple(map(str, labels)) for label, labels in content.get("worst_of", {}).items()}
        measured = (str(content.get("kind", "attacks")), tuple(map(str, content.get("corruptions", []))))
        named = (str(content["name"]), int(content["version"]), str(content.get("about", "")))
        suite = Suite(*named, own, worst_of, *measured, _draws(content.get("draws")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BenchError(f"{path} is not a suite: {reason}") from error
    cells: list[AttackCell] = []
    unlabelled: list[AttackCell] = []
    for cell in [*(cell for other in included for cell in other.cells), *suite.cells]:
        bare = dataclasses.replace(cell, label="")
        if bare not in unlabelled:
            cells.append(cell)
            unlabelled.append(bare)
    merged = {label: labels for other in (*included, suite) for label, labels in other.worst_of.items()}
    labels = [cell.label for cell in cells]
    if len(set(labels)) < len(labels) or not set(sum(merged.values(), ())) <= set(labels):
        raise BenchError(f"{path} is not a suite: its labels {labels} must differ, and worst_of must name them.")
    fits = {
        "attacks": not suite.corruptions,
        "corruptions": bool(suite.corruptions) and not cells and suite.draws is None,
        "features": not suite.corruptions and len(cells) == 1 and cells[0].measure_loss and suite.draws is None,
    }
    if not fits.get(suite.kind):
        raise BenchError(
            f"{path} is not a suite: kind {suite.kind!r} must be attacks, corruptions (with corruptions and no cells) "
            "or features (with one cell that measures the loss)."
        )
    return dataclasses.replace(suite, cells=tuple(cells), worst_of=merged)
