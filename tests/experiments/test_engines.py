"""Sweeps as jobs: order, retries, restarts, and the same results wherever they run."""

import dataclasses
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from bench.catalogue.protocol import protocol_arguments
from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.experiments import executors as engines
from bench.experiments import job_server
from bench.experiments.executors import Engine, EngineOptions, make_engine
from bench.experiments.job_server import JobServer
from bench.experiments.jobs import Job, Schedule, sorted_by_need, waves
from bench.experiments.sweep import Plan, plan_jobs, run_plan
from bench.launching import program
from bench.models.checkpoints import load_checkpoint
from bench.results.file import content_digest, read_result
from bench.system import blocks as parts
from tests import ROOT
from tests.support.command import bench
from tests.support.refusals import raising, refusal

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Recorder(Engine):
    """Does nothing but note what it is given, in batches; jobs in `lost` end without a result, as often as said."""

    pause = 0.0

    def __init__(self, results, lost=(), limit=None, ending=1):
        self.results, self.lost, self.limit, self.ending = results, dict(lost), limit, ending
        self.batches, self.closed = [], False

    def start(self, commands, stage=""):
        logs = [Path(command[command.index("--job") + 1]).stem for command in commands]
        self.batches.append(logs)
        return [self.end(log) for log in logs]

    def end(self, log):
        handle = Future()
        if self.lost.get(log, 0):
            self.lost[log] -= 1
            handle.set_exception(self.ending) if isinstance(self.ending, Exception) else handle.set_result(self.ending)
        else:
            self.results.add(log)
            handle.set_result(0)
        return handle

    def close(self):
        self.closed = True


def watched(jobs, results):
    """The jobs, done when their log's name is among the results."""
    return [dataclasses.replace(job, done=lambda job=job: job.log(Path()).stem in results) for job in jobs]


def digits_plan(folder, **options):
    return Plan(**{"dataset": "digits", "defenses": ("hat", "at"), "suite": "quick", "runs": folder, **options})


def run(jobs, engine, folder):
    said = []
    return Schedule(jobs, engine, folder, said.append).run(), said


TRAIN, EVALUATE = "train-digits-cnn-small-{}-seed-0", "evaluate-digits-cnn-small-{}-seed-0-quick-v1"


def test_jobs_wait_for_those_they_need(tmp_path):
    results = set()
    engine = Recorder(results)
    failures, said = run(watched(plan_jobs([digits_plan(tmp_path)], shards=2), results), engine, tmp_path)
    pieces = {name: [f"{EVALUATE.format(name)}-shard-{number}-of-2" for number in (0, 1)] for name in ("at", "hat")}
    assert [sorted(batch) for batch in engine.batches] == [
        [TRAIN.format("at"), TRAIN.format("st")],
        sorted([*pieces["at"], TRAIN.format("hat")]),
        sorted([EVALUATE.format("at"), *pieces["hat"]]),
        [EVALUATE.format("hat")],
    ]
    assert (dict(failures), engine.closed) == ({}, True)
    assert said[-1].startswith("[9/9] evaluate digits/cnn-small/hat/seed-0 quick-v1: done in ")


def test_a_recipe_is_given_to_every_training_and_has_a_folder_of_its_own(tmp_path):
    for job in plan_jobs([digits_plan(tmp_path, recipe="pang2021-short")]):
        assert job.name.split()[1].startswith("digits/cnn-small/pang2021-short/")
        if job.arguments[0] == "train":
            assert job.arguments[job.arguments.index("--recipe") + 1] == "pang2021-short"
    assert not any("--recipe" in job.arguments for job in plan_jobs([digits_plan(tmp_path)]))


def test_the_waves_of_a_dry_run_are_the_batches_that_run(tmp_path):
    results = {TRAIN.format("st")}
    jobs = watched(plan_jobs([digits_plan(tmp_path)]), results)
    shown = [[job.log(Path()).stem for job in wave] for wave in waves(jobs)]
    engine = Recorder(results)
    run(jobs, engine, tmp_path)
    expected = [[TRAIN.format("at"), TRAIN.format("hat")], [EVALUATE.format("at"), EVALUATE.format("hat")]]
    assert shown == engine.batches == expected
    assert waves(jobs) == []


