"""torchvision:NAME: a classifier of torchvision, such as resnet50.IMAGENET1K_V1, with its weights or --weights.

mean, std and the size of images are those of the weights' own transforms.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from bench.errors import BenchError, cause
from bench.interop.kinds import Brought, Order
from bench.interop.state_dicts import read_state
from bench.models.weights import load_tensors
from bench.system.environment import version_of

TAKES = frozenset({"weights", "download"})


def bring(order: Order) -> Brought:
    """The network with all its classes.

    Raises:
        BenchError: torchvision has no such classifier or weights, or its weights are not here or do not fit.
    """
    models = import_module("torchvision.models")
    name, _, tag = order.name.partition(".")
    known = models.list_models(module=models)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(f'torchvision:{one}' for one in near)}?" if near else ""
        raise BenchError(f"torchvision has no classifier {name!r}.{hint} All: torchvision.models.list_models().")
    choices = models.get_model_weights(name)
    if tag and tag not in choices.__members__:
        raise BenchError(
            f"torchvision has no weights {tag!r} of {name}. Choose from: {', '.join(choices.__members__)}."
        )
    published = choices[tag or "DEFAULT"]
    make = partial(_made, models, name)
    told: tuple[str, ...] = ()
    if order.weights is not None:
        state = read_state(order.weights)
        module = make()
        classes, usual = state.outputs_of(module)
        module = module if classes == usual else make(num_classes=classes)
        told, path = state.load_into(module), order.weights
    else:
        path = _file(order, published)
        try:
            with _read_safely(choices, path):
                module = make(weights=published)
        except BenchError:
            raise
        except Exception as error:
            raise BenchError(
                f"{path} cannot be loaded as torchvision:{order.name}: {cause(error)}. If it is not the "
                "published file, delete it."
            ) from error
    return Brought(
        module=module,
        name=order.weights.stem if order.weights else f"{name}.{published.name}",
        source=f"torchvision:{name}" if order.weights else f"torchvision:{name}.{published.name}",
        file=path.name,
        facts={"library": version_of("torchvision")},
        adapters=_declared(published.transforms()),
        told=told,
    )


def _made(models: Any, name: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of first weights, which are replaced
        module: nn.Module = models.get_model(name, **options)
    return module


def _file(order: Order, published: Any) -> Path:
    """The published file in the cache of torch.hub, downloaded where that is allowed."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(published.url).path).name
    if path.is_file():
        return path
    if not order.download:
        raise BenchError(
            f"torchvision:{order.name} is not on this machine: {published.url} would be downloaded to {path}. Allow it "
            "with --download, put it there, or give --weights FILE."
        )
    prefix = torch.hub.HASH_REGEX.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), prefix and prefix.group(1))
    except Exception as error:  # of the network, the disk, or another file's digest
        raise BenchError(
            f"{published.url} could not be downloaded: {cause(error)}. Put it at {path} by hand."
        ) from error
    return path


@contextmanager
def _read_safely(choices: Any, path: Path) -> Iterator[None]:
    """Torchvision reads its weights from this file, without executing anything; by itself it reads pickles."""
    choices.get_state_dict = lambda weights, *ignored, **options: load_tensors(path)
    try:
        yield
    finally:
        del choices.get_state_dict


def _declared(preset: Any) -> tuple[str, ...]:
    mean, deviation = (",".join(map(repr, values)) for values in (preset.mean, preset.std))
    return f"resize={preset.crop_size[0]},{preset.interpolation.value}", f"normalize={mean}:{deviation}"
