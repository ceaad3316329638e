"""Imports of the code in files that a person names: what lies beside such a file is found, under whatever name.

A folder of one's own often holds `attacks.py`, `models/` or `nets.py`. They are found by name for as long as this
process lives, so also when a factory or `forward` imports them, and they never replace what the harness itself imports.
A process has one module of a name: a file that would be given another folder's is refused.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import BenchError

NEVER = frozenset(
    [
        "autoattack",
        "bench",
        "click",
        "h5py",
        "jaxtyping",
        "matplotlib",
        "numpy",
        "onnx",
        "onnx2pytorch",
        "pandas",
        "PIL",
        "pkg_resources",
        "pyautoattack",
        "ray",
        "robustbench",
        "safetensors",
        "scipy",
        "setuptools",
        "sklearn",
        "statsmodels",
        "submitit",
        "tabulate",
        "tensorboard",
        "timm",
        "tomli",
        "torch",
        "torchvision",
        "tqdm",
        "transformers",
    ]
)
"""Names that mean the harness and what it imports, wherever they are imported; so do those of the standard library."""
FORMER = {name: f"bench.{name}" for name in ("attacks", "defenses", "leaderboard")}
"""Names that plug-ins of version 0.1 import, and what they are called now; given up with version 0.3."""


def may_lie_beside(name: str) -> bool:
    """True if a module of this top-level name is looked for beside a person's file."""
    return name not in NEVER and name not in sys.stdlib_module_names


def imported_beside(file: Path) -> dict[Path, bytes]:
    """The contents of a file and of all that it imports from its folder by `import` statements, by path."""
    texts: dict[Path, bytes] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        texts[path] = path.read_bytes()
        waiting += [found for name in _imported(texts[path]) for found in _beside(file.parent, name)]
        waiting = [found for found in waiting if found not in texts]
    return texts


def _imported(text: bytes) -> set[str]:
    """Top-level names that the `import` statements of a file name, wherever they stand in it."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return set()  # whoever imports it is told
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return set(filter(may_lie_beside, (name.partition(".")[0] for name in names)))


def _beside(folder: Path, name: str) -> Iterator[Path]:
    """The files in a folder that a module or package of this name consists of; none where it is this project's own."""
    if not _is_ours(name, folder / name):
        yield from (path for path in (folder / f"{name}.py", *sorted((folder / name).rglob("*.py"))) if path.is_file())


def _is_ours(name: str, folder: Path) -> bool:
    """True of the folders that have a former name, as in a checkout that lies on the path or beside a file."""
    return name in FORMER and folder.resolve() == (Path(__file__).parent.parent / name).resolve()


def search_beside(file: Path) -> None:
    """From now on finds the modules and packages beside a file, after those of folders before its own. Idempotent.

    Raises:
        BenchError: for a name that this file, or one before it, imports, Python would find another folder's module.
    """
    finder = next((found for found in sys.meta_path if isinstance(found, Finder)), None) or Finder()
    names = set().union(*map(_imported, imported_beside(file).values()))
    known = {**finder.files, file.resolve(): names}
    folders = list(dict.fromkeys(str(asking.parent) for asking in known))
    for asking, imported in known.items():
        for name in sorted(imported):
            _require_own(asking, name, folders)
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    finder.files, finder.folders = known, folders


def _require_own(file: Path, name: str, folders: list[str]) -> None:
    """Refuse a file for which `import name` would find another module than what lies beside it, or a copy of that."""
    own = _contents(file.parent, name)
    first = next((Path(folder) for folder in folders if _contents(Path(folder), name)), file.parent)
    if _contents(first, name) != own:
        taken = next(_beside(first, name))
        raise BenchError(f"{file} imports {name!r}, which is {taken} in this process. Rename one of the two.")
    loaded = sys.modules.get(name)
    places = [getattr(loaded, "__file__", None) or "", *getattr(loaded, "__path__", [])]
    place = next((Path(place).resolve() for place in places if place), None)
    if own and place is not None and not {*map(Path, folders)} & {*place.parents}:
        raise BenchError(
            f"{file} imports {next(_beside(file.parent, name))}, but {name!r} is {place} in this process. Rename one "
            "of the two."
        )


def _contents(folder: Path, name: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in _beside(folder, name)}


class Finder(importlib.abc.MetaPathFinder):
    """Finds top-level modules in the folders of the files that a person named."""

    def __init__(self) -> None:
        self.files: dict[Path, set[str]] = {}
        """By each file the top-level names that it imports, itself or through what lies beside it."""
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
        if _is_proper(beside):
            return beside
        if _is_proper(importlib.machinery.PathFinder.find_spec(fullname)):
            return None  # as everywhere in Python, before a folder without __init__.py
        if fullname in FORMER and not any(next(_beside(Path(folder), fullname), None) for folder in self.folders):
            return importlib.machinery.ModuleSpec(fullname, FormerName(), is_package=True)
        return beside


def _is_proper(found: importlib.machinery.ModuleSpec | None) -> bool:
    """True of a module or package of others that has code of its own, unlike a folder without `__init__.py`."""
    if found is None or found.loader is None:
        return False
    return found.origin is None or not _is_ours(found.name, Path(found.origin).parent)


class FormerName(importlib.abc.Loader):
    """Gives the module that stands in `bench` now, so that its classes exist once."""

    def exec_module(self, module: ModuleType) -> None:
        top, _, rest = module.__name__.partition(".")
        current = f"{FORMER[top]}.{rest}".rstrip(".")
        message = f"`{module.__name__}` is called `{current}` now; the former name goes with version 0.3."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(current)