def test_what_is_done_is_not_started_and_the_limit_is_kept(tmp_path):
    results = {TRAIN.format("st"), TRAIN.format("hat"), EVALUATE.format("hat")}
    engine = Recorder(results, limit=1)
    run(watched(plan_jobs([digits_plan(tmp_path, seeds=(0, 1))]), results), engine, tmp_path)
    assert {len(batch) for batch in engine.batches} == {1}
    started = [batch[0] for batch in engine.batches]
    of_seed_0 = [log for log in started if log.endswith("seed-0") or "seed-0-" in log]
    assert of_seed_0 == [TRAIN.format("at"), EVALUATE.format("at")]
    assert len(started) == 2 + 5


def test_a_job_that_fails_is_tried_twice_more_then_named_and_the_others_go_on(tmp_path):
    results = set()
    engine = Recorder(results, lost={TRAIN.format("st"): 9, TRAIN.format("at"): 2}, ending=3)
    log = tmp_path / f"{TRAIN.format('st')}.log"
    log.write_text("$ bench train\nError: no memory\n")
    failures, said = run(watched(plan_jobs([digits_plan(tmp_path)]), results), engine, tmp_path)
    started = [log for batch in engine.batches for log in batch]
    assert [started.count(TRAIN.format(name)) for name in ("st", "at", "hat")] == [3, 3, 0]
    assert failures == {
        "train digits/cnn-small/st/seed-0": f"failed 3 times, see {log} (at the end: exit code 3, Error: no memory)",
        "train digits/cnn-small/hat/seed-0": "needs train digits/cnn-small/st/seed-0",
        "evaluate digits/cnn-small/hat/seed-0 quick-v1": "needs train digits/cnn-small/hat/seed-0",
    }
    assert EVALUATE.format("at") in results
    assert "[0/5] train digits/cnn-small/at/seed-0: exit code 3; once more" in said


@pytest.mark.parametrize(
    ("ending", "words"), [(-9, "killed by signal 9"), (0, "left no result"), (OSError("x"), "lost (OSError)")]
)
def test_how_a_job_ended_is_said(tmp_path, ending, words):
    results = set()
    engine = Recorder(results, lost={TRAIN.format("at"): 1}, ending=ending)
    _, said = run(watched(plan_jobs([digits_plan(tmp_path, defenses=("at",))]), results), engine, tmp_path)
    assert f"[0/2] train digits/cnn-small/at/seed-0: {words}; once more" in said
    assert said[-1].startswith("[2/2]")


def test_a_job_that_can_never_be_done_is_not_started(tmp_path):
    engine, refuse = Recorder(set()), raising(BenchError("the folder holds another run"))
    failures, _ = run([Job("a", (), refuse), Job("b", (), lambda: False, ("a",))], engine, tmp_path)
    assert (failures, engine.batches) == ({"a": "the folder holds another run", "b": "needs a"}, [])


def test_jobs_in_the_order_of_their_needs():
    a, b, c = (Job(name, (), bool, after) for name, after in (("a", ("c",)), ("b", ()), ("c", ("elsewhere",))))
    assert [job.name for job in sorted_by_need([a, b, c])] == ["b", "c", "a"]
    with pytest.raises(ValueError, match="need each other: a, c"):
        sorted_by_need([a, b, dataclasses.replace(c, after=("a",))])


def test_protocol_fields_become_the_options_they_came_from():
    fields = {"epochs": "3", "nesterov": True, "flip": False, "milestones": (1, 2)}
    assert protocol_arguments(fields) == ["--epochs", "3", "--nesterov", "--no-flip", "--milestones", "1,2"]


