"""Names of what there is, without importing it: a list of them costs no import of torch."""

from pathlib import Path

_BENCH = Path(__file__).parent.parent
SUITES = Path(__file__).parent / "suites"
"""The folder of the suites that come with the program."""
RECIPES = Path(__file__).parent / "recipes"
"""The folder of the recipes that come with the program."""
DEFAULT_RECIPE = "pang2021"
"""The recipe of every training that names none, and of those that were recorded before there were recipes."""
CHECKPOINTS = ("last", "best", "average")
"""The checkpoints of a run: after the last epoch; of the best one on held-out images; of averaged weights."""
DATASETS = ("cifar10", "cifar100", "digits", "mnist", "svhn")
"""Names that `bench.data.datasets` knows, besides `npz:PATH`."""
BACKBONES = ("cnn-small", "cnn-small-bn", "cnn-small-bn-512", "lenetpp", "resnet18", "wrn-34-10")
"""Names that `bench.models.backbones` knows."""


def built_in(kind: str) -> list[str]:
    """Names of the defenses or attacks (`kind`) that come with the program, without plug-in files: their files'."""
    return sorted(path.stem.replace("_", "-") for path in (_BENCH / f"{kind}s").glob("*.py") if path.name[0] != "_")


def suite_names() -> list[str]:
    """Names of the suites that come with the program."""
    return sorted(path.stem for path in SUITES.glob("*.json"))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))
