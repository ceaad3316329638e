"""Names of what there is, without importing it: a list of them costs no import of torch."""

from pathlib import Path

_BENCH = Path(__file__).parent.parent
SUITES = Path(__file__).parent / "suites"
"""The folder of the suites that come with the program."""
DATASETS = ("cifar10", "cifar100", "digits", "mnist", "svhn")
"""Names that `bench.data.datasets` knows, besides `npz:PATH`."""
_FOLDERS = {"attack": "attacks", "defense": "defenses", "backbone": "models/backbones"}


def built_in(kind: str) -> list[str]:
    """Names of all of a `kind` (defense, attack, backbone) that come with the program, without plug-in files."""
    files = (_BENCH / _FOLDERS[kind]).glob("*.py")
    return sorted(path.stem.replace("_", "-") for path in files if path.name[0] != "_")


def suite_names() -> list[str]:
    """Names of the suites that come with the program."""
    return sorted(path.stem for path in SUITES.glob("*.json"))
