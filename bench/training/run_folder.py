"""The files of one run, which a training leaves, goes on from, and mends.

`training_state.pt` is what a resumed run reads. `history.jsonl`, `last/`, with held-out images `best/`, and with
averaged weights `average/` follow from it, and can be written again.
"""

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bench.catalogue.names import CHECKPOINTS
from bench.catalogue.plugins import Kind, find
from bench.errors import BenchError
from bench.models.checkpoints import (
    Checkpoint,
    config_text,
    load_checkpoint,
    load_training_state,
    older_state,
    save_checkpoint,
    save_training_state,
)
from bench.results.trainings import recorded_protocol
from bench.system.files import clear_temporaries, require_writable, write_text
from bench.system.heartbeat import sign_of_training
from bench.training.averaged_weights import averaged_weights

PLUGIN_KINDS: tuple[Kind, ...] = ("defense", "backbone", "augmentation")
"""Of the files that a training runs."""
Content: TypeAlias = "str | Checkpoint | None"
"""The content that belongs into a file; None: nobody knows it any more."""


@dataclass
class _OnDisk:
    """What is known of a folder's files."""

    there: bool = False
    """A training state is."""
    sound: bool = True
    """It can be read."""
    best: int = 0
    """The epoch in `best`."""


class RunFolder:
    """The folder of a run of this `config`, and how far it has come; `say` is told of damaged files, in one line."""

    def __init__(self, path: Path, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.path, self.config, self.say = path, dict(config), say
        self.epochs = int(config["protocol"]["epochs"])
        self.finished = 0
        """Number of epochs that are done."""
        self.history: list[dict[str, Any]] = []
        """A row for each of them; none where a finished run has no training state."""
        self.weights: Mapping[str, Tensor] = {}
        """Of the last of them."""
        self.average: Mapping[str, Tensor] | None = None
        """Averaged weights, likewise; None: there are none."""
        self.best: Checkpoint | None = None
        """Of the best epoch on held-out images, as far as it is known."""
        self._state: Mapping[str, Any] = {}
        self._on_disk = _OnDisk()

    def restore(self, resume: bool) -> dict[str, Any] | None:
        """Take over what the folder holds; return its training state.

        None: the run is new, or it is finished and its training state is gone.

        Raises:
            BenchError: the folder holds another run, an unfinished one and `resume` is False, or an unfinished one
                without its training state.
        """
        state = self._stored_state(resume)
        self._on_disk.there = state is not None
        if state is None:
            self.finished = self._epochs_without_a_state()
            return None
        finished = len(state["history"])
        self.refuse_another(state["config"], finished == self.epochs)
        if finished < self.epochs and not resume:
            raise BenchError(
                f"{self.path} holds {finished} of {self.epochs} epochs of this run: add --resume to continue it."
            )
        self._keep_environments(state["config"], finished)
        self.finished, self.history, self.weights = finished, list(state["history"]), state["model"]
        self.average = averaged_weights(state)
        if "best" in state:
            self.best = Checkpoint(**state["best"])
            self._on_disk.best = self.best.config["epoch"]
        return state

    def refuse_another(self, stored: Mapping[str, Any], finished: bool) -> None:
        """Refuse a stored configuration of another run, or of another version of a plug-in's file.

        So is one that was watched otherwise, unless it is finished and nobody asks to watch it.
        """
        ours, theirs = identity(self.config), identity(stored)
        plugins = {**ours, "augmentation": ours["protocol"].get("augmentation")}
        different = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if different:
            raise BenchError(
                f"{self.path} holds another run (different {', '.join(different)}): "
                "choose another folder with --out or --runs."
            )
        for kind in PLUGIN_KINDS:
            sources = {config.get(f"{kind}_sha256") for config in (self.config, stored)}
            if None not in sources and len(sources) > 1:  # runs of older versions do not say
                file = inspect.getfile(find(kind, str(plugins[kind])))
                raise BenchError(
                    f"{self.path} was trained with another version of {file}: undo the edit, or choose another folder "
                    "with --out or --runs."
                )
        watch, before = self.config.get("watch"), stored.get("watch")
        if watch != before and not (finished and watch is None):
            given = "without --watch" if before is None else f"with --watch {before}"
            raise BenchError(
                f"{self.path} was trained {given}: do the same, or choose another folder with --out or --runs."
            )

    def _keep_environments(self, stored: Mapping[str, Any], finished: int) -> None:
        """Record what the finished epochs were trained with: that alone, where no epoch is left for the present one."""
        if finished == self.epochs:
            self.config = dict(stored)
            return
        before, earlier = stored.get("environment", {}), list(stored.get("earlier_environments", []))
        if before != self.config["environment"]:
            earlier.append({"until_epoch": finished, **before})
        if earlier:
            self.config["earlier_environments"] = earlier

    def _epochs_without_a_state(self) -> int:
        """All of them where `last` is this run's last epoch, as in a copy without states; 0: there is no `last`."""
        try:
            config = load_checkpoint(self.path / "last").config
        except BenchError:
            left = [place for place in CHECKPOINTS if (self.path / place / "model.safetensors").exists()]
            if left:
                raise BenchError(
                    f"{self.path} holds {' and '.join(left)}, and neither its last checkpoint nor a training state "
                    "can be read: delete the folder, or choose another one with --out."
                ) from None
            return 0
        epoch = int(config["epoch"])
        self.refuse_another(config, epoch == self.epochs)
        if epoch != self.epochs:
            raise BenchError(
                f"{self.path} holds epoch {epoch} of {self.epochs} of this run, and its training state is missing: "
                "delete the folder, or choose another one with --out."
            )
        return epoch

    def _stored_state(self, resume: bool) -> dict[str, Any] | None:
        """The folder's training state; where it is damaged, the one before it, and a line that says so.

        A finished run does not need it.
        """
        path = self.path / "training_state.pt"
        if not (path.exists() or older_state(path).exists()):
            return None
        try:
            return load_training_state(path)
        except BenchError as error:
            finished = self.exported_epoch() == self.epochs
            try:
                older = load_training_state(older_state(path))
            except BenchError:
                if finished:
                    return None
                raise BenchError(f"{error} No older copy can be read: delete {self.path} and train again.") from error
            if finished and not resume:
                return None
            if self._on_disk.sound:
                self.say(f"{error} Its older copy has {len(older['history'])} epochs.")
            self._on_disk.sound = False
            return older

    def after(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> "RunFolder":
        """The same folder an epoch later, by its row of the history and a copy of `TrainingRun.state`; not yet written.

        This one stays as it is, and can be written meanwhile.
        """
        later = copy.copy(self)
        later.history = [*self.history, dict(row)]
        later.finished = len(later.history)
        later._take(state)
        if best_epoch(later.history) == later.finished:
            later.best = Checkpoint({**self.config, "epoch": later.finished}, later.weights)
        return later

    def _take(self, state: Mapping[str, Any]) -> None:
        self._state, self.weights, self.average = state, state["model"], averaged_weights(state)

    def off_device(self) -> "RunFolder":
        """The same, with all tensors on the CPU: a thread that writes then leaves the device alone."""
        if all(tensor.device.type == "cpu" for tensor in self.weights.values()):
            return self
        moved = copy.copy(self)
        moved._take(tree_map_only(Tensor, lambda tensor: tensor.cpu(), dict(self._state)))
        if self.best is not None:
            moved.best = Checkpoint(self.best.config, {name: one.cpu() for name, one in self.best.weights.items()})
        return moved

    def write(self) -> None:
        """Make the newest epoch final: first the state that a resumed run reads, then the files for evaluation."""
        content = {"config": self.config, **self._state, "history": self.history}
        if self.best is not None:
            content["best"] = {"config": self.best.config, "weights": self.best.weights}
        save_training_state(self.path / "training_state.pt", content, keep_older=self._on_disk.sound)
        self._on_disk.sound = self._on_disk.there = True
        self.export()

    def export(self) -> None:
        """Write history.jsonl, `best` where the best epoch on held-out images is another one, `average`, and `last`.

        `last` comes last: where it is behind the state, all are written again.
        """
        write_text(self.path / "history.jsonl", history_text(self.history))
        if self.best is not None and self.best.config["epoch"] != self._on_disk.best:
            save_checkpoint(self.best, self.path / "best")
            self._on_disk.best = self.best.config["epoch"]
        for averaged in self._averaged():
            save_checkpoint(averaged, self.path / "average")
        save_checkpoint(self._last(), self.path / "last")

    def _last(self) -> Checkpoint:
        return Checkpoint({**self.config, "epoch": self.finished}, self.weights)

    def _averaged(self) -> list[Checkpoint]:
        """One checkpoint, or none."""
        config = {**self.config, "epoch": self.finished, "weights": "average"}
        return [] if self.average is None else [Checkpoint(config, self.average)]

    def exported_epoch(self) -> int:
        """The epoch of `last`, 0 where there is none: behind the state if the run was killed between the two."""
        try:
            return int(load_checkpoint(self.path / "last").config["epoch"])
        except BenchError:
            return 0

    def damaged(self) -> dict[Path, Content]:
        """Files that are missing, cannot be read, or are not what the training state says; with what belongs there.

        Where no state was restored, those beside the last checkpoint of a finished run that are there but unreadable.
        """
        history, best, average = (self.path / name for name in ("history.jsonl", "best", "average"))
        if not self._on_disk.there:
            sound = {history: _is_history(_text(history), self.epochs)}
            sound |= {path: _is_readable(path) for path in (place / "model.safetensors" for place in (best, average))}
            return {path: None for path, is_sound in sound.items() if path.exists() and not is_sound}
        text, epoch, last = history_text(self.history), best_epoch(self.history), self._last()
        found: dict[Path, Content] = {} if _text(history) == text else {history: text}
        if epoch:
            found |= _damaged_checkpoint(best, epoch, last if epoch == self.finished else self.best)
        for averaged in self._averaged():
            found |= _damaged_checkpoint(average, self.finished, averaged)
        # Comes last: where it is behind the state, all are written again.
        return found | _damaged_checkpoint(self.path / "last", self.finished, last)

    def mend(self) -> None:
        """Write damaged files again, and say so.

        Raises:
            BenchError: nobody knows what belongs there, or a file cannot be written.
        """
        found = self.damaged()
        for path, content in found.items():
            if isinstance(content, Checkpoint):
                save_checkpoint(content, path.parent)
            elif content is not None:
                write_text(path, content)
            elif path.exists():
                raise BenchError(
                    f"{path} is damaged, and no training state holds what belongs there: delete it to do without, or "
                    f"delete {self.path} and train again."
                )
        again = [str(path) for path, content in found.items() if content is not None]
        if again:
            self.say(f"Written again from the training state: {', '.join(again)}.")

    def require_room(self) -> None:
        """Refuse to begin where a file of the run could not be written now."""
        protocol = self.config["protocol"]
        written = {"last": True, "best": protocol["holdout"] > 0, "average": protocol["average"] != "none"}
        checkpoints = [name for name, is_written in written.items() if is_written]
        files = [f"{name}/{file}" for name in checkpoints for file in ("model.safetensors", "config.json")]
        for file in ("training_state.pt", "history.jsonl", *files):
            require_writable(self.path / file)

    def tidy(self) -> None:
        """Remove temporary files and the sign of life that dead writers left."""
        with suppress(OSError):
            sign_of_training(self.path).unlink()
        for place in (self.path, *(self.path / name for name in CHECKPOINTS)):
            clear_temporaries(place)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that makes a run this one and no other."""
    keys = ("defense", "hyperparameters", "backbone", "dataset", "seed", "requirements")
    later = {"precision": "fp32", "processes": 1}
    same = {key: config.get(key) for key in keys} | {key: config.get(key, value) for key, value in later.items()}
    # Whoever said how many classes there are, older runs do not record it; nor what extra images were compared with.
    about = dict(config.get("dataset", {}))
    dataset = {key: value for key, value in about.items() if key != "classes_from"}
    if "extra" in about:
        dataset["extra"] = {key: about["extra"].get(key) for key in ("name", "size", "digest")}
    start = config.get("start", {}).get("digest")
    return same | {"dataset": dataset, "protocol": recorded_protocol(config), "start": start}


def history_text(history: Sequence[Mapping[str, Any]]) -> str:
    """The content of `history.jsonl`: one row per finished epoch."""
    return "".join(json.dumps(row) + "\n" for row in history)


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The last of the epochs, from 1, with the highest PGD accuracy on held-out images; 0 where none were held out."""
    scores = [row["held_out_pgd"] for row in history if "held_out_pgd" in row]
    return max(epoch for epoch, score in enumerate(scores, 1) if score == max(scores)) if scores else 0


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
