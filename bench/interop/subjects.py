"""Where a model to evaluate comes from: a checkpoint of ours, RobustBench's zoo, or any file that makes a module.

The contract is RobustBench's: an nn.Module that maps NCHW float32 images in [0, 1] to logits, normalises inside,
and answers the same twice in eval mode.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.catalogue.plugins import load_python_file
from bench.errors import BenchError, cause, ran_out
from bench.interfaces import Images, ObjectiveFactory
from bench.interop.zoo import Shelf, load_zoo_model
from bench.models.checkpoints import find_checkpoint, load_checkpoint
from bench.models.weights import load_tensors
from bench.system.budgets import require_file
from bench.system.files import content_digest

ZOO_PREFIX = "robustbench:"
_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Of torch.compile and DataParallel, around each other in any order."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "model_ema", "ema")
"""Names under which training scripts keep a state dictionary."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, and how it is described in a result file."""

    name: str
    model: nn.Module
    description: Mapping[str, Any]
    adaptive: ObjectiveFactory | None = None
    dataset: str | None = None
    """The dataset it was trained on, where that is known."""


def from_checkpoint(path: Path, device: torch.device) -> Subject:
    """The model of a checkpoint written by `bench train`.

    Raises:
        BenchError: the checkpoint is missing, damaged, or does not fit its defense.
    """
    checkpoint = load_checkpoint(path)
    defense = checkpoint.defense()
    config = dict(checkpoint.config)
    # What was no choice at the training and is one now: said, and needed to train it again.
    later = {name: value for name, value in defense.unrecorded.items() if name not in config["hyperparameters"]}
    config |= {name: {**later, **config.get(name, {})} for name in ("hyperparameters", "hyperparameters_given")}
    description = {
        **{key: value for key, value in config.items() if key not in ("dataset", "environment", "format")},
        "training_data": config["dataset"],
        "training_environment": config["environment"],
        "checkpoint": find_checkpoint(path).parent.name,
        "checkpoint_digest": checkpoint.digest,
        "finished": config["epoch"] == config["protocol"]["epochs"],
    }
    return Subject(
        name=checkpoint.config["defense"],
        model=checkpoint.build(device),
        description=description,
        adaptive=defense.adaptive_objective,
        dataset=checkpoint.config["dataset"]["name"],
    )


def from_module(model: nn.Module, name: str | None, device: torch.device) -> Subject:
    """A model in memory, called `name` or by its class."""
    kind = type(model).__name__
    return Subject(name or kind, *_described(model, device, f"python:{kind}", None))


