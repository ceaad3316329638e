"""The tables and figures of the Adv-DPNP paper as plans of sweeps: what is there, what is missing, its cost.

`paper.json` says for each which suite it shows, on which datasets and backbones ("blocks"), for which defenses in the
paper's order, and which of our columns stands for each of the paper's. It holds no published number.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bench.catalogue.plugins import make_defense
from bench.catalogue.recipes import protocol_for
from bench.catalogue.suites import load_suite
from bench.data.corruptions.generating import GenerationRequest, generate
from bench.data.datasets import load_dataset
from bench.data.splits import Dataset, Split
from bench.errors import BenchError, unknown_name
from bench.evaluation.corrupted import find_corrupted
from bench.evaluation.cost import estimate
from bench.experiments.matching import image_digests, require_planned, was_edited
from bench.experiments.sweep import Plan, all_defenses
from bench.models.checkpoints import load_checkpoint
from bench.results.comparison import refuse_mixture
from bench.results.file import EvaluationResult
from bench.system.progress import EvaluationProgress
from bench.training.profiling import seconds_per_image
from bench.training.request import TrainingRequest, needed_request
from bench.training.train import prepare_run

_PAPER = Path(__file__).parent / "paper.json"
_SECONDS_OF_TIMING = 10.0
STATED = "stated"
"""The variant that follows the paper's text."""


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run; None: as much as the paper's."""

    dataset: str | None = None
    backbone: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    """So many test images are evaluated, the first."""


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "smoke": Scale("digits", "cnn-small", {"epochs": 2}, 20),
        "cpu": Scale("cifar10", "cnn-small-bn", {"epochs": 6, "milestones": (4, 5)}, 1000),
        "full": Scale(),
    }
)


@dataclass(frozen=True)
class Block:
    """One dataset and backbone of a table or figure."""

    dataset: str
    backbone: str
    defenses: tuple[str, ...]
    """In the paper's order."""
    published: str
    """The dataset under which the paper's numbers are kept."""


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of the paper."""

    name: str
    suite: str
    blocks: tuple[Block, ...]
    columns: Mapping[str, str]
    """The paper's column to ours; empty for figures."""
    protocol: Mapping[str, Any]
    """Where it departs from the shared protocol."""
    scales: Mapping[str, Mapping[str, Any]]
    """Where it departs from `SCALES`."""
    note: str = ""
    """For a reader: how it is run."""
    convention: Literal["any", "final"] = "any"

    def plans(
        self, scale: str, defenses: str, seeds: int, block: str | None = None, **places: Any
    ) -> list[tuple[Block, Plan]]:
        """A plan for each block; below `full` the first block stands for all.

        Args:
            scale: a name among SCALES.
            defenses: `paper` (those of the block), `all`, or names with commas. A name that the paper has in other
                blocks only is left out; one that it has nowhere is in every block.
            seeds: how many, from 0.
            block: only those of this DATASET, or the one of DATASET/BACKBONE.
            places: `data`, `runs` and `device` of the plans.

        Raises:
            BenchError: an unknown defense or block, or no defense to run.
        """
        given = self.scales.get(scale, {})
        chosen = dataclasses.replace(SCALES[scale], **{key: given[key] for key in given if key != "protocol"})
        protocol = {**self.protocol, **chosen.protocol, **given.get("protocol", {})}
        blocks = self._named(block)
        plans = []
        for part in blocks if chosen.dataset is None else blocks[:1]:
            names = self._chosen(part, defenses)
            for name in names:
                make_defense(name, part.dataset, {})
            plan = Plan(
                dataset=chosen.dataset or part.dataset,
                backbone=chosen.backbone or part.backbone,
                defenses=names,
                suite=self.suite,
                seeds=tuple(range(seeds)),
                protocol=protocol,
                limit=chosen.limit,
                convention=self.convention,
                **places,
            )
            if names:
                plans.append((part, plan))
        if not plans:
            raise BenchError(f"no defense to run for {self.name} in {defenses!r}. Give paper, all, or names.")
        return plans

    def _named(self, block: str | None) -> Sequence[Block]:
        names = {f"{one.dataset}/{one.backbone}": one for one in self.blocks}
        chosen = [one for name, one in names.items() if block in (None, name, one.dataset)]
        if not chosen:
            raise unknown_name(f"block of {self.name}", str(block), names)
        return chosen

    def _chosen(self, block: Block, defenses: str) -> tuple[str, ...]:
        if defenses == "paper":
            return block.defenses
        elsewhere = {name for other in self.blocks for name in other.defenses} - set(block.defenses)
        given = [name for name in dict.fromkeys(all_defenses(defenses)) if name not in elsewhere]
        known = [name for name in block.defenses if name in given]
        return (*known, *(name for name in given if name not in known))


