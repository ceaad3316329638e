"""Defenses, attacks, suites, recipes, datasets, models, augmentations and trust checks, with their parameters."""

import ast
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from bench.catalogue.names import DATASETS, MODELS, OWN_DATASETS, TIMM, built_in, recipe_names, suite_names
from bench.cli import echo
from bench.cli._options import plugin_option, terminal_width
from bench.errors import BenchError, nearest_names
from bench.text import setting_text

KINDS = ("defenses", "attacks", "suites", "recipes", "datasets", "models", "backbones", "augmentations", "checks")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@plugin_option
def command(name: str | None, as_json: bool) -> None:
    """All that is here, by name. With a kind as NAME, such as defenses: each with its parameters and their sources.

    With any other, such as trades: its page. Of a defense that is its method, deviations, hyperparameters and rows.

    \b
    bench list
    bench list defenses
    bench list trades
    bench list --json
    """
    if name is None and not as_json:
        for kind in KINDS:
            echo(f"{kind + ':':14} {', '.join(_names(kind))}")
        return
    chosen = None if name in KINDS else name
    kinds = KINDS if name is None else (name,) if chosen is None else kinds_of(name)
    if not kinds:
        raise BenchError(_unknown(str(name)))
    listed = _entries(kinds, chosen)
    if as_json:
        echo(json.dumps(listed, indent=2, default=str))
    elif chosen is None:
        _show_kind(listed[kinds[0]])
    else:
        for number, (kind, entries) in enumerate(listed.items()):
            echo("\n" * bool(number) + f"[{kind.removesuffix('s')}]")
            _show_page(kind, chosen, entries[chosen])


def _entries(kinds: Sequence[str], chosen: str | None) -> dict[str, dict[str, Any]]:
    """Everything of these kinds, or what is called so alone."""
    listed = {kind: entries_of(kind) for kind in kinds}
    return listed if chosen is None else {kind: {chosen: entries[chosen]} for kind, entries in listed.items()}


def _show_kind(entries: dict[str, Any]) -> None:
    """Print everything of a kind, by family where there are families."""
    for family, members in _families(entries):
        if family:
            echo(mark=f"{family.capitalize()}:", bold=True)
        for name, entry in members.items():
            _show(name, entry)


def kinds_of(name: str) -> tuple[str, ...]:
    """Those of KINDS that have something called so."""
    return tuple(kind for kind in KINDS if name in _names(kind))


def _unknown(name: str) -> str:
    near = nearest_names(name, [*KINDS, *(one for kind in KINDS for one in _names(kind))])
    return f"nothing here is called {name!r}.{near} All names: bench list"


def _show_page(kind: str, name: str, entry: dict[str, Any]) -> None:
    """Print the page of one thing, by its kind."""
    if kind not in ("defenses", "attacks"):
        _show(name, entry)
        return
    from bench.leaderboard.paper.boards import COMMITTED, written_rows
    from bench.leaderboard.paper.plain_pages import plain_page

    rows = list(written_rows(COMMITTED, name)) if kind == "defenses" else None
    echo(plain_page(name, entry, rows, terminal_width()))


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

    run = _attacks_of_suites() if kind == "attack" else {}
    entries = {}
    for name in names(kind):
        owner = find(kind, name)
        published = getattr(owner, "published", {})
        file = Path(inspect.getfile(owner))
        entries[name] = {
            "about": (owner.__doc__ or "").strip().splitlines()[0],
            "paper": getattr(owner, "paper", ""),
            **(
                {"family": family_of(name)}
                if kind == "defense"
                else {"suites": [suite for suite, attacks in run.items() if name in attacks]}
            ),
            "requires": list(getattr(owner, "requires", ())),
            "file": file.name if kind not in file.parent.name else f"{file.parent.name}/{file.name}",
            # As it is written: what Python keeps of it differs between versions.
            "text": ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False) or "",
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


def _attacks_of_suites() -> dict[str, set[str]]:
    from bench.catalogue.suites import load_suite

    return {name: {cell.attack for cell in load_suite(name).cells} for name in suite_names()}


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
