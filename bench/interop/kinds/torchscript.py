"""torchscript:FILE: a file of torch.jit.save; its code is run.

An archive of TorchScript is a program: what it computes, reads and writes is its own business, as it is a Python
file's. It is run because a person named it as a model. Tensors and plain values in it are no pickles of Python.
"""

import hashlib
import warnings
from pathlib import Path

import torch

from bench.errors import BenchError, cause
from bench.interop.kinds import Brought, Order
from bench.system.budgets import read_bytes

TAKES: frozenset[str] = frozenset()


def bring(order: Order) -> Brought:
    """The module in the file.

    Raises:
        BenchError: there is no such file, or it holds no module of TorchScript.
    """
    path = Path(order.name)
    if not path.is_file():
        raise BenchError(
            f"no TorchScript file at {path}. Write one with torch.jit.save(torch.jit.trace(model, images))."
        )
    digest = hashlib.sha256(read_bytes(path)).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch calls it so from 2.10 on, and still reads files
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # many kinds, for a damaged or another file
        raise BenchError(
            f"{path} holds no module of TorchScript ({cause(error)[:120]}). Weights alone go with what builds the "
            f"network: --model FILE.py:FACTORY --weights {path}."
        ) from error
    return Brought(module=module, name=path.stem, source=f"torchscript:{path.name}", file=path.name, identity=digest)
