"""RobustBench's model zoo, both ways: its models for our evaluation, our checkpoints for its `load_model`.

The layout is RobustBench's: `<folder>/<dataset>/<threat model>/<NAME>.pt`. Its `load_model` builds a model from a table
of names and loads the weights into it, so a checkpoint of ours needs an entry there: `register` makes one from the
configuration that `export_checkpoint` writes beside the weights.
"""

import contextlib
import io
import json
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.catalogue.plugins import recorded_defense
from bench.errors import BenchError, unknown_name
from bench.interop import robustbench as robustbench_package
from bench.models.checkpoints import Checkpoint, build_model
from bench.models.weights import building
from bench.system.budgets import MOST_JSON, read_bytes, read_json, require_file
from bench.system.files import write_together

DATASETS = ("cifar10", "cifar100")
"""Those of RobustBench's that we have."""
THREAT_MODELS = ("Linf", "L2", "corruptions")
NORMS = {"linf": "Linf", "l2": "L2"}

FORMAT, VERSION = "bench-robustbench-model", 1

# `load_model` cuts 7 characters off every name that holds "module." anywhere, then 6 where it holds "model.". Cut off
# these 13 it ends with our name, whatever that contains.
_CUT = "module.model."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Shelf:
    """One list of the zoo, and the folder that holds its files.

    Raises:
        BenchError: RobustBench has no such dataset or threat model, or we do not have the dataset.
    """

    dataset: str
    threat_model: str = "Linf"
    folder: Path = Path("models")

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise unknown_name("RobustBench dataset", self.dataset, DATASETS)
        if self.threat_model not in THREAT_MODELS:
            raise unknown_name("RobustBench threat model", self.threat_model, THREAT_MODELS)

    def file(self, name: str) -> Path:
        """Where the weights of a model lie."""
        return self.folder / self.dataset / self.threat_model / f"{name}.pt"

    def entries(self) -> dict[str, Any]:
        """RobustBench's own table, by name; what is added here is found by its `load_model`."""
        package = robustbench_package.load()
        enums = package.model_zoo.enums
        lists = package.model_zoo.model_dicts[enums.BenchmarkDataset(self.dataset)]
        # It has no list for CIFAR-100 under L2; an export may belong there.
        table: dict[str, Any] = lists.setdefault(enums.ThreatModel(self.threat_model), {})
        return table


def load_zoo_model(name: str, shelf: Shelf) -> nn.Module:
    """A model of the zoo in eval mode, through RobustBench's own `load_model`; downloaded where its file is missing.

    Raises:
        BenchError: there is no such model, or its file is missing and cannot be downloaded, or cannot be used.
    """
    package = robustbench_package.load()
    register(shelf.folder)
    entries = shelf.entries()
    if name not in entries:
        raise _unknown_model(name, shelf)
    ids = entries[name]["gdrive_id"]
    path = shelf.file(name)
    files = [path.with_name(f"{path.name}_m{part}.pt") for part in range(len(ids))] if isinstance(ids, list) else [path]
    try:
        # Its messages would stand in the way of a table on standard output.
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            model: nn.Module = package.load_model(
                name, model_dir=shelf.folder, dataset=shelf.dataset, threat_model=shelf.threat_model
            )
    except Exception as error:  # requests, gdown, torch.load and load_state_dict raise many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise BenchError(
                f"there is no {', '.join(missing)}, and RobustBench could not download it ({reason}). "
                "Put it there by hand."
            ) from error
        raise BenchError(
            f"{', '.join(map(str, files))} cannot be loaded as RobustBench's {name} ({reason}). If it is not the "
            "published file, delete it."
        ) from error
    return model.eval()


def _unknown_model(name: str, shelf: Shelf) -> BenchError:
    """The nearest names of the shelf, and the shelves that do have the name."""
    near = get_close_matches(name, shelf.entries(), n=3, cutoff=0.75)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    others = [Shelf(dataset, threat, shelf.folder) for dataset in DATASETS for threat in THREAT_MODELS]
    has = [f"--dataset {one.dataset} --threat-model {one.threat_model}" for one in others if name in one.entries()]
    there = f" It is there under {' and '.join(has)}." if has else ""
    return BenchError(
        f"RobustBench has no model {name!r} for {shelf.dataset} {shelf.threat_model}.{hint}{there} "
        f"All {len(shelf.entries())}: https://github.com/RobustBench/robustbench#model-zoo."
    )


