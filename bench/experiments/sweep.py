"""Many trainings and evaluations in one go. The state of a sweep is what lies on disk: what is finished is skipped."""

import json
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench.catalogue.names import DEFAULT_RECIPE
from bench.catalogue.plugins import make_defense, names, plugin_files
from bench.catalogue.protocol import TrainingProtocol, protocol_arguments
from bench.catalogue.suites import load_suite
from bench.data.splits import Dataset
from bench.errors import BenchError, cause, unknown_name
from bench.evaluation.corrupted import find_corrupted
from bench.evaluation.evaluate import clear_up, evaluate
from bench.evaluation.record import require_storable_suite
from bench.evaluation.request import EvaluationRequest, Precision, result_path
from bench.experiments.disk import Room, room
from bench.experiments.executors import Engine
from bench.experiments.job_list import JobListFile
from bench.experiments.jobs import Job, Schedule, log_file
from bench.experiments.matching import require_planned
from bench.models.backbones import require_backbone
from bench.models.checkpoints import load_checkpoint
from bench.system import blocks as parts
from bench.system.files import require_writable_folder, write_text
from bench.system.progress import EvaluationProgress
from bench.text import setting_text
from bench.training.request import TrainingRequest, dataset_and_protocol, is_finished, needed_request
from bench.training.train import train

PLANS = Path(__file__).parent / "plans"


@dataclass(frozen=True)
class Plan:
    """Every defense on one dataset and backbone, by one recipe with several seeds, under one suite."""

    dataset: str
    defenses: tuple[str, ...]
    suite: str
    seeds: tuple[int, ...] = (0,)
    backbone: str | None = None
    recipe: str = DEFAULT_RECIPE
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Settings in the place of the recipe's."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Of every defense, in the place of its own."""
    named_by: tuple[str, ...] = ()
    """Hyperparameters and settings whose values the run folders name, as for `TrainingRequest`."""
    limit_train: int | None = None
    extra: str | None = None
    """Images to train on, as for `TrainingRequest`."""
    limit: int | None = None
    convention: Literal["any", "final"] = "any"
    corruptions: Path | None = None
    """Folder of corrupted test images, as for `EvaluationRequest`."""
    precision: str = "auto"
    """Of the trainings."""
    checkpoint: str = "last"
    """Which of a run's checkpoints is evaluated."""
    eval_precision: Precision = "auto"
    """Of the attacks' search."""
    data: Path = Path("data")
    runs: Path = Path("runs")
    device: str = "auto"

    @property
    def logs(self) -> Path:
        """Where jobs write what they say."""
        return self.runs / "logs"

    def check(self, held: "HeldData") -> None:
        """Refuse a plan that would fail half-way.

        Raises:
            BenchError: an unknown defense, suite, backbone or dataset, a limit that does not fit, a bad setting, or
                evaluations that would be refused once their models are trained.
        """
        for name in self.defenses:
            make_defense(name, self.dataset, self.hyperparameters)
        suite = load_suite(self.suite)
        if self.backbone is not None:
            require_backbone(self.backbone)
        for request in self.trainings()[:1]:
            dataset, protocol = held.of(request)
            kept = {"last": True, "best": protocol.holdout > 0, "average": protocol.average != "none"}
            if not kept[self.checkpoint]:
                raise BenchError(
                    f"these trainings keep no checkpoint {self.checkpoint!r}: it takes --holdout N for `best`, and "
                    "--average ema or swa for `average`."
                )
            evaluation = (self.suite, self.dataset, self.limit, self.corruptions, self.data)
            if evaluation in held.evaluable:
                continue
            test = dataset.test.take(self.limit or len(dataset.test))
            if suite.corruptions:
                find_corrupted(self.corruptions, dataset, test, suite.corruptions, self.data)
            require_storable_suite(suite.resolve(dataset.epsilons, {}), test.take(1))
            held.evaluable.add(evaluation)

    def trainings(self) -> list[TrainingRequest]:
        """One request per seed and defense; a defense that another one needs comes first."""
        ordered = sorted(self.defenses, key=lambda name: bool(type(make_defense(name, self.dataset, {})).requires))
        return [
            TrainingRequest(
                defense=defense,
                dataset=self.dataset,
                backbone=self.backbone,
                seed=seed,
                recipe=self.recipe,
                protocol=self.protocol,
                hyperparameters=self.hyperparameters,
                named_by=self.named_by,
                limit_train=self.limit_train,
                extra=self.extra,
                data=self.data,
                runs=self.runs,
                device=self.device,
                precision=self.precision,
            )
            for seed in self.seeds
            for defense in ordered
        ]

    def evaluation(self, training: TrainingRequest) -> EvaluationRequest:
        """How the model of a training is evaluated."""
        options = {
            "--limit": self.limit,
            "--convention": None if self.convention == "any" else self.convention,
            "--corruptions-dir": self.corruptions,
            "--precision": None if self.eval_precision == "auto" else self.eval_precision,
        }
        subject = training.run_folder / ("" if self.checkpoint == "last" else self.checkpoint)
        given = [word for option, value in options.items() if value is not None for word in (option, str(value))]
        return EvaluationRequest(
            suite=self.suite,
            checkpoint=subject,
            dataset=self.dataset,
            data=self.data,
            limit=self.limit,
            convention=self.convention,
            corruptions=self.corruptions,
            precision=self.eval_precision,
            device=self.device,
            command=shlex.join(["bench", "eval", str(subject), "--suite", self.suite, *given]),
        )

    def result(self, training: TrainingRequest) -> Path:
        """Where the result of that evaluation is, or will be."""
        return result_path(self.evaluation(training), load_suite(self.suite), training.dataset)


