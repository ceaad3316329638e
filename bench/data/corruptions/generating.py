"""Corrupted test sets written to disk: in parallel, resumable, and marked as generated."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

import bench
from bench.catalogue.corruption_names import ALL_CORRUPTIONS
from bench.data.corruptions import GENERATOR_VERSION, PROCEDURAL, SEVERITIES, corrupt, require_corruption
from bench.errors import BenchError
from bench.launching import multiprocessing_starts
from bench.system.blocks import PartStore
from bench.system.files import clear_temporaries, write_text, write_whole
from bench.system.locks import sole_writer

if TYPE_CHECKING:
    from bench.data.splits import Split

Report: TypeAlias = Callable[[int, int], None]
"""Called with the number of images done and the number wanted."""

CHUNK = 500 * 32 * 32 * 3
"""Values that are corrupted together: bounds memory; results do not depend on it."""
_PACKAGES = ("numpy", "scipy", "pillow")
_CLEAN, _POSITIONS = ".clean.npy", ".positions.npy"


@dataclass(frozen=True)
class GenerationRequest:
    """Images to corrupt, and where to write them."""

    dataset: str
    out: Path
    data: Path = Path("data")
    limit: int | None = None
    """So many test images, as `Split.take` chooses them; None: all."""
    seed: int = 0
    corruptions: tuple[str, ...] = ALL_CORRUPTIONS
    processes: int = 1


def generate(request: GenerationRequest, report: Report = lambda done, total: None) -> list[str]:
    """Write a folder in the layout of CIFAR-10-C, with `generated.json` and `preview.png`.

    Returns the corruptions that were written; those that a folder of the same images, seed and versions already holds
    are kept.

    Raises:
        BenchError: bad input, a folder that holds something else, or another process that writes there.
    """
    from bench.data.datasets import load_dataset

    for name in request.corruptions:
        require_corruption(name)
    test = load_dataset(request.dataset, request.data).test
    split = test if request.limit is None else test.take(request.limit)
    images = whole_levels(split)
    corrupt(images[:1], "contrast", 1)  # refuses what no corruption takes before anything is written
    with sole_writer(request.out):
        clear_temporaries(request.out)
        return _written(request, split, images, report)


def _written(
    request: GenerationRequest, split: "Split", images: UInt8[np.ndarray, "count height width channel"], report: Report
) -> list[str]:
    """Write what is missing; returns the corruptions that were."""
    from bench.data.corruptions.preview import write_preview
    from bench.data.corruptions.sets import MANIFEST

    manifest = _claimed(request.out, _identity(request, split))
    labels = np.tile(split.labels.numpy(), len(SEVERITIES))
    _write_array(request.out / "labels.npy", labels.astype(np.uint8 if labels.max() < 256 else np.int64))
    wanted = [name for name in request.corruptions if not _is_finished(request, name)]
    for name in manifest["blocks"].keys() - set(wanted):  # their writer may have been killed before it cleared up
        _parts(request.out, name, manifest).clear()
    _write_array(request.out / _CLEAN, images)
    _write_array(request.out / _POSITIONS, split.positions)
    for name in _finished(request, manifest, wanted, report):
        manifest["blocks"][name] = _assembled(request.out, name, manifest)
        write_text(request.out / MANIFEST, json.dumps(manifest, indent=1))
        _parts(request.out, name, manifest).clear()
    for name in (_CLEAN, _POSITIONS):
        (request.out / name).unlink(missing_ok=True)
    write_preview(request.out, images[0], [name for name in ALL_CORRUPTIONS if name in manifest["blocks"]])
    return wanted


def whole_levels(split: "Split") -> UInt8[np.ndarray, "count height width channel"]:
    """A split's images as NHWC levels 0..255, rounded where the split has fewer levels."""
    pixels = split.held().numpy().transpose(0, 2, 3, 1)
    return np.rint(pixels.astype(np.float32) * (255 / split.levels)).astype(np.uint8)


