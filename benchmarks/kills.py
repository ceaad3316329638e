"""Kills at every file operation: a command that is killed there and given again ends as an undisturbed one.

    python -m benchmarks.kills [--only NAME ...] [--points 5] [--folder DIR]

Each command runs once undisturbed, which counts its file operations: files opened for writing, flushed, renamed,
linked, removed, and folders made and removed. Then, for each of them (or so many that are spread over all), it runs in
a new folder, gets SIGKILL just before that operation, and is given again, unless everything is there already. Compared
are all files and folders; whatever the undisturbed run does not leave, such as a temporary file, a lock or a part, is
left over. Processes are forked from this one, which only imports. Exit code 1 where anything differs.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from bench.cli import group
from bench.engine.adversarials import ENDING, owner_of
from bench.models.checkpoints import Checkpoint, load_checkpoint, load_training_state, save_checkpoint
from bench.results.file import content_digest, read_result, write_result
from bench.system.files import content_digest as digest_of
from bench.worker import import_everything

SMALL = ["--dataset", "digits", "--limit-train", "32", "--batch-size", "16"]
TRAINING = [*SMALL, "--epochs", "2", "--holdout", "8", "--average", "ema", "--save-every", "0", "--out", "run"]
EVALUATION = ["eval", "model", "--suite", "quick", "--limit", "8", "--batch-size", "4", "--probes", "4"]
EVALUATION += ["--save-adversarials", "--out", "r.h5"]
CLEAN = ["--suite", "clean", "--limit", "8"]
CORRUPTIONS = ["--corruptions", "fog,contrast"]
RECORDS = (".sweep.json", ".log")
"""Endings of files that say when and where something ran."""


@dataclass(frozen=True)
class Case:
    """A command that writes, in a folder that holds `model`, `cifar`, `made.h5`, `aa.h5` and `extra.npz`."""

    name: str
    arguments: list[str]
    again: tuple[str, ...] = ()
    """Added where it is given once more."""
    before: tuple[list[str], ...] = ()
    """Commands whose files it finds."""


CASES = [
    Case("train at", ["train", "--defense", "at", "--attack-steps", "1", *TRAINING], ("--resume",)),
    Case("train adv-dpnp", ["train", "--defense", "adv-dpnp", "--attack-steps", "1", *TRAINING], ("--resume",)),
    Case("eval", EVALUATION),
    Case("eval --overwrite", [*EVALUATION, "--overwrite"], before=(EVALUATION,)),
    Case("eval --suite clean", ["eval", "model", "--suite", "clean", "--limit", "8", "--probes", "0"]),
    Case("export robustbench", ["export", "robustbench", "cifar", "--out", "models"]),
    Case("export huggingface", ["export", "huggingface", "model", "card", "--result", "made.h5"]),
    Case("export model-info", ["export", "model-info", "aa.h5", "--authors", "A. One", "--link", "https://a.example"]),
    Case("leaderboard", ["leaderboard", "made.h5", "--out", "board.html"]),
    Case("leaderboard --folder", ["leaderboard", "made.h5", "aa.h5", "--folder", "--out", "pages"]),
    Case("data corrupt", ["data", "corrupt", "--dataset", "digits", "--limit", "2", *CORRUPTIONS, "--out", "C"]),
    Case("data exclude", ["data", "exclude", "npz:extra.npz", "--dataset", "digits", "--out", "kept.npz"]),
    Case("data nearest", ["data", "nearest", "npz:extra.npz", "--dataset", "digits", "--limit", "4", "--out", "near"]),
    Case("figure", ["figure", "training", "model", "--out", "curves"]),
    Case("sweep", ["sweep", "--defenses", "st", *SMALL, "--epochs", "1", *CLEAN, "--board", "board.md"]),
    Case("clean", ["clean", ".", "--yes"]),
    Case("reproduce", ["reproduce", "table5", "--defenses", "st", "--out", "table.md"]),
]


def prepared(folder: Path) -> None:
    """Fill the folder that commands find, beside `model`: that model as one of CIFAR-10, results, images."""
    checkpoint = load_checkpoint(folder / "model")
    config = {**checkpoint.config, "dataset": {**checkpoint.config["dataset"], "name": "cifar10"}}
    save_checkpoint(Checkpoint(config, checkpoint.weights), folder / "cifar" / "last")
    if (folder / "aa.h5").exists():
        result = read_result(folder / "aa.h5")
        about = {**result.run, "dataset": "cifar10", "training_data": {"name": "cifar10"}}
        write_result(dataclasses.replace(result, run=about), folder / "aa.h5")
    draws = np.random.default_rng(0)
    images = {"x_train": draws.integers(0, 17, (6, 8, 8, 1)).astype(np.uint8), "y_train": np.arange(6)}
    np.savez(folder / "extra.npz", **images)


def in_a_process(folder: Path, arguments: list[str], count: Callable[[str], None] = lambda operation: None) -> int:
    """The exit code of a command in a folder, below 0 of one that was killed; operations there are counted before."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        os.chdir(folder)
        nowhere = os.open("../output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        watch_files(folder, count)
        sys.argv = ["bench", *arguments]
        group(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(code)


def watch_files(folder: Path, count: Callable[[str], None]) -> None:
    """From now on, `count` is called before each operation that changes files in the folder, or flushes one."""
    below = f"{folder.resolve()}{os.sep}"
    changing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}

    def hear(event: str, given: tuple) -> None:
        writes = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in changing) and not isinstance(given[0], int):
            path = str(Path(os.fsdecode(given[0])).absolute())  # not resolved: what a link leads to is another file
            if path.startswith(below):
                count(f"{event} {path.removeprefix(below)}")

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        count("fsync")
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(hear)


