"""Checkpoints: one safetensors file that carries its own configuration and a digest over both.

`<run>/last/model.safetensors` is the model after the last finished epoch; `<run>/best/` the one chosen on held-out
training images, where there are any; `<run>/average/` that of averaged weights, where they are asked for. `config.json`
beside it is a copy for people. Loading executes no code.
"""

import io
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.catalogue.names import CHECKPOINTS
from bench.catalogue.plugins import recorded_defense
from bench.errors import BenchError
from bench.interfaces import Classifier, Defense
from bench.models.backbones import make_backbone
from bench.models.weights import building, load_tensors, require_few_items
from bench.system.budgets import require_file
from bench.system.files import content_digest, write_together, write_whole

FORMAT, VERSION = "bench-checkpoint", 1
MOST_VALUES, MOST_CLASSES = 2**22, 2**15
"""Of an image, and of labels, which result files store as int16: a file must not make us allocate without end."""

_OWN_WEIGHTS = (
    "To evaluate weights of your own: bench eval --model FILE.py:FACTORY --weights {}; a folder of transformers: "
    "--model hf:FOLDER."
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights with everything needed to rebuild the model."""

    config: Mapping[str, Any]
    """Keys: defense, hyperparameters, backbone, dataset, protocol, seed, epoch, requirements, versions, ..."""
    weights: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """Identifies weights and configuration together."""
        return content_digest({"config": dict(self.config), "weights": dict(self.weights)})

    def defense(self) -> Defense:
        """The defense with the hyperparameters it was trained with."""
        return recorded_defense(self.config)

    def build(self, device: torch.device | str = "cpu") -> Classifier:
        """The trained model, in eval mode.

        Raises:
            BenchError: the weights do not fit the model that the configuration describes, or are far fewer.
        """
        defense = self.defense()
        try:
            with building(sum(tensor.numel() for tensor in self.weights.values()), "the checkpoint's configuration"):
                model = build_model(defense, self.config["backbone"], self.config["dataset"])
            model.load_state_dict(dict(self.weights))
        # Sizes that fit no layer raise more than the first.
        except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise BenchError(
                f"the checkpoint's weights do not fit {self.config['defense']} on {self.config['backbone']}: "
                f"{' '.join(str(error).split())}"
            ) from error
        return model.to(device).eval()


def build_model(defense: Defense, backbone: str, dataset: Mapping[str, Any]) -> Classifier:
    """A defense's untrained model for a dataset described by `image_shape` and `num_classes`."""
    channels, height, width = dataset["image_shape"]
    return defense.build(
        lambda activation="relu", final_activation=True: make_backbone(
            backbone, channels, (height, width), activation, final_activation
        ),
        dataset["num_classes"],
    )


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`."""
    write_together(checkpoint_files(checkpoint, folder))


def checkpoint_files(checkpoint: Checkpoint, folder: Path) -> dict[Path, bytes]:
    """The files of a checkpoint in a folder; equal checkpoints are equal bytes.

    The copy for people comes first: a kill between the two leaves a checkpoint that is behind, and is written again.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "config": json.dumps(checkpoint.config),
        "sha256": checkpoint.digest,
    }
    return {
        folder / "config.json": config_text(checkpoint).encode(),
        folder / "model.safetensors": _in_one_order(save(weights, metadata)),
    }


def _in_one_order(content: bytes) -> bytes:
    """A safetensors file with sorted metadata: the library writes them in an order that differs between processes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def config_text(checkpoint: Checkpoint) -> str:
    """The content of `config.json`."""
    return json.dumps(checkpoint.config, indent=2) + "\n"


def find_checkpoint(path: Path) -> Path:
    """The safetensors file that a run folder, a checkpoint folder or a file path stands for; others are refused."""
    for candidate in (path, path / "model.safetensors", path / "last" / "model.safetensors"):
        if candidate.is_file():
            return candidate
    below = sorted(str(run) for run in path.glob("seed-*") if (run / "last" / "model.safetensors").is_file())
    if below:
        raise BenchError(f"no checkpoint at {path}, but in folders below it: name one of {', '.join(below)}.")
    raise BenchError(
        f"no checkpoint at {path}: expected a run folder, or a model.safetensors written by `bench train`."
    )


def checkpoint_of(run: Path, which: str) -> Path:
    """The folder of one of a run's `CHECKPOINTS`; a run without it is refused."""
    if not (run / which / "model.safetensors").is_file():
        there = [name for name in CHECKPOINTS if (run / name / "model.safetensors").is_file()]
        raise BenchError(
            f"{run} has no checkpoint {which!r}, but {', '.join(there) or 'none at all'}: `best` is kept with "
            "--holdout N, `average` with --average ema or swa."
        )
    return run / which


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        BenchError: the file is missing, truncated, altered, of another format or of an unknown version.
    """
    file = find_checkpoint(path)
    if file.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise BenchError(f"{file} is no checkpoint of `bench train`. {_OWN_WEIGHTS.format(file)}")
    try:
        require_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise BenchError(
            f"{file} is not a readable safetensors file (truncated, or not a checkpoint): {error}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise BenchError(f"{file} was not written by `bench train`. {_OWN_WEIGHTS.format(file)}")
    if metadata.get("format_version") != str(VERSION):
        raise BenchError(
            f"{file} has checkpoint format version {metadata.get('format_version')}; this program reads {VERSION}."
        )
    try:
        checkpoint = Checkpoint(json.loads(metadata["config"]), weights)
        complete = describes_a_model(checkpoint.config)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BenchError(f"{file} is damaged: its configuration cannot be read.") from error
    if not complete:
        raise BenchError(f"{file} has a configuration that describes no model. Train it again with `bench train`.")
    if checkpoint.digest != metadata.get("sha256"):
        raise BenchError(f"{file} is damaged or was altered: its content does not match its sha256.")
    return checkpoint


def describes_a_model(config: Mapping[str, Any]) -> bool:
    """True if a configuration has all that a model is built from, and all that is said about one, in possible sizes."""
    dataset, protocol = config["dataset"], config["protocol"]
    shape, classes = dataset["image_shape"], dataset["num_classes"]
    texts = (config["defense"], config["backbone"], dataset["name"], protocol["norm"])
    numbers = (config["epoch"], config["seed"], protocol["epochs"], classes, *shape)
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int for number in numbers)
        and isinstance(config["hyperparameters"], dict)
        and "environment" in config
        and len(shape) == 3
        and min(shape) > 0
        and math.prod(shape) <= MOST_VALUES
        and 2 <= classes <= MOST_CLASSES
    )


def older_state(path: Path) -> Path:
    """Where the training state before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_training_state(path: Path, state: Mapping[str, Any], keep_older: bool = True) -> None:
    """Write what a resumed training needs, with a digest over it; the state before it becomes the older one."""
    content = io.BytesIO()
    torch.save({"sha256": content_digest(state), "state": dict(state)}, content)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content.getbuffer())
        if keep_older and path.exists():
            write_whole(older_state(path), lambda older: _link(path, older))

    write_whole(path, write)


def _link(source: Path, target: Path) -> None:
    target.unlink()  # no link is made over a file
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copyfile(source, target)


def load_training_state(path: Path) -> dict[str, Any]:
    """Read and verify a training state. Nothing in the file is executed.

    Raises:
        BenchError: the file is truncated, altered, or holds anything but tensors and plain values.
    """
    try:
        content = load_tensors(path)
        require_few_items(content, path)
        if content["sha256"] != content_digest(content["state"]):
            raise BenchError(f"{path} is damaged or was altered: its content does not match its sha256.")
        state = content["state"]
    except BenchError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged or hostile file
        raise BenchError(f"{path} is not a readable training state (truncated, damaged or not ours).") from error
    return dict(state)
