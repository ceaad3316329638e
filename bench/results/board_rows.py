"""The rows of a board folder: result files, and what lies beside each of them. `FORMAT.md` describes the files.

`at.h5` may have `at.checked.json` beside it, which says who checked what, and any number of `at.<8 digits>.attack`:
adversarial images that others found for the row after its evaluation. No other file names them: a board folder is files
that can be copied, and merged by git.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Int64

from bench.catalogue.names import ADVERSARIALS
from bench.errors import BenchError
from bench.radii import exact
from bench.results.file import AttackRecord, EvaluationResult, content_digest, read_result
from bench.results.metrics import Outcomes, main_threat, worst_case
from bench.system.budgets import Budget, read_json
from bench.system.sealed import SealedFormat, array, attribute

ATTACK_FILE = SealedFormat("bench-attack", 1, on_disk=True)
ATTACK, CHECKED = ".attack", ".checked.json"
MANIFEST = "bundle.json"
"""In a folder with this file a result is a copy that is sent, or taken to be attacked: it is no row there."""
CHECKED_FORMAT, CHECKED_VERSION = "bench-checked", 1
CREDIT = ("by", "method", "link", "created")
"""Attributes of an attack file that say whose images it holds."""


@dataclass(frozen=True, eq=False)
class Found:
    """Adversarial images that somebody found for a row after its evaluation, and gave the board."""

    by: str
    method: str
    link: str
    created: str
    """ISO 8601."""
    norm: str
    epsilon: str
    prediction: Int16[np.ndarray, " sample"]
    """Per sample of the row: the class of its image; the label, where there is none."""
    file: Path

    @property
    def record(self) -> AttackRecord:
        """The same as the outcome of an attack."""
        return AttackRecord(
            label=f"found by {self.by}",
            attack="found",
            parameters={},
            norm=self.norm,
            epsilon=self.epsilon,
            objective="default",
            prediction=self.prediction,
            final_prediction=None,
            distance=np.zeros(len(self.prediction), np.float32),
            seconds=0.0,
        )


@dataclass(frozen=True, eq=False)
class BoardRow(EvaluationResult):
    """A result with what lies beside its file; the outcomes are those of the evaluation alone."""

    found: tuple[Found, ...] = ()
    checked: Mapping[str, Any] | None = None
    """The record of its check, as FORMAT.md says; None: nobody checked it."""
    beside_found: bool = False
    """True where others found images for a row of the same board: then its best-known accuracy is shown."""


def read_row(path: Path) -> EvaluationResult:
    """The result in a file, as a `BoardRow` where something lies beside it.

    Raises:
        BenchError: as `read_result`; or what lies beside it is damaged, or of another result.
    """
    result = read_result(path)
    attacks = [file for file in sorted(path.parent.iterdir()) if _is_attack(file.name, path.stem)]
    check = path.with_name(f"{path.stem}{CHECKED}")
    if not attacks and not check.is_file():
        return result
    digest = content_digest(result)
    found = tuple(_read_found(file, result, digest) for file in attacks)
    checked = _read_checked(check, digest) if check.is_file() else None
    return BoardRow(**vars(result), found=found, checked=checked)


def row_files(folder: Path) -> list[Path]:
    """The result files in a folder and below it, without the files of images beside them, and without bundles."""
    files = (file for file in folder.rglob("*.h5") if not file.name.endswith(ADVERSARIALS))
    return sorted(file for file in files if not (file.parent / MANIFEST).exists())


def attack_path(row: Path, digest: str) -> Path:
    """Where images that others found for a row are, by the digest of what they are."""
    return row.with_name(f"{row.stem}.{digest[:8]}{ATTACK}")


def _is_attack(name: str, stem: str) -> bool:
    return name.startswith(stem) and bool(re.fullmatch(rf"\.[0-9a-f]{{8}}{re.escape(ATTACK)}", name[len(stem) :]))


def found_since(result: EvaluationResult) -> tuple[Found, ...]:
    """What others found for a row; nothing for a result that is on no board."""
    return result.found if isinstance(result, BoardRow) else ()


def of_one_board(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """The results of a board: where others found images for one of them, every row has a best-known accuracy."""
    if not any(map(found_since, results)):
        return list(results)
    return [BoardRow(**{**vars(result), "beside_found": True}) for result in results]


def best_known(result: EvaluationResult) -> Outcomes:
    """Per sample: right clean, under every attack inside the main threat model, and under all that others found.

    Raises:
        BenchError: the result has no attacks.
    """
    threat = main_threat(result)
    if threat is None:
        raise BenchError("the result holds no attacks: nothing is known of it under any. Give a row of attacks.")
    inside = [label for label, record in result.attacks.items() if _inside(record.norm, record.epsilon, threat)]
    standing = worst_case(result, inside)
    for found in found_since(result):
        standing = standing & (found.prediction == result.label)
    return standing


def _inside(norm: str, epsilon: str, threat: tuple[Any, Any]) -> bool:
    """True if every image of a ball is in the main threat model's; a radius that is no number holds none."""
    try:
        return bool(norm == threat[0] and exact(epsilon) <= exact(str(threat[1])))
    except (ValueError, ZeroDivisionError):
        return False


def _read_found(path: Path, result: EvaluationResult, digest: str) -> Found:
    """The outcomes of an attack file; its images stay on disk."""

    def take(file: Any, budget: Budget) -> Found:
        if attribute(file, "result_digest", str) != digest:
            raise BenchError("its images were found for another result. Move it to the row that it is of.")
        facts: dict[str, str] = {name: attribute(file, name, str) for name in (*CREDIT, "norm", "epsilon")}
        coded, exact_rows = (array(file, name, "<i8", (None,), budget) for name in ("row", "exact_row"))
        rows = np.concatenate([coded, exact_rows])
        classes = array(file, "prediction", "<i2", (len(rows),), budget)
        known = _inside(facts["norm"], facts["epsilon"], main_threat(result) or (None, None))
        if not known or not _name_broken_samples(rows, classes, result):
            raise BenchError("it names samples or a radius that the row does not have. Submit the images again.")
        prediction = result.label.copy()
        prediction[rows] = classes
        return Found(**facts, prediction=prediction, file=path)

    return ATTACK_FILE.read(path, take)


def _name_broken_samples(
    rows: Int64[np.ndarray, " found"], classes: Int16[np.ndarray, " found"], result: EvaluationResult
) -> bool:
    """True if rows are different samples that are right clean, each with another class than its label."""
    if len(np.unique(rows)) < len(rows) or (rows < 0).any() or (rows >= len(result.label)).any():
        return False
    right = result.clean_prediction[rows] == result.label[rows]
    return bool((right & (classes >= 0) & (classes != result.label[rows])).all())


def _read_checked(path: Path, digest: str) -> dict[str, Any]:
    try:
        content = read_json(path)
        stated = {name: content[name] for name in ("format", "version", "row")}
        texts = [content[name] for name in ("by", "created")]
        lists = [content[name] for name in ("checks", "again")]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise BenchError(f"{path} does not say who checked what. Check the row again: bench board check.") from None
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, list) for one in lists):
        raise BenchError(f"{path} does not say who checked what. Check the row again: bench board check.")
    if stated != {"format": CHECKED_FORMAT, "version": CHECKED_VERSION, "row": digest}:
        raise BenchError(f"{path} is of another row, or of another version. Check the row again: bench board check.")
    return dict(content)
