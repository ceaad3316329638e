"""Many trainings and evaluations in one go. The state of a sweep is what lies on disk: what is finished is skipped."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.checkpoints import load_checkpoint
from bench.errors import BenchError, unknown_name
from bench.evaluation import EvaluationRequest, evaluate, result_path
from bench.progress import EvaluationProgress
from bench.registry import make_defense, names
from bench.results import read_result
from bench.suites import load_suite
from bench.training import TrainingRequest, train

PLANS = Path(__file__).parent / "plans"


@dataclass(frozen=True)
class Plan:
    """Every defense on one dataset and backbone, with several seeds, under one suite."""

    dataset: str
    defenses: tuple[str, ...]
    suite: str
    seeds: tuple[int, ...] = (0,)
    backbone: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    limit_train: int | None = None
    limit: int | None = None
    convention: Literal["any", "final"] = "any"
    corruptions: Path | None = None
    """Folder of corrupted test images, as for `EvaluationRequest`."""
    data: Path = Path("data")
    runs: Path = Path("runs")
    device: str = "auto"

    def check(self) -> None:
        """Refuse a plan that would fail half-way.

        Raises:
            BenchError: an unknown defense or suite.
        """
        for name in self.defenses:
            make_defense(name, self.dataset, {})
        load_suite(self.suite)

    def trainings(self) -> list[TrainingRequest]:
        """One request per seed and defense; a defense that another one needs comes first."""
        ordered = sorted(self.defenses, key=lambda name: bool(type(make_defense(name, self.dataset, {})).requires))
        return [
            TrainingRequest(
                defense=defense,
                dataset=self.dataset,
                backbone=self.backbone,
                seed=seed,
                protocol=self.protocol,
                limit_train=self.limit_train,
                data=self.data,
                runs=self.runs,
                device=self.device,
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
        }
        given = "".join(f" {option} {value}" for option, value in options.items() if value is not None)
        return EvaluationRequest(
            suite=self.suite,
            checkpoint=training.run_folder,
            data=self.data,
            limit=self.limit,
            convention=self.convention,
            corruptions=self.corruptions,
            device=self.device,
            command=f"bench eval {training.run_folder} --suite {self.suite}{given}",
        )

    def result(self, training: TrainingRequest) -> Path:
        """Where the result of that evaluation is, or will be."""
        return result_path(self.evaluation(training), load_suite(self.suite))


def load_plan(name: str) -> Plan:
    """A plan that comes with the program, from `bench/plans/NAME.json`.

    Raises:
        BenchError: an unknown name.
    """
    known = [path.stem for path in PLANS.glob("*.json")]
    if name not in known:
        raise unknown_name("plan", name, known)
    content: dict[str, Any] = json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8"))
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in content.items()}
    return Plan(**values)


def run_plan(plan: Plan, say: Callable[[str], None] = print, quiet: bool = False) -> list[Path]:
    """Train and evaluate what is missing; returns the result files, seed by seed.

    Raises:
        BenchError: the plan or its data is bad, or a run failed; the others are done first and all failures named.
    """
    plan.check()
    results, failures = [], []
    requests = plan.trainings()
    for number, request in enumerate(requests, start=1):
        path = plan.result(request)
        try:
            say(f"[{number}/{len(requests)}] {request.run_folder}")
            train(request, resume=True, quiet=quiet)
            if path.exists():
                require_same(path, request, plan.convention)
            else:
                evaluate(plan.evaluation(request), EvaluationProgress(quiet))
            results.append(path)
        except BenchError as error:
            say(f"[{number}/{len(requests)}] {request.run_folder} failed: {error}")
            failures.append(f"{request.run_folder}: {error}")
    if failures:
        raise BenchError(f"{len(failures)} of {len(requests)} runs failed: {' | '.join(failures)}")
    return results


def require_same(path: Path, request: TrainingRequest, convention: str = "any") -> None:
    """Refuse a result file that is not of the run's present model, evaluated as a sweep does.

    Raises:
        BenchError: the file is of another checkpoint, dataset or attack seed, was made with radii of one's own, or
            lacks the outcomes under the convention (`final` stores both).
    """
    run = read_result(path).run
    found = (run.get("checkpoint_digest"), run.get("dataset"), run.get("evaluation", {}).get("seed"))
    expected = (load_checkpoint(request.run_folder).digest, request.dataset, 0)
    if convention == "final" and run.get("evaluation", {}).get("convention") != convention:
        raise BenchError(f"{path} is not of convention final: delete it, or choose another folder with --runs.")
    if found != expected or "--eps" in str(run.get("command")):
        raise BenchError(f"{path} is of another model or evaluation: delete it, or choose another folder with --runs.")


def all_defenses(text: str) -> tuple[str, ...]:
    """`all`, or names separated by commas."""
    return tuple(names("defense")) if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())
