"""A sweep in a file: what it says, what is refused, what options beside it replace, and what its jobs are given."""

import importlib
import os
import types
from concurrent.futures import Future
from contextlib import nullcontext

import pytest

from bench.experiments.executors import EngineOptions, Resources, make_engine
from bench.experiments.jobs import Job, Schedule, by_stage
from bench.experiments.plan_file import read_plan
from tests import ROOT
from tests.experiments.test_engines import Recorder
from tests.support.command import refused
from tests.support.refusals import refusal

HANDLE = Future()
EXAMPLE = ROOT / "examples" / "sweep.toml"


@pytest.fixture
def plan(tmp_path):
    def write(text):
        (tmp_path / "plan.toml").write_text(text)
        return tmp_path / "plan.toml"

    return write


def test_a_plan_says_what_options_say(plan):
    text = """
        about = "two of them"
        datasets = ["digits", "npz:with, comma.npz"]
        defenses = "at, trades"
        seeds = [3]
        limit = 9
        runs = "elsewhere"
        [grid]
        epochs = [1, 2]
        adv-dpnp.alpha = [0.5]
        trades = {beta = [1, 3.5]}
        [settings]
        batch_size = 64
        milestones = [1, 2]
        flip = false
        epsilon = "8/255"
        [slurm]
        partition = "gpu"
        time = 30
        [resources.train]
        gpus = 0.5
        minutes = 90
    """
    found, told = read_plan(plan(text))
    assert told == []
    assert {name: value for name, value in found.items() if name not in ("runs", "resources")} == {
        "datasets": ("digits", "npz:with, comma.npz"),
        "defenses": ("at", "trades"),
        "seeds": "3,",
        "limit": 9,
        "grid": {"epochs": [1, 2], "adv-dpnp.alpha": [0.5], "trades.beta": [1, 3.5]},
        "settings": {"batch_size": 64, "milestones": (1, 2), "flip": False, "epsilon": "8/255"},
        "slurm": {"partition": "gpu", "time": "30"},
    }
    assert (str(found["runs"]), found["resources"]) == ("elsewhere", {"train": Resources(gpus=0.5, minutes=90)})


BAD = [
    ("datests = []", "unknown key 'datests'. Did you mean 'datasets'? Choose from: about, address, backbone, "),
    ("limit = 'many'", "key limit='many' is not a whole number"),
    ("limit = true", "key limit=True is not a whole number"),
    ("limit = 0", "key limit=0 is below 1"),
    ("jobs = 2.5", "key jobs=2.5 is not a whole number"),
    ("backbone = ['resnet18']", "key backbone=['resnet18'] is not text"),
    ("checkpoint = 'newest'", "key checkpoint='newest' is not one of last, best, average"),
    ("datasets = 3", "key datasets=3 is not a list"),
    ("seeds = 1.5", 'seeds=1.5 is neither how many, nor a text such as "0-4", nor a list'),
    ("seeds = true", "seeds=True is neither"),
    ("grid = 3", "grid=3 is not a table. Write [grid]"),
    ("[grid]\nbeta = 3", "grid beta=3 is not a list of values, such as [1, 3]"),
    ("[grid.a.b]\nc = [1]", "grid a.b={'c': [1]} is not a list of values"),
    ("[settings]\nepoch = 3", "'epoch'. Did you mean 'epochs'?"),
    ("[settings]\nepochs = true", "setting epochs=True is not a whole number"),
    (
        "[resources.trian]\ngpus = 1",
        "unknown stage of resources 'trian'. Did you mean 'train'? Choose from: evaluate, tr",
    ),
    ("[resources.train]\ngpu = 1", "resources.train: unknown key of Resources 'gpu'. Did you mean 'gpus'?"),
    ("[resources.train]\nmemory = 0", "resources.train: memory=0.0 of a job is too little"),
    ("[resources]\ntrain = 1", "resources.train=1 is not a table"),
    ("[slurm]\npartition = ['a']", "slurm partition=['a'] is neither a text nor a number"),
    ("limit = 1\nlimit = 2", "is not a plan: "),
    ("\0", "is not a plan: "),
    ("a = " + 9999 * "[", "is not a plan: "),
]


