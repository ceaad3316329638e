"""Adversarial images that others found for a row: replayed, and kept beside it with credit.

The file that is sent is an .npz of two arrays: `index`, the numbers of samples in the dataset's test split, and
`images`, floats in [0, 1]. What is kept is an attack file, as `FORMAT.md` describes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engine.adversarials import Adversarials, encode, store_images
from bench.errors import BenchError
from bench.interfaces import Images
from bench.interop.subjects import ModelReference
from bench.results.board_rows import ATTACK_FILE, attack_path, best_known, read_row, row_files
from bench.results.file import RESULT_FILE, EvaluationResult
from bench.results.file import content_digest as result_digest
from bench.submissions.attack_bundle import AttackBundle, open_attack_bundle
from bench.system.budgets import UNREADABLE, read_arrays
from bench.system.files import content_digest
from bench.system.sealed import attribute, store
from bench.text import one_line, time_text

_LONGEST = 200
"""Characters of a name, a method or a link."""


@dataclass(frozen=True)
class Submitted:
    """What came of images that were sent."""

    file: Path | None
    """The attack file; None: no image breaks a sample that stood, and nothing is written."""
    refused: Mapping[int, str]
    """By the place of an image in the file that was sent: why it does not count. Its sample's number is in the text."""
    known: int
    """Images that count, of samples that were broken already."""
    new: int
    """Images that count, of samples that stood."""
    before: float
    """Best-known accuracy of the row in percent, without these images."""
    after: float


def submit_attack(
    file: Path,
    board: Path,
    by: str,
    method: str = "",
    link: str = "",
    reference: ModelReference | None = None,
    device: str = "auto",
) -> Submitted:
    """Replay images on the row of the attack bundle that they lie in, and keep beside the board's row what is new.

    Args:
        file: the images, in a folder of `bench attack-bundle`.
        board: the row, or a folder with it.
        by: who found them.
        method: how.
        link: to a paper or code.
        reference: the row's model; None: the one in the attack bundle.
        device: auto, cpu, cuda, ...

    Raises:
        BenchError: the file holds no images, its folder is no attack bundle, or the board does not have the row.
    """
    credit = {"by": one_line(by), "method": one_line(method), "link": one_line(link)}
    if not credit["by"]:
        raise BenchError("nobody is named: give a name, --by NAME.")
    for name, text in credit.items():
        if len(text) > _LONGEST:
            raise BenchError(f"--{name} has {len(text)} characters: give at most {_LONGEST}.")
    index, images = _sent(file)
    bundle = open_attack_bundle(file.parent, reference, device)
    path = _row_of(board, bundle.result)
    standing = best_known(read_row(path))
    reasons = bundle.replay(index, images)
    rows = bundle.rows(index)
    counting = np.array([reason is None for reason in reasons])
    new = counting & standing[rows]
    before = 100 * float(standing.mean())
    after = before - 100 * int(new.sum()) / len(standing)
    refused = {place: f"sample {index[place]}: {reason}" for place, reason in enumerate(reasons) if reason is not None}
    written = _write(path, bundle, rows[new], images[torch.from_numpy(new)], credit) if new.any() else None
    return Submitted(written, refused, int((counting & ~new).sum()), int(new.sum()), before, after)


def _sent(path: Path) -> tuple[np.ndarray, Images]:
    """Numbers of samples and their images."""
    if not path.exists():
        raise BenchError(f"no file at {str(path)!r}. Give an .npz with `index` and `images`.")
    try:
        found = read_arrays(path, ("index", "images"))
        index, images = found["index"], found["images"]
    except UNREADABLE as error:
        raise BenchError(
            f"{str(path)!r} holds no images: give an .npz with `index` and `images`, as numpy.savez writes it."
        ) from error
    numbers, floats = index.dtype.kind in "iu" and index.ndim == 1, images.dtype.kind == "f" and images.ndim == 4
    if not (numbers and floats and len(index)):
        raise BenchError(
            f"{str(path)!r} holds index {index.dtype}{index.shape} and images {images.dtype}{images.shape}: give whole "
            "numbers (k,) and floats (k, channel, height, width)."
        )
    return index.astype(np.int64), torch.from_numpy(images.astype(np.float32))


def _row_of(board: Path, result: EvaluationResult) -> Path:
    """The file of this result on a board, which may be that file itself."""
    digest = result_digest(result)
    for path in row_files(board) if board.is_dir() else [board]:
        if RESULT_FILE.read(path, lambda file, budget: str(attribute(file, "digest", str))) == digest:
            return path
    raise BenchError(f"{str(board)!r} does not have the row {digest[:16]}. Give the board's folder, or the row itself.")


def _write(path: Path, bundle: AttackBundle, rows: np.ndarray, images: Images, credit: Mapping[str, str]) -> Path:
    """The attack file that these images of different samples are kept in."""
    target, threat = bundle.target, bundle.threat
    images = images.to(target.split.labels.device)
    clean, labels = target.samples(torch.from_numpy(rows).to(images.device))
    kept = encode(images, clean, threat, torch.from_numpy(rows), lambda decoded: target.fooled(decoded, labels))
    # What is recorded is what the model answers to the image that a reader decodes.
    shown = [decoded for _, decoded in kept.images(target.split.to("cpu"), threat, target.at_once)]
    prediction = torch.cat([target.predict(part.to(images.device)).cpu() for part in shown])
    facts = {"result_digest": result_digest(bundle.result), "norm": threat.norm, "epsilon": threat.epsilon, **credit}
    written = attack_path(path, content_digest({**facts, **_tensors(kept)}))

    def fill(file: Any) -> None:
        file.attrs.update(facts, created=time_text())
        store_images(file, kept)
        store(file, "prediction", prediction.numpy().astype("<i2"))

    ATTACK_FILE.write(written, fill, replace=False)
    return written


def _tensors(images: Adversarials) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(values)) for name, values in vars(images).items()}
