"""What the record of a training says, in a checkpoint or a result, whichever version wrote it."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from bench.catalogue.names import DEFAULT_RECIPE
from bench.catalogue.protocol import LATER, protocol_arguments
from bench.text import setting_text


def recorded_protocol(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the training, with those that came after the record was written; empty: none are recorded."""
    protocol = run.get("protocol", {})
    return {**LATER, **protocol} if protocol else {}


def recipe_of(run: Mapping[str, Any]) -> str:
    """Name and version of the recipe: of records older than recipes, the first version of the default one."""
    recipe = run.get("recipe", {})
    return f"{recipe.get('name', DEFAULT_RECIPE)} version {recipe.get('version', 1)}"


def recorded_recipe(run: Mapping[str, Any]) -> str:
    """The same, with the settings that were given in the place of its own: `pang2021 version 1 with epochs=6`."""
    given = {name.replace("_", "-"): setting_text(value) for name, value in run.get("protocol_given", {}).items()}
    texts = [f"{name}={given[name]}" for name in sorted(given)]
    return recipe_of(run) + (f" with {', '.join(texts)}" if texts else "")


def given_options(run: Mapping[str, Any]) -> list[str]:
    """The options of `bench train` that replaced settings of the recipe, sorted by name."""
    return protocol_arguments(dict(sorted(run.get("protocol_given", {}).items())))


def own_recipe(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of a recipe other than the default one; empty: it was that, or none is recorded."""
    recipe: Mapping[str, Any] = run.get("recipe", {})
    return recipe if recipe.get("name", DEFAULT_RECIPE) != DEFAULT_RECIPE else {}


def run_place(
    dataset: str, backbone: str, recipe: str | None, defense: str, setting: Mapping[str, Any], seed: Any
) -> str:
    """The place of a run among others: dataset/backbone/defense/seed-0, where `dataset` is the name of its folder.

    A recipe other than the default one (None) has a folder after that of the backbone. What the place names of the
    `setting` besides, values by name, follows the defense: trades/beta=1.0,epochs=10/seed-0.
    """
    named = [recipe] if recipe not in (None, DEFAULT_RECIPE) else []
    chosen = [_setting_name(setting)] if setting else []
    return "/".join(map(str, (dataset, backbone.replace(":", "-"), *named, defense, *chosen, f"seed-{seed}")))


def _setting_name(setting: Mapping[str, Any]) -> str:
    """As the name of a folder, in which 8/255 is 8_255; a digest tells apart what no such name can hold."""
    text = ",".join(f"{name}={setting_text(setting[name])}" for name in sorted(setting))
    shown = re.sub(r"[^A-Za-z0-9=,.+-]", "_", text)
    if re.fullmatch(r"[\w=,./+-]{1,120}", text, re.ASCII):
        return shown
    return f"{shown[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def recorded_setting(run: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a training's folder names, by name; empty: it names none."""
    values = {**run.get("protocol", {}), **run.get("hyperparameters", {})}
    return {name: values[name] for name in run.get("named_by", []) if name in values}


def recorded_start(run: Mapping[str, Any]) -> str:
    """The weights that the training started with: `random`, or of which model."""
    start = run.get("start", {})
    return f"{start.get('defense')} on {start.get('dataset')} ({str(start.get('digest'))[:8]})" if start else "random"
