"""A sheet of pictures: one image under every corruption (rows) at every severity (columns)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from bench.data.corruptions import PROCEDURAL, SEVERITIES
from bench.system.files import write_whole

_TILE = 96
"""Pixels that a picture is enlarged to, at most, where it is smaller."""
_GAP = 4
_LABELS = 130
_HEADER = 20


def write_preview(folder: Path, clean: UInt8[np.ndarray, "height width channel"], corruptions: Sequence[str]) -> None:
    """Write `preview.png`: the first image of the folder's arrays, before each row the clean image."""
    zoom = max(1, _TILE // max(clean.shape[:2]))
    height, width = (side * zoom + _GAP for side in clean.shape[:2])
    columns = ["clean", *map(str, SEVERITIES)]
    sheet = Image.new("RGB", (_LABELS + len(columns) * width, _HEADER + len(corruptions) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        pen.text((_LABELS + column * width + width // 2, _HEADER // 2), title, fill="black", anchor="mm")
    for row, name in enumerate(corruptions):
        top = _HEADER + row * height
        title = f"{name}\n(procedural)" if name in PROCEDURAL else name
        pen.multiline_text((_GAP, top + height // 2), title, fill="black", anchor="lm")
        blocks = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        count = len(blocks) // len(SEVERITIES)
        for column, picture in enumerate([clean, *blocks[::count]]):
            tile = np.broadcast_to(picture, (*picture.shape[:2], 3)).repeat(zoom, axis=0).repeat(zoom, axis=1)
            sheet.paste(Image.fromarray(tile), (_LABELS + column * width, top))
    write_whole(folder / "preview.png", lambda path: sheet.save(path, "PNG"))
