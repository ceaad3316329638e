"""What the record of a training says, in a run folder, a checkpoint or a result, whichever version wrote it."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.catalogue.names import DEFAULT_RECIPE, short_name
from bench.catalogue.protocol import LATER, ignored_among, protocol_arguments
from bench.errors import BenchError
from bench.system.budgets import read_text
from bench.text import setting_text

UNUSED = "unused"


def recorded_protocol(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the training, with those that came after the record was written; empty: none are recorded."""
    protocol = run.get("protocol", {})
    return {**LATER, **protocol} if protocol else {}


def shown_protocol(run: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a reader: `UNUSED` takes the place of settings that changed nothing beside the others."""
    protocol = recorded_protocol(run)
    return {name: UNUSED if ignored_among(protocol, name) else value for name, value in protocol.items()}


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
    """The place of a run among others: dataset/backbone/defense/seed-0.

    A dataset has its `short_name`. A recipe other than the default one (None) has a folder after
    that of the backbone. What the place names of the `setting` besides, values by name, follows the defense:
    trades/beta=1.0,epochs=10/seed-0.
    """
    named = [recipe] if recipe not in (None, DEFAULT_RECIPE) else []
    chosen = [_setting_name(setting)] if setting else []
    return "/".join(
        map(str, (short_name(dataset), backbone.replace(":", "-"), *named, defense, *chosen, f"seed-{seed}"))
    )


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


def recorded_extra(run: Mapping[str, Any]) -> str:
    """The extra images of the training: `70 % of each batch from 50 extra images (1a2b3c4d)`; empty: it had none."""
    extra = run.get("training_data", {}).get("extra")
    if extra is None:
        return ""
    share = recorded_protocol(run).get("extra_share")
    shown = f"{100 * share:.4g} %" if isinstance(share, int | float) else "an unknown share"
    return f"{shown} of each batch from {extra.get('size')} extra images ({str(extra.get('digest'))[:8]})"


def recorded_start(run: Mapping[str, Any]) -> str:
    """The weights that the training started with: `random`, or of which model."""
    start = run.get("start", {})
    return f"{start.get('defense')} on {start.get('dataset')} ({str(start.get('digest'))[:8]})" if start else "random"


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run folder; one without a history is refused, and one with a damaged history."""
    path = folder / "history.jsonl" if folder.is_dir() else folder
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
        if rows and all(isinstance(row, dict) for row in rows):
            return rows
    except (OSError, ValueError, RecursionError):
        pass
    raise BenchError(f"no history of a training in {path}: give run folders of `bench train`.")
