"""Cells that share a search, run as one: snapshots of one trajectory, restarts on what still stands.

Under the convention `any` an image leaves as soon as an adversarial one was found for it. Under `final` it runs to
the last step that some cell still needs. Under both it leaves once its state repeats, since a step depends on nothing
else: sign steps against a nearly linear model end on one image, or alternate between two. Either way each cell's
outcomes are those of running it alone.

What the search takes for wrong is judged at once. A device that runs ahead would have to be waited for at every step;
there the surest image of each sample is kept, and judged at the next look.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from bench.engine.groups import Group
from bench.engine.observed import Faults, ModelView, allowed, brought_inside, strayed
from bench.engine.target import Target
from bench.interfaces import (
    NO_CLASS,
    Images,
    IterativeAttack,
    Labels,
    Logits,
    Problem,
    State,
    classes,
    fooled,
    runs_ahead,
)

MULTIPLE = 8
"""Rows are filled up to a multiple of this with repeated ones: convolution kernels may round differently for tiny
batches, and a sample's outcome must not depend on how many others are left."""

CHECK = 8
"""Steps between two looks for states that repeat; each look costs two copies and one comparison of the images. On a
device that runs ahead, also between two looks at who is broken."""


@dataclass
class CellOutcome:
    """One cell's outcomes on a block of samples."""

    steps: int
    restarts: int
    any_broken: Tensor
    final_broken: Tensor
    any_prediction: Tensor
    final_prediction: Tensor
    any_distance: Tensor
    loss: Tensor
    any_image: Images | None
    """The images behind `any_prediction`, where they are kept."""
    last_image: Images | None
    """The last iterates of the first restart, projected, where they are looked at."""

    @classmethod
    def standing(cls, attack: IterativeAttack, clean: Labels, images: Images, target: Target) -> "CellOutcome":
        """Nothing is broken yet: every prediction is that of the clean image."""
        false, zeros = torch.zeros_like(clean, dtype=torch.bool), images.new_zeros(len(clean))
        kept = (images.clone() if keeps else None for keeps in (target.keeps_images, target.keeps_last))
        return cls(*attack.lengths, false, false.clone(), clean.clone(), clean.clone(), zeros, zeros.clone(), *kept)

    def show(self, new: Tensor, rows: Tensor, images: Images, prediction: Tensor, distance: Tensor) -> None:
        """Note what counts under the convention `any` for those of some samples that are `new`."""
        self.any_prediction[rows[new]] = prediction[new]
        self.any_distance[rows[new]] = distance[new]
        if self.any_image is not None:
            self.any_image[rows[new]] = images[new]


@dataclass
class Trajectory:
    """The samples on one trajectory: which rows of the block they are, and their state."""

    rows: Tensor
    state: State
    settled: Tensor
    """Mask of samples whose state repeats: their outcomes are known although steps remain."""
    earlier: tuple[State, ...] = ()
    """States of two steps ago and of one, around a look for repetitions."""
    suspects: Images | None = None
    """Since the last look, the allowed image of each sample that the search was surest was wrong; None: no step yet."""
    lead: Tensor | None = None
    """By how much the search was sure of it; -inf: of none."""

    def suspect(self, images: Images, lead: Tensor) -> None:
        """Keep the surer images."""
        if self.suspects is None or self.lead is None:
            self.suspects, self.lead = images, lead
        else:
            self.suspects = torch.where((lead > self.lead).view(-1, 1, 1, 1), images, self.suspects)
            self.lead = torch.maximum(lead, self.lead)

    def repeating(self, step: int) -> Tensor | None:
        """At every `CHECK`-th step: the samples newly found in their state of two steps ago."""
        phase = step % CHECK
        if phase == CHECK - 2:
            self.earlier = ()
        if phase >= CHECK - 2:
            # Copies, because an attack may go on in the tensors it is given.
            self.earlier += ({name: tensor.detach().clone() for name, tensor in self.state.items()},)
        if phase or len(self.earlier) < 2:
            return None
        now, then = self.state, self.earlier[0]
        same = [(now[name] == then[name]).reshape(len(self.rows), -1).all(1) for name in now]
        found = torch.stack(same).all(0) & ~self.settled
        return found if found.any() else None

    def keep(self, chosen: Tensor) -> None:
        """Go on with the chosen ones."""
        self.rows, self.settled = self.rows[chosen], self.settled[chosen]
        self.state = {name: tensor[chosen] for name, tensor in self.state.items()}
        self.earlier = tuple({name: tensor[chosen] for name, tensor in state.items()} for state in self.earlier)


