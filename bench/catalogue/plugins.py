"""Finds plug-ins by file name: `adv-dpnp` is `defenses/adv_dpnp.py`. Nothing is registered a second time."""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, cast

from bench.catalogue.names import built_in
from bench.catalogue.neighbours import imported_beside, search_beside
from bench.catalogue.parameters import override
from bench.errors import BenchError, cause, unknown_name
from bench.interfaces import Attack, Augmentation, Backbone, Defense, Family

Kind = Literal["defense", "attack", "backbone", "augmentation"]
_FOLDERS: dict[str, tuple[str, type]] = {
    "defense": ("bench.defenses", Defense),
    "attack": ("bench.attacks", Attack),
    "backbone": ("bench.models.backbones", Backbone),
    "augmentation": ("bench.data.augmentations", Augmentation),
}
added: dict[tuple[str, str], type] = {}
_sources: dict[type, str] = {}
"""sha256 of the code of each plug-in when it was imported: what is edited later does not run."""


def names(kind: Kind) -> list[str]:
    """Command-line names of all of a kind: the files of its folder, and any plug-in files added."""
    return sorted({*built_in(kind)} | {name for plugin_kind, name in added if plugin_kind == kind})


@cache
def _builtin(kind: Kind, name: str) -> type:
    folder, contract = _FOLDERS[kind]
    module = importlib.import_module(f"{folder}.{name.replace('-', '_')}")
    return _implementation(module, contract)


def find(kind: Kind, name: str) -> type[Any]:
    """The class behind a name; an unknown one is refused, with the nearest and all names."""
    if (kind, name) in added:
        return added[kind, name]
    if name not in names(kind):
        raise unknown_name(kind, name, names(kind))
    return _builtin(kind, name)


def family_of(name: str) -> Family | None:
    """What kind of method a defense is, as its file says or, where that is older than the attribute, its package."""
    said: Family | None = find("defense", name).family
    return said or importlib.import_module(_FOLDERS["defense"][0]).FAMILIES.get(name)


def make_defense(name: str, dataset: str, given: Mapping[str, Any]) -> Defense:
    """A defense with the published hyperparameters of the dataset, and then those given.

    Raises:
        BenchError: unknown defense or hyperparameter, or a value of the wrong type.
    """
    owner = find("defense", name)
    chosen = {key.replace("-", "_"): value for key, value in given.items()}
    return cast(Defense, override(owner, {**owner.published.get(dataset, {}), **chosen}))


def recorded_defense(config: Mapping[str, Any]) -> Defense:
    """The defense of a recorded training, with the hyperparameters that it had; refuses as `make_defense` does."""
    given = {**find("defense", config["defense"]).unrecorded, **config["hyperparameters"]}
    return make_defense(config["defense"], config["dataset"]["name"], given)


def make_attack(name: str, given: Mapping[str, Any]) -> Attack:
    """An attack with the parameters given.

    Raises:
        BenchError: unknown attack or parameter, or a value of the wrong type.
    """
    return cast(Attack, override(find("attack", name), given, kind="parameter"))


def add_plugin(path: Path) -> str:
    """Run a Python file that holds one defense, attack, backbone or augmentation and register it under its file name.

    Raises:
        BenchError: the file cannot be read or run, holds no plug-in, or its name is taken.
    """
    name = path.stem.replace("_", "-")
    module = load_python_file(path)
    for kind, (_, contract) in _FOLDERS.items():
        if _classes(module, contract):
            if name in names(cast(Kind, kind)) and (kind, name) not in added:
                raise BenchError(f"plug-in {path} would replace the {kind} {name!r}: give the file another name.")
            added[kind, name] = _implementation(module, contract)
            return name
    contracts = " or ".join(contract.__name__ for _, contract in _FOLDERS.values())
    raise BenchError(f"plug-in {path} defines no subclass of bench.interfaces.{contracts}.")


def plugin_files() -> list[Path]:
    """The files that were added."""
    return sorted({Path(inspect.getfile(owner)) for owner in added.values()})


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles the text that is there: bytecode on disk is told from another text's by seconds and length alone."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load_python_file(path: Path) -> ModuleType:
    """Import a file that a person named. This runs its code.

    Raises:
        BenchError: there is no such file, or running it fails; or it would be given another file's neighbours.
    """
    if not path.is_file():
        raise BenchError(f"no Python file at {path}.")
    # Two files of one name are two modules: classes are looked up by the name of theirs.
    unique = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    if path.suffix != ".py":
        raise BenchError(f"{path} is not a Python file (its name must end in .py).")
    loader = _Source(f"_file_{path.stem}_{unique}", str(path))
    specification = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    search_beside(path)
    sys.modules[loader.name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise BenchError(f"{path} cannot be run: {cause(error)}") from error
    return module


def imported_digest(owner: type) -> str | None:
    """sha256 of the file that a plug-in was imported from; None: it is no plug-in.

    Where the file imports modules or packages that lie beside it, and they others, the digest is of all of them. Only
    `import` statements count.
    """
    return _sources.get(owner)


def _digest(file: Path) -> str:
    texts = imported_beside(file)
    digest = hashlib.sha256(texts.pop(file))
    for path in sorted(texts):
        digest.update(f"{path.relative_to(file.parent).as_posix()}\n".encode() + texts[path])
    return digest.hexdigest()


def plugin_digests(chosen: Mapping[Kind, str]) -> dict[str, str | None]:
    """The `imported_digest` of those of the chosen names, by kind, that are plug-in files, as `<kind>_sha256`."""
    return {f"{kind}_sha256": _sources.get(added[kind, name]) for kind, name in chosen.items() if (kind, name) in added}


def source_digest(owner: type) -> str:
    """sha256 of the file that a class is written in, and of those beside it, which it may import."""
    file = inspect.getsourcefile(owner)
    return sources_digest(Path(file)) if file else ""


def sources_digest(file: Path) -> str:
    """sha256 of a Python file and of the others in its folder: changes when any of them is edited."""
    digest = hashlib.sha256(file.read_bytes())
    for neighbour in sorted(file.parent.glob("*.py")):
        digest.update(f"{neighbour.name}\n".encode() + neighbour.read_bytes())
    return digest.hexdigest()


def _classes(module: ModuleType, contract: type) -> list[type]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    ]


def _implementation(module: ModuleType, contract: type) -> type:
    classes = _classes(module, contract)
    if len(classes) != 1:
        raise BenchError(
            f"{module.__file__} defines {len(classes)} subclasses of {contract.__name__}: it must define exactly one."
        )
    missing = sorted(getattr(classes[0], "__abstractmethods__", ()))
    if missing:
        raise BenchError(
            f"{module.__file__}: {classes[0].__name__} does not define {', '.join(missing)}, which every "
            f"{contract.__name__.lower()} must; see bench/interfaces."
        )
    _sources[classes[0]] = _digest(Path(str(module.__file__)))
    return classes[0]