def _described(
    model: nn.Module, device: torch.device, source: str, file: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """A model that is no checkpoint of ours, in eval mode, and its description: its digest is of its weights alone."""
    model = model.to(device).eval()
    digest = content_digest(dict(model.state_dict()))
    return model, {"source": source, "checkpoint": file, "checkpoint_digest": digest}


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A model as a person named it: a checkpoint, `robustbench:NAME`, or `FILE.py:FACTORY` with weights."""

    checkpoint: Path | None = None
    model: str | None = None
    weights: Path | None = None
    threat_model: str | None = None
    """One of RobustBench's lists; None: Linf."""
    model_dir: Path | None = None
    """RobustBench's files: <dataset>/<threat model>/<NAME>.pt; None: in `models`."""

    def load(self, device: torch.device, dataset: str | None) -> Subject:
        """The model in eval mode; RobustBench has another one of a name for each dataset.

        Raises:
            BenchError: it is not named exactly once, options do not belong together, or it cannot be loaded.
        """
        if (self.checkpoint is None) == (self.model is None):
            raise BenchError("name one model: a checkpoint of `bench train`, or --model FILE.py:FACTORY.")
        if self.weights is not None and (self.model is None or self.from_zoo):
            raise BenchError("--weights goes with --model FILE.py:FACTORY; other models bring their own.")
        if self.threat_model is not None and not self.from_zoo:
            raise BenchError(f"--threat-model goes with --model {ZOO_PREFIX}NAME; a suite names its own threat models.")
        if self.model_dir is not None and not self.from_zoo:
            raise BenchError(f"--model-dir goes with --model {ZOO_PREFIX}NAME; other models lie where they are named.")
        if self.checkpoint is not None:
            return from_checkpoint(self.checkpoint, device)
        if not self.from_zoo:
            return from_file(str(self.model), self.weights, device)
        if dataset is None:
            raise BenchError(f"say which model {self.model} is: --dataset cifar10 or cifar100.")
        shelf = Shelf(dataset, self.threat_model or "Linf", self.model_dir or Path("models"))
        return from_robustbench(str(self.model).removeprefix(ZOO_PREFIX), shelf, device)

    @property
    def from_zoo(self) -> bool:
        """True if it is RobustBench's."""
        return self.model is not None and self.model.startswith(ZOO_PREFIX)

    @property
    def python_file(self) -> Path | None:
        """The file whose code makes the model."""
        return None if self.model is None or self.from_zoo else Path(self.model.rpartition(":")[0])


def from_robustbench(name: str, shelf: Shelf, device: torch.device) -> Subject:
    """A model of RobustBench's zoo, or a checkpoint exported to its layout.

    Raises:
        BenchError: there is no such model, or its file is missing and cannot be downloaded, or cannot be used.
    """
    model, description = _described(load_zoo_model(name, shelf), device, f"{ZOO_PREFIX}{name}", shelf.file(name).name)
    installed = metadata.version("robustbench")
    description["zoo"] = {"threat_model": shelf.threat_model, "dataset": shelf.dataset, "robustbench": installed}
    return Subject(name, model, description, dataset=shelf.dataset)


def from_file(reference: str, weights: Path | None, device: torch.device) -> Subject:
    """The module that `path/to/file.py:factory` makes, with weights loaded into it. Runs the file's code.

    Raises:
        BenchError: the reference, the file, the factory or the weights cannot be used.
    """
    path, separator, factory = reference.rpartition(":")
    if not separator or not path.endswith(".py"):
        raise BenchError(f"model {reference!r} is not FILE.py:FACTORY, such as models/mine.py:make_model.")
    module = load_python_file(Path(path))
    make = getattr(module, factory, None)
    if not callable(make):
        names = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise BenchError(f"{path} has no function or class {factory!r}. It has: {names or 'none'}.")
    try:
        model = make()
    except Exception as error:
        raise BenchError(f"{reference}() failed: {cause(error)}") from error
    if not isinstance(model, nn.Module):
        raise BenchError(f"{reference}() made a {type(model).__name__}; it must return a torch.nn.Module.")
    if weights is not None:
        load_weights(model, weights)
    source, file = f"{Path(path).name}:{factory}", weights.name if weights else None
    return Subject(weights.stem if weights else factory, *_described(model, device, source, file))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a .safetensors file or a state dictionary saved by torch into a module. Executes nothing.

    The wrappers `WRAPPERS` and the prefixes `module.` and `_orig_mod.` are removed.

    Raises:
        BenchError: the file is missing, unreadable, not a state dictionary, or does not fit the module.
    """
    if not path.is_file():
        raise BenchError(f"no weights at {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            require_file(path)
            state: Any = load_file(path)
        else:
            state = load_tensors(path)
    except BenchError:
        raise
    except Exception as error:  # both raise many kinds for damaged or hostile files
        raise BenchError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and plain values "
            "(nothing in it was executed). Save it again with torch.save(model.state_dict(), path)."
        ) from error
    state = _unwrapped(state, path)
    cleaned = {_PREFIXES.sub("", name): value for name, value in state.items()}
    try:
        model.load_state_dict(cleaned)
    except RuntimeError as error:
        raise BenchError(f"{path} does not fit the model: {' '.join(str(error).split())[:500]}") from error


def _unwrapped(state: Any, path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file's content; several are refused like none: averaged weights are another model."""
    for _ in range(3):  # as deep as {"state_dict": {"model": ...}}; a file may contain itself
        if _is_state(state) or not isinstance(state, Mapping):
            break
        held = [name for name in WRAPPERS if isinstance(state.get(name), Mapping)]
        if len(held) != 1:
            break
        state = state[held[0]]
    if _is_state(state):
        return dict(state)
    if not isinstance(state, Mapping):
        raise BenchError(f"{path} is not a state dictionary (names to tensors) but a {type(state).__name__}.")
    keys = ", ".join(repr(key)[:40] for key in list(state)[:12])
    states = [repr(key)[:40] for key, value in state.items() if _is_state(value) and value]
    way_out = f"Save the one you mean: torch.save(checkpoint[{states[0]}], 'weights.pt')." if states else "None is one."
    raise BenchError(f"{path} is not a state dictionary (names to tensors). It holds: {keys or 'nothing'}. {way_out}")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


@torch.no_grad()
def check_contract(
    model: nn.Module, shown: Images, num_classes: int, attacked: bool = False, at_least: bool = False
) -> int:
    """The number of outputs of a model in eval mode, which is shown a batch of images, one of them, and two.

    Where it is to be `attacked`, it is shown images that ask for a gradient as well. With `at_least`, it may know more
    classes than `num_classes`, which is 1 + the largest label.

    Raises:
        BenchError: no number could mean anything: the model fails, or its outputs have the wrong shape.
    """
    for size in dict.fromkeys(min(size, len(shown)) for size in (len(shown), 1, 2)):
        images = shown[:size].clone()
        try:
            logits = model(images)
        except Exception as error:
            if size > 2 and ran_out(error):
                continue  # an evaluation goes on with half as many images
            shape = tuple(images.shape)
            raise BenchError(f"the model cannot classify images of shape {shape}: {cause(error)}") from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != size:
            returned = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise BenchError(
                f"the model returned {returned} for {size} image{'s' * (size > 1)}: it must return one row of logits "
                "each, whatever the batch size."
            )
        if not torch.equal(images, shown[:size]):
            raise BenchError(
                "the model changes its input in place: attacks would be judged on other images. Copy it first."
            )
        outputs = logits.shape[1]
        if outputs < num_classes and at_least:
            raise BenchError(
                f"the model returns {outputs} classes; the dataset's labels go up to {num_classes - 1}, which takes "
                f"{num_classes} or more."
            )
        if outputs != num_classes and not at_least:
            raise BenchError(f"the model returns {outputs} classes; the dataset has {num_classes}.")
    if attacked:
        _require_gradients(model, shown[:2])
    return outputs


def _require_gradients(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that fails where gradients are asked for; one without any is for the trust report."""
    leaf = images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = model(leaf)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    except Exception as error:
        raise BenchError(
            f"the model cannot be differentiated: {cause(error)}. Attacks need gradients: keep forward in torch, and "
            "change nothing in place that a gradient needs."
        ) from error
