"""hf:NAME: an image classifier of transformers, by its name on the Hugging Face Hub or a folder of save_pretrained.

mean, std and the size of images are those of its preprocessor_config.json. Only safetensors are read, and no code of a
repository is run.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.errors import BenchError, cause
from bench.interop.hub import published
from bench.interop.kinds import Brought, Order
from bench.models.weights import building
from bench.system.budgets import read_json
from bench.system.environment import optional_package, version_of

TAKES = frozenset({"download"})
_WEIGHTS = "model*.safetensors"
_PREPROCESSOR = "preprocessor_config.json"
_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""
_HALVES = {torch.float16: ("half",), torch.bfloat16: ("bfloat16",)}


def bring(order: Order) -> Brought:
    """The classifier with all its classes.

    Raises:
        BenchError: transformers is not installed; the files are not here, are damaged, or are of no whole classifier.
    """
    asked = f"hf:{order.name}"
    transformers = optional_package("transformers", "hf", f"model {asked!r}")
    folder, facts = Path(order.name), dict[str, Any](library=version_of("transformers"))
    if not folder.is_dir():
        folder = published(asked, order.name, ["*.json", _WEIGHTS], order.download)
        facts["revision"] = folder.name
    configuration = _read(folder / "config.json")
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        raise BenchError(f"{folder} has no {_WEIGHTS}, and pickles are not read: save it again with save_pretrained.")
    size = sum(file.stat().st_size for file in files)  # a number takes a byte or more
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.callback(transformers.logging.set_verbosity, transformers.logging.get_verbosity())
            transformers.logging.set_verbosity_error()
            for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):  # bars and advice
                stack.enter_context(redirect(io.StringIO()))
            stack.enter_context(building(size, str(folder / "config.json")))
            module, report = transformers.AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except BenchError:
        raise
    except Exception as error:  # many kinds, for damaged files and for models of another task
        raise BenchError(f"{asked} cannot be loaded as an image classifier: {cause(error)}") from error
    lacking = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if lacking:
        raise BenchError(
            f"{asked} is no whole image classifier: {len(lacking)} tensors are missing or of another shape "
            f"({', '.join(sorted(lacking)[:3])}). Give one that was trained to classify."
        )
    adapters, told = preprocessing(folder / _PREPROCESSOR)
    return Brought(
        module=module,
        name=folder.name if Path(order.name).is_dir() else order.name.rpartition("/")[2],
        source=f"hf:{folder.name}" if Path(order.name).is_dir() else asked,
        file=files[0].name,
        identity=configuration,
        facts=facts,
        adapters=(*adapters, *_precision(module), "output=logits"),
        told=told,
    )


def _precision(module: nn.Module) -> tuple[str, ...]:
    return _HALVES.get(next(module.parameters()).dtype, ())


def preprocessing(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adapters that a preprocessor's configuration comes to, and what a person must know of it.

    It takes pixels of 0 to 255, and gives (pixel * rescale_factor - mean) / std.
    """
    if not path.is_file():
        return (), (f"there is no {_PREPROCESSOR}: images stay in [0, 1] (see --adapt normalize=MEAN:STD).",)
    found = _read(path)
    unread = [name for name in ("rescale_offset", "include_top") if found.get(name)]
    if unread:
        return (), (f"{_PREPROCESSOR} sets {', '.join(unread)}, which is not read: give --adapt normalize=MEAN:STD.",)
    try:
        adapters = [f"resize={size},{_mode(found)}" for size in _size(found)]
        scale = 255 * float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 255.0
        scale = 1.0 if math.isclose(scale, 1.0) else scale
        mean, deviation = ([0.0], [1.0])
        if found.get("do_normalize", True):
            mean, deviation = ([float(number) for number in found[name]] for name in ("image_mean", "image_std"))
        if (mean, deviation, scale) != ([0.0], [1.0], 1.0):
            numbers = (",".join(repr(number / scale) for number in values) for values in (mean, deviation))
            adapters.append(f"normalize={':'.join(numbers)}")
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BenchError(f"{path} is damaged: {cause(error)}.") from error
    return tuple(adapters), ()


def _size(found: Mapping[str, Any]) -> list[str]:
    """Of the images that reach the network; nothing where they keep their own."""
    size = found.get("crop_size") if found.get("do_center_crop") else None
    size = size or (found.get("size") if found.get("do_resize", True) else None)
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    if size is None:
        return []
    height, width = (int(side) for side in (size if isinstance(size, list | tuple) else (size, size)))
    return [str(height) if height == width else f"{height}x{width}"]


def _mode(found: Mapping[str, Any]) -> str:
    number = found.get("resample", 2)
    if number not in _MODES:
        raise ValueError(f"resample is {number!r}")
    return _MODES[number]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read: {cause(error)}.") from error
    if not isinstance(found, dict):
        raise BenchError(f"{path} holds no JSON object.")
    return found
