"""Imports of the code in files that a person names: what lies beside such a file is found, under whatever name.

A folder of one's own often holds `attacks.py`, `models/` or `nets.py`. They are found by name for as long as this
process lives, so also when a factory or `forward` imports them, and they never replace what the harness itself imports.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

NEVER = frozenset(
    [
        "autoattack",
        "bench",
        "click",
        "h5py",
        "jaxtyping",
        "matplotlib",
        "numpy",
        "pandas",
        "PIL",
        "pyautoattack",
        "ray",
        "robustbench",
        "safetensors",
        "scipy",
        "sklearn",
        "statsmodels",
        "submitit",
        "tabulate",
        "tensorboard",
        "torch",
        "torchvision",
        "tqdm",
    ]
)
"""Names that mean the harness and what it imports, wherever they are imported; so do those of the standard library."""
FORMER = {"attacks": "bench.attacks", "defenses": "bench.defenses"}
"""Names that plug-ins of version 0.1 import, and what they are called now; given up with version 0.3."""


def may_lie_beside(name: str) -> bool:
    """True if a module of this top-level name is looked for beside a person's file."""
    return name not in NEVER and name not in sys.stdlib_module_names


def search_beside(file: Path) -> None:
    """From now on finds the modules and packages beside a file, before those of other folders. Idempotent."""
    finder = next((found for found in sys.meta_path if isinstance(found, Finder)), None)
    if finder is None:
        finder = Finder()
        sys.meta_path.insert(0, finder)
    folder = str(file.parent.resolve())
    finder.folders = [folder, *(known for known in finder.folders if known != folder)]


class Finder(importlib.abc.MetaPathFinder):
    """Finds top-level modules in the folders of the files that a person named."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    # The path of a namespace package is no Sequence, whatever the base class declares.
    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top, _, rest = fullname.partition(".")
        if rest:
            ours = top in FORMER and sys.modules.get(top) is sys.modules.get(FORMER[top], self)
            return importlib.machinery.ModuleSpec(fullname, FormerName()) if ours else None
        if not may_lie_beside(fullname):
            return None
        beside = importlib.machinery.PathFinder.find_spec(fullname, self.folders)
        if beside is not None and beside.loader is not None:
            return beside
        elsewhere = importlib.machinery.PathFinder.find_spec(fullname)
        if elsewhere is not None and elsewhere.loader is not None and not _is_ours(elsewhere):
            return None
        if fullname in FORMER:
            return importlib.machinery.ModuleSpec(fullname, FormerName(), is_package=True)
        # A folder without __init__.py: as everywhere in Python, what is a module or package proper came first.
        return beside


def _is_ours(found: importlib.machinery.ModuleSpec) -> bool:
    """True if a module found on the path is a file of this project, as in a checkout that is the current folder."""
    former = FORMER.get(found.name)
    if former is None or found.origin is None:
        return False
    return Path(found.origin).resolve() == Path(str(importlib.import_module(former).__file__)).resolve()


class FormerName(importlib.abc.Loader):
    """Gives the module that stands in `bench` now, so that its classes exist once."""

    def exec_module(self, module: ModuleType) -> None:
        top, _, rest = module.__name__.partition(".")
        current = f"{FORMER[top]}.{rest}".rstrip(".")
        message = f"`{module.__name__}` is called `{current}` now; the former name goes with version 0.3."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(current)