class HeldData:
    """The data of trainings, read once for all that share it."""

    def __init__(self) -> None:
        self.read: dict[tuple[Any, ...], Dataset] = {}
        self.evaluable: set[tuple[Any, ...]] = set()
        """Evaluations on it that were found possible."""

    def of(self, request: TrainingRequest) -> tuple[Dataset, TrainingProtocol]:
        """As `dataset_and_protocol`."""
        key = (request.dataset, request.data, request.classes, request.limit_train, request.extra)
        dataset, protocol = dataset_and_protocol(request, self.read.get(key))
        self.read[key] = dataset
        return dataset, protocol


def load_plan(name: str) -> Plan:
    """A plan that comes with the program, from `bench/experiments/plans/NAME.json`; an unknown name is refused."""
    known = [path.stem for path in PLANS.glob("*.json")]
    if name not in known:
        raise unknown_name("plan", name, known)
    content: dict[str, Any] = json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8"))
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in content.items()}
    return Plan(**values)


def run_plan(plan: Plan, say: Callable[[str], None] = print, quiet: bool = False, **how: Any) -> list[Path]:
    """`run_plans` for one plan: the result files come seed by seed."""
    return run_plans([plan], say, quiet, **how)


def run_plans(
    plans: Sequence[Plan],
    say: Callable[[str], None] = print,
    quiet: bool = False,
    engine: Engine | None = None,
    shards: int = 1,
) -> list[Path]:
    """Train and evaluate what is missing; returns the result files, plan by plan.

    Without an `engine` in this process, one after the other; with one as jobs of their own
    (`bench.experiments.jobs`), where several `shards` share each evaluation.

    Raises:
        BenchError: a plan or its data is bad, two plans would share a folder, or a run failed; the others are done
            first and all failures named.
    """
    held = check_plans(plans)
    runs = [(plan, request, plan.result(request)) for plan in plans for request in plan.trainings()]
    place, jobs = plans[0], plan_jobs(plans, shards)
    missing = not all(path.exists() for _, _, path in runs)
    if missing:
        require_writable_folder(place.runs if engine is None else place.logs)
        needed_room(plans, held).require(place.runs)
    listed = JobListFile(place.logs, place.runs, jobs)
    with listed if missing else nullcontext():
        if engine is None:
            failures, total = _run_here(runs, say, quiet, listed.note), f"{len(runs)} runs"
        else:
            failures, total = dict(Schedule(jobs, engine, place.logs, say, listed.note).run()), f"{len(jobs)} jobs"
    if failures:
        named = " | ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise BenchError(f"{len(failures)} of {total} failed: {named}")
    return [path for _, _, path in runs]