@pytest.mark.parametrize(("text", "line"), BAD, ids=[text[:30] for text, _ in BAD])
def test_a_bad_plan_is_refused_by_name(plan, text, line):
    path = plan(text)
    assert refusal(lambda: read_plan(path), line).startswith(str(path))


def test_no_plan_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    refusal(lambda: read_plan(tmp_path / "pipe.toml"), "is a pipe or a device")
    refusal(lambda: read_plan(tmp_path / "none.toml"), "no plan can be read from ", "No such file or directory")


def test_options_beside_a_plan_take_the_place_of_what_it_says():
    said = {"seeds": "--seeds", "grid.trades.beta": "--grid trades.beta", "settings.learning_rate": "--learning-rate"}
    said |= {"grid.batch_size": "--grid batch_size", "gpus": "--gpus", "slurm.time": "--slurm time"}
    found, told = read_plan(EXAMPLE, said)
    assert "seeds" not in found and found["grid"] == found["settings"] == {}
    assert found["resources"] == {"train": Resources(cpus=4, memory=16.0), "evaluate": Resources(cpus=4)}
    places = {"seeds": "--seeds", "grid.trades.beta": "--grid trades.beta", "grid.learning_rate": "--learning-rate"}
    places |= {"settings.batch_size": "--grid batch_size"}
    places |= {f"resources.{stage}.gpus": "--gpus" for stage in ("train", "evaluate")}
    places |= {f"resources.{stage}.minutes": "--slurm time" for stage in ("train", "evaluate")}
    assert sorted(told) == sorted(f"{flag} takes the place of {entry} in {EXAMPLE}." for entry, flag in places.items())


def test_the_example_is_counted_and_told_apart_before_anything_runs(bench, tmp_path):
    code, output = bench("sweep", EXAMPLE, "--dry-run", "--defenses", "trades", "--runs", tmp_path / "r")
    assert code == 0, output
    # 3 weights x 2 rates x 2 recipes x 3 seeds, each trained, and evaluated under 2 suites
    assert "# The sweep has 108 jobs, of which 108 are missing." in output.splitlines()
    shown = ("# recipe: pang2021, fastat2026", "# trades.beta: 1.0, 3.0, 6.0", "# learning_rate: 0.02, 0.05")
    assert [line for line in (*shown, "# suite: quick, autoattack", "# seed: 0, 1, 2") if line not in output] == []
    lines = [line for line in output.splitlines() if line.startswith("bench ")]
    assert (len(lines), len(set(lines))) == (108, 108)
    assert "Here no job of resources.train is given cpus, gpus, minutes, memory: not all engines can." in output
    assert f"--defenses takes the place of defenses in {EXAMPLE}." in output
    assert not (tmp_path / "r").exists()


def test_a_plan_whose_combinations_do_not_fit_is_refused_before_anything_runs(bench, plan, tmp_path):
    text = 'datasets = ["digits"]\ndefenses = ["at"]\nsuites = ["clean"]\n[grid]\nattack_step = ["eps/4", "eps*2"]\n'
    told = refused("sweep", plan(text), "--runs", tmp_path / "r")
    assert told.startswith("of attack_step=eps*2: ")
    assert refused("sweep", plan(text.replace('"at"', '"at", "bt"'))).startswith("unknown defense 'bt'.")
    assert not (tmp_path / "r").exists()


# --------------------------------------------------------------------------------- what jobs are given


JOBS = [Job(f"{stage} {number}", (), bool, stage=stage) for number in (0, 1) for stage in ("train", "evaluate")]