def exhibit_names() -> list[str]:
    """Names of the tables, then of the figures."""
    return list(_content())


def load_exhibit(name: str, variant: str = STATED) -> Exhibit:
    """A table or figure by name, such as `table2` or `figure4`.

    Raises:
        BenchError: an unknown name, or a variant that it does not have.
    """
    content = _content()
    if name not in content:
        raise unknown_name("table or figure", name, content)
    given = content[name]
    variants = {STATED: {}, **given.get("variants", {})}
    if variant not in variants:
        raise unknown_name(f"variant of {name}", variant, variants)
    blocks = tuple(
        Block(block["dataset"], block["backbone"], tuple(block["defenses"]), block.get("published", block["dataset"]))
        for block in given["blocks"]
    )
    suite = {"suite": given["suite"], **variants[variant]}
    rest = {key: given.get(key, {}) for key in ("columns", "protocol", "scales")}
    return Exhibit(name, blocks=blocks, note=given.get("note", ""), **suite, **rest)


def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_PAPER.read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True, eq=False)
class Step:
    """One training, and the evaluation of its model."""

    training: TrainingRequest
    finished: int
    """Epochs that are trained."""
    epochs: int
    result: Path | None
    """None: the model is only what another defense needs."""

    @property
    def trained(self) -> bool:
        """True if no epoch is missing."""
        return self.finished >= self.epochs

    @property
    def evaluated(self) -> bool:
        """True if no evaluation is missing."""
        return self.result is None or self.result.exists()


def steps(plan: Plan) -> list[Step]:
    """All trainings of a plan in their order, those that others require first."""
    found: dict[Path, Step] = {}
    epochs = protocol_for(plan.dataset, {}, 0, False, plan.protocol, plan.recipe).epochs
    for training in plan.trainings():
        required = type(make_defense(training.defense, plan.dataset, {})).requires
        for name in required:
            needed = needed_request(training, name)
            found.setdefault(needed.run_folder, Step(needed, _finished(needed), epochs, None))
        found[training.run_folder] = Step(training, _finished(training), epochs, plan.result(training))
    return list(found.values())


def _finished(training: TrainingRequest) -> int:
    try:
        return int(load_checkpoint(training.run_folder / "last").config["epoch"])
    except BenchError:
        return 0


@dataclass(frozen=True, eq=False)
class StoredResults:
    """The results of a plan that are there."""

    results: Mapping[Path, EvaluationResult]
    """Those that are the plan's and compare, by run folder; defenses in the plan's order."""
    left_out: Mapping[Path, str]
    """Of the other files: why."""
    remarks: tuple[str, ...]
    """For a reader of the results."""

    @property
    def absent(self) -> set[str]:
        """Defenses of which every file was left out."""
        return {folder.parent.name for folder in self.left_out} - {folder.parent.name for folder in self.results}


def results_there(plan: Plan, stored: bool) -> StoredResults:
    """The results in a plan's files, judged as a sweep judges them; of `stored` ones, models may be missing."""
    images = _images_here(plan) if stored else {}
    order = {name: place for place, name in enumerate(plan.defenses)}
    results: dict[Path, EvaluationResult] = {}
    left_out, remarks = {}, []
    for training in sorted(plan.trainings(), key=lambda training: order[training.defense]):
        path, folder = plan.result(training), training.run_folder
        if not path.exists():
            continue
        try:
            result = require_planned(path, training, plan.evaluation(training), stored, images)
            for first in list(results.values())[:1]:
                _require_alike(path, first, result)
        except BenchError as error:
            left_out[folder] = str(error)
            continue
        results[folder] = result
        if was_edited(result, training):
            remarks.append(f"{folder} was trained with another version of {training.defense} than this program's.")
    return StoredResults(results, left_out, tuple(remarks))


def notes_on(exhibit: Exhibit, scale: str, block: Block, plan: Plan, found: StoredResults) -> list[str]:
    """Sentences for a reader: what ours is, in what it differs from the paper's block, and what was left out."""
    left_out = [f"Left out: {reason}" for reason in found.left_out.values()]
    if not found.results:
        what = "nothing of this plan" if left_out else "not yet run"
        return [f"Ours: {what} ({plan.dataset}, {plan.backbone}, scale {scale}).", *left_out]
    first = next(iter(found.results.values()))
    epochs = first.run["protocol"]["epochs"]
    shown = f"{len(first.label)} of {first.run.get('dataset_size', 'unknown')} test images"
    notes = [
        f"Ours: {plan.dataset}, {plan.backbone}, {epochs} epochs, {shown}, suite {plan.suite}, "
        f"convention {plan.convention}, seeds {len(plan.seeds)}."
    ]
    if scale != "full":
        notes.append(
            f"Not comparable: the paper has {block.dataset}, {block.backbone}, 110 epochs and all test images. At "
            f"scale {scale} this shows that the pipeline works, not that the numbers agree."
        )
    if any(result.run.get("corruptions", {}).get("generated") for result in found.results.values()):
        notes.append("Not comparable: our corrupted images were generated, the paper's are the published files.")
    count = Counter(folder.parent.name for folder in found.results)
    fewer = [f"{name} {number}" for name, number in count.items() if number < len(plan.seeds)]
    notes += [f"Fewer seeds: {', '.join(fewer)}."] if fewer else []
    return [*notes, *found.remarks, *left_out, *([exhibit.note] if exhibit.note else [])]


