"""How exactly a training computes, by name, and the switch for TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.errors import BenchError

PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(name: str, device: torch.device) -> None:
    """Refuse a precision that does not exist, or not on this device.

    Raises:
        BenchError: naming the choices.
    """
    if name not in PRECISIONS:
        raise BenchError(f"unknown precision {name!r}. Choose from: {', '.join(PRECISIONS)}.")
    if name == "tf32" and device.type != "cuda":
        raise BenchError(f"precision tf32 exists on CUDA devices only, not on {device.type}. Choose fp32 or bf16.")


@contextmanager
def tensor_floats(allowed: bool) -> Iterator[None]:
    """TF32 on or off: where it is on, recent GPUs round products and convolutions to 10 bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