@dataclass
class BlockSearch:
    """A group's search on one block of samples."""

    target: Target
    group: Group
    indices: Tensor
    clean: Labels
    """The predictions of the clean images."""
    complete: bool
    """Run to the last iterates, whatever was found on the way: for the convention `final` and for losses."""
    outcomes: dict[str, CellOutcome] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    outside: Tensor = field(init=False)
    """Samples for which the attack ended outside the threat model."""

    def run(self) -> dict[str, CellOutcome]:
        """Outcomes of every cell of the group, by label."""
        self.images, self.labels = self.target.samples(self.indices)
        self.outside = torch.zeros_like(self.labels, dtype=torch.bool)
        self.outcomes = {
            cell.label: CellOutcome.standing(attack, self.clean, self.images, self.target)
            for cell, attack in zip(self.group.cells, self.group.attacks, strict=True)
            if isinstance(attack, IterativeAttack)
        }
        for restart in range(max(outcome.restarts for outcome in self.outcomes.values())):
            self.restart(restart)
        return self.outcomes

    def restart(self, number: int) -> None:
        """One trajectory, for the samples that some cell still needs it for."""
        due = [outcome for outcome in self.outcomes.values() if outcome.restarts > number]
        rows = self._filled((self._needed(due) > 0).nonzero().squeeze(1))
        if not len(rows):
            return
        attack = self.group.attacks[0]
        assert isinstance(attack, IterativeAttack)
        view, problem = self._problem(rows)
        with self.target.searching():
            walk = Trajectory(rows, attack.begin(problem, number), torch.zeros_like(rows, dtype=torch.bool))
        last = max(outcome.steps for outcome in due)
        for step in range(last + 1):
            shown = walk.state["images"].detach()
            repeating = walk.repeating(step)
            logits, moved = None, torch.zeros_like(walk.settled)
            if step < last:
                logits, moved = self._moved_on(walk, attack, view, problem, shown)
            ends = [outcome for outcome in due if outcome.steps == step]
            if runs_ahead(rows.device) and step % CHECK and not ends:
                walk.suspect(shown, self._lead(walk.rows, shown, logits, moved))
                continue
            running = [outcome for outcome in due if outcome.steps >= step]
            changed = self._seen(running, ends, walk, shown, logits, moved, number)
            if repeating is not None:
                self._settle([outcome for outcome in due if outcome.steps > step], walk, repeating, step, number)
            if not (changed or ends or repeating is not None):
                continue
            staying = (self._needed(due)[walk.rows] > step) & ~walk.settled
            if not staying.any():
                return
            # Cutting the batch copies every state and makes a new problem: worth it from an eighth of the rows on.
            if 8 * int(staying.sum()) <= 7 * len(walk.rows):
                walk.keep(self._filled(staying.nonzero().squeeze(1)))
                view, problem = self._problem(walk.rows)

    def _moved_on(
        self, walk: Trajectory, attack: IterativeAttack, view: ModelView, problem: Problem, shown: Images
    ) -> tuple[Logits | None, Tensor]:
        """Take a step; returns the logits that it saw of the images it came from, and a mask of those it moved first.

        None where it did not ask, or, on a device that does not run ahead, where it moved any.
        """
        # A copy, because an attack may go on in the tensor it is given.
        given = {**walk.state, "images": shown.clone()}
        with self.target.searching():
            walk.state = attack.step(problem, given)
        # The step's own forward pass saves one here, if it was of exactly these images.
        logits = view.seen(given["images"])
        if runs_ahead(shown.device):
            return logits, (given["images"] != shown).flatten(1).any(1)
        return logits if torch.equal(given["images"], shown) else None, torch.zeros_like(walk.settled)

    def _seen(
        self,
        running: list[CellOutcome],
        ends: list[CellOutcome],
        walk: Trajectory,
        shown: Images,
        logits: Logits | None,
        moved: Tensor,
        restart: int,
    ) -> bool:
        """Look at the present images, and judge the cells that end with them; returns whether any sample is broken."""
        changed = self._suspected(running, walk)
        verdicts = None
        if ends:
            final = self._inside(shown, walk.rows)
            judged = self.target.judge(final)
            verdicts = judged if torch.equal(final, shown) else self.target.judge(shown)
        elif logits is None:
            verdicts = self.target.judge(shown)
        known = logits if verdicts is None else verdicts
        assert known is not None
        suspected = moved | (classes(known) != self.labels[walk.rows])
        changed |= self._look(running, walk.rows, shown, suspected, verdicts)
        for outcome in ends:
            self._end(outcome, walk.rows, final, judged, restart)
        return changed

    def _inside(self, last: Images, rows: Tensor) -> Images:
        """Last iterates, projected; those that needed it by more than rounding are noted."""
        clean, threat = self.images[rows], self.group.threat
        self.outside[rows] |= strayed(last, clean, self.group.attacks[0], threat)
        return brought_inside(last, clean, threat)

    def _needed(self, due: list[CellOutcome]) -> Tensor:
        """Per sample: the last step that an undecided cell needs."""
        decided = [outcome.final_broken if self.complete else outcome.any_broken for outcome in due]
        if self.group.cell.measure_loss:  # which is taken at the last iterate, of every sample
            decided = [torch.zeros_like(broken) for broken in decided]
        steps = [torch.where(broken, 0, outcome.steps) for broken, outcome in zip(decided, due, strict=True)]
        return torch.stack(steps).amax(0)

    def _lead(self, rows: Tensor, shown: Images, logits: Logits | None, moved: Tensor) -> Tensor:
        """By how much a wrong class leads for each image that is allowed, -inf where none does; nothing is waited for.

        Where an image was `moved` before the model saw it, or not shown to it, the judge says so.
        """
        judged = self.target.judge(shown) if logits is None else logits
        labels = self.labels[rows]
        rival = judged.scatter(1, labels[:, None], -torch.inf).amax(1)
        lead = rival - judged.gather(1, labels[:, None]).squeeze(1)
        wrong = moved | (classes(judged) != labels)
        return torch.where(wrong & allowed(shown, self.images[rows], self.group.threat), lead.nan_to_num(), -torch.inf)

    def _suspected(self, due: list[CellOutcome], walk: Trajectory) -> bool:
        """Judge what was kept since the last look; returns whether anything was found."""
        suspects, lead = walk.suspects, walk.lead
        walk.suspects = walk.lead = None
        if suspects is None or lead is None:
            return False
        return self._look(due, walk.rows, suspects, lead > -torch.inf, None)

    def _look(
        self, due: list[CellOutcome], rows: Tensor, shown: Images, suspected: Tensor, verdicts: Logits | None
    ) -> bool:
        """Note the samples whose image is allowed and misclassified, for the cells that had not broken them yet.

        Looked at are those `suspected`, judged now where there are no `verdicts`. Returns whether there are any.
        """
        threat = self.group.threat
        open_rows = torch.stack([~outcome.any_broken for outcome in due]).any(0)[rows]
        candidates = (open_rows & suspected).nonzero().squeeze(1)
        if not len(candidates):
            return False
        chosen, known = shown[candidates], rows[candidates]
        if verdicts is None:
            seen = self.target.judge(shown[self._filled(candidates)])[: len(candidates)]
        else:
            seen = verdicts[candidates]
        self.faults.look(chosen, seen)
        fine = allowed(chosen, self.images[known], threat) & fooled(chosen, seen, self.labels[known])
        found, prediction, chosen = known[fine], classes(seen[fine]), chosen[fine]
        distance = threat.distance(chosen, self.images[found]).to(self.images.dtype)
        for outcome in due:
            new = ~outcome.any_broken[found]
            outcome.show(new, found, chosen, prediction, distance)
            outcome.any_broken[found] = True
        return len(found) > 0

    def _end(self, outcome: CellOutcome, rows: Tensor, final: Images, logits: Logits, restart: int) -> None:
        """Take the verdict on the last iterate of a cell, projected; without an answer, what was known stays."""
        prediction, labels = classes(logits), self.labels[rows]
        wrong = fooled(final, logits, labels)
        answered = prediction != NO_CLASS
        self.faults.look(final, logits)
        distance = self.group.threat.distance(final, self.images[rows]).to(self.images.dtype)
        unbroken = answered & ~outcome.any_broken[rows]
        outcome.show(unbroken, rows, final, prediction, distance)
        outcome.any_broken[rows] |= wrong
        standing = answered & ~outcome.final_broken[rows]
        outcome.final_prediction[rows[standing]] = prediction[standing]
        outcome.final_broken[rows] |= wrong
        if restart == 0:
            outcome.loss[rows] = functional.cross_entropy(logits, labels, reduction="none").to(outcome.loss.dtype)
            if outcome.last_image is not None:
                outcome.last_image[rows] = final

    def _settle(self, due: list[CellOutcome], walk: Trajectory, repeating: Tensor, step: int, restart: int) -> None:
        """Take the verdict that cells will reach on samples that alternate between the last two states."""
        chosen = self._filled(repeating.nonzero().squeeze(1))
        rows = walk.rows[chosen]
        for odd in (0, 1):
            ends = [outcome for outcome in due if (outcome.steps - step) % 2 == odd]
            if ends:
                final = brought_inside(walk.earlier[odd]["images"][chosen], self.images[rows], self.group.threat)
                judged = self.target.judge(final)
                for outcome in ends:
                    self._end(outcome, rows, final, judged, restart)
        walk.settled |= repeating

    def _problem(self, rows: Tensor) -> tuple[ModelView, Problem]:
        view = self.target.search_view(self.faults)
        problem = self.target.problem(view, self.indices[rows], self.group)
        return view, problem

    def _filled(self, rows: Tensor) -> Tensor:
        missing = -len(rows) % MULTIPLE
        return torch.cat([rows, rows[:1].expand(missing)]) if len(rows) and missing else rows
