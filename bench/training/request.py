"""A training that is asked for, and what follows from it before anything is trained."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.catalogue.names import DEFAULT_RECIPE, TIMM
from bench.catalogue.plugins import find, imported_digest, make_defense, plugin_digests
from bench.catalogue.protocol import TrainingProtocol
from bench.catalogue.recipes import load_recipe, protocol_for
from bench.data.datasets import load_dataset
from bench.data.extra import read_extra
from bench.data.splits import Dataset, Split
from bench.errors import BenchError
from bench.interfaces import Defense
from bench.models.checkpoints import load_checkpoint
from bench.system.devices import AUTOMATIC
from bench.system.environment import describe_environment
from bench.system.progress import TrainingProgress
from bench.training import SECONDS_BETWEEN_SAVES
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
    classes: int | None = None
    """How many there are, where an `npz:PATH` does not say it; None: 1 + the largest label."""
    recipe: str = DEFAULT_RECIPE
    """By name, or the path of a JSON file."""
    start: Path | None = None
    """A checkpoint, or a run folder, whose weights are the first ones; None: random ones."""
    data: Path = Path("data")
    runs: Path = Path("runs")
    folder: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    """fp32, tf32 (CUDA) or bf16; losses are in float32 with all of them. auto: tf32 on CUDA, fp32 elsewhere."""
    cuda_graphs: bool | None = None
    """Record a step and replay it, where a replay is the step; None: on CUDA, with one process."""
    deterministic: bool = False
    """Take deterministic algorithms only: on CUDA the same bits again, at a price; a CPU gives them anyway."""
    save_every: float = SECONDS_BETWEEN_SAVES
    """Seconds between two states that a resumed run could go on from; 0: one after each epoch, before the next."""

    def precision_like(self, record: Mapping[str, Any]) -> str:
        """The precision asked for; of auto, what a record says that auto may come to on some device."""
        if self.precision != "auto":
            return self.precision
        found = str(record.get("precision", "fp32"))
        return found if found in AUTOMATIC else AUTOMATIC[0]

    @property
    def run_folder(self) -> Path:
        """The folder of the run: `folder`, or runs/<dataset>/<backbone>/<defense>/seed-<seed>.

        A recipe other than the default one has a folder of its own, after that of the backbone.
        """
        dataset = f"npz-{Path(self.dataset).stem}" if self.dataset.startswith("npz:") else self.dataset
        name, backbone = load_recipe(self.recipe).name, self.resolved_backbone.replace(":", "-")
        place = self.runs / dataset / backbone / (name if name != DEFAULT_RECIPE else "")
        return self.folder or place / self.defense / f"seed-{self.seed}"

    @property
    def resolved_backbone(self) -> str:
        """The backbone asked for, or the recipe's for the dataset."""
        return self.backbone or str(load_recipe(self.recipe).settings(self.dataset)["backbone"])


def dataset_and_protocol(request: TrainingRequest) -> tuple[Dataset, TrainingProtocol]:
    """The dataset to train on, and the protocol with all its settings.

    Raises:
        BenchError: an unknown or missing dataset, one without training images, a limit that does not fit it, a bad
            recipe or protocol setting, an unknown augmentation, or extra images that cannot be used.
    """
    dataset = load_dataset(request.dataset, request.data, request.classes)
    if not len(dataset.train):
        raise BenchError(
            f"{request.dataset} has no array x_train, y_train: it serves evaluations only. To train, add both to it."
        )
    if request.limit_train is not None:
        dataset = dataclasses.replace(dataset, train=dataset.train.take(request.limit_train))
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
        dataset = dataclasses.replace(dataset, extra=read_extra(request.extra, dataset))
    elif share:
        raise BenchError(
            f"extra_share {share} is of no images: give them, as --extra npz:PATH, or --extra-share 0 to do without."
        )
    return dataset, protocol


def needed_request(request: TrainingRequest, name: str) -> TrainingRequest:
    """The training of a model that the defense of another one needs."""
    return dataclasses.replace(request, defense=name, hyperparameters={}, start=None, folder=None)


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
    request = dataclasses.replace(request, precision=request.precision_like(found))
    config = describe(request, defense, protocol, dataset, torch.device("cpu"), needed)
    folder = RunFolder(request.run_folder, config, TrainingProgress(quiet=True).say)
    folder.refuse_another(found)
    return int(found["epoch"]) >= protocol.epochs and not folder.damaged()


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
            **({} if dataset.extra is None else {"extra": _described(request.extra, dataset.extra)}),
        },
        "recipe": load_recipe(request.recipe).describe(),
        "protocol": dataclasses.asdict(protocol),
        "protocol_given": dict(request.protocol),
        "seed": request.seed,
        **({} if request.start is None else {"start": _beginning(request.start)}),
        "precision": request.precision,
        "requirements": {name: load_checkpoint(folder).digest for name, folder in requirements.items()},
        "environment": describe_environment(device, *(["timm"] if request.resolved_backbone.startswith(TIMM) else [])),
    }
    return dict(json.loads(json.dumps(config, default=str)))


def _described(name: str | None, extra: Split) -> dict[str, Any]:
    return {"name": name, "size": len(extra), "digest": extra.digest()}


def _beginning(start: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(start)
    trained = {"defense": checkpoint.config["defense"], "dataset": checkpoint.config["dataset"]["name"]}
    return {**trained, "digest": checkpoint.digest, "path": str(start)}