def _identity(request: GenerationRequest, split: "Split") -> dict[str, Any]:
    """Everything that the images depend on."""
    from bench.data.corruptions.sets import FORMAT, labels_digest

    return {
        "generated": True,
        "format": FORMAT,
        "version": GENERATOR_VERSION,
        "dataset": request.dataset,
        "samples": split.digest(),
        "labels": labels_digest(split.labels.numpy()),
        "count": len(split),
        "seed": request.seed,
        "procedural": list(PROCEDURAL),
        "versions": {"bench": bench.__version__, **{name: metadata.version(name) for name in _PACKAGES}},
    }


def _claimed(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's manifest; a new one, if the folder holds no arrays."""
    from bench.data.corruptions.sets import MANIFEST, read_manifest

    manifest = read_manifest(folder)
    if not manifest:
        if any(folder.glob("*.npy")):
            raise BenchError(f"{folder} holds arrays that were not generated here. Give another --out.")
        manifest = {**identity, "blocks": {}}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    others = [key for key, value in identity.items() if manifest.get(key) != value]
    if others:
        raise BenchError(
            f"{folder} holds another set (different {', '.join(others)}). Delete it or give another --out."
        )
    return manifest


def _is_finished(request: GenerationRequest, name: str) -> bool:
    from bench.data.corruptions.sets import load_corrupted

    try:
        return all(len(split) for _, split in load_corrupted(request.out, request.dataset, (name,)).items())
    except BenchError:
        return False


def _finished(
    request: GenerationRequest, manifest: Mapping[str, Any], wanted: list[str], report: Report
) -> Iterator[str]:
    """Makes every block of the wanted corruptions, and names a corruption when its last block is there."""
    tasks = [(name, severity) for name in wanted for severity in SEVERITIES]
    make = partial(_make_block, request.out, manifest)
    missing = {name: len(SEVERITIES) for name in wanted}
    count = manifest["count"]
    report(0, count * len(tasks))
    for done, name in enumerate(_run(make, tasks, request.processes), start=1):
        report(count * done, count * len(tasks))
        missing[name] -= 1
        if not missing[name]:
            yield name


def _run(make: Callable[[str, int], str], tasks: list[tuple[str, int]], processes: int) -> Iterator[str]:
    if processes == 1 or not tasks:
        yield from (make(*task) for task in tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    leave_interrupts_to_us = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing_starts():
        executor = ProcessPoolExecutor(min(processes, len(tasks)), spawn, signal.signal, leave_interrupts_to_us)
    try:
        with multiprocessing_starts():
            futures = [executor.submit(make, *task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise BenchError(
            "a process was ended from outside, perhaps for want of memory. The same command goes on: take fewer "
            "--processes."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _make_block(folder: Path, manifest: Mapping[str, Any], name: str, severity: int) -> str:
    """One corruption at one severity, as a part on disk, unless it is there."""
    parts = _parts(folder, name, manifest)
    if parts.get(str(severity)) is None:
        clean = np.load(folder / _CLEAN, mmap_mode="r", allow_pickle=False)
        positions = np.load(folder / _POSITIONS, allow_pickle=False)
        size = max(1, CHUNK // clean[0].size)
        chunks = [slice(start, start + size) for start in range(0, len(clean), size)]
        blocks = [
            corrupt(np.asarray(clean[chunk]), name, severity, manifest["seed"], positions[chunk]) for chunk in chunks
        ]
        parts.put(str(severity), {"images": np.concatenate(blocks)})
    return name


def _assembled(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Writes a corruption's file from its parts; returns their digests by severity."""
    from bench.data.corruptions.sets import block_digest

    parts = [_parts(folder, name, manifest).get(str(severity)) for severity in SEVERITIES]
    blocks = [part["images"] for part in parts if part is not None]
    if len(blocks) < len(SEVERITIES):
        raise BenchError(f"parts of {name} vanished from {folder} meanwhile. Give the same command again.")
    _write_array(folder / f"{name}.npy", np.concatenate(blocks))
    return {str(severity): block_digest(block) for severity, block in zip(SEVERITIES, blocks, strict=True)}


def _parts(folder: Path, name: str, manifest: Mapping[str, Any]) -> PartStore:
    identity = {key: value for key, value in manifest.items() if key != "blocks"}
    return PartStore(folder / f"{name}.npy", identity)


def _write_array(path: Path, array: np.ndarray) -> None:
    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    write_whole(path, save)