def export_path(checkpoint: Checkpoint, folder: Path, name: str | None = None, threat: str | None = None) -> Path:
    """The place where RobustBench's `load_model` will look for a checkpoint, below its `model_dir`.

    It is called by defense, backbone and seed if by no `name`, and belongs to the norm it was trained under if to no
    other `threat`: `Linf`, `L2` or `corruptions`.

    Raises:
        BenchError: the dataset, norm or name is none that RobustBench could have.
    """
    config = checkpoint.config
    name = name or f"{config['defense']}_{config['backbone']}_seed-{config['seed']}"
    if not _NAME.fullmatch(name):
        raise BenchError(f"model name {name!r} is not a file name of letters, digits, '_', '-' and '.'. Give --name.")
    norm = config["protocol"]["norm"]
    if threat is None and norm not in NORMS:
        raise BenchError(
            f"RobustBench has no threat model for {norm}. Say with --threat-model where the model belongs."
        )
    return Shelf(config["dataset"]["name"], threat or NORMS[norm], folder).file(name)


def export_checkpoint(checkpoint: Checkpoint, path: Path, replace: bool = True) -> None:
    """Write a checkpoint's weights for RobustBench's `load_model`, and its configuration beside them (.json).

    Raises:
        BenchError: without `replace`, other files are there; or one cannot be written.
    """
    weights = {_CUT + key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.weights.items()}
    described = {"format": FORMAT, "format_version": VERSION, "digest": checkpoint.digest}
    stored = io.BytesIO()
    torch.save({"state_dict": weights}, stored)
    about = json.dumps({**described, "config": dict(checkpoint.config)}, indent=2) + "\n"
    write_together({path: stored.getvalue(), path.with_suffix(".json"): about.encode()}, replace)


def register(folder: str | Path = "models") -> list[str]:
    """Tell the installed robustbench about every checkpoint exported to a folder; returns their names.

    From then on, in this process, `robustbench.load_model(name, model_dir=folder, ...)` loads them. Runs no code of the
    folder's files.

    Raises:
        BenchError: an export is damaged, or RobustBench has another model of its name.
    """
    names = []
    for shelf, path in _exports(Path(folder)):
        entries = shelf.entries()
        if path.stem in entries and "checkpoint_digest" not in entries[path.stem]:
            raise BenchError(f"RobustBench has a model {path.stem!r} of its own: rename {path} and its .pt file.")
        try:
            described = read_json(path)
            if described["format_version"] != VERSION:
                raise BenchError(f"{path} has version {described['format_version']}; this program reads {VERSION}.")
            config, digest = dict(described["config"]), str(described["digest"])
        except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise BenchError(
                f"{path} is damaged: export the checkpoint again with `bench export robustbench`."
            ) from error
        # load_model refuses entries whose id is None; the id is used only if the file should vanish.
        model = partial(untrained_model, config, path.with_suffix(".pt"))
        entries[path.stem] = {"model": model, "gdrive_id": "", "checkpoint_digest": digest}
        names.append(path.stem)
    return names


def _exports(folder: Path) -> Iterator[tuple[Shelf, Path]]:
    """The description of each checkpoint that was exported to a folder."""
    for dataset in DATASETS:
        for threat_model in THREAT_MODELS:
            shelf = Shelf(dataset, threat_model, folder)
            for path in sorted((folder / dataset / threat_model).glob("*.json")):
                if _is_export(path):
                    yield shelf, path


def _is_export(path: Path) -> bool:
    """True if a file says that it describes an export; those of others may be anything."""
    with contextlib.suppress(BenchError, OSError):
        return f'"{FORMAT}"'.encode() in read_bytes(path, MOST_JSON)
    return False


def untrained_model(config: dict[str, Any], weights: Path) -> nn.Module:
    """The model that an export's configuration describes, of no more numbers than the file of its weights could hold.

    Raises:
        BenchError: the configuration describes no model, or one that is far larger.
    """
    defense = recorded_defense(config)
    with building(require_file(weights), str(weights.with_suffix(".json"))):  # a number takes more bytes than one
        return build_model(defense, config["backbone"], config["dataset"])
