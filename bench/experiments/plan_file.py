"""A sweep in a file of TOML: what its options say, by their names, with a table for each thing that has parts.

    datasets = ["digits", "mnist"]
    defenses = ["at", "trades"]
    seeds = "0-4"
    [grid]
    epochs = [10, 20]
    trades.beta = [1, 3, 6]
    [settings]
    batch_size = 64
    [resources.train]
    gpus = 1

Nothing in it is run: plug-in files are given beside it, as --plugin.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bench.catalogue.parameters import convert, override, typed_values
from bench.catalogue.protocol import TrainingProtocol
from bench.errors import BenchError, unknown_name
from bench.experiments.executors import STAGES, Resources
from bench.system.budgets import MOST_JSON, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class PlanKeys:
    """What a plan may say besides its tables, by name, with its type: the same as the option of that name."""

    about: str
    """For readers alone."""
    datasets: tuple[str, ...]
    defenses: tuple[str, ...]
    recipes: tuple[str, ...]
    suites: tuple[str, ...]
    seeds: str
    backbone: str
    checkpoint: Literal["last", "best", "average"]
    limit_train: int
    extra: str
    limit: int
    precision: Literal["fp32", "tf32", "bf16"]
    eval_precision: Literal["fp32", "fp32-folded", "bf16"]
    engine: str
    jobs: int
    shards: int
    address: str
    board: Path
    data: Path
    runs: Path
    device: str


def read_plan(path: Path, said: Mapping[str, str] = MappingProxyType({})) -> tuple[dict[str, Any], list[str]]:
    """What a plan says, by name, and a line for each entry of it that an option takes the place of.

    Values are of the types of `PlanKeys`. Of the tables, `grid` is by NAME or DEFENSE.NAME a list of values each,
    `settings` are of `TrainingProtocol`, `slurm` is text by name, `resources` a `Resources` for each stage. What a
    person said beside the plan is left out: `said` has its flags, by `limit`, `grid.beta`, `settings.epochs`,
    `slurm.time`, without hyphens. Paths are relative to the current folder.

    Raises:
        BenchError: the file cannot be read or is no TOML; it holds an unknown key, or a value of the wrong type.
    """
    try:
        content = tomllib.loads(read_text(path, MOST_JSON))
    except OSError as error:
        raise BenchError(f"no plan can be read from {path}: {error.strerror}. Give a file of TOML.") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is not a plan: {' '.join(str(error).split())}. Give a file of TOML.") from error
    try:
        found = dict(_entry(key, value) for key, value in content.items())
    except BenchError as error:
        raise BenchError(f"{path}: {error}") from error
    told: list[str] = []

    def counts(entry: str, *options: str) -> bool:
        flags = [said[name] for name in (option.replace("-", "_") for option in options or (entry,)) if name in said]
        told.extend(f"{flag} takes the place of {entry} in {path}." for flag in flags[:1])
        return not flags

    plan = {key: value for key, value in found.items() if key in _TABLES or (key != "about" and counts(key))}
    for table in plan.keys() & {"grid", "settings"}:  # a number is varied or fixed
        names = {name: (f"grid.{name}", f"settings.{name}") for name in plan[table]}
        plan[table] = {name: plan[table][name] for name in names if counts(f"{table}.{name}", *names[name])}
    for stage, given in plan.get("resources", {}).items():
        entries = {name: counts(f"resources.{stage}.{name}", *_RESOURCES[name]) for name in given.given()}
        plan["resources"][stage] = replace(given, **{name: None for name, stays in entries.items() if not stays})
    plan["slurm"] = {name: text for name, text in plan.get("slurm", {}).items() if counts(f"slurm.{name}")}
    return plan, told


def _entry(key: str, value: Any) -> tuple[str, Any]:
    if key in _TABLES:
        return key, _TABLES[key](_table(key, value))
    if key not in _KEYS:
        raise unknown_name("key", key, [*_KEYS, *_TABLES])
    found = _seeds(value) if key == "seeds" else convert(_KEYS[key], value, "key")
    if isinstance(found, int) and found < 1:
        raise BenchError(f"key {key}={found} is below 1.")
    return key, Path(found) if _KEYS[key].type is Path else found


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BenchError(f"{name}={value!r} is not a table. Write [{name}], and its entries below.")
    return value


def _seeds(value: Any) -> str:
    """As --seeds takes them."""
    given = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, int | str) for one in given):
        raise BenchError(
            f'seeds={value!r} is neither how many, nor a text such as "0-4", nor a list such as [0, 2, 5].'
        )
    return ",".join(map(str, given)) + ("," if isinstance(value, list) else "")


def _grid(table: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """Values by NAME or DEFENSE.NAME; what they are of is seen when all of the sweep is known."""
    found: dict[str, Any] = {}
    for name, values in table.items():
        if isinstance(values, dict) and not owner:
            found |= _grid(values, f"{name}.")
        elif isinstance(values, list):
            found[owner + name] = values
        else:
            raise BenchError(f"grid {owner}{name}={values!r} is not a list of values, such as [1, 3].")
    return found


def _resources(table: Mapping[str, Any]) -> dict[str, Resources]:
    found = {}
    for stage, values in table.items():
        if stage not in STAGES:
            raise unknown_name("stage of resources", stage, STAGES)
        try:
            found[stage] = override(Resources, _table(f"resources.{stage}", values), "key")
        except BenchError as error:
            raise BenchError(f"resources.{stage}: {error}") from error
    return found


def _slurm(table: Mapping[str, Any]) -> dict[str, str]:
    for name, value in table.items():
        if not isinstance(value, int | float | str):
            raise BenchError(f"slurm {name}={value!r} is neither a text nor a number.")
    return {name: str(value) for name, value in table.items()}


_RESOURCES = {"cpus": ("cpus",), "gpus": ("gpus",), "minutes": ("slurm.time",), "memory": ("slurm.mem",)}
"""The options that say the same of every job."""
_KEYS = {field.name: field for field in dataclasses.fields(PlanKeys)}
_TABLES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = MappingProxyType(
    {
        "grid": _grid,
        "settings": partial(typed_values, TrainingProtocol, kind="setting"),
        "resources": _resources,
        "slurm": _slurm,
    }
)
