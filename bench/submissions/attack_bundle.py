"""A row to attack: its images, its model and what counts, in one folder, for whoever wants to break more of it.

    bundle.json           {"format": "bench-attack-bundle", "version": 1}
    result.h5             the row
    images.npz            pixels, levels, labels, index (in the test split), standing (nothing is known to break it)
    model.safetensors     the checkpoint; absent: whoever opens the folder names the model
    README.md             how to go on

Images and model are the row's own, or the folder is refused: their digests are in the row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import nn

from bench.data.splits import Split
from bench.engine.memory import room_for
from bench.engine.observed import allowed
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.request import BATCH
from bench.interfaces import Images, Labels, Logits, ThreatModel, classes
from bench.interop.subjects import ModelReference, Subject, from_module
from bench.models.checkpoints import find_checkpoint
from bench.results.board_rows import MANIFEST, best_known, read_row
from bench.results.file import EvaluationResult, read_result
from bench.results.metrics import correct, main_threat
from bench.submissions.bundle import MODEL, RESULT, copy, json_text, new_folder
from bench.system.budgets import UNREADABLE, read_arrays, read_json
from bench.system.devices import choose_device, full_float32
from bench.system.files import write_text, write_whole
from bench.trust.verification import Verdict, VerificationRequest, dataset_of, model_check, samples_check

FORMAT, VERSION = "bench-attack-bundle", 1
IMAGES, README = "images.npz", "README.md"

_TEXT = """\
# A row to attack

{standing} of {samples} images still stand under {threat}. Break one, and the row's best-known accuracy is lower.

```python
import numpy as np
from torch.nn.functional import cross_entropy
from bench.submissions.attack_bundle import open_attack_bundle

bundle = open_attack_bundle("{folder}")
images, labels = bundle.images, bundle.labels                    # floats in [0, 1], and classes
perturbed = images.clone().requires_grad_()
cross_entropy(bundle.forward(perturbed), labels).backward()      # the model's logits, with gradients
step = images + bundle.threat.radius * perturbed.grad.sign()     # one step of FGSM: yours is better
found = bundle.threat.project(step, images)                      # into the ball, and into [0, 1]
reasons = bundle.replay(bundle.index, found)                     # per image: None if it counts, else why not
np.savez("{folder}/found.npz", index=bundle.index, images=found.numpy())
```

    bench submit-attack {folder}/found.npz BOARD --by "Your name"

`index` says which sample of the test split an image is made from, one image each. Images that do not count are named,
and the others are kept.
"""


@dataclass(frozen=True, eq=False)
class AttackBundle:
    """A row and its model, ready to be attacked."""

    result: EvaluationResult
    target: Target
    threat: ThreatModel
    standing: Bool[np.ndarray, " sample"]
    """Per sample: nothing was known to break it when the folder was written."""

    @property
    def images(self) -> Images:
        """The clean images, in the row's order."""
        return self.target.split.images(slice(None))

    @property
    def labels(self) -> Labels:
        """The classes of the images."""
        return self.target.split.labels

    @property
    def index(self) -> Int64[np.ndarray, " sample"]:
        """The number of each sample in the dataset's test split."""
        return self.result.index

    def forward(self, images: Images) -> Logits:
        """The model's logits of images in [0, 1]; gradients flow back to them."""
        with full_float32():
            logits: Logits = self.target.model(images)
        return logits

    def rows(self, index: Int64[np.ndarray, " found"]) -> Int64[np.ndarray, " found"]:
        """The places of samples in the row by their number in the test split; -1: it has no such sample."""
        places = {number: place for place, number in enumerate(self.index.tolist())}
        return np.array([places.get(number, -1) for number in index.tolist()], dtype=np.int64)

    def replay(self, index: Int64[np.ndarray, " found"], images: Images) -> list[str | None]:
        """Per image: the reason why it does not count; None: it is allowed and the model gets it wrong.

        Raises:
            BenchError: images of another shape or type, or not one number for each.
        """
        shape = tuple(self.target.split.pixels.shape[1:])
        if images.shape[1:] != shape or not images.is_floating_point() or index.shape != images.shape[:1]:
            raise BenchError(
                f"images of shape {tuple(images.shape)} and type {images.dtype} for {index.shape} numbers: give one "
                f"number and one float image of shape {shape} each."
            )
        rows, seen = self.rows(index), set[int]()
        reasons: list[str | None] = ["not looked at"] * len(rows)
        right = correct(self.result)
        for place, row in enumerate(rows.tolist()):
            if row < 0:
                reasons[place] = "the row has no such sample"
            elif row in seen:
                reasons[place] = "a second image of this sample"
            elif not right[row]:
                reasons[place] = "the model is wrong there without an attack"
            else:
                reasons[place] = None
                seen.add(row)
        places = np.flatnonzero([reason is None for reason in reasons])
        for some in np.array_split(places, range(self.target.at_once, len(places), self.target.at_once)):
            self._judge(some, rows[some], images[torch.from_numpy(some)], reasons)
        return reasons

    def _judge(
        self, places: Int64[np.ndarray, " some"], rows: Int64[np.ndarray, " some"], images: Images, reasons: list[Any]
    ) -> None:
        """Fill in the reasons of some images of different samples that are right clean."""
        device = self.labels.device
        images = images.detach().float().to(device)
        clean, labels = self.target.samples(torch.from_numpy(rows).to(device))
        inside = allowed(images, clean, self.threat).tolist()
        answers = classes(self.target.judge(images)).tolist() if len(rows) else []
        for place, fits, answer, label in zip(places.tolist(), inside, answers, labels.tolist(), strict=True):
            if not fits:
                reasons[place] = f"outside {self.threat.norm} {self.threat.epsilon} or [0, 1]"
            elif answer == label:
                reasons[place] = f"the model is right: class {label}"
            elif answer < 0:
                reasons[place] = "the model answers with NaN or infinity"