def _images_here(plan: Plan) -> dict[str, str]:
    try:
        return image_digests(load_dataset(plan.dataset, plan.data), plan.limit)
    except BenchError:
        return {}


def _require_alike(path: Path, first: EvaluationResult, result: EvaluationResult) -> None:
    refuse_mixture([str(first.run.get("model")), str(path)], [first, result])
    if first.run.get("training_data") != result.run.get("training_data"):
        raise BenchError(f"{path} is of other training images than the first result: train both on the same.")


def with_corruptions(plan: Plan) -> Plan:
    """The plan with corrupted images in its runs folder, where the data folder has none and the suite needs some."""
    corruptions = load_suite(plan.suite).corruptions
    try:
        dataset = load_dataset(plan.dataset, plan.data)
        if corruptions:
            find_corrupted(None, dataset, _evaluated(plan, dataset), corruptions, plan.data)
    except BenchError:
        return dataclasses.replace(plan, corruptions=plan.runs / f"{plan.dataset}-C") if corruptions else plan
    return plan


def prepare_data(plan: Plan) -> None:
    """Require the plan's data; corrupted images in its own folder are generated if they are not there.

    Raises:
        BenchError: the dataset or its corrupted images are missing.
    """
    dataset = load_dataset(plan.dataset, plan.data)
    corruptions = load_suite(plan.suite).corruptions
    if plan.corruptions is not None:
        wanted = GenerationRequest(plan.dataset, plan.corruptions, plan.data, plan.limit, 0, corruptions)
        with closing(EvaluationProgress()) as progress:
            generate(wanted, partial(progress, "corrupting"))
    elif corruptions:
        find_corrupted(None, dataset, _evaluated(plan, dataset), corruptions, plan.data)


def _evaluated(plan: Plan, dataset: Dataset) -> Split:
    return dataset.test if plan.limit is None else dataset.test.take(plan.limit)


@dataclass(frozen=True)
class Cost:
    """Seconds of what is missing; None: not known."""

    training: float | None
    timed: tuple[str, ...]
    """Defenses of which a step was timed; the others are taken to be as slow as the slowest of these."""
    evaluation: float | None
    """At most: as a trained model of the plan costs."""
    unknown: str = ""
    """Until when `evaluation` is not known."""


def cost(plan: Plan, todo: Sequence[Step]) -> Cost:
    """Seconds that it takes to do what is missing of a plan, measured here; nothing is written.

    Raises:
        BenchError: the data is missing.
    """
    images = len(load_dataset(plan.dataset, plan.data).train)
    seconds = _seconds_per_image([step.training for step in todo if not step.trained])
    epochs = {step: step.epochs - step.finished for step in todo if not step.trained}
    slowest = max(seconds.values(), default=None)
    training = 0.0 if not epochs else None
    if epochs and slowest is not None:
        training = sum(seconds.get(step.training.defense, slowest) * count * images for step, count in epochs.items())
    return Cost(training, tuple(seconds), *_evaluation_cost(plan, todo))


def _evaluation_cost(plan: Plan, todo: Sequence[Step]) -> tuple[float | None, str]:
    missing = sum(not step.evaluated for step in todo)
    model = next((step for step in todo if step.trained and step.result), None)
    if not missing:
        return 0.0, ""
    if model is None:
        return None, "before a model is trained"
    try:
        costs = estimate(dataclasses.replace(plan.evaluation(model.training), overwrite=True))
    except BenchError:
        return None, "before the corrupted images are there"
    return missing * sum(seconds for _, _, seconds in costs), ""


def _seconds_per_image(trainings: Sequence[TrainingRequest]) -> dict[str, float]:
    """By defense, the last first, until the time is up; not those that need another model, which would be trained."""
    found: dict[str, float] = {}
    until = time.monotonic() + _SECONDS_OF_TIMING
    for training in reversed(trainings):
        required = type(make_defense(training.defense, training.dataset, {})).requires
        if not required and training.defense not in found and time.monotonic() < until:
            found[training.defense] = seconds_per_image(prepare_run(training, quiet=True))
    return found
