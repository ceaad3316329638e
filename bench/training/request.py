"""A training that is asked for, and what follows from it before anything is trained."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.catalogue.names import DEFAULT_RECIPE, TIMM
from bench.catalogue.parameters import typed_values
from bench.catalogue.plugins import find, imported_digest, make_defense, plugin_digests
from bench.catalogue.protocol import TrainingProtocol
from bench.catalogue.recipes import load_recipe, protocol_for
from bench.data.datasets import load_dataset
from bench.data.extra import read_extra
from bench.data.splits import Dataset, Split
from bench.errors import BenchError
from bench.interfaces import Defense
from bench.models.checkpoints import load_checkpoint
from bench.results.trainings import run_place
from bench.system.environment import describe_environment
from bench.system.progress import TrainingProgress
from bench.training.run_folder import RunFolder


@dataclass(frozen=True)
class TrainingRequest:
    """A training that is asked for.

    `hyperparameters` and `protocol` hold only what was given: the rest is the defense's default and the recipe's.
    """

    defense: str
    dataset: str = "cifar10"
    backbone: str | None = None
    seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    limit_train: int | None = None
    """Train on so many images, as `Split.take` chooses them; None: on all."""
    extra: str | None = None
    """`npz:PATH` of images to train on beside the dataset's, whose share of a batch is the protocol's `extra_share`."""
    classes: int | tuple[str, ...] | None = None
    """How many there are, where an `npz:PATH` does not say it (None: 1 + the largest label), or which of a dataset's
    classes to train on, by name or label."""
    preprocessing: str | None = None
    """How images on disk become pixels, as `bench.data.stored_images.Preprocessing` says it; None: the dataset's."""
    recipe: str = DEFAULT_RECIPE
    """By name, or the path of a JSON file."""
    named_by: tuple[str, ...] = ()
    """Hyperparameters and settings whose values, where they are given, the run folder's name holds."""
    start: Path | None = None
    """A checkpoint, or a run folder, whose weights are the first ones; None: random ones."""
    watch: int | None = None
    """Look at so many training and test images after each epoch, as `bench.training.watching` says; None: at none."""
    data: Path = Path("data")
    runs: Path = Path("runs")
    folder: Path | None = None
    device: str = "auto"
    precision: str = "fp32"
    """fp32, tf32 (CUDA) or bf16; losses are in float32 with all of them."""
    cuda_graphs: bool = False
    """Record steps of the inner maximum and replay them; on CUDA only."""

    @property
    def run_folder(self) -> Path:
        """The folder of the run: `folder`, or where `run_place` puts it below `runs`."""
        if self.folder is not None:
            return self.folder
        named = (self.dataset, self.resolved_backbone, load_recipe(self.recipe).name, self.defense)
        return self.runs / run_place(*named, self.setting, self.seed)

    @property
    def setting(self) -> dict[str, Any]:
        """The values of `named_by` that are given, by name, each of its type: 1 is 1.0 where it is a number."""
        if not self.named_by:
            return {}
        values = typed_values(TrainingProtocol, self.protocol, "protocol setting")
        values |= typed_values(find("defense", self.defense), self.hyperparameters)
        return {name: values[name] for name in self.named_by if name in values}

    @property
    def resolved_backbone(self) -> str:
        """The backbone asked for, or the recipe's for the dataset."""
        return self.backbone or str(load_recipe(self.recipe).settings(self.dataset)["backbone"])


def dataset_and_protocol(request: TrainingRequest, held: Dataset | None = None) -> tuple[Dataset, TrainingProtocol]:
    """The dataset to train on, and the protocol with all its settings.

    `held` is what this returned for another request of the same data; None: it is read.

    Raises:
        BenchError: an unknown or missing dataset, one without training images, a limit that does not fit it, a bad
            recipe or protocol setting, an unknown augmentation, or extra images that cannot be used.
    """
    dataset = held or _training_data(request)
    own = (dataset.epsilons, dataset.crop_padding, dataset.flip)
    protocol = protocol_for(request.dataset, *own, request.protocol, request.recipe)
    find("augmentation", protocol.augmentation)  # an unknown one is refused before any work
    share, size = protocol.extra_share, protocol.batch_size
    if request.extra is not None:
        if not int(size * share):
            raise BenchError(
                f"extra_share {share} of a batch of {size} is no image, and --extra {request.extra} would change "
                "nothing: give --extra-share, such as 0.7."
            )
        if dataset.extra is None:
            dataset = dataclasses.replace(dataset, extra=read_extra(request.extra, dataset))
    elif share:
        raise BenchError(
            f"extra_share {share} is of no images: give them, as --extra npz:PATH, or --extra-share 0 to do without."
        )
    return dataset, protocol


