"""The circumstances of a number: versions, device, threads and precision flags."""

import platform
from importlib import import_module, metadata
from typing import Any

import torch

import bench
from bench.errors import BenchError, cause

_PACKAGES = ("torch", "torchvision", "numpy", "h5py", "pyautoattack", "autoattack")


def describe_environment(device: torch.device, *packages: str) -> dict[str, Any]:
    """Versions, also of more `packages`, device name and precision flags, as plain values; on a CPU the threads too.

    With another number of threads, sums are taken in another order, and round differently.
    """
    versions = {"bench": bench.__version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "versions": versions,
        "device": f"{device.type} ({name})",
        **({"threads": torch.get_num_threads()} if device.type == "cpu" else {}),
        "precision": {
            "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        },
    }


def version_of(*packages: str) -> dict[str, str]:
    """The versions of installed packages, by name."""
    return {package: metadata.version(package) for package in packages}


def optional_package(name: str, extra: str, needed_by: str) -> Any:
    """A package that only some need, imported now.

    Raises:
        BenchError: it is not installed; `extra` of this program installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        reason = "is not installed" if missing else f"cannot be imported ({cause(error)})"
        raise BenchError(
            f"{needed_by} needs the package {name}, which {reason}: pip install 'advbench[{extra}]', or pip install "
            f"'.[{extra}]' in a checkout."
        ) from error
