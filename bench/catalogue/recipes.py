"""Recipes: named, versioned trainings. They are data, in `recipes/*.json` beside this file, or in your own.

    {"name": "mine", "version": 1, "about": "...", "source": "https://...", "include": "pang2021",
     "settings": {"epochs": 30, "milestones": [20, 25]},
     "datasets": {"svhn": {"attack_step": "eps/8"}}}

Settings are fields of `TrainingProtocol`, and `backbone`, the network where none is asked for. `datasets` holds what
departs from them, by dataset. What a recipe does not name is as in the recipe that it includes, if any, and as the
field's default; radius, crops and flips, which belong to a dataset, are the dataset's. The version rises whenever a
number changes.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.catalogue.names import DATASETS, DEFAULT_RECIPE, RECIPES, recipe_names
from bench.catalogue.parameters import convert, override
from bench.catalogue.protocol import TrainingProtocol
from bench.errors import BenchError, unknown_name
from bench.system.budgets import read_json

_FIELDS = {field.name: field for field in dataclasses.fields(TrainingProtocol)}
_KEYS = ("name", "version", "about", "source", "include", "settings", "datasets")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A training by name: every number of it, and the network."""

    name: str
    version: int
    about: str
    source: str
    """Where the numbers are from."""
    layers: tuple[tuple[Settings, Mapping[str, Settings]], ...]
    """Settings, and departures by dataset: those of an included recipe first, its own last."""
    file: str | None = None
    """The name of a file of one's own."""

    def settings(self, dataset: str) -> dict[str, Any]:
        """What the recipe says for a dataset: fields of `TrainingProtocol`, and `backbone`."""
        found: dict[str, Any] = {}
        for general, departures in self.layers:
            found |= {**general, **departures.get(dataset, {})}
        return found

    def describe(self) -> dict[str, Any]:
        """Plain values for a record, beside which the protocol holds the numbers."""
        return {"name": self.name, "version": self.version} | ({"file": self.file} if self.file else {})


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or from the JSON file that `name` ends in.

    Raises:
        BenchError: an unknown name, or a file that is not a recipe.
    """
    return _load(name, ())


def _load(name: str, including: tuple[str, ...]) -> Recipe:
    if name in including:
        raise BenchError(f"recipe {name!r} includes itself. Leave it out of `include`, there or in what it includes.")
    if name.endswith(".json"):
        return _read(Path(name), (*including, name), own=True)
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return _built_in(name)


@cache  # a sweep asks for those of its runs again and again
def _built_in(name: str) -> Recipe:
    return _read(RECIPES / f"{name}.json", (name,), own=False)


def _read(path: Path, including: tuple[str, ...], own: bool) -> Recipe:
    try:
        content = read_json(path)
        if unknown := sorted(content.keys() - set(_KEYS)):
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(_KEYS)}")
        name, version = content["name"], content["version"]
        if type(version) is not int or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"version {version!r} must be a whole number, and name {name!r} such as my-recipe.2")
        if own and name in recipe_names():
            raise ValueError(f"{name} comes with the program: give yours another name")
        departures = {dataset: _settings(given) for dataset, given in content.get("datasets", {}).items()}
        for dataset in departures.keys() - set(DATASETS):
            raise unknown_name("dataset", dataset, DATASETS)
        layer = (_settings(content["settings"]), departures)
        about = (str(content.get("about", "")), str(content.get("source", "")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BenchError(f"{path} is not a recipe: {type(error).__name__}: {' '.join(str(error).split())}") from error
    except BenchError as error:
        raise BenchError(f"{path} is not a recipe: {error}") from error
    included = _load(str(content["include"]), including).layers if "include" in content else ()
    recipe = Recipe(name, version, *about, (*included, layer), path.name if own else None)
    needed = ["backbone", *(field.name for field in _FIELDS.values() if field.default is MISSING)]
    if missing := [setting for setting in needed if setting not in recipe.settings("")]:
        raise BenchError(
            f'{path} is not a recipe: its settings lack {", ".join(missing)}. Name them, or "include": '
            f'"{DEFAULT_RECIPE}".'
        )
    return recipe


def _settings(given: Settings) -> dict[str, Any]:
    """The settings of a file, each of its field's type; a file's types are not to be trusted."""
    found = {}
    for name, value in given.items():
        if name != "backbone" and name not in _FIELDS:
            raise unknown_name("setting", name, ["backbone", *_FIELDS])
        found[name] = str(value) if name == "backbone" else convert(_FIELDS[name], value, "setting")
    return found


def protocol_for(
    dataset: str,
    epsilons: Mapping[str, str],
    crop_padding: int,
    flip: bool,
    given: Mapping[str, Any],
    recipe: str = DEFAULT_RECIPE,
) -> TrainingProtocol:
    """The protocol of a recipe for a dataset, with the settings given, as text or values, in the place of its own.

    Raises:
        BenchError: an unknown recipe or setting, a value out of range, or one given that would change nothing.
    """
    chosen = {key.replace("-", "_"): value for key, value in given.items()}
    usual = load_recipe(recipe).settings(dataset)
    del usual["backbone"]
    if {**usual, **chosen}.get("augmentation") == "none":
        crop_padding, flip = 0, False
    values: dict[str, Any] = {"crop_padding": crop_padding, "flip": flip, **usual, **chosen}
    norm = str(values.get("norm", "linf"))
    if norm in epsilons:
        values.setdefault("epsilon", epsilons[norm])
    protocol = override(TrainingProtocol, values, kind="protocol setting")
    _refuse_idle(protocol, chosen)
    if "epochs" in chosen and "milestones" not in chosen:
        scaled = tuple(round(milestone * protocol.epochs / usual["epochs"]) for milestone in protocol.milestones)
        protocol = dataclasses.replace(protocol, milestones=scaled)
    return protocol


def _refuse_idle(protocol: TrainingProtocol, chosen: Settings) -> None:
    for name in chosen:
        if found := protocol.ignores(name):
            other, values = found
            flags = [text.replace("_", "-") for text in (name, other)]
            raise BenchError(
                f"--{flags[0]} would change nothing with --{flags[1]} {getattr(protocol, other)}: it goes with "
                f"{', '.join(values)}."
            )


def setting_help() -> dict[str, tuple[Any, str]]:
    """Setting to its value in the default recipe, and help text, in order."""
    usual = load_recipe(DEFAULT_RECIPE).settings("")
    return {name: (usual.get(name, field.default), field.metadata["about"]) for name, field in _FIELDS.items()}
