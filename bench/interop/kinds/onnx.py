"""onnx:FILE: a network of ONNX, converted to torch so that it has gradients.

By onnx2pytorch (https://github.com/Talmaj/onnx2pytorch): of the converters the one with releases in 2026, whose tests
compare every operator of every opset with a runtime. A file of ONNX is data: a graph of known operators and their
numbers. Numbers that lie in a file beside it are read from its folder alone.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.errors import BenchError, cause
from bench.interop.kinds import Brought, Order
from bench.system.budgets import read_bytes
from bench.system.environment import optional_package, version_of

TAKES: frozenset[str] = frozenset()


def bring(order: Order) -> Brought:
    """The network in the file, as a module.

    Raises:
        BenchError: a package is not installed; the file is missing, damaged, has several inputs or operators that the
            converter does not know; or it was exported for one batch size.
    """
    onnx, converter = (
        optional_package(name, "onnx", f"model 'onnx:{order.name}'") for name in ("onnx", "onnx2pytorch")
    )
    path = Path(order.name)
    if not path.is_file():
        raise BenchError(f"no ONNX file at {path}.")
    digest = hashlib.sha256(read_bytes(path)).hexdigest()
    try:
        graph = onnx.load(str(path))
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf's and others'
        raise BenchError(f"{path} is not a usable ONNX file: {cause(error)[:200]}. Export it again.") from error
    images, *more = _inputs(graph)
    if more:
        raise BenchError(
            f"{path} takes {1 + len(more)} inputs ({images.name}, {more[0].name}, ...); give one of images."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = converter.ConvertModel(graph).eval()
    except Exception as error:
        raise BenchError(
            f"{path} cannot be converted to torch: {cause(error)}. Give the module that it was exported from instead: "
            "FILE.py:FACTORY."
        ) from error
    # Its Slice and Gather index by a list at every pass, which a later torch will refuse.
    warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing", UserWarning)
    _require_any_batch(module, [size.dim_value for size in images.type.tensor_type.shape.dim], path)
    return Brought(
        module=module,
        name=path.stem,
        source=f"onnx:{path.name}",
        file=path.name,
        identity=digest,
        facts={"library": version_of("onnx", "onnx2pytorch")},
    )


def _inputs(graph: Any) -> list[Any]:
    """What the network is given; older files list their numbers among the inputs."""
    known = {tensor.name for tensor in graph.graph.initializer}
    return [one for one in graph.graph.input if one.name not in known] or [None]


@torch.no_grad()
def _require_any_batch(module: nn.Module, declared: list[int], path: Path) -> None:
    """Refuse a network that was exported for so many images and can take no other number."""
    batch, *shape = declared or [0]
    if not batch or not all(shape):
        return
    try:
        module(torch.zeros(batch + 1, *shape))
    except Exception as error:
        raise BenchError(
            f"{path} takes {batch} image{'s' * (batch > 1)} at a time and no other number: export it with "
            "dynamic_axes={'images': {0: 'batch'}} or dynamic_shapes."
        ) from error
