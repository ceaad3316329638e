"""One group of cells on a model, block by block: the harness projects what attacks return, and judges it again."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.engine.adversarials import Adversarials, encode, image_arrays, joined
from bench.engine.groups import Group
from bench.engine.memory import in_pieces, shortage
from bench.engine.observed import Faults, allowed, brought_inside, made_of, strayed
from bench.engine.outcomes import AttackFaults, FeaturePair, Report
from bench.engine.pace import Pace
from bench.engine.search import BlockSearch
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import NO_CLASS, NORMS, Attack, Images, IterativeAttack, Labels, PerExample, classes, fooled
from bench.results.file import AttackRecord
from bench.system.blocks import Arrays, PartStore
from bench.system.devices import full_float32
from bench.system.signals import GRACE, to_its_end

LEFT_TRAINING = "left parts of the model in another mode (train or eval); it was judged in its own"
_FEATURE_KINDS = ("clean", "adversarial")


@dataclass
class BlockVerdicts:
    """The effect of an attack, per sample."""

    shown: Tensor
    """The images behind `prediction`."""
    prediction: Labels
    final: Labels
    """The predictions of what the attack returned."""
    distance: PerExample
    """From the clean images to those shown; of a transformation, the budget that its parameters take."""
    outside: Tensor
    """True where that was outside the threat model."""
    claimed: Tensor
    """True where the attack, or the model it searched on, took the sample for broken."""
    stage: Tensor | None
    warnings: list[str]
    faults: Faults

    def put(self, rows: Tensor, other: "BlockVerdicts") -> None:
        """Take over the effect of a second search on some samples."""
        for name in ("shown", "prediction", "final", "distance", "outside", "claimed", "stage"):
            values, new = getattr(self, name), getattr(other, name)
            if values is not None and new is not None:
                values[rows] = new
        self.warnings += [text for text in other.warnings if text not in self.warnings]
        self.faults.unite(other.faults)


class GroupRun:
    """One group of cells, block by block. Samples that are wrong already are not attacked, but for measuring losses."""

    def __init__(
        self, target: Target, group: Group, clean: np.ndarray, labels: np.ndarray, final: bool, report: Report
    ) -> None:
        self.target, self.group, self.clean, self.report = target, group, clean, report
        every = target.attacks_all(group.cell)
        self.complete = final or every
        chosen = np.arange(len(clean)) if every else np.flatnonzero(clean == labels)
        size = group.attacks[0].fixed_batch or target.batch_size
        self.blocks = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        on_gpu = target.split.labels.device.type == "cuda"
        self.pace = Pace.guessed(target.seconds, group.passes, size, on_gpu)
        self.total = len(chosen)
        self.adversarials: dict[str, Adversarials] = {}
        self.features: dict[str, FeaturePair] = {}
        if group.attacks[0].transformation != (group.threat.norm if group.threat.transformation else None):
            needs = group.attacks[0].transformation or " or ".join(NORMS)
            raise BenchError(
                f"{group.cell.label}: {group.cell.attack} attacks under norm {needs}, not {group.threat.norm}."
            )
        if target.drawn is not None and not all(map(_has_one_end, group.attacks)):
            raise BenchError(
                f"{group.name} has not one last image, on which a random model is asked for its verdicts: choose fgsm, "
                "pgd, cw or mi-fgsm with restarts=1."
            )

    def records(
        self, number: int, parts: PartStore, shard: tuple[int, int], noticed: AttackFaults
    ) -> dict[str, AttackRecord]:
        """The group's cells, by label, from finished parts and from blocks run now."""
        finished: list[Arrays] = []
        done = standing = 0
        for position, block in enumerate(self.blocks):
            name, end = f"{number:03d}-{position:05d}", done + len(block)
            while done < end:
                rows = block[len(block) - (end - done) :]
                kept, arrays = self._finished(name, rows, len(block) - len(rows), parts)
                if arrays is None:
                    # Every n-th block is this process's; what is there already of another one's counts as well.
                    if position % shard[1] != shard[0]:
                        break
                    self.report(self.group.name, done, self.total, standing)
                    with to_its_end(GRACE):
                        if not self.group.attacks[0].fixed_batch:
                            rows = rows[: self.pace.images(len(rows))]
                        kept = name if len(rows) == len(block) else kept
                        started = time.perf_counter()
                        arrays = self.run_block(rows)
                        arrays["seconds"] = np.array(time.perf_counter() - started)
                        parts.put(kept, arrays)
                    self.pace.took(float(arrays["seconds"]), len(rows))
                arrays = parts.lightened(kept, arrays, image_arrays(arrays))
                finished.append(arrays)
                noticed.add(self.group.name, arrays)
                standing += int(arrays["standing"])
                done += len(arrays["index"])
            done = end
        self.report(self.group.name, self.total, self.total, standing)
        if self.target.keeps_images:
            shape = tuple(self.target.split.pixels.shape[1:])
            for position, cell in enumerate(self.group.cells):
                self.adversarials[cell.label] = joined(finished, position, shape)
        covered = sum(len(arrays["index"]) for arrays in finished)
        if self.target.keeps_features and self.group.iterative and covered == self.total:
            self.features = {cell.label: _features(finished, at) for at, cell in enumerate(self.group.cells)}
        return self.recorded(finished)

    def _finished(self, name: str, rows: np.ndarray, first: int, parts: PartStore) -> tuple[str, Arrays | None]:
        """The part that holds the next of a block's `rows`, if it is there, and its name: all of it, or a piece."""
        piece = f"{name}-{first:05d}"
        for kept in (piece,) if first else (name, piece):
            arrays = parts.get(kept)
            index = () if arrays is None else arrays.get("index", ())
            if len(index) and np.array_equal(index, rows[: len(index)]):
                return kept, arrays
        return piece, None

    def recorded(self, finished: Sequence[Arrays]) -> dict[str, AttackRecord]:
        """The group's cells, by label, from these blocks; samples of no block are as they are clean."""
        return {cell.label: self._record(position, finished) for position, cell in enumerate(self.group.cells)}

    def run_block(self, block: np.ndarray) -> Arrays:
        """Outcomes of every cell on some samples: arrays named `<field>-<number of the cell>`."""
        size = self.group.attacks[0].fixed_batch
        if size is None:
            return _united(in_pieces(block, self.target, self._run_piece))
        with shortage(f"{self.group.name} takes batches of {size}, no fewer: free memory, or take another --device."):
            return self._run_piece(block)

    def _run_piece(self, rows: np.ndarray) -> Arrays:
        indices = torch.from_numpy(rows).to(self.target.split.labels.device)
        self.target.modes_changed = False
        arrays = self._iterative(indices) if self.group.iterative else self._other(indices)
        if self.target.modes_changed:
            arrays["warnings"] = np.array([*arrays.get("warnings", ()), LEFT_TRAINING])
        return arrays

    def _iterative(self, indices: Tensor) -> Arrays:
        search = BlockSearch(self.target, self.group, indices, self._clean(indices), self.complete)
        outcomes = search.run()
        arrays: Arrays = {"index": indices.cpu().numpy(), "outside": np.array(int(search.outside.sum()))}
        standing = torch.ones_like(indices, dtype=torch.bool)
        for number, outcome in enumerate(outcomes.values()):
            arrays[f"prediction-{number}"] = int16(outcome.any_prediction)
            arrays[f"distance-{number}"] = outcome.any_distance.cpu().numpy().astype(np.float32)
            if self.complete:
                arrays[f"final_prediction-{number}"] = int16(outcome.final_prediction)
            if self.group.cell.measure_loss:
                arrays[f"loss-{number}"] = outcome.loss.cpu().numpy().astype(np.float32)
            if self.target.drawn is not None and outcome.last_image is not None:
                arrays |= self._drawn(number, indices, search.images, outcome.last_image)
                standing &= torch.from_numpy(arrays[f"right_draws-{number}"] == self.target.drawn.draws).to(standing)
                continue
            if outcome.any_image is not None:
                arrays |= self._kept(number, indices, outcome.any_image, outcome.any_prediction)
            if outcome.last_image is not None:
                for kind, images in zip(_FEATURE_KINDS, (search.images, outcome.last_image), strict=True):
                    arrays[f"{kind}_features-{number}"] = self.target.features(images).float().cpu().numpy()
            standing &= ~outcome.any_broken
        return arrays | {"standing": np.array(int(standing.sum()))} | _odd(search.faults)

    def _drawn(self, number: int, indices: Tensor, images: Images, last: Images) -> Arrays:
        """Outcomes of a cell on a random model: its verdicts on the last iterates."""
        verdicts = self.target.drawn_verdicts(last, indices, attacked=True)
        return {
            f"prediction-{number}": int16(verdicts.prediction),
            f"right_draws-{number}": int16(verdicts.right),
            f"distance-{number}": self.group.threat.distance(last, images).cpu().numpy().astype(np.float32),
        }

    def _other(self, indices: Tensor) -> Arrays:
        target, labels = self.target, self.target.split.labels[indices]
        found = self._found(indices)
        if target.searches_otherwise:
            # What only the search takes for a success was given up too early: it is attacked again, on the judge.
            early = (found.claimed & (found.prediction == labels)).nonzero().squeeze(1)
            if len(early):
                found.put(early, self._found(indices[early], plain=True))
        prediction = found.prediction
        arrays = {
            "index": indices.cpu().numpy(),
            "prediction-0": int16(prediction),
            "final_prediction-0": int16(found.final),
            "distance-0": found.distance.cpu().numpy().astype(np.float32),
            "standing": np.array(int((prediction == labels).sum())),
            "outside": np.array(int(found.outside.sum())),
            "unconfirmed": np.array(int((found.claimed & (prediction == labels)).sum())),
        }
        if found.stage is not None:
            # No stage broke what still stands, whatever the attack says.
            arrays["stage-0"] = int16(torch.where(prediction == labels, 0, found.stage))
        if found.warnings:
            arrays["warnings"] = np.array(found.warnings)
        arrays |= _odd(found.faults)
        return arrays | (self._kept(0, indices, found.shown, prediction) if target.keeps_images else {})

    def _found(self, indices: Tensor, plain: bool = False) -> BlockVerdicts:
        """The effect of an attack on some samples; where `plain`, it searches on the judge, in float32."""
        target, threat, attack = self.target, self.group.threat, self.group.attacks[0]
        images, labels = target.samples(indices)
        watched = target.watched(images, labels, self.group, plain)
        problem = target.problem(watched, indices, self.group)
        with full_float32() if plain else target.searching():
            raw = attack.perturb(problem)
            if threat.transformation is None:
                raw, spent = self._checked(raw, images, tuple(images.shape)), None
                returned, outside = brought_inside(raw, images, threat), strayed(raw, images, attack, threat)
            else:
                raw = self._checked(raw, images, threat.transformation.shape(images))
                returned, spent, outside = made_of(raw, images, threat)
            if target.searches_otherwise and not plain:
                with torch.no_grad():
                    watched(returned)
        final, first = target.judge(returned), target.judge(watched.first)
        watched.faults.look(returned, final)
        watched.faults.look(watched.first, first)
        # An image without an answer proves nothing: the clean one stays.
        answered = classes(final) != NO_CLASS
        returned = torch.where(answered.view(-1, 1, 1, 1), returned, images)
        prediction = torch.where(answered, classes(final), self._clean(indices))
        # A sighting counts only if the image still fools the model, and is still allowed, on its own; images that were
        # crafted against another model count only as returned.
        own = self.group.cell.source is None
        confirmed = own & watched.found & fooled(watched.first, first, labels) & allowed(watched.first, images, threat)
        if attack.minimum_norm:
            # What it returns is the nearest that it saw, and its distance is what the search was for.
            confirmed &= ~fooled(returned, final, labels)
        stage = problem.notes.get("stage")
        shown = torch.where(confirmed.view(-1, 1, 1, 1), watched.first, returned)
        return BlockVerdicts(
            shown=shown,
            prediction=torch.where(confirmed, classes(first), prediction),
            final=prediction,
            distance=threat.distance(shown, images) if spent is None else torch.where(answered, spent, 0.0),
            outside=outside,
            claimed=own & (watched.found if stage is None else watched.found | (stage > 0)),
            stage=stage,
            warnings=problem.warnings,
            faults=watched.faults,
        )

    def _clean(self, indices: Tensor) -> Labels:
        return torch.from_numpy(self.clean).to(indices)[indices]

    def _kept(self, number: int, indices: Tensor, shown: Images, prediction: Tensor) -> Arrays:
        """The images that broke samples, encoded such that the judge still sees in them what is recorded."""
        images, labels = self.target.samples(indices)
        right = self._clean(indices) == labels
        chosen = (right & (prediction != labels)).nonzero().squeeze(1)
        recorded = prediction[chosen]
        encoded = encode(
            shown[chosen],
            images[chosen],
            self.group.threat,
            indices[chosen],
            lambda decoded: self.target.predict(decoded) == recorded,
        )
        return encoded.arrays(number)

    def _checked(self, returned: Any, images: Images, wanted: tuple[int, ...]) -> Tensor:
        if not isinstance(returned, Tensor) or returned.shape != wanted:
            shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            name = self.group.cell.attack
            raise BenchError(f"attack {name!r} returned {shape}; it must return {wanted}.")
        return returned.detach().to(images.dtype)

    def _record(self, number: int, finished: Sequence[Arrays]) -> AttackRecord:
        cell, attack = self.group.cells[number], self.group.attacks[number]

        def gathered(name: str, base: np.ndarray) -> np.ndarray:
            values = base.copy()
            for arrays in finished:
                values[arrays["index"]] = arrays[f"{name}-{number}"]
            return values

        zeros = np.zeros(len(self.clean), dtype=np.float32)
        staged = any(f"stage-{number}" in arrays for arrays in finished)
        drawn = self.target.drawn
        measured = drawn is None and (self.complete or not self.group.iterative)
        return AttackRecord(
            label=cell.label,
            attack=cell.attack,
            parameters=dataclasses.asdict(attack) | self.target.origin(cell),
            norm=cell.norm,
            epsilon=str(cell.epsilon),
            objective=cell.objective,
            prediction=gathered("prediction", self.clean),
            final_prediction=gathered("final_prediction", self.clean) if measured else None,
            distance=gathered("distance", zeros),
            loss=gathered("loss", zeros) if self.group.cell.measure_loss else None,
            stage=gathered("stage", np.zeros_like(self.clean)) if staged else None,
            right_draws=None if drawn is None else gathered("right_draws", np.full_like(self.clean, drawn.draws)),
            seconds=sum(float(arrays["seconds"]) for arrays in finished) / len(self.group.cells),
        )


def _has_one_end(attack: Attack) -> bool:
    return isinstance(attack, IterativeAttack) and attack.lengths[1] == 1


def _features(finished: Sequence[Arrays], number: int) -> FeaturePair:
    """In the order of the samples: every one was attacked, block after block."""
    kinds = (np.concatenate([arrays[f"{kind}_features-{number}"] for arrays in finished]) for kind in _FEATURE_KINDS)
    return FeaturePair(*kinds)


def _united(pieces: Sequence[Arrays]) -> Arrays:
    """One block's outcomes from those of its pieces: counts add up, everything else is appended."""
    if len(pieces) == 1:
        return pieces[0]
    columns = {name: [piece[name] for piece in pieces if name in piece] for piece in pieces for name in piece}
    return {name: np.concatenate(c) if c[0].ndim else np.array(sum(c)) for name, c in columns.items()}


def _odd(faults: Faults) -> Arrays:
    return {"odd_gradients": np.array(int(faults.gradients)), "odd_logits": np.array(int(faults.logits))}


def int16(values: Tensor) -> np.ndarray:
    """The values as result files store them."""
    return values.cpu().numpy().astype(np.int16)
