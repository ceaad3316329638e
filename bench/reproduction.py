"""The tables and figures of the Adv-DPNP paper as plans for `bench.sweep`: what is there, what is missing, its cost.

`paper.json` says for each which suite it shows, on which datasets and backbones ("blocks"), for which defenses in the
paper's order, and which of our columns stands for each of the paper's. It holds no published number.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bench.checkpoints import load_checkpoint
from bench.corruptions.generating import GenerationRequest, generate
from bench.corruptions.predicting import find_corrupted
from bench.datasets import load_dataset
from bench.errors import BenchError, unknown_name
from bench.evaluation import estimate
from bench.profiling import seconds_per_image
from bench.progress import CorruptionProgress
from bench.protocol import protocol_for
from bench.registry import make_defense
from bench.suites import load_suite
from bench.sweep import Plan, all_defenses
from bench.training import TrainingRequest, prepare_run

_PAPER = Path(__file__).parent / "paper.json"
STATED = "stated"
"""The variant that follows the paper's text."""


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run. What is None is the paper's."""

    dataset: str | None = None
    backbone: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    """Evaluated are so many test images, the first."""


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "smoke": Scale("digits", "cnn-small", {"epochs": 2}, 20),
        "cpu": Scale("cifar10", "cnn-small-bn", {"epochs": 30}, 1000),
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
    """What a reader must know of how it is run."""
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
                plan.check()
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
    """Tables, then figures."""
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


# ------------------------------------------------------------------------------------------ what is there


@dataclass(frozen=True)
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
        """Whether no epoch is missing."""
        return self.finished >= self.epochs

    @property
    def evaluated(self) -> bool:
        """Whether no evaluation is missing."""
        return self.result is None or self.result.exists()


def steps(plan: Plan) -> list[Step]:
    """All trainings of a plan in their order, those that others require first."""
    found: dict[Path, Step] = {}
    epochs = protocol_for(plan.dataset, {}, 0, False, plan.protocol).epochs
    for training in plan.trainings():
        required = type(make_defense(training.defense, plan.dataset, {})).requires
        for name in required:
            needed = dataclasses.replace(training, defense=name)
            found.setdefault(needed.run_folder, Step(needed, _finished(needed), epochs, None))
        found[training.run_folder] = Step(training, _finished(training), epochs, plan.result(training))
    return list(found.values())


def _finished(training: TrainingRequest) -> int:
    try:
        return int(load_checkpoint(training.run_folder / "last").config["epoch"])
    except BenchError:
        return 0


def prepare_data(plan: Plan, ours: bool) -> Plan:
    """The plan with its corrupted images found; where `ours`, they are generated if there are none.

    Raises:
        BenchError: the dataset is missing, or corrupted images that are not to be generated.
    """
    dataset = load_dataset(plan.dataset, plan.data)
    corruptions = load_suite(plan.suite).corruptions
    if not corruptions:
        return plan
    test = dataset.test if plan.limit is None else dataset.test.take(plan.limit)
    try:
        find_corrupted(None, dataset, test, corruptions, plan.data)
    except BenchError:
        if not ours:
            raise
        folder = plan.runs / f"{plan.dataset}-C"
        with CorruptionProgress() as progress:
            generate(GenerationRequest(plan.dataset, folder, plan.data, plan.limit, 0, corruptions), progress)
        return dataclasses.replace(plan, corruptions=folder)
    return plan


# ------------------------------------------------------------------------------------------ what it costs


@dataclass(frozen=True)
class Cost:
    """Seconds; None: not known."""

    training: float | None
    timed: str
    """The defense whose steps were timed."""
    evaluation: float | None


def cost(plan: Plan, todo: list[Step]) -> Cost:
    """What is missing of a plan: trainings as the last defense costs, evaluations at most as a trained model costs.

    Raises:
        BenchError: the data is missing.
    """
    images = len(load_dataset(plan.dataset, plan.data).train)
    epochs = sum(step.epochs - step.finished for step in todo if not step.trained)
    timed = _to_time(todo)
    training = 0.0 if epochs == 0 else None
    if epochs and timed:
        training = epochs * images * seconds_per_image(prepare_run(timed, quiet=True))
    missing = [step for step in todo if not step.evaluated]
    model = next((step for step in todo if step.trained and step.result), None)
    evaluation = 0.0 if not missing else None
    if missing and model:
        request = dataclasses.replace(plan.evaluation(model.training), overwrite=True)
        evaluation = len(missing) * sum(seconds for _, _, seconds in estimate(request))
    return Cost(training, timed.defense if timed else "", evaluation)


def _to_time(todo: list[Step]) -> TrainingRequest | None:
    """The last training that needs no other model, which would be trained first."""
    simple = [
        step.training
        for step in todo
        if not type(make_defense(step.training.defense, step.training.dataset, {})).requires
    ]
    return simple[-1] if simple else None
