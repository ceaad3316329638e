"""Images that stay on disk, and are read, decoded and prepared when they are asked for, as a tensor is indexed."""

import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from bench.errors import BenchError, ran_out
from bench.system.budgets import require_file

REMEMBERED = 2**30
"""Bytes of decoded images that are remembered of a set: a small one is decoded once."""
MOST_AT_ONCE = 2**32
"""Bytes of decoded images that are held at once, where all of a set are needed, as for a training."""
NONE = "none"
_FORM = re.compile(r"(?=.)(?P<bicubic>Bicubic(?=Res))?(?:Res(?P<side>[1-9]\d{0,3}))?(?:Crop(?P<crop>[1-9]\d{0,3}))?")
_DEEP = ("I", "F")
"""How Pillow's names of modes begin that hold more than eight bits a channel, which a conversion would cut off."""

# What Pillow takes for a decompression bomb is refused, and not only said.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@runtime_checkable
class ImageSource(Protocol):
    """Images by number."""

    def opened(self, number: int) -> Any:
        """The image, as Pillow has it; whatever may go wrong is raised."""

    def name(self, number: int) -> str:
        """Its name in a message."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in files."""

    paths: Sequence[str]

    def opened(self, number: int) -> Any:
        require_file(Path(self.paths[number]))
        return Image.open(self.paths[number])

    def name(self, number: int) -> str:
        return self.paths[number]


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to pixels, called as RobustBench calls it (`robustbench.data.PREPROCESSINGS`).

    `Res256Crop224`: the shorter side becomes 256, and the middle 224 x 224 stays. `Crop288`: the middle alone.
    `Res224`: both sides become 224, whatever they were. Sizes change bilinearly, with `Bicubic` in front bicubically,
    as torchvision changes those of Pillow's images. `none`: images are taken as they are, and must be of one size.

    Raises:
        BenchError: the text is none of these.
    """

    text: str = NONE

    def __post_init__(self) -> None:
        if self.text != NONE and _FORM.fullmatch(self.text) is None:
            raise BenchError(
                f"preprocessing {self.text!r} is not {NONE}, or as RobustBench names it: Res256Crop224, "
                "BicubicRes256Crop224, Crop288, Res224, with numbers of pixels up to 9999."
            )

    @property
    def side(self) -> int | None:
        """Height and width of what comes out; None: as it was."""
        found = _FORM.fullmatch(self.text) if self.text != NONE else None
        return None if found is None else int(found["crop"] or found["side"])

    def __call__(self, image: Any) -> Any:
        """The image, resized and cropped; one that is smaller than the crop is refused."""
        found = _FORM.fullmatch(self.text) if self.text != NONE else None
        if found is None:
            return image
        if found["side"]:
            image = _resized(image, int(found["side"]), bool(found["crop"]), bool(found["bicubic"]))
        if found["crop"]:
            image = _middle(image, int(found["crop"]))
        return image


def _resized(image: Any, side: int, keeps_shape: bool, bicubic: bool) -> Any:
    width, height = image.size
    shorter = min(width, height)
    size = (side * width // shorter, side * height // shorter) if keeps_shape else (side, side)
    way = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    return image if size == image.size else image.resize(size, way)


def _middle(image: Any, side: int) -> Any:
    width, height = image.size
    if min(width, height) < side:
        raise ValueError(f"it is {width}x{height}, smaller than the {side}x{side} that are cut out of it")
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


class Remembered:
    """Decoded images of one size by number, as many as `REMEMBERED` bytes hold; the oldest are forgotten first.

    They lie in one tensor: apart, between the tensors that come and go, they would keep many times their size of memory
    from being given back.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._shape = min(count, REMEMBERED // math.prod(shape)), *shape
        self._place: OrderedDict[int, int] = OrderedDict()
        self._pixels: Tensor | None = None

    def get(self, number: int) -> UInt8[Tensor, "channel height width"] | None:
        """The image, if it is known."""
        if self._pixels is None or number not in self._place:
            return None
        self._place.move_to_end(number)
        return self._pixels[self._place[number]]

    def put(self, number: int, image: UInt8[Tensor, "channel height width"]) -> None:
        """Remember an image that is not known."""
        if not self._shape[0] or number in self._place:
            return
        if self._pixels is None:
            self._pixels = torch.empty(self._shape, dtype=torch.uint8)  # takes room as it is filled
        full = len(self._place) == self._shape[0]
        self._place[number] = self._place.popitem(last=False)[1] if full else len(self._place)
        self._pixels[self._place[number]] = image


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images of one shape, in three channels; an index reads those it names. A broken one is refused by its name."""

    source: ImageSource
    size: tuple[int, int]
    """Height and width of all."""
    preprocessing: Preprocessing
    rows: Int64[np.ndarray, " count"]
    """The numbers of the images in `source`."""
    remembered: Remembered
    """Shared by all parts of a set."""
    device: torch.device | str = "cpu"
    """Where pixels are put."""

    @classmethod
    def all_of(
        cls, source: ImageSource, count: int, size: tuple[int, int], preprocessing: Preprocessing
    ) -> "StoredImages":
        """The first `count` images of a source."""
        return cls(source, size, preprocessing, np.arange(count), Remembered(count, (3, *size)))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Count, channels, height and width."""
        return len(self.rows), 3, *self.size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Int64[Tensor, " batch"] | slice) -> UInt8[Tensor, "batch 3 height width"]:
        rows = self.rows[indices if isinstance(indices, slice) else indices.cpu().numpy()]
        found = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        numbers = rows.tolist()
        missing = []
        for place, number in enumerate(numbers):
            image = self.remembered.get(number)
            if image is None:
                missing.append(place)
            else:
                found[place] = image
        for place, image in zip(missing, self._decoded([numbers[place] for place in missing]), strict=True):
            found[place] = image
            self.remembered.put(numbers[place], image)
        return found.to(self.device)

    def chosen(self, rows: Int64[np.ndarray, " chosen"]) -> "StoredImages":
        """The images at these rows, in this order; none is read."""
        return replace(self, rows=self.rows[rows])

    def to(self, device: torch.device | str) -> "StoredImages":
        """The same images, which will be put on another device."""
        return replace(self, device=device)

    def held(self) -> UInt8[Tensor, "count 3 height width"]:
        """All of them.

        Raises:
            BenchError: they take more than `MOST_AT_ONCE` bytes.
        """
        size, most = math.prod(self.shape), MOST_AT_ONCE
        if size > most:
            shape = "x".join(map(str, self.shape[1:]))
            raise BenchError(
                f"{len(self)} images of {shape} take {size / 2**30:.1f} GiB, and at most {most / 2**30:.0f} GiB are "
                f"held in memory at once: take at most {most // (size // len(self))} of them (--limit-train, --limit), "
                "or smaller ones (--preprocessing)."
            )
        return self[slice(None)]

    def _decoded(self, numbers: list[int]) -> Iterable[UInt8[Tensor, "channel height width"]]:
        """The images, decoded by as many threads as torch uses: Pillow works outside Python's lock."""
        threads = min(torch.get_num_threads(), len(numbers))
        if threads < 2:
            return map(self._read, numbers)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._read, numbers))

    def _read(self, number: int) -> UInt8[Tensor, "channel height width"]:
        with _named(self.source, number), self.source.opened(number) as image:
            _require_eight_bits(image)
            pixels = np.asarray(self.preprocessing(image.convert("RGB")))
            if pixels.shape[:2] != self.size:
                height, width = self.size
                raise ValueError(f"it is {pixels.shape[1]}x{pixels.shape[0]}, and others are {width}x{height}")
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@contextmanager
def _named(source: ImageSource, number: int) -> Iterator[None]:
    """Whatever goes wrong inside is a `BenchError` that names the image: Pillow raises many kinds for a damaged one."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BenchError(
            f"{source.name(number)} cannot be used as an image: {reason}. Replace it, or take it away."
        ) from error


def _require_eight_bits(image: Any) -> None:
    if image.mode.startswith(_DEEP):
        raise ValueError(f"it has more than eight bits a channel (mode {image.mode}); save it with eight")


def stored_images(source: ImageSource, count: int, preprocessing: Preprocessing) -> StoredImages:
    """All images of a source. Where they are to be taken as they are, the head of each is read: they share one size.

    Raises:
        BenchError: an image cannot be read, or is of another size than the first.
    """
    side = preprocessing.side
    size = (side, side) if side else _common_size(source, count)
    return StoredImages.all_of(source, count, size, preprocessing)


def _common_size(source: ImageSource, count: int) -> tuple[int, int]:
    first = (1, 1)
    for number in range(count):
        with _named(source, number), source.opened(number) as image:
            width, height = image.size
        if number == 0:
            first = height, width
        elif (height, width) != first:
            raise BenchError(
                f"{source.name(0)} is {first[1]}x{first[0]} and {source.name(number)} {width}x{height}: say how they "
                "become one size, as --preprocessing Res256Crop224."
            )
    return first