def check_plans(plans: Sequence[Plan]) -> HeldData:
    """The data of plans; refused where one would fail half-way, or two would do the same or share a folder.

    Raises:
        BenchError: as `Plan.check`; says which setting is meant where several are tried.
    """
    held, places, trained = HeldData(), dict[Path, TrainingRequest](), dict[str, Path]()
    for plan in plans:
        try:
            plan.check(held)
        except BenchError as error:
            if not plan.named_by:
                raise
            raise BenchError(f"of {_setting(plan)}: {error}") from error
        for request in plan.trainings():
            folder = request.run_folder
            if places.setdefault(folder, request) != request:
                raise BenchError(
                    f"two trainings of this sweep would share the folder {folder}. Rename a file of theirs."
                )
            same = (request.dataset, request.resolved_backbone, request.seed, held.of(request)[1])
            made = make_defense(request.defense, request.dataset, request.hyperparameters)
            first = trained.setdefault(repr((*same, request.defense, made)), folder)
            if first != folder:
                raise BenchError(f"{first} and {folder} would be the same training. Leave one of the two out.")
    return held


def needed_room(plans: Sequence[Plan], held: HeldData) -> Room:
    """The room on disk that what is missing of plans needs, and what there is."""
    missing = {
        request.run_folder: (request, *held.of(request), plan.limit or len(held.of(request)[0].test))
        for plan in plans
        for request in plan.trainings()
        if not plan.result(request).exists()
    }
    return room(plans[0].runs, missing.values())


def _setting(plan: Plan) -> str:
    """What a plan tries, for a person."""
    values = {**plan.protocol, **plan.hyperparameters}
    return ", ".join(f"{name}={setting_text(values[name])}" for name in plan.named_by)


def _run_here(
    runs: Sequence[tuple[Plan, TrainingRequest, Path]],
    say: Callable[[str], None],
    quiet: bool,
    note: Callable[[str, str], None],
) -> dict[str, str]:
    failures = {}
    for number, (plan, request, path) in enumerate(runs, start=1):
        job = _name("train", plan, request)
        try:
            say(f"[{number}/{len(runs)}] {request.run_folder}")
            train(request, resume=True, quiet=quiet)
            job = _evaluation_name(plan, request)
            if not is_evaluated(path, request, plan):
                with closing(EvaluationProgress(quiet)) as progress:
                    evaluate(plan.evaluation(request), progress, overall=progress.overall)
        except Exception as error:  # what one plug-in raises must not cost the runs after it
            reason = _reason(error, log_file(_name("sweep", plan, request), plan.logs))
            failures[str(request.run_folder)] = reason
            note(job, reason)
            say(f"[{number}/{len(runs)}] {request.run_folder} failed: {reason}")
    return failures


def _reason(error: Exception, log: Path) -> str:
    """One line; what is no refusal leaves its traceback in the log, unless that cannot be written either."""
    if isinstance(error, BenchError):
        return str(error)
    try:
        write_text(log, "".join(traceback.format_exception(error)))
    except BenchError:
        return cause(error)
    return f"{cause(error)}, see {log}"


def plan_jobs(plans: Sequence[Plan], shards: int = 1) -> list[Job]:
    """Plans as jobs: a training after those of the models it needs, an evaluation after the training.

    With several `shards` each evaluation is that many jobs, and one that merges what they leave on disk.
    """
    jobs: dict[str, Job] = {}
    held = HeldData()
    for plan in plans:
        for request in plan.trainings():
            for training in _training_jobs(plan, request, held):
                jobs.setdefault(training.name, training)
            jobs |= {job.name: job for job in _evaluation_jobs(plan, request, shards)}
    return list(jobs.values())


