"""The circumstances of a number: versions, device, threads and precision flags."""

import platform
from importlib import metadata
from typing import Any

import torch

import bench

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
