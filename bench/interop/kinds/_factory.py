"""FILE.py:FACTORY: a function or class of your own that returns a torch module; its code is run.

The kind without a prefix: what is named like no other kind.
"""

from pathlib import Path

from torch import nn

from bench.catalogue.plugins import load_python_file
from bench.errors import BenchError, cause
from bench.interop.kinds import Brought, Order, forms
from bench.interop.state_dicts import load_weights

TAKES = frozenset({"weights"})

_OTHERS = {
    ".onnx": "onnx:{0}",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".safetensors"), "FILE.py:FACTORY --weights {0}"),
    **dict.fromkeys((".ts", ".jit"), "torchscript:{0}"),
}
"""What a file of this ending may be named as."""


def bring(order: Order) -> Brought:
    """The module that `path/to/file.py:factory` makes, with weights loaded into it. Runs the file's code.

    Raises:
        BenchError: the reference, the file, the factory or the weights cannot be used.
    """
    path, separator, factory = order.name.rpartition(":")
    if not separator or not path.endswith(".py"):
        other = _OTHERS.get(Path(order.name).suffix.lower())
        hint = f" For such a file: --model {other.format(order.name)}." if other else ""
        raise BenchError(
            f"model {order.name!r} is not FILE.py:FACTORY, such as models/mine.py:make_model, nor any of "
            f"{', '.join(forms()[1:])}, nor a folder.{hint}"
        )
    module = load_python_file(Path(path))
    make = getattr(module, factory, None)
    if not callable(make):
        names = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise BenchError(f"{path} has no function or class {factory!r}. It has: {names or 'none'}.")
    try:
        model = make()
    except Exception as error:
        raise BenchError(f"{order.name}() failed: {cause(error)}") from error
    if not isinstance(model, nn.Module):
        raise BenchError(f"{order.name}() made a {type(model).__name__}; it must return a torch.nn.Module.")
    weights = order.weights
    return Brought(
        module=model,
        name=weights.stem if weights else factory,
        source=f"{Path(path).name}:{factory}",
        file=weights.name if weights else None,
        told=() if weights is None else load_weights(model, weights),
    )
