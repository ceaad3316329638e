"""What a sweep varies: every combination of datasets, recipes, defenses, suites and the values of a grid, as plans."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from bench.catalogue.names import DEFAULT_RECIPE
from bench.catalogue.parameters import convert
from bench.catalogue.plugins import find
from bench.catalogue.protocol import TrainingProtocol
from bench.errors import BenchError, unknown_name
from bench.experiments.sweep import Plan
from bench.text import setting_text

MOST_RUNS = 10_000
"""Trainings of a sweep: more are a slip of the keyboard."""
_SETTINGS = {field.name: field for field in dataclasses.fields(TrainingProtocol)}


@dataclass(frozen=True)
class Axis:
    """A number that is varied, with its values, each of its type."""

    name: str
    values: tuple[Any, ...]
    is_setting: bool
    """True of a setting of recipes, False of a hyperparameter."""
    owner: str = ""
    """The only defense that it is varied of; empty: all of them."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every combination of datasets, recipes, defenses, suites, seeds and the values of a grid."""

    defenses: tuple[str, ...]
    datasets: tuple[str, ...] = ("cifar10",)
    recipes: tuple[str, ...] = (DEFAULT_RECIPE,)
    suites: tuple[str, ...] = ("full",)
    seeds: tuple[int, ...] = (0,)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By name the values, as text or of its type, of a setting of recipes or of a hyperparameter that every defense
    has; by DEFENSE.NAME those of a hyperparameter of one defense alone."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Settings in the place of the recipes', in every run."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of every `Plan`."""

    def plans(self) -> list[Plan]:
        """The combinations. Defenses that are varied alike are in one plan, with every seed.

        Raises:
            BenchError: an unknown defense or name in the grid, a name that some of the defenses lack, one that is
                given twice or means two things, a value of the wrong type, or too many runs.
        """
        axes = self.axes()
        common = [axis for axis in axes if not axis.owner]
        groups = [*self._groups(axes)]
        counts = [len(defenses) * prod(len(axis.values) for axis in own) for defenses, own in groups]
        runs = len(self.datasets) * len(self.recipes) * len(self.seeds) * sum(counts)
        runs *= prod(len(axis.values) for axis in common)
        if runs > MOST_RUNS:
            raise BenchError(f"that is {runs} trainings; a sweep has at most {MOST_RUNS}. Make several of it.")
        return [
            self._plan(dataset, recipe, defenses, suite, point)
            for dataset, recipe in product(self.datasets, self.recipes)
            for general in _points(common)
            for defenses, own in groups
            for point in _points(own, general)
            for suite in self.suites
        ]

    def axes(self) -> list[Axis]:
        """What the grid varies, in its order; refuses as `plans` does."""
        varied = {"dataset": self.datasets, "recipe": self.recipes, "suite": self.suites}
        varied["defense"] = tuple(dict.fromkeys(self.defenses))
        for kind, names in varied.items():
            _require_once(kind, names)
        fields = {name: _fields(name) for name in self.defenses}
        axes = [self._axis(key, values, fields) for key, values in self.grid.items()]
        for axis in axes:
            alike = [one for one in axes if one.name == axis.name and (not one.owner or one.owner == axis.owner)]
            if len(alike) > 1 or (axis.is_setting and axis.name in self.protocol):
                raise BenchError(f"{axis.name} is given twice. Give it once, in --grid or as an option.")
        return axes

    def differing(self) -> dict[str, list[str]]:
        """What tells runs of the sweep apart, by name, with its values as text."""
        lists = {"dataset": self.datasets, "recipe": self.recipes, "defense": self.defenses, "suite": self.suites}
        told = {name: [*values] for name, values in lists.items() if len(values) > 1}
        for axis in self.axes():
            told[f"{axis.owner}.{axis.name}".lstrip(".")] = [setting_text(value) for value in axis.values]
        return told | ({"seed": [str(seed) for seed in self.seeds]} if len(self.seeds) > 1 else {})

    def _plan(self, dataset: str, recipe: str, defenses: tuple[str, ...], suite: str, point: "_Point") -> Plan:
        settings = {axis.name: value for axis, value in point if axis.is_setting}
        return Plan(
            dataset=dataset,
            recipe=recipe,
            defenses=defenses,
            suite=suite,
            seeds=self.seeds,
            protocol={**self.protocol, **settings},
            hyperparameters={axis.name: value for axis, value in point if not axis.is_setting},
            named_by=tuple(sorted(axis.name for axis, _ in point)),
            **self.shared,
        )

    def _groups(self, axes: Sequence[Axis]) -> Iterator[tuple[tuple[str, ...], list[Axis]]]:
        """Defenses that are varied alike, with what is varied of them alone."""
        owners = {axis.owner for axis in axes if axis.owner}
        if others := tuple(name for name in self.defenses if name not in owners):
            yield others, []
        for name in self.defenses:
            if name in owners:
                yield (name,), [axis for axis in axes if axis.owner == name]

    def _axis(self, key: str, values: Sequence[Any], fields: Mapping[str, Mapping[str, Any]]) -> Axis:
        owner, _, name = key.strip().rpartition(".")
        name = name.replace("-", "_")
        having = [one for one in self.defenses if name in fields[one]]
        if owner:
            if owner not in fields:
                raise unknown_name("defense of the sweep", owner, fields)
            if name not in fields[owner]:
                raise unknown_name(f"hyperparameter of {owner}", name, fields[owner])
            having = [owner]
        elif name not in _SETTINGS:
            self._require_all(name, having, fields)
        elif having:
            raise BenchError(
                f"{name} is a setting of recipes and a hyperparameter of {', '.join(having)}: write "
                f"{having[0]}.{name} for the latter, or leave {', '.join(having)} out of --defenses."
            )
        kind = fields[having[0]][name] if having else _SETTINGS[name]
        typed = tuple(convert(kind, value, "grid value") for value in values)
        _require_once(f"value of {name}", [setting_text(value) for value in typed])
        return Axis(name, typed, not having, owner)

    def _require_all(self, name: str, having: Sequence[str], fields: Mapping[str, Mapping[str, Any]]) -> None:
        if not having:
            raise unknown_name("name in the grid", name, {*_SETTINGS, *(one for own in fields.values() for one in own)})
        if lacking := [one for one in self.defenses if one not in having]:
            raise BenchError(
                f"{', '.join(lacking)} have no hyperparameter {name}, unlike {', '.join(having)}: write "
                f"{having[0]}.{name} to vary it of {having[0]} alone, or take --defenses {','.join(having)}."
            )


_Point = tuple[tuple[Axis, Any], ...]


def _points(axes: Sequence[Axis], general: _Point = ()) -> Iterator[_Point]:
    """Every combination of values, each behind what is the same for all."""
    for values in product(*(axis.values for axis in axes)):
        yield (*general, *zip(axes, values, strict=True))


def _fields(defense: str) -> dict[str, Any]:
    """The hyperparameters of a defense by name."""
    return {one.name: one for one in dataclasses.fields(find("defense", defense))}


def _require_once(kind: str, given: Sequence[str]) -> None:
    if not given:
        raise BenchError(f"no {kind} is given. Give at least one.")
    for one, count in Counter(given).items():
        if count > 1:
            raise BenchError(f"{kind} {one} is given twice. Give it once.")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds of a text: `3` is how many, from 0; `0-4` a range with both its ends; `0,2,5` those named.

    Raises:
        BenchError: the text is none of these, or names a seed twice, one that is too large, or too many.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        ends = [[int(end) for end in part.split("-")] for part in parts]
        if not ends or any(len(pair) > 2 or pair[0] > pair[-1] for pair in ends):
            raise ValueError
    except ValueError:
        raise BenchError(
            f"seeds {text!r} are not a number of them, a range such as 0-4, or a list such as 0,2,5."
        ) from None
    if len(ends) == 1 and len(ends[0]) == 1 and "," not in text:
        ends = [[0, ends[0][0] - 1]]
    count = sum(pair[-1] - pair[0] + 1 for pair in ends)
    if not 1 <= count <= MOST_RUNS or max(pair[-1] for pair in ends) >= 2**32:
        allowed = f"a sweep has 1 to {MOST_RUNS} of them, each below 2**32"
        raise BenchError(f"seeds {text!r}: {allowed}. `7,` is the seed 7 alone.")
    seeds = [seed for pair in ends for seed in range(pair[0], pair[-1] + 1)]
    _require_once("seed", [str(seed) for seed in seeds])
    return tuple(seeds)
