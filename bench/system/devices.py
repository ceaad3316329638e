"""Which device computes, and how exactly: precisions by name, whether bfloat16 is worth its rounding here, TF32."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch
from torch.nn import functional

from bench.errors import BenchError

PRECISIONS = ("fp32", "tf32", "bf16")
AUTOMATIC = ("fp32", "tf32")
"""What the precision `auto` comes to: off and on CUDA."""
SLOW = 1.5
"""Times float32's time: bfloat16 that takes as long is not worth its rounding; less may be a busy machine's noise."""


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one, and one that does not exist here is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BenchError(
            f"device {name!r} is not available here. Choose auto, cpu, or cuda where there is one."
        ) from error
    return device


def training_precision(name: str, device: torch.device) -> str:
    """The precision of this name; `auto` is float32, on CUDA with TF32, as torch's own convolutions are there.

    Raises:
        BenchError: it does not exist, or not on this device.
    """
    if name == "auto":
        return AUTOMATIC[device.type == "cuda"]
    if name not in PRECISIONS:
        raise BenchError(f"unknown precision {name!r}. Choose from: auto, {', '.join(PRECISIONS)}.")
    if name == "tf32" and device.type != "cuda":
        raise BenchError(f"precision tf32 exists on CUDA devices only, not on {device.type}. Choose fp32 or bf16.")
    return name


def warning_of_slow_bfloat16(device: torch.device) -> str | None:
    """A line for whoever is about to compute in bfloat16 on a processor that has no instructions for it; else None."""
    if device.type != "cpu" or (times := bfloat16_slowness()) < SLOW:
        return None
    return (
        f"warning: bfloat16 takes {times:.1f} times as long as float32 on this processor (a small convolution, "
        "measured). Leave out --precision bf16 to compute in float32."
    )


@cache
def bfloat16_slowness() -> float:
    """How many times the seconds of float32 a small convolution and its gradient take in bfloat16 on this processor."""

    def seconds(dtype: torch.dtype) -> float:
        images = torch.ones(8, 16, 16, 16, dtype=dtype, requires_grad=True)
        weight = torch.ones(16, 16, 3, 3, dtype=dtype)
        started = time.perf_counter()
        torch.autograd.grad(functional.conv2d(images, weight, padding=1).sum(), images)
        return time.perf_counter() - started

    full, half = (min(seconds(dtype) for _ in range(6)) for dtype in (torch.float32, torch.bfloat16))
    return half / full


@contextmanager
def training_arithmetic(precision: str, deterministic: bool = False) -> Iterator[None]:
    """Computing as a training of this precision does: TF32 unless it is fp32; `convolution_choice`."""
    with tensor_floats(allowed=precision != "fp32"), convolution_choice(deterministic):
        yield


@contextmanager
def convolution_choice(deterministic: bool) -> Iterator[None]:
    """On CUDA the fastest algorithm for each shape, as measured at its first use; or, everywhere, deterministic ones.

    Of those the same operations give the same bits, at the cost of their speed, and an operation that has none raises.
    A CPU's are deterministic anyway.
    """
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not deterministic, deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first use
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


@contextmanager
def tensor_floats(allowed: bool) -> Iterator[None]:
    """TF32 on or off: where it is on, recent GPUs round products and convolutions to 10 bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def full_float32() -> AbstractContextManager[None]:
    """No TF32."""
    return tensor_floats(allowed=False)
