"""Corrupted images as files, in the layout of ImageNet-C and ImageNet-3DCC: CORRUPTION/SEVERITY/CLASS/FILE.

The file of a corrupted image is called as that of the clean one, up to its ending. It goes through the same
preprocessing, as RobustBench has it: images of 224 x 224 too are made larger and cut by `Res256Crop224`.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from bench.catalogue.corruption_names import ALL_CORRUPTIONS, CORRUPTIONS_3D
from bench.data.corruptions import SEVERITIES
from bench.data.splits import Dataset, Split
from bench.data.stored_images import ImageFiles, StoredImages
from bench.errors import BenchError, unknown_name
from bench.system.files import content_digest

NAMES = {"imagenet": ("ImageNet-C", "ImageNet-3DCC")}
"""Of published sets, by the clean one: of common corruptions, of those in three dimensions."""


@dataclass(frozen=True, eq=False)
class CorruptedFiles:
    """Test images under corruptions, in files: as a `bench.data.corruptions.sets.CorruptedSet`, read when asked for."""

    name: str
    folder: Path
    corruptions: tuple[str, ...]
    samples: Split
    """The clean images."""
    places: tuple[str, ...]
    """CLASS/FILE of each, without the ending."""
    generated: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Integer[np.ndarray, " count"]:
        """Of the images of one severity."""
        return self.samples.labels.cpu().numpy()

    def __len__(self) -> int:
        return len(self.corruptions) * len(SEVERITIES)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((corruption, severity) for corruption in self.corruptions for severity in SEVERITIES)

    def __getitem__(self, key: tuple[str, int]) -> Split:
        """The images of one corruption and severity.

        Raises:
            KeyError: it is not among the keys.
            BenchError: a file is missing.
        """
        if key not in iter(self):
            raise KeyError(key)
        pixels = self.samples.pixels
        assert isinstance(pixels, StoredImages)
        paths = self._paths(*key)
        read = StoredImages.all_of(ImageFiles(paths), len(paths), pixels.size, pixels.preprocessing)
        return dataclasses.replace(self.samples, pixels=read.to(pixels.device))

    def identity(self) -> dict[str, Any]:
        """Facts that tell one folder from another without reading its images."""
        sizes: dict[str, list[int]] = {}
        for corruption, severity in self:
            found = [os.stat(path) for path in self._paths(corruption, severity)]  # noqa: PTH116 - many
            sizes[f"{corruption}-{severity}"] = [number for one in found for number in (one.st_size, one.st_mtime_ns)]
        return {"name": self.name, "corruptions": list(self.corruptions), "files": content_digest(sizes)}

    def _paths(self, corruption: str, severity: int) -> list[str]:
        folder = self.folder / corruption / str(severity)
        there = {
            f"{one}/{os.path.splitext(entry)[0]}": entry  # noqa: PTH122 - many
            for one in {place.partition("/")[0] for place in self.places}
            for entry in _entries(folder / one)
        }
        missing = [place for place in self.places if place not in there]
        if missing:
            raise BenchError(
                f"{folder} lacks {len(missing)} of {len(self.places)} images; the first is {missing[0]}.*. It is to "
                "hold CLASS/FILE as the clean images have them: unpack the published archive again, or add --limit."
            )
        return [str(folder / place.partition("/")[0] / there[place]) for place in self.places]


def corrupted_files(folder: Path, dataset: Dataset, samples: Split, corruptions: tuple[str, ...]) -> CorruptedFiles:
    """The versions of some test images of a dataset of image files in a folder of the layout above.

    Raises:
        BenchError: the dataset is not one of image files, or a corruption is unknown or not there.
    """
    for corruption in corruptions:
        if corruption not in (*ALL_CORRUPTIONS, *CORRUPTIONS_3D):
            raise unknown_name("corruption", corruption, (*ALL_CORRUPTIONS, *CORRUPTIONS_3D))
    pixels = samples.pixels
    if not isinstance(pixels, StoredImages) or not isinstance(pixels.source, ImageFiles):
        raise BenchError(f"{folder} holds image files, and {dataset.name} none that they could be versions of.")
    missing = [one for one in corruptions if not (folder / one).is_dir()]
    if missing:
        raise BenchError(f"{folder} has no folder {', '.join(missing)}. Put the published images there.")
    labels: Int64[np.ndarray, " count"] = samples.labels.cpu().numpy()
    paths = [pixels.source.paths[row] for row in pixels.rows.tolist()]
    places = tuple(
        f"{dataset.class_names[label]}/{Path(path).stem}" for label, path in zip(labels.tolist(), paths, strict=True)
    )
    kind = dataset.name.partition(":")[0]
    published = NAMES.get(kind, (f"{kind}-C", f"{kind}-3DCC"))
    return CorruptedFiles(published[corruptions[0] in CORRUPTIONS_3D], folder, corruptions, samples, places)


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - many
    except OSError:
        return []
