"""Predictions on corrupted test images: one per sample, corruption and severity."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.catalogue.corruption_names import CORRUPTIONS_3D
from bench.catalogue.names import short_name
from bench.data.corruptions.image_sets import NAMES, CorruptedFiles, corrupted_files
from bench.data.corruptions.sets import PUBLISHED, CorruptedSet, load_corrupted
from bench.data.splits import Dataset, Split
from bench.engine.memory import in_pieces
from bench.engine.outcomes import Report
from bench.engine.target import Target
from bench.errors import BenchError
from bench.results.file import CorruptionRecord
from bench.system.blocks import Arrays, PartStore
from bench.system.files import content_digest
from bench.system.signals import to_its_end


def find_corrupted(
    folder: Path | None, dataset: Dataset, samples: Split, corruptions: tuple[str, ...], data: Path
) -> CorruptedSet | CorruptedFiles:
    """The corrupted versions of `samples`, which are test images of the dataset as `Split.take` chooses them.

    They are in `folder`; None: in CIFAR-10-C, CIFAR-100-C, ImageNet-C, ImageNet-3DCC or <dataset>-C in the data folder.

    Raises:
        BenchError: there is no such folder, it lacks a file, or its images are not of these test images.
    """
    found = _standard_folder(dataset.name, data, corruptions) if folder is None else folder
    if any((found / one).is_dir() for one in corruptions):
        return corrupted_files(found, dataset, samples, corruptions)
    corrupted = load_corrupted(found, dataset.name, corruptions)
    held = len(corrupted.labels)
    if held < len(samples):
        raise BenchError(
            f"{found} holds {held} images per severity, fewer than the {len(samples)} to evaluate: add --limit {held}, "
            "or corrupt more."
        )
    made_from = corrupted.manifest.get("samples")
    clean = dataset.test.take(min(held, len(dataset.test)))
    rows = np.searchsorted(clean.positions, samples.positions)
    same = held == len(clean) and (made_from is None or made_from == clean.digest())
    same = same and np.isin(samples.positions, clean.positions).all()
    if not same or (corrupted.labels[rows] != samples.labels.cpu().numpy()).any():
        raise BenchError(f"{found} was not made from the test images of {dataset.name}. Generate it again.")
    return dataclasses.replace(corrupted, rows=rows)


def _standard_folder(dataset: str, data: Path, corruptions: tuple[str, ...]) -> Path:
    kind = dataset.partition(":")[0]
    places = [data / f"{short_name(dataset).removeprefix('npz-')}-C"]
    if dataset in PUBLISHED:
        places.insert(0, data / PUBLISHED[dataset][1])
    if kind in NAMES:
        places = [data / NAMES[kind][corruptions[0] in CORRUPTIONS_3D]]
    for place in places:
        if place.is_dir():
            return place
    raise BenchError(
        f"no corrupted images of {dataset}: there is no {' or '.join(map(str, places))}. Put the published files there "
        f"if there are any, or run: bench data corrupt --dataset {dataset} --data {data} --out {places[-1]}"
    )


def predict_corrupted(
    target: Target, corrupted: CorruptedSet | CorruptedFiles, parts: PartStore, shard: tuple[int, int], report: Report
) -> tuple[dict[str, CorruptionRecord], str]:
    """Predictions by label, and a digest of all images that were shown.

    Args:
        target: the model, in eval mode; its labels are those of the corrupted images.
        corrupted: images to show it, each severity read when its turn comes.
        parts: where finished severities are kept.
        shard: (i, n) shows only every n-th severity, from the i-th; those that others have finished are there as well.
        report: told how many of the images done are right.

    Raises:
        BenchError: a file is missing, damaged or not the one that was generated.
    """
    records, digests = {}, {}
    done = right = 0
    count = len(target.split)
    labels = target.split.labels.cpu().numpy()
    for position, (corruption, severity) in enumerate(corrupted):
        report("corruptions", done, count * len(corrupted), right)
        name = f"{corruption}-{severity}"
        arrays = parts.get(name)
        if arrays is None and position % shard[1] == shard[0]:
            with to_its_end():
                arrays = _predictions(target, corrupted[corruption, severity])
                parts.put(name, arrays)
        done += count
        if arrays is not None:
            right += int((arrays["prediction"] == labels).sum())
            digests[name] = str(arrays["digest"])
            records[name] = CorruptionRecord(corruption, severity, arrays["prediction"], float(arrays["seconds"]))
    report("corruptions", done, count * len(corrupted), right)
    return records, content_digest(digests)


def _predictions(target: Target, split: Split) -> Arrays:
    started = time.perf_counter()
    digest = split.digest()
    shown = split.to(target.split.labels.device)

    def predicted(rows: np.ndarray) -> Tensor:
        return target.predict(shown.images(torch.from_numpy(rows).to(shown.labels.device)))

    blocks = np.split(np.arange(len(split)), range(target.batch_size, len(split), target.batch_size))
    pieces = [piece for block in blocks for piece in in_pieces(block, target, predicted)]
    prediction = torch.cat(pieces).cpu().numpy().astype(np.int16)
    return {"prediction": prediction, "digest": np.array(digest), "seconds": np.array(time.perf_counter() - started)}


def describe_corrupted(corrupted: CorruptedSet | CorruptedFiles) -> dict[str, Any]:
    """For the record: the set's name, whether it was generated, and by what."""
    made_by = {key: corrupted.manifest[key] for key in ("version", "seed", "versions") if key in corrupted.manifest}
    return {"name": corrupted.name, "generated": corrupted.generated, **({"generator": made_by} if made_by else {})}
