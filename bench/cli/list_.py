"""Defenses, attacks, suites, recipes, datasets, models, augmentations and trust checks, with their parameters."""

import ast
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args

import click

from bench.catalogue.names import DATASETS, MODELS, OWN_DATASETS, TIMM, built_in, recipe_names, suite_names
from bench.cli import echo
from bench.cli._options import plugin_option
from bench.text import setting_text

KINDS = ("defenses", "attacks", "suites", "recipes", "datasets", "models", "backbones", "augmentations", "checks")


@click.command()
@click.argument("kind", required=False, type=click.Choice(KINDS))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@plugin_option
def command(kind: str | None, as_json: bool) -> None:
    """All that is here, by name. With a KIND: each with its parameters, defaults, and where they come from.

    \b
    bench list
    bench list defenses
    bench list --json
    """
    if as_json:
        echo(json.dumps({name: entries_of(name) for name in ((kind,) if kind else KINDS)}, indent=2, default=str))
    elif kind is None:
        for name in KINDS:
            echo(f"{name + ':':14} {', '.join(_names(name))}")
    else:
        for family, entries in _families(entries_of(kind)):
            if family:
                echo(mark=f"{family.capitalize()}:", bold=True)
            for name, entry in entries.items():
                _show(name, entry)


def _names(kind: str) -> list[str]:
    """The names of one of KINDS; what they name is imported only where a plug-in was added."""
    if kind in ("defenses", "attacks"):
        return _known(kind.removesuffix("s"))
    listed = {"suites": suite_names, "recipes": recipe_names}
    return listed[kind]() if kind in listed else list(entries_of(kind))


def _known(kind: Any) -> list[str]:
    if "bench.catalogue.plugins" not in sys.modules:
        return built_in(kind)
    from bench.catalogue.plugins import names

    return names(kind)


def entries_of(kind: str) -> dict[str, Any]:
    """Everything of one of KINDS, by name, as plain data: what `--json` prints."""
    return _LISTS[kind]()


def _families(entries: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of each family, in the contract's order; all of what has no families, under an empty name."""
    if not any("family" in entry for entry in entries.values()):
        yield "", entries
        return
    from bench.interfaces import Family

    for family in (*get_args(Family), None):
        members = {name: entry for name, entry in entries.items() if entry["family"] == family}
        if members:
            yield family or "other", members


def _show(name: str, entry: dict[str, Any]) -> None:
    echo(f"  {entry.get('about', '')}", mark=name, bold=True)
    for line in ("paper", "source", "requires"):
        if entry.get(line):
            value = entry[line]
            echo(f"    {line}: {value if isinstance(value, str) else ', '.join(value)}")
    for parameter, details in entry.get("parameters", {}).items():
        published = "".join(f"; {dataset}: {value}" for dataset, value in details["published"].items())
        source = f" ({details['source']})" if details["source"] else ""
        echo(f"    {parameter} = {details['default']}{published}{source}  {details['about']}")
    if "advice" in entry:
        echo(f"    to do: {entry['advice']}")
    for cell in entry.get("cells", []):
        echo(f"    {cell}")


def _plugins(kind: Any) -> dict[str, Any]:
    from bench.catalogue.plugins import family_of, find, names

    entries = {}
    for name in names(kind):
        owner = find(kind, name)
        published = getattr(owner, "published", {})
        entries[name] = {
            "about": (owner.__doc__ or "").strip().splitlines()[0],
            "paper": getattr(owner, "paper", ""),
            **({"family": family_of(name)} if kind == "defense" else {}),
            "requires": list(getattr(owner, "requires", ())),
            "parameters": {
                field.name: {
                    "default": field.default,
                    "published": {k: values[field.name] for k, values in published.items() if field.name in values},
                    "about": field.metadata.get("about", ""),
                    "source": field.metadata.get("source", ""),
                    "choices": list(field.metadata.get("choices", ())),
                }
                for field in dataclasses.fields(owner)
            },
        }
    return entries


def _suites() -> dict[str, Any]:
    from bench.catalogue.suites import load_suite

    entries = {}
    for name in suite_names():
        suite = load_suite(name)
        cells = [
            f"{cell.label}: {cell.attack} {cell.norm} {cell.epsilon or 'dataset radius'} {dict(cell.parameters) or ''}"
            for cell in suite.cells
        ]
        derived = [f"{label}: worst of {', '.join(labels)}" for label, labels in suite.worst_of.items()]
        if suite.corruptions:
            derived.append(f"severities 1 to 5 of {', '.join(suite.corruptions)}")
        entries[name] = {"about": f"(version {suite.version}) {suite.about}", "cells": cells + derived}
    return entries


def _recipes() -> dict[str, Any]:
    from bench.catalogue.recipes import load_recipe

    entries = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        usual = recipe.settings("")
        named = dict.fromkeys(dataset for _, departures in recipe.layers for dataset in departures)
        cells = [_listed(usual)]
        for dataset in named:
            own = {key: value for key, value in recipe.settings(dataset).items() if usual.get(key) != value}
            cells += [f"{dataset}: {_listed(own)}"] if own else []
        entries[name] = {
            "about": f"(version {recipe.version}) {recipe.about}",
            "source": recipe.source,
            "settings": usual,
            "cells": cells,
        }
    return entries


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {setting_text(value)}" for key, value in settings.items())


def _models() -> dict[str, Any]:
    """The ways to name a model, from the first lines of their files, which are not imported."""
    lines = (
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for path in sorted(MODELS.glob("*.py"))
        if path.stem != "__init__"
    )
    split = (line.partition("\n")[0].partition(": ") for line in lines)
    entries = {form: {"about": about} for form, _, about in split}
    return entries | {"FOLDER": {"about": "a run of `bench train`, or what `bench export huggingface` wrote."}}


def _checks() -> dict[str, Any]:
    from bench.results.findings import CHECKS

    return {name: {"about": check.meaning, "advice": check.advice} for name, check in CHECKS.items()}


_LISTS: dict[str, Callable[[], dict[str, Any]]] = {
    "defenses": lambda: _plugins("defense"),
    "attacks": lambda: _plugins("attack"),
    "suites": _suites,
    "recipes": _recipes,
    "datasets": lambda: {name: {} for name in [*DATASETS, *OWN_DATASETS]},
    "models": _models,
    "backbones": lambda: {name: {} for name in [*_known("backbone"), f"{TIMM}NAME"]},
    "augmentations": lambda: {name: {} for name in _known("augmentation")},
    "checks": _checks,
}
