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
ADVERSARIALS = ".adversarials.h5"
"""How the name of a file of images ends that lies beside a result, after the result's own without ending."""
DATASETS = ("cifar10", "cifar100", "digits", "mnist", "svhn")
"""Names that `bench.data.datasets` knows, besides those of `OWN_DATASETS`."""
OWN_DATASETS = ("npz:PATH", "folder:PATH", "imagenet:PATH", "tinyimagenet:PATH", "hf:NAME")
"""Forms of names of datasets in a place of one's own."""
TIMM = "timm:"
"""How the name of a backbone of timm begins."""
MODELS = _BENCH / "interop" / "kinds"
"""The folder of the ways to bring a model, which `built_in("model")` names."""
_FOLDERS = {
    "attack": "attacks",
    "defense": "defenses",
    "backbone": "models/backbones",
    "augmentation": "data/augmentations",
    "model": "interop/kinds",
}


def built_in(kind: str) -> list[str]:
    """Names of what comes with the program of a `kind`, such as defense, without plug-in files: those of its files."""
    files = (_BENCH / _FOLDERS[kind]).glob("*.py")
    return sorted(path.stem.replace("_", "-") for path in files if path.name[0] != "_")


def short_name(dataset: str) -> str:
    """The name of a dataset as part of a path: `npz:data/mine.npz` is npz-mine, `folder:data/cats` folder-cats."""
    kind, colon, place = dataset.partition(":")
    if not colon:
        return dataset
    path = Path(place)
    return f"{kind}-{path.stem if kind == 'npz' else path.name or path.resolve().name}".replace(":", "-")


def suite_names() -> list[str]:
    """Names of the suites that come with the program."""
    return sorted(path.stem for path in SUITES.glob("*.json"))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))