def _training_jobs(plan: Plan, request: TrainingRequest, held: HeldData) -> Iterator[Job]:
    """The training, behind those of the models that it needs."""
    needed = [needed_request(request, name) for name in type(make_defense(request.defense, plan.dataset, {})).requires]
    for other in needed:
        yield from _training_jobs(plan, other, held)
    arguments = ["train", "--defense", request.defense, "--dataset", plan.dataset, "--seed", str(request.seed)]
    arguments += ["--recipe", plan.recipe] if plan.recipe != DEFAULT_RECIPE else []
    arguments += ["--backbone", plan.backbone] if plan.backbone else []
    arguments += ["--limit-train", str(plan.limit_train)] if plan.limit_train else []
    arguments += ["--extra", plan.extra] if plan.extra else []
    for name, value in request.hyperparameters.items():
        arguments += ["--set", f"{name}={setting_text(value)}"]
    arguments += ["--named-by", ",".join(request.setting)] if request.setting else []
    arguments += ["--runs", str(plan.runs), "--precision", plan.precision, "--resume"]
    arguments += [*_place(plan), *protocol_arguments(plan.protocol)]
    done = partial(_is_trained, request, held)
    after = tuple(_name("train", plan, other) for other in needed)
    yield Job(_name("train", plan, request), tuple(arguments), done, after, "train", request.run_folder)


def _is_trained(request: TrainingRequest, held: HeldData) -> bool:
    return is_finished(request, *held.of(request))


def _evaluation_jobs(plan: Plan, request: TrainingRequest, shards: int) -> Iterator[Job]:
    path = plan.result(request)
    name, trained = _evaluation_name(plan, request), _name("train", plan, request)
    arguments = [*shlex.split(plan.evaluation(request).command)[1:], *_place(plan)]
    pieces = [
        Job(
            f"{name} shard {number} of {shards}",
            (*arguments, "--shard", f"{number}/{shards}"),
            partial(_is_shard_done, path, plan.evaluation(request), (number, shards)),
            (trained,),
            "evaluate",
            path,
            (number, shards),
        )
        for number in range(shards if shards > 1 else 0)
    ]
    yield from pieces
    done = partial(is_evaluated, path, request, plan)
    after = tuple(piece.name for piece in pieces) or (trained,)
    yield Job(name, tuple(arguments), done, after, "evaluate", path)


def _name(what: str, plan: Plan, request: TrainingRequest) -> str:
    return f"{what} {request.run_folder.relative_to(plan.runs)}"


def _evaluation_name(plan: Plan, request: TrainingRequest) -> str:
    return f"{_name('evaluate', plan, request)} {plan.result(request).stem}"


def _place(plan: Plan) -> list[str]:
    """Where data, device and plug-ins are."""
    plugins = [word for path in plugin_files() for word in ("--plugin", str(path))]
    return ["--data", str(plan.data), "--device", plan.device, *plugins]


def is_evaluated(path: Path, request: TrainingRequest, plan: Plan) -> bool:
    """True if the result file is there; one of another model or evaluation is refused.

    What an evaluation left that was killed after it had written it is removed.
    """
    if not path.exists():
        return False
    clear_up(path, require_planned(path, request, plan.evaluation(request)))
    return True


def _is_shard_done(path: Path, evaluation: EvaluationRequest, shard: tuple[int, int]) -> bool:
    checkpoint = evaluation.checkpoint
    assert checkpoint is not None
    return path.exists() or parts.is_finished(path, shard, load_checkpoint(checkpoint).digest)


def all_defenses(text: str) -> tuple[str, ...]:
    """`all`, or names separated by commas."""
    return tuple(names("defense")) if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())