def _training_data(request: TrainingRequest) -> Dataset:
    """The dataset, of which no more than `limit_train` images are trained on."""
    dataset = load_dataset(request.dataset, request.data, request.classes, request.preprocessing)
    if not len(dataset.train):
        missing = "no array x_train, y_train" if request.dataset.startswith("npz:") else "no images to train on"
        raise BenchError(f"{request.dataset} has {missing}: it serves evaluations only. To train, add them to it.")
    train = dataset.train if request.limit_train is None else dataset.train.take(request.limit_train)
    # Every epoch sees all of them: read once.
    return dataclasses.replace(dataset, train=dataclasses.replace(train, pixels=train.held()))


def needed_request(request: TrainingRequest, name: str) -> TrainingRequest:
    """The training of a model that the defense of another one needs."""
    return dataclasses.replace(request, defense=name, hyperparameters={}, start=None, folder=None, watch=None)


def is_finished(request: TrainingRequest, dataset: Dataset, protocol: TrainingProtocol) -> bool:
    """True if the run's checkpoint of its last epoch is there; the models that it needs must be finished.

    Raises:
        BenchError: an unknown defense, or the folder holds another run.
    """
    try:
        found = load_checkpoint(request.run_folder / "last").config
    except BenchError:
        return False
    defense = make_defense(request.defense, request.dataset, request.hyperparameters)
    needed = {name: needed_request(request, name).run_folder for name in type(defense).requires}
    config = describe(request, defense, protocol, dataset, torch.device("cpu"), needed)
    folder = RunFolder(request.run_folder, config, TrainingProgress(quiet=True).say)
    finished = int(found["epoch"]) >= protocol.epochs
    folder.refuse_another(found, finished)
    return finished and not folder.damaged()


def describe(
    request: TrainingRequest,
    defense: Defense,
    protocol: TrainingProtocol,
    dataset: Dataset,
    device: torch.device,
    requirements: Mapping[str, Path],
) -> dict[str, Any]:
    """The configuration of a run, as its checkpoints record it, but for the epoch.

    Raises:
        BenchError: a folder of `requirements`, the models that the defense needs, or the place of the first weights
            holds no checkpoint.
    """
    config = {
        "defense": request.defense,
        "defense_sha256": imported_digest(type(defense)),
        "hyperparameters": dataclasses.asdict(defense),
        "hyperparameters_given": dict(request.hyperparameters),
        "backbone": request.resolved_backbone,
        **plugin_digests({"backbone": request.resolved_backbone, "augmentation": protocol.augmentation}),
        "dataset": {
            "name": request.dataset,
            "num_classes": dataset.num_classes,
            "classes_from": dataset.classes_from,
            "image_shape": list(dataset.image_shape),
            "train_digest": dataset.train.digest(),
            "train_size": len(dataset.train),
            **dataset.described(),
            **({} if dataset.extra is None else {"extra": _described(request.extra, dataset.extra, dataset.test)}),
        },
        "recipe": load_recipe(request.recipe).describe(),
        "protocol": dataclasses.asdict(protocol),
        "protocol_given": dict(request.protocol),
        "seed": request.seed,
        **({"named_by": list(request.setting)} if request.setting else {}),
        **({} if request.start is None else {"start": _beginning(request.start)}),
        "precision": request.precision,
        **({} if request.watch is None else {"watch": request.watch}),
        "requirements": {name: load_checkpoint(folder).digest for name, folder in requirements.items()},
        "environment": describe_environment(device, *(["timm"] if request.resolved_backbone.startswith(TIMM) else [])),
    }
    return dict(json.loads(json.dumps(config, default=str)))


def _described(name: str | None, extra: Split, test: Split) -> dict[str, Any]:
    compared = {"test_duplicates": 0, "test_digest": test.digest()}  # as `read_extra` makes sure
    return {"name": name, "size": len(extra), "digest": extra.digest(), **compared}


def _beginning(start: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(start)
    trained = {"defense": checkpoint.config["defense"], "dataset": checkpoint.config["dataset"]["name"]}
    return {**trained, "digest": checkpoint.digest, "path": str(start)}