def test_jobs_are_handed_over_by_stage_only_where_it_matters(tmp_path):
    class Staged(Recorder):
        def start(self, commands, stage=""):
            threads = {word for command in commands for word in command if word.startswith("OMP_NUM_THREADS=")}
            self.handed.append((stage, len(commands), threads))
            return super().start(commands, stage)

    def handed(**stages):
        results = set()
        engine = Staged(results)
        engine.handed, engine.stages, engine.threads = [], stages, 2
        jobs = [
            Job(job.name, (), lambda name=job.name: name.replace(" ", "-") in results, stage=job.stage) for job in JOBS
        ]
        assert Schedule(jobs, engine, tmp_path, lambda text: None).run() == {}
        return engine.handed

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        assert handed() == [("", 4, {"OMP_NUM_THREADS=2"})]
        assert handed(train=Resources(cpus=8)) == [
            ("train", 2, {"OMP_NUM_THREADS=8"}),
            ("", 2, {"OMP_NUM_THREADS=2"}),
        ]


def test_slurm_gives_each_stage_what_it_asks_for(monkeypatch, tmp_path):
    updates = []

    class Executor:
        def __init__(self, folder):
            pass

        @staticmethod
        def _valid_parameters():
            return {"cpus_per_task", "gpus_per_node", "time", "mem", "partition", "job_name", "array_parallelism"}

        def update_parameters(self, **given):
            updates.append(given)

        def batch(self):
            return nullcontext()

        def submit(self, *arguments, **options):
            return HANDLE

    stub = types.SimpleNamespace(
        SlurmExecutor=Executor, core=types.SimpleNamespace(utils=types.SimpleNamespace(FailedJobError=RuntimeError))
    )
    install(monkeypatch, submitit=stub)
    stages = {"train": Resources(cpus=4, gpus=2.0, minutes=720, memory=1.5), "evaluate": Resources(gpus=0.0)}
    options = EngineOptions(cpus=1, settings={"partition": "gpu", "time": "60"}, logs=tmp_path, stages=stages)
    engine = make_engine("slurm", options)
    for stage in ("", "train", "evaluate"):
        assert engine.start([["true"]], stage) == [HANDLE]
    every = {"job_name": "bench", "partition": "gpu", "cpus_per_task": 1, "time": 60}
    assert updates[0] == every | {"gpus_per_node": 1}
    assert updates[1] == every | {"cpus_per_task": 4, "gpus_per_node": 2, "time": 720, "mem": "1536M"}
    assert updates[2] == every
    halves = EngineOptions(logs=tmp_path, stages={"train": Resources(gpus=0.5)})
    refusal(lambda: make_engine("slurm", halves), "gpus_per_node=0.5 is not a whole number")


def test_ray_gives_each_stage_what_it_asks_for(monkeypatch, tmp_path):
    asked = []

    class Task:
        def options(self, **given):
            asked.append(given)
            return self

        def remote(self, *arguments, **options):
            return types.SimpleNamespace(future=lambda: HANDLE)

    install(monkeypatch, ray=None)
    engine = make_engine("ray", EngineOptions(stages={"train": Resources(cpus=4, gpus=0.25, memory=2.0, minutes=5)}))
    engine.task = Task()
    assert [engine.start([["true"]], stage) for stage in ("", "evaluate", "train")] == 3 * [[HANDLE]]
    assert asked == [{"num_cpus": 4, "num_gpus": 0.25, "memory": 2 * 2**30}]
    assert (engine.threads_of("train"), engine.threads_of("evaluate")) == (4, 1)


def install(patch, **stubs):
    """Stand-ins for packages that may not be installed."""
    for engine in ("ray", "slurm"):
        module = importlib.import_module(f"bench.experiments.executors.{engine}")
        patch.setattr(module, "installed", lambda package, extra: stubs[package])


def test_what_an_engine_gives_all_jobs_alike_is_one_set():
    assert by_stage(JOBS, make_engine("local", EngineOptions())) == {"": JOBS}