def write_attack_bundle(request: VerificationRequest, folder: Path) -> None:
    """Write the folder of a row, `request.result`, and its model.

    Raises:
        BenchError: the row has no attacks, the model or the dataset is not its own, or the folder cannot be written.
    """
    result = read_row(request.result)
    threat = _threat(result)
    device = choose_device("cpu")
    _require(model_check(result, request.load(device, str(result.run.get("dataset")))))
    verdict, samples = samples_check(result, dataset_of(result, request))
    _require(verdict)
    assert samples is not None  # as was required
    new_folder(folder)
    copy(request.result, folder / RESULT)
    if request.checkpoint is not None:
        copy(find_checkpoint(request.checkpoint), folder / MODEL)
    standing = best_known(result)

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                pixels=samples.held().numpy(),
                levels=np.array(samples.levels),
                labels=samples.labels.numpy(),
                index=samples.positions,
                standing=standing,
            )

    write_whole(folder / IMAGES, save)
    facts = {"standing": standing.sum(), "samples": len(standing), "threat": f"{threat.norm} {threat.epsilon}"}
    write_text(folder / README, _TEXT.format(folder=folder.name, **facts))
    write_text(folder / MANIFEST, json_text({"format": FORMAT, "version": VERSION}))


def open_attack_bundle(
    folder: str | Path, model: nn.Module | ModelReference | None = None, device: str = "auto"
) -> AttackBundle:
    """The row, images and model of a folder that `bench attack-bundle` wrote.

    Args:
        folder: the folder.
        model: the row's model, in memory or named; None: the one in the folder.
        device: auto, cpu, cuda, ...

    Raises:
        BenchError: it is none, or images or model are not the row's.
    """
    folder, on = Path(folder), choose_device(device)
    try:
        content = read_json(folder / MANIFEST)
        known = content == {"format": FORMAT, "version": VERSION}
    except (OSError, ValueError, RecursionError):
        known = False
    if not known:
        raise BenchError(
            f"{str(folder)!r} was not written by `bench attack-bundle`. Make one: bench attack-bundle ROW.h5."
        )
    result = read_result(folder / RESULT)
    threat = _threat(result)
    split, standing = _stored_samples(folder / IMAGES, result)
    subject = _subject(folder, result, model, on)
    _require(model_check(result, subject))
    room = room_for(tuple(split.pixels.shape[1:]), on)
    target = Target(subject.model.eval(), split.to(on), batch_size=BATCH, room=room)
    return AttackBundle(result, target, threat, standing)


def _subject(
    folder: Path, result: EvaluationResult, model: nn.Module | ModelReference | None, device: torch.device
) -> Subject:
    if isinstance(model, nn.Module):
        return from_module(model, None, device, map(str, result.run.get("adapters", [])))
    if model is None or (model.checkpoint is None and model.model is None):
        model = ModelReference(checkpoint=folder / MODEL)
        if not (folder / MODEL).is_file():
            raise BenchError(f"{folder} holds no model: name the row's, --checkpoint RUN or --model FILE.py:FACTORY.")
    return model.load(device, str(result.run.get("dataset")))


def _threat(result: EvaluationResult) -> ThreatModel:
    """The main threat model of a row."""
    threat = main_threat(result)
    if threat is None:
        raise BenchError("the result holds no attacks, and so no threat model to attack under. Give a row of attacks.")
    return ThreatModel(*map(str, threat))


def _stored_samples(path: Path, result: EvaluationResult) -> tuple[Split, Bool[np.ndarray, " sample"]]:
    """The row's images, and which still stand; others than the row's are refused."""
    try:
        found = read_arrays(path, ("pixels", "levels", "labels", "index", "standing"))
        pixels = torch.from_numpy(found["pixels"])
        split = Split(
            pixels,
            torch.from_numpy(found["labels"].astype(np.int64)),
            int(found["levels"]),
            origin=found["index"].astype(np.int64),
        )
        same = pixels.dtype == torch.uint8 and split.digest() == result.run.get("dataset_digest")
        standing = found["standing"].astype(bool)
        same = same and np.array_equal(split.positions, result.index) and standing.shape == result.index.shape
    except (*UNREADABLE, TypeError) as error:
        raise BenchError(f"{path} holds no images of a row. Make it again: bench attack-bundle ROW.h5.") from error
    if not same:
        raise BenchError(f"{path} holds other images than those of the row. Make it again: bench attack-bundle ROW.h5.")
    return split, standing


def _require(verdict: Verdict) -> None:
    """Refuse what a verdict refutes."""
    if verdict.status == "refuted":
        raise BenchError(f"{verdict.name}: {verdict.text}.")
