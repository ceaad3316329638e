"""What a run folder shows of its training: which of its files are damaged, and what belongs there.

`history.jsonl`, `last/` and, with held-out images, `best/` follow from the training state, and can be written again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bench.errors import BenchError
from bench.models.checkpoints import Checkpoint, config_text, load_checkpoint, save_checkpoint
from bench.system.files import write_text

Content: TypeAlias = "str | Checkpoint | None"
"""What belongs into a file; None: nobody knows any more."""


def history_text(history: Sequence[Mapping[str, Any]]) -> str:
    """What `history.jsonl` holds: one row per finished epoch."""
    return "".join(json.dumps(row) + "\n" for row in history)


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The last of the epochs, from 1, with the highest PGD accuracy on held-out images; 0 where none were held out."""
    scores = [row["held_out_pgd"] for row in history if "held_out_pgd" in row]
    return max(epoch for epoch, score in enumerate(scores, 1) if score == max(scores)) if scores else 0


def damaged(
    folder: Path, history: Sequence[Mapping[str, Any]], last: Checkpoint, best: Checkpoint | None
) -> dict[Path, Content]:
    """Files that are missing, cannot be read, or are not what the training state says; with what belongs there.

    Args:
        folder: of a run that has its training state.
        history: a row for each finished epoch.
        last: the checkpoint of the last one.
        best: that of the best one, as far as it is known.
    """
    found: dict[Path, Content] = {}
    path = folder / "history.jsonl"
    if _text(path) != history_text(history):
        found[path] = history_text(history)
    epoch = best_epoch(history)
    if epoch:
        best = last if epoch == last.config["epoch"] else best
        found |= _damaged_checkpoint(folder / "best", epoch, best)
    # Comes last: where it is behind the state, all are written again.
    return found | _damaged_checkpoint(folder / "last", last.config["epoch"], last)


def damaged_copy(folder: Path, epochs: int) -> dict[Path, Content]:
    """Beside the last checkpoint of a finished run without a training state, files that are there but unreadable."""
    history, best = folder / "history.jsonl", folder / "best" / "model.safetensors"
    wrong = [history] if history.exists() and not _is_history(_text(history), epochs) else []
    if best.exists() and not _is_readable(best):
        wrong.append(best)
    return dict.fromkeys(wrong)


def write_again(path: Path, content: Content) -> None:
    """Put a file's content where it belongs.

    Raises:
        BenchError: nobody knows it, or the file cannot be written.
    """
    if isinstance(content, Checkpoint):
        save_checkpoint(content, path.parent)
    elif content is not None:
        write_text(path, content)
    elif path.exists():
        raise BenchError(
            f"{path} is damaged, and no training state holds what belongs there: delete it to do without, or delete "
            f"{path.parent if path.name == 'history.jsonl' else path.parent.parent} and train again."
        )


def _damaged_checkpoint(place: Path, epoch: int, expected: Checkpoint | None) -> dict[Path, Content]:
    path, copy = place / "model.safetensors", place / "config.json"
    try:
        found = load_checkpoint(path)
    except BenchError:
        known = expected is not None or path.exists()
        return {path: expected} if known else {}  # what is gone, and cannot be made again, is done without
    if found.config["epoch"] != epoch or (expected is not None and not _same_weights(found, expected)):
        return {path: expected}
    config = config_text(found)
    return {} if _text(copy) == config else {copy: config}


def _same_weights(found: Checkpoint, expected: Checkpoint) -> bool:
    return found.weights.keys() == expected.weights.keys() and all(
        torch.equal(tensor, expected.weights[name].cpu()) for name, tensor in found.weights.items()
    )


def _is_readable(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except BenchError:
        return False
    return True


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _is_history(text: str | None, epochs: int) -> bool:
    try:
        rows = [json.loads(line) for line in (text or "").splitlines()]
        return [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    except (KeyError, RecursionError, TypeError, ValueError):
        return False
