"""How far runs are, from files with known times: what waits, runs, is done, failed, was killed or is damaged."""

import fcntl
import json
import os
import socket
import threading
import time

import numpy as np
import pytest

from bench.cli.status import WIDTH, duration, lines
from bench.data.datasets import load_dataset
from bench.errors import BenchError
from bench.evaluation.counting import Counting, Piece
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.experiments.job_list import JobListFile, read_job_lists
from bench.experiments.jobs import Job, log_file
from bench.experiments.status import survey
from bench.experiments.sweep import Plan, run_plan
from bench.system import heartbeat
from bench.system.heartbeat import Heartbeat, sign_of_evaluation, sign_of_training
from tests.support.refusals import refusal
from tests.support.solved import linear
from tests.support.trainings import Plain, plug_in

NOW = 1_700_000_000.0
HERE = socket.gethostname()
NOBODY = 2**22 + 1
"""No process has this number: Linux has none above 2**22."""
PLACE = "digits/cnn-small"


def listed(runs, names, failures=(), pid=NOBODY, started=NOW - 3600, ended=None):
    """A list of jobs: trainings by defense, and the evaluation of each."""
    jobs = []
    for name in names:
        folder = runs / PLACE / name / "seed-0"
        jobs.append(Job(f"train {PLACE}/{name}/seed-0", (), bool, (), "train", folder))
        result = folder / "results" / "quick-v1.h5"
        jobs.append(Job(f"evaluate {PLACE}/{name}/seed-0 quick-v1", (), bool, (), "evaluate", result))
    written = JobListFile(runs / "logs", runs, jobs)
    written.content |= {"pid": pid, "started": started, "ended": ended, "failures": dict(failures)}
    written._write()
    return written


def trained(runs, name, epoch, epochs=20):
    last = runs / PLACE / name / "seed-0" / "last"
    last.mkdir(parents=True)
    (last / "config.json").write_text(json.dumps({"epoch": epoch, "protocol": {"epochs": epochs}}))
    return last.parent


