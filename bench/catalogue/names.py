"""Names of what there is, without importing it: a list of them costs no import of torch."""

from pathlib import Path

_BENCH = Path(__file__).parent.parent
SUITES = Path(__file__).parent / "suites"
"""The folder of the suites that come with the program."""
DATASETS = ("cifar10", "cifar100", "digits", "mnist", "svhn")
"""Names that `bench.data.datasets` knows, besides `npz:PATH`."""
TIMM = "timm:"
"""How the name of a backbone of timm begins."""
_FOLDERS = {
    "attack": "attacks",
    "defense": "defenses",
    "backbone": "models/backbones",
    "augmentation": "data/augmentations",
}


def built_in(kind: str) -> list[str]:
    """Names of what comes with the program of a `kind`, such as defense, without plug-in files: those of its files."""
    files = (_BENCH / _FOLDERS[kind]).glob("*.py")
    return sorted(path.stem.replace("_", "-") for path in files if path.name[0] != "_")


def suite_names() -> list[str]:
    """Names of the suites that come with the program."""
    return sorted(path.stem for path in SUITES.glob("*.json"))