def test_a_sweep_of_two_jobs_at_a_time_equals_one_in_this_process(tmp_path, blobs):
    """One of the two trainings is there already, so that its evaluation runs beside the other training."""
    small = {"protocol": {"epochs": "1"}, "limit_train": 64, "limit": 8}
    here, plan = (
        Plan(blobs, ("st", "at"), "clean", backbone="cnn-small", runs=tmp_path / name, **small)
        for name in ("here", "apart")
    )
    results = run_plan(here, say=lambda text: None, quiet=True)
    shutil.copytree(here.trainings()[0].run_folder, plan.trainings()[0].run_folder, ignore=lambda *given: {"results"})
    said = []
    apart = run_plan(plan, said.append, engine=make_engine("local", EngineOptions(jobs=2, cpus=1)))
    started = [text for text in said if text.endswith(": started")]
    assert [text.split()[1] for text in started] == ["train", "evaluate", "evaluate"]
    for one, other in zip(apart, results, strict=True):
        assert one.relative_to(plan.runs) == other.relative_to(here.runs)
        assert content_digest(read_result(one)) == content_digest(read_result(other))
    log = (plan.logs / "train-npz-blobs-cnn-small-at-seed-0.log").read_text()
    assert log.startswith(
        f"$ bench train --defense at --dataset {blobs} --seed 0 --backbone cnn-small --limit-train 64 "
    )
    # Only what is missing on disk runs when the same sweep starts again.
    apart[1].unlink()
    engine = Recorder(set())
    told = ("1 of 4 jobs failed: evaluate", "/at/", "clean-v1-limit8: failed 3 times, see ")
    refusal(lambda: run_plan(plan, said.append, engine=engine), *told)
    assert engine.batches == 3 * [["evaluate-npz-blobs-cnn-small-at-seed-0-clean-v1-limit8"]]
    # Another plan in the same folder is refused, as in one process.
    other = dataclasses.replace(plan, protocol={"epochs": "2"})
    told = ("4 of 4 jobs failed: train", "holds another run (different protocol)")
    refusal(lambda: run_plan(other, said.append, engine=Recorder(set())), *told)


def test_shards_are_finished_one_by_one_and_merge_to_the_same_digest(digits_run, tmp_path):
    small = {"limit": 12, "batch_size": 4, "probes": 2}
    asked = EvaluationRequest("quick", checkpoint=digits_run, out=tmp_path / "whole.h5", **small)
    whole, _ = evaluate(asked)
    merged = dataclasses.replace(asked, out=tmp_path / "merged.h5")
    digest = load_checkpoint(digits_run).digest
    for number in (0, 1):
        assert not parts.is_finished(merged.out, (number, 2), digest)
        evaluate(dataclasses.replace(merged, shard=(number, 2)))
        assert parts.is_finished(merged.out, (number, 2), digest)
    assert not parts.is_finished(merged.out, (0, 3), digest)
    assert not parts.is_finished(merged.out, (0, 2), "of another checkpoint")
    result, _ = evaluate(merged)
    assert content_digest(result) == content_digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged.h5", "whole.h5"]


@pytest.fixture
def locked(tmp_path):
    """A log that is locked as by a running job; closing the file lets the next one go on."""
    with (tmp_path / "job.log").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def worker(log):
    return [*program(), "--job", str(log), "--version"]


def test_a_second_worker_of_a_job_waits_for_the_first(locked):
    with subprocess.Popen(worker(locked.name), cwd=ROOT, stdin=subprocess.PIPE) as process:
        time.sleep(1)
        assert (process.poll(), Path(locked.name).read_text()) == (None, "")
        locked.close()
        assert process.wait(60) == 0
    first, version = Path(locked.name).read_text().splitlines()
    assert first.startswith("$ bench --version  # ")
    assert version.startswith("bench, version ")


WORKER = """
import errno, fcntl, os, sys, types
from bench import worker

def flock(*arguments):
    if "unsupported" in sys.argv:
        raise OSError(errno.ENOSYS, "Function not implemented")

fcntl.flock = flock
sys.modules["bench.cli"] = types.SimpleNamespace(main=lambda: print(os.environ.get("BENCH_ONE_JOB")))
worker.main()
"""