def signed(path, ago, **facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    who = {"version": 1, "host": "node7", "pid": 41, "started": NOW - 600, "updated": NOW - ago, "error": ""}
    path.write_text(json.dumps({**who, **facts}))


def logged(runs, name, text, ago=0.0):
    path = log_file(name, runs / "logs")
    path.write_text(text)
    os.utime(path, (NOW - ago, NOW - ago))
    return path


@pytest.fixture
def runs(tmp_path):
    """A sweep of six: one is done, one is trained, one failed, one was killed, one waits, one is evaluated."""
    runs = tmp_path / "runs"
    failed = f"train {PLACE}/mart/seed-0"
    listed(runs, ["at", "trades", "mart", "oc", "pcl", "fsr"], {failed: "failed 3 times, see runs/logs/x.log"})
    (trained(runs, "at", 20) / "results").mkdir()
    (runs / PLACE / "at/seed-0/results/quick-v1.h5").write_bytes(b"")
    trained(runs, "trades", 4)
    known = {"done": 5, "total": 20, "images": 1234.4, "left": 450.0}
    signed(sign_of_training(runs / PLACE / "trades/seed-0"), 4, **known)
    logged(runs, failed, "$ bench train  # 2023\nepoch 1/20\n\nTraceback\rError: \x1b[31mno memory\n", ago=60)
    trained(runs, "oc", 7)
    signed(sign_of_training(runs / PLACE / "oc/seed-0"), 500, done=7, total=20, images=9.0, left=9.0)
    trained(runs, "fsr", 20)
    known = {"done": 6, "total": 8, "images": 50.0, "left": 100.0}
    signed(sign_of_evaluation(runs / PLACE / "fsr/seed-0/results/quick-v1.h5"), 9, **known)
    return runs


def states(status):
    return {job.name: job.state for job in status.jobs}


def test_what_waits_runs_is_done_failed_and_was_killed(runs):
    found = states(survey(runs, NOW))
    training = {"at": "done", "trades": "running", "mart": "failed", "oc": "failed", "pcl": "waiting", "fsr": "done"}
    evaluating = dict.fromkeys(training, "waiting") | {"at": "done", "fsr": "running"}
    assert found == {f"train {PLACE}/{name}/seed-0": state for name, state in training.items()} | {
        f"evaluate {PLACE}/{name}/seed-0 quick-v1": state for name, state in evaluating.items()
    }


def test_who_works_where_since_when_how_far_and_why_not(runs):
    jobs = {job.name.removesuffix("/seed-0").rpartition("/")[2]: job for job in survey(runs, NOW).jobs[::2]}
    running, failed, killed, waits = (jobs[name] for name in ("trades", "mart", "oc", "pcl"))
    assert (running.host, running.pid, running.since, running.heard) == ("node7", 41, NOW - 600, 4.0)
    assert (running.unit, running.done, running.total) == ("epoch", 5, 20)
    assert (running.images, running.left) == (1234.4, 450.0)
    assert failed.reason == "failed 3 times, see runs/logs/x.log"
    assert failed.log == ("epoch 1/20", "Traceback", "Error: [31mno memory")
    assert killed.reason == "no sign of life of process 41 on node7 for 500 s"
    assert (killed.done, killed.total, killed.images, killed.left) == (7, 20, None, None)
    assert (waits.state, waits.reason, waits.done, waits.host) == ("waiting", "", None, None)


def test_the_time_that_is_left_is_reckoned_from_what_runs(runs):
    # A training has 450 s left of 15 epochs, so 600 s are one; an evaluation 100 s of two blocks, so 400 s are one.
    # One training and four evaluations wait, and two jobs run at once.
    left, is_lower = survey(runs, NOW).left()
    assert (left, is_lower) == ((450 + 100 + 600 + 4 * 400) / 2, False)
    sign_of_evaluation(runs / PLACE / "fsr/seed-0/results/quick-v1.h5").unlink()
    # Then nobody knows what an evaluation takes.
    assert survey(runs, NOW).left() == (450 + 600, True)
    sign_of_training(runs / PLACE / "trades/seed-0").unlink()
    assert survey(runs, NOW).left() == (None, True)


def test_a_person_is_shown_a_sentence_and_what_there_is_in_eighty_columns(runs):
    trained(runs, "a-very-long-name-of-a-defense-and-its-setting/beta=1.0,epochs=10,learning_rate=0.02", 20)
    shown = list(lines(survey(runs, NOW), NOW))
    assert shown[0] == "4 of 13 jobs done, 2 running, 2 failed, 5 waiting, about 23 min left."
    assert shown[1].startswith(f"The sweep was process {NOBODY} on {HERE}, which is gone: give its command")
    assert max(map(len, shown)) <= WIDTH
    text = "\n".join(shown)
    training = "epoch 5 of 20 done, 1,234 images/s, 8 min left, node7:41 since"
    assert f"running  train digits/cnn-small/trades/seed-0\n         {training}" in text
    assert "block 6 of 8 done, 50 images/s, 2 min left, node7:41 since" in text
    assert "         | Error: [31mno memory" in text
    # Commands show the same; the state of a job is the first word of its line.
    order = [line.split()[0] for line in shown if line[:1].isalpha() and line[8:9] == " "]
    assert order == ["failed"] * 2 + ["running"] * 2 + ["waiting"] * 5 + ["done"] * 4


def test_many_jobs_are_counted_not_listed(tmp_path):
    listed(tmp_path, [f"d{number}" for number in range(30)])
    shown = list(lines(survey(tmp_path, NOW), NOW))
    assert shown[0] == "0 of 60 jobs done, 60 waiting."
    assert shown[-1] == "waiting  50 more (--json names all)"


def test_machines_are_told_all_of_it(runs, bench):
    code, output = bench("status", runs, "--json")
    told = json.loads(output)
    assert code == 0
    assert told["counts"] == {"failed": 4, "running": 0, "waiting": 5, "done": 3}  # two are old by now
    assert {job["name"]: job["state"] for job in told["jobs"]} == states(survey(runs))
    assert told["sweeps"][0]["is_there"] is False
    code, output = bench("status", runs)  # no terminal: once
    assert (code, output.splitlines()[0]) == (0, "3 of 12 jobs done, 4 failed, 5 waiting.")


def test_a_sweep_that_lives_tries_again_what_ended(runs):
    (path,) = (runs / "logs").glob("*.sweep.json")
    name = f"train {PLACE}/pcl/seed-0"
    content = json.loads(path.read_text())
    for pid, state, reason in (
        (os.getpid(), "waiting", "ended without a result; the sweep tries it again"),
        (NOBODY, "failed", "ended without a result"),
    ):
        path.write_text(json.dumps({**content, "pid": pid, "host": HERE}))
        logged(runs, name, "$ bench train\nError: no\n")
        (job,) = (job for job in survey(runs, NOW).jobs if job.name == name)
        assert (job.state, job.reason) == (state, reason)
    # A log of an earlier sweep says nothing of this one.
    logged(runs, name, "$ bench train\nError: no\n", ago=7200)
    assert states(survey(runs, NOW))[name] == "waiting"


def test_a_job_lives_while_it_holds_its_log_or_its_lock(runs):
    name = f"train {PLACE}/pcl/seed-0"
    with logged(runs, name, "$ bench train\n").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert states(survey(runs, NOW))[name] == "running"
    assert states(survey(runs, NOW))[name] == "failed"
    lock = runs / PLACE / "pcl/seed-0/.lock"
    lock.parent.mkdir(parents=True)
    told = []
    for host, pid in ((HERE, os.getpid()), (HERE, NOBODY), ("node7", 5)):
        lock.write_text(json.dumps({"host": host, "pid": pid, "since": "2023-11-14T22:00:00+00:00"}))
        (job,) = (job for job in survey(runs, NOW).jobs if job.name == name)
        told.append((job.state, job.pid, job.since, job.reason))
    since = 1699999200.0
    gone = f"process {NOBODY} on {HERE} is gone, killed perhaps"
    assert told == [
        ("running", os.getpid(), since, ""), ("failed", NOBODY, since, gone), ("running", 5, since, "")
    ]  # fmt: skip


def test_runs_that_were_started_by_hand_are_found(tmp_path):
    folder = trained(tmp_path, "at", 3)
    results = folder / "results"
    (results / ".full-v3.h5.0123456789abcdef.parts").mkdir(parents=True)
    for name in ("clean", "000-00000", "000-00001", "001-00000", "shard-0-of-2"):
        np.savez(results / ".full-v3.h5.0123456789abcdef.parts" / f"{name}.npz", checkpoint=np.array("c"))
    for name in ("quick-v1.h5", "quick-v1.adversarials.h5", ".quick-v1.h5.77.tmp"):
        (results / name).touch()
    found = {job.name: (job.state, job.done, job.total) for job in survey(tmp_path, NOW).jobs}
    assert found == {
        f"train {PLACE}/at/seed-0": ("waiting", 3, 20),
        f"evaluate {PLACE}/at/seed-0 full-v3": ("waiting", 3, None),
        f"evaluate {PLACE}/at/seed-0 quick-v1": ("done", None, None),
    }
    assert "train seed-0" in states(survey(folder, NOW))
    assert "3 blocks kept" in "\n".join(lines(survey(tmp_path, NOW), NOW))


def test_no_folder_and_an_empty_one(tmp_path, bench):
    refusal(lambda: survey(tmp_path / "nowhere", NOW), "there is no folder", "Give the folder of the runs")
    assert bench("status", tmp_path) == (0, "There are no runs here yet.\n")


FOREIGN = {
    "empty": b"", "cut": b'{"pid": 3, "ho', "list": b"[]", "null": b"null", "text": b"\xff\xfe", "zeros": b"\0" * 99,
    "deep": b"[" * 99999,
    "numbers": b'{"pid": 1e999, "host": 3, "started": "now", "ended": {}, "jobs": 3, "epoch": -1}',
    "huge": b'{"pid": 9' + b"9" * 4000 + b', "host": "h", "updated": 1e308, "started": 1e308, "done": true}',
    "odd": b'{"pid": 3, "host": "a\\nb\\u001b[2J", "updated": -1e999, "started": NaN, "images": NaN, "left": Infinity,'
    b' "epoch": true, "protocol": [], "jobs": [3, {"name": "x", "stage": "train", "leaves": "../../etc", "shard": [0]},'
    b' {"name": "y", "stage": "train", "leaves": "/etc", "shard": [0, 1]}, {"name": "z", "stage": "train", "leaves": '
    b'"\\u0000", "shard": [0, 1]}], "ended": null, "failures": {"z": ["\\n"]}}',
}  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_files_that_are_damaged_or_of_others_are_no_traceback(tmp_path, content):
    folder = trained(tmp_path, "at", 3)
    evaluated = folder / "results/quick-v1.h5"
    (tmp_path / "logs").mkdir()
    places = [folder / "last/config.json", folder / ".lock", sign_of_training(folder), sign_of_evaluation(evaluated)]
    evaluated.parent.mkdir()
    for path in (*places, tmp_path / "logs/00000000.sweep.json", tmp_path / "logs/train-x.log"):
        path.write_bytes(content)
    found = survey(tmp_path, NOW)
    assert {job.name.split()[0] for job in found.jobs} == {"train", "evaluate"} | ({"z"} & states(found).keys())
    assert not any("etc" in job.name or job.name in ("x", "y") for job in found.jobs)
    text = "\n".join(lines(found, NOW))
    assert text.replace("\n", "").isprintable() and max(map(len, text.splitlines())) <= WIDTH
    json.dumps([vars(job) for job in found.jobs], allow_nan=False)


def test_pipes_and_folders_in_the_place_of_files_are_no_files(tmp_path):
    folder = trained(tmp_path, "at", 3)
    (folder / "last/config.json").unlink()
    (tmp_path / "logs/1.sweep.json").mkdir(parents=True)
    log = log_file(f"train {PLACE}/at/seed-0", tmp_path / "logs")
    for path in (folder / ".lock", folder / "last/config.json", log):
        os.mkfifo(path)
    sign_of_training(folder).mkdir()
    assert states(survey(tmp_path, NOW)) == {f"train {PLACE}/at/seed-0": "waiting"}


def test_more_folders_than_are_looked_into_are_said(tmp_path, monkeypatch):
    for number in range(5):
        trained(tmp_path, f"d{number}", 1)
    monkeypatch.setattr("bench.experiments.status.MOST_FOLDERS", 4)
    found = survey(tmp_path, NOW)
    assert not found.is_whole and "There are more folders" in "\n".join(lines(found, NOW))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (172800, "2.0 days")],
)
def test_durations_for_a_person(seconds, shown):
    assert duration(float(seconds)) == shown