def state(folder: Path) -> dict[str, str]:
    """All files and folders, and what the files come to."""
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*")}


def content(path: Path) -> str:
    """Of a file, without times and places."""
    if path.is_dir() or path.name.endswith(RECORDS):
        return ""
    with contextlib.suppress(Exception):  # what is damaged differs
        if path.name.endswith(ENDING):
            return owner_of(path)
        if path.suffix == ".h5":
            return content_digest(read_result(path))
        if path.suffix == ".pt" and "training_state" in path.name:
            return digest_of(load_training_state(path))
    return sha256(path.read_bytes()).hexdigest()


def run(case: Case, base: Path, folder: Path, points: int | None) -> tuple[int, int, int]:
    """How many points a command was killed at, at how many it came to another end, and files that were left over."""

    def fresh() -> Path:
        place = folder / "place"
        shutil.copytree(base, place)
        for arguments in case.before:
            in_a_process(place, arguments)
        return place

    counted = folder / "operations"
    place = fresh()
    with counted.open("w") as file:
        if in_a_process(place, case.arguments, lambda operation: print(operation, file=file, flush=True)):
            raise SystemExit(f"{case.name}: {(folder / 'output').read_text()}")
    operations, expected = counted.read_text().splitlines(), state(place)
    shutil.rmtree(place)
    count = len(operations)
    chosen = range(count) if points is None else sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})
    different = leftovers = 0
    for point in chosen:
        place, seen = fresh(), iter(range(count + 1))

        def kill(operation: str, seen=seen, point=point) -> None:
            if next(seen) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        in_a_process(place, case.arguments, kill)
        code = 0 if state(place) == expected else in_a_process(place, [*case.arguments, *case.again])
        found = state(place)
        left = sorted(found.keys() - expected.keys())
        leftovers += len(left)
        if found != expected:
            different += 1
            other = sorted(name for name in expected if found.get(name) != expected[name])
            print(f"  {case.name}, before {operations[point]}: exit code {code}, other {other}, left {left}")  # noqa: T201
            if code:
                print("   ", (folder / "output").read_text().strip()[-300:])  # noqa: T201
        shutil.rmtree(place)
    return len(chosen), different, leftovers


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--points", type=int, help="Of each command, spread over all.  [default: every one]")
    parser.add_argument("--folder", type=Path, help="[default: a temporary one]")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # no threads, of which a forked process has none
    import_everything()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).resolve()
        base = folder / "base"
        base.mkdir(parents=True)
        training = ["train", "--defense", "st", *SMALL, "--epochs", "1", "--out", "model"]
        cases = [case for case in CASES if not chosen.only or case.name in chosen.only]
        suites = {"made.h5": "quick"} | ({"aa.h5": "autoattack"} if any("aa.h5" in c.arguments for c in cases) else {})
        looks = [["eval", "model", "--suite", suite, "--limit", "2", "--out", name] for name, suite in suites.items()]
        for arguments in (training, *looks):
            if in_a_process(base, arguments):
                raise SystemExit((folder / "output").read_text())
        prepared(base)
        print("| command | killed before | came to another end | left over |\n|:--|--:|--:|--:|", flush=True)  # noqa: T201
        rows = []
        for case in cases:
            rows.append((case.name, *run(case, base, folder, chosen.points)))
            print("| " + " | ".join(map(str, rows[-1])) + " |", flush=True)  # noqa: T201
    sys.exit(any(different or left for _, _, different, left in rows))


if __name__ == "__main__":
    main()