@pytest.mark.parametrize(("locks", "said"), [("supported", "1"), ("unsupported", "None")])
def test_a_worker_claims_to_be_the_only_one_if_it_holds_the_lock(tmp_path, locks, said):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "job.log"), locks]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "BENCH_ONE_JOB"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE) as process:
        assert process.wait(60) == 0
    assert (tmp_path / "job.log").read_text().splitlines()[1:] == [said]


DRIVER = """
import sys, time
from bench.experiments.executors import EngineOptions, make_engine
engine = make_engine("local", EngineOptions(jobs=1))
engine.start([["sh", "-c", 'echo $$ > pid; exec "$@"', "sh", *sys.argv[1:]]])
time.sleep(600)
"""


def test_a_worker_ends_when_the_process_that_started_it_is_killed(locked, tmp_path):
    driver = [sys.executable, "-c", DRIVER, *worker(locked.name)]
    with subprocess.Popen(driver, cwd=tmp_path, env=ENVIRONMENT) as process:
        pid = int(waited_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
        process.send_signal(signal.SIGKILL)
    assert waited_for(lambda: not is_alive(pid))


def waited_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def is_alive(pid):
    """Whether it runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def missing(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


SHELL = """
import sys
from dataclasses import dataclass
from pathlib import Path
from bench.experiments.executors import EngineOptions, make_engine
from bench.experiments.job_server import JobServer
from bench.experiments.jobs import Job, Schedule

@dataclass(frozen=True)
class Shell(Job):
    def command(self, folder, threads):
        return ["sh", "-c", f"({self.arguments[0]}) >> {self.log(folder)} 2>&1"]

def job(name, text, after=()):
    return Shell(name, (text,), Path(name).exists, after)

once = "test -e again || { touch again; %s; exit 1; }; echo two > two" % sys.argv[2]
jobs = [job("one", "echo one > one"), job("two", once), job("both", "cat one two > both", ("one", "two")),
        job("never", "echo broken; exit 5")]
name, _, settings = sys.argv[1].partition(" ")
settings = dict(setting.split("=") for setting in settings.split())
engine = make_engine(name, EngineOptions(jobs=2, logs=Path("logs"), settings=settings))
for name, reason in Schedule(jobs, engine, Path("logs"), print).run().items():
    print("FAILED", name, reason)
"""


@pytest.mark.parametrize(
    ("engine", "accident", "words"),
    [
        pytest.param("local", "kill -9 $$", "killed by signal 9", id="local"),
        pytest.param("ray", "kill -9 $PPID", "lost (WorkerCrashedError)", id="ray", marks=missing("ray")),
        pytest.param("slurm cluster=local", "kill -9 $PPID", "lost (", id="submitit", marks=missing("submitit")),
    ],
)
def test_a_killed_worker_is_replaced_and_takes_nothing_with_it(tmp_path, engine, accident, words):
    command = [sys.executable, "-c", SHELL, engine, accident]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert (tmp_path / "both").read_text() == "one\ntwo\n", done.stdout + done.stderr
    assert f"two: {words}" in done.stdout
    assert "two: try 2 of 3" in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed == ["FAILED never failed 3 times, see logs/never.log (at the end: exit code 5, broken)"]
    assert (tmp_path / "logs" / "never.log").read_text() == 3 * "broken\n"


shown = partial(bench, "sweep", "--dataset", "digits", "--defenses", "at")


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_refused_in_one_line(monkeypatch, tmp_path, engine, package):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    code, output = shown("--engine", engine, "--runs", tmp_path / "runs")
    assert (code, output.count("\n")) == (2, 1)
    assert f"needs the package {package}" in output and f"pip install 'advbench[{engine}]'" in output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_commands_and_starts_nothing(tmp_path):
    runs = tmp_path / "runs"
    code, output = shown("--engine", "local", "--shards", 2, "--epochs", 2, "--runs", runs, "--dry-run")
    training, place = "bench train --defense at --dataset digits --seed 0", "--data data --device auto"
    evaluation = f"bench eval {runs}/digits/cnn-small/at/seed-0 --suite full {place}"
    assert code == 0
    assert [line for line in output.splitlines() if not line.startswith("#")] == [
        f"{training} --runs {runs} --precision auto --resume {place} --epochs 2",
        f"{evaluation} --shard 0/2",
        f"{evaluation} --shard 1/2",
        evaluation,
    ]
    assert re.findall(r"^# (\d) job", output, re.MULTILINE) == ["1", "2", "1"]
    assert not runs.exists()


@missing("submitit")
def test_a_dry_run_shows_the_scripts_for_slurm(tmp_path):
    options = ["--engine", "slurm", "--seeds", 3, "--runs", tmp_path, "--dry-run", "--cpus", 4, "--jobs", 2]
    code, output = shown(*options, "--slurm", "partition=gpu", "--slurm", "time=90")
    assert code == 0
    for line in ("--array=0-2%2", "--partition=gpu", "--time=90", "--cpus-per-task=4", "--gpus-per-node=1"):
        assert f"#SBATCH {line}\n" in output
    faults = {"partitoin=gpu": "Did you mean 'partition'?", "time=1:00": "not a whole number of minutes"}
    for setting, message in faults.items():
        code, output = shown(*options, "--slurm", setting)
        assert (code, output.count("\n")) == (2, 1)
        assert message in output


SERVER = "from bench import worker; worker.import_everything = lambda: None; worker.serve()"


@pytest.fixture
def server(monkeypatch):
    """One that imports nothing before its jobs do."""
    monkeypatch.setattr(job_server, "program", lambda: [sys.executable, "-c", SERVER])
    made = JobServer(["OMP_NUM_THREADS=1", f"PYTHONPATH={ROOT}"])
    yield made
    made.close()


def test_a_forked_job_is_as_a_process_of_its_own(server, tmp_path, monkeypatch):
    """Its log, its folder, its variables, its exit code, and nothing of the job before it."""
    monkeypatch.chdir(tmp_path)
    assert server.call(["a.log", "--version"], {}) == 0
    assert server.call(["b.log", "list", "nonsense"], {"BENCH_MARK": "1"}) == 2
    assert server.call(["c.log", "status", "none"], {}) == 2
    started, told = (tmp_path / "c.log").read_text().splitlines()
    assert started.startswith("$ bench status none  # ") and told.startswith("Error: there is no folder 'none'")
    assert (tmp_path / "a.log").read_text().splitlines()[1].startswith("bench, version ")


def test_a_forked_job_that_is_killed_says_so_and_a_killed_server_is_replaced(server, tmp_path, locked):
    def signalled(sent):
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(server.call, [locked.name, "--version"], {})
            job = job_of(server)
            os.kill(job if sent == "job" else server.process.pid, signal.SIGKILL)
            if sent == "server":
                os.kill(job, signal.SIGKILL)
            return waiting.result(60)

    assert server.call([str(tmp_path / "first.log"), "--version"], {}) == 0
    assert signalled("job") == -signal.SIGKILL
    first = server.process.pid
    assert signalled("server") == -signal.SIGKILL, "who waits for a job outlives the server"
    assert server.call([str(tmp_path / "after.log"), "--version"], {}) == 0
    assert server.process.pid != first


def children(pid):
    """Process numbers of the children of a process."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def job_of(server):
    """The process number of the job of a server, which its first call may not have started yet."""

    def jobs():
        waiting = children(server.process.pid) if server.process else []
        return [job for one in waiting for job in children(one)]

    return waited_for(jobs)[0]


def test_a_forked_job_ends_when_who_waits_for_it_does(server, locked):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.call, [locked.name, "--version"], {})
        job = job_of(server)
        (ours,) = server.running
        ours.shutdown(socket.SHUT_RDWR)  # as the kernel does where this process is killed
        with pytest.raises(ConnectionError):
            waiting.result(60)
    assert waited_for(lambda: not is_alive(job))