# ------------------------------------------------------------------------------------------- signs of life


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(heartbeat, "FIRST", 0.005)
    monkeypatch.setattr(heartbeat, "EVERY", 0.005)


def awaited(path):
    """What the file holds, as soon as it is there."""
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.002)
    return json.loads(path.read_text())


@pytest.mark.usefixtures("often")
def test_a_sign_is_there_while_there_is_work_and_tells_why_it_failed(tmp_path):
    path = tmp_path / "new" / "sign.json"
    before = time.time()
    with Heartbeat(path) as heart:
        heart.tell(3, 20, 99.0, None)
        first = awaited(path)
        while json.loads(path.read_text())["updated"] == first["updated"]:
            time.sleep(0.002)
        heart.tell(4, 20, 99.0, None)
    assert not path.exists()
    assert {name: first[name] for name in ("host", "pid", "done", "total", "images", "left", "error")} == {
        **{"host": HERE, "pid": os.getpid(), "done": 3, "total": 20, "images": 99.0, "left": None, "error": ""}
    }
    assert before <= first["started"] <= first["updated"] <= time.time()
    for error, told in ((BenchError("no room"), "no room"), (ValueError("x"), "ValueError: x (test_status.py:")):
        with pytest.raises(type(error)), Heartbeat(path):
            awaited(path)
            raise error
        assert told in awaited(path)["error"]
        path.unlink()
    with pytest.raises(KeyboardInterrupt), Heartbeat(path):
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_what_is_over_at_once_leaves_no_sign_and_clears_an_older_one(tmp_path):
    path, before = tmp_path / "sign.json", threading.active_count()
    path.write_text("old")
    with Heartbeat(path):
        pass
    with pytest.raises(ValueError), Heartbeat(path):
        raise ValueError
    with Heartbeat(None) as heart:
        heart.tell(0, 1, None, None)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


@pytest.mark.usefixtures("often")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sign_whose_thread_has_failed_holds_up_no_end(tmp_path, monkeypatch):
    tried = threading.Event()

    def failing(*arguments, **options):
        tried.set()
        raise SystemExit

    monkeypatch.setattr(heartbeat, "write_text", failing)
    with Heartbeat(tmp_path / "sign.json"):
        assert tried.wait(60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("often")
def test_work_goes_on_where_no_sign_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with Heartbeat(tmp_path / "file" / "sign.json") as heart:
        time.sleep(0.05)
        heart.tell(1, 1, None, None)
    assert (tmp_path / "file").read_bytes() == b""


def test_an_evaluation_is_counted_in_blocks_and_its_time_in_forward_passes(monkeypatch):
    """Ten images, of which eight are right, in blocks of four. An image takes two passes in A, six in B."""
    clock = iter([0.0, 4.0, 8.0, 10.0, 22.0])
    monkeypatch.setattr("bench.evaluation.counting.time.monotonic", lambda: next(clock))
    pieces = {"A": Piece(10, 4, 2, False), "B": Piece(10, 4, 6, False), "all": Piece(10, 5, 1, True)}
    told, reported = [], []
    heart = Heartbeat(None)
    heart.tell = lambda *facts: told.append(facts)
    counting = Counting(pieces, lambda *facts: reported.append(facts), heart.tell)
    for facts in (("A", 0, 8, 8), ("A", 4, 8, 7), ("A", 8, 8, 6), ("B", 0, 8, 8), ("B", 4, 8, 1)):
        counting(*facts)
    counting("trust report", 0, 64, 0)
    # Before the first report: 3 + 3 + 2 blocks. Then 2 + 2 + 2, as eight images are attacked.
    # A: an image a second, so half a second a pass; 8 x 6 of B and 10 of all follow.
    # B: four images in 12 s, which are 24 passes.
    assert told == [
        (0, 8, None, None),
        (0, 6, None, None),
        (1, 6, 1.0, (4 * 2 + 48 + 10) / 2),
        (2, 6, 1.0, (48 + 10) / 2),
        (2, 6, None, (48 + 10) / 2),
        (3, 6, 4 / 12, (24 + 10) / 2),
    ]
    assert reported[-1] == ("trust report", 0, 64, 0) and len(reported) == 6


@pytest.mark.usefixtures("often")
def test_a_real_sweep_is_seen_while_it_runs_and_leaves_only_its_list(blobs, tmp_path, monkeypatch):
    runs, seen = tmp_path / "runs", []

    class Watched(Plain):
        def losses(self, model, images, labels, context):
            awaited(sign_of_training(runs / "npz-blobs/cnn-small/watched/seed-0"))
            seen.append(survey(runs))
            return super().losses(model, images, labels, context)

    class Broken(Plain):
        def losses(self, model, images, labels, context):
            raise RuntimeError("two\nlines")

    for name, owner in (("watched", Watched), ("broken", Broken)):
        plug_in(monkeypatch, name, owner)
    plan = Plan(blobs, ("watched", "broken"), "clean", backbone="cnn-small", runs=runs, limit_train=64, limit=4)
    plan = Plan(**{**vars(plan), "protocol": {"epochs": "1", "batch_size": "32"}})
    refusal(lambda: run_plan(plan, lambda text: None, quiet=True), "1 of 2 runs failed")
    during, after = seen[0], survey(runs)
    job = {job.name: job for job in during.jobs}["train npz-blobs/cnn-small/watched/seed-0"]
    assert (job.state, job.pid, job.done, job.total) == ("running", os.getpid(), 0, 1)
    assert [sweep.is_there for sweep in during.sweeps] == [True]
    assert states(after) == {
        "train npz-blobs/cnn-small/watched/seed-0": "done",
        "evaluate npz-blobs/cnn-small/watched/seed-0 clean-v1-limit4": "done",
        "train npz-blobs/cnn-small/broken/seed-0": "failed",
        "evaluate npz-blobs/cnn-small/broken/seed-0 clean-v1-limit4": "waiting",
    }
    reasons = [job.reason for job in after.jobs if job.state == "failed"]
    assert len(reasons) == 1 and reasons[0].startswith("RuntimeError: two lines (test_status.py:")
    assert after.sweeps == () and len(read_job_lists(runs / "logs")) == 1
    assert not sign_of_training(runs / "npz-blobs/cnn-small/watched/seed-0").exists()


@pytest.mark.usefixtures("often")
def test_a_real_evaluation_is_seen_in_blocks(tmp_path):
    held = load_dataset("digits", tmp_path)
    path = tmp_path / "r.h5"
    asked = {"module": linear(held.train), "dataset": "digits", "limit": 12, "batch_size": 4, "probes": 0, "out": path}
    told = []
    evaluate(EvaluationRequest("quick", **asked), lambda *facts: told.append(awaited(sign_of_evaluation(path))))
    # FGSM and PGD-20 are a group each, of three blocks before it is known how many images are right.
    assert (told[0]["done"], told[0]["total"], told[0]["pid"]) == (0, 6, os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]
