"""Kills at random moments: a training or an evaluation that is killed and resumed ends as an undisturbed one.

    python -m benchmarks.kills [--kills 50] [--seed 0] [--folder DIR]

A third of the kills each go to a training of `at`, to one of `adv-dpnp`, and to an evaluation, on small parts of the
digits. Each is a process of its own that gets SIGKILL at a moment drawn from the time an undisturbed one takes, and is
then given again (with --resume) until it ends. Compared are the digest of the checkpoint and the lines of the history,
or the digest of the result; and no temporary file or lock may be left. Exit code 1 where anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.models.checkpoints import load_checkpoint
from bench.results.file import content_digest, read_result

TRAINING = ["--dataset", "digits", "--limit-train", "128", "--epochs", "6", "--batch-size", "16", "--holdout", "32"]
TRAINING += ["--save-every", "0"]
EVALUATION = ["--suite", "linf", "--limit", "120", "--batch-size", "6", "--probes", "16", "--save-adversarials"]


@dataclass
class Job:
    """A command that can be given again, and what it should come to."""

    name: str
    arguments: list[str]
    again: list[str] = field(default_factory=list)
    expected: str = ""
    seconds: float = 0.0
    """That an undisturbed run takes."""
    kills: int = 0
    early: int = 0
    """Kills before anything was on disk."""
    differences: int = 0
    leftovers: int = 0

    def command(self, folder, again):
        """The process's command, writing to a folder."""
        out = ["--out", str(folder / "r.h5" if self.name == "evaluation" else folder)]
        # A kill after the result was written, and before its images were or the process ended: the line asks for this.
        written = ["--overwrite"] if (folder / "r.h5").exists() else []
        return [sys.executable, "-m", "bench", *self.arguments, *out, *([*self.again, *written] if again else [])]

    def digest(self, folder):
        """Of what a finished job left."""
        if self.name == "evaluation":
            return content_digest(read_result(folder / "r.h5"))
        return "\n".join(
            [load_checkpoint(folder / part).digest for part in ("last", "best")]
            + [(folder / "history.jsonl").read_text()]
        )


def jobs(folder):
    """The three jobs, after an undisturbed run of each."""
    made = [Job(name, ["train", "--defense", name, *TRAINING], ["--resume"]) for name in ("at", "adv-dpnp")]
    made.append(Job("evaluation", ["eval", str(folder / "at"), *EVALUATION]))
    for job in made:
        started = time.perf_counter()
        subprocess.run(job.command(folder / job.name, again=False), check=True, capture_output=True)
        job.seconds = time.perf_counter() - started
        job.expected = job.digest(folder / job.name)
    return made


def kill_and_resume(job, folder, draws):
    """One kill; the job is then given again until it ends."""
    process = subprocess.Popen(
        job.command(folder, again=False), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        # Half of the kills fall where files are being written, not where torch is being imported.
        begun = draws.random() < 0.5
        while begun and not list(folder.rglob("*.pt*")) + list(folder.rglob("*.npz*")) and process.poll() is None:
            time.sleep(0.002)
        process.wait(draws.uniform(0, 0.5 * job.seconds if begun else 1.1 * job.seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return False
    job.kills += 1
    job.early += not [path for path in folder.rglob("*") if path.suffix in (".pt", ".npz")]
    subprocess.run(job.command(folder, again=True), check=True, capture_output=True)
    job.differences += job.digest(folder) != job.expected
    job.leftovers += len([path for path in folder.rglob(".*")])
    return True


def main():
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="[default: a temporary one]")
    chosen = parser.parse_args()
    draws = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        made = jobs(folder)
        attempt = 0
        while sum(job.kills for job in made) < chosen.kills:
            job = min(made, key=lambda job: job.kills)
            kill_and_resume(job, folder / f"{job.name}-{attempt}", draws)
            attempt += 1
    print("| job | seconds | kills | before anything was on disk | different digests | files left over |")  # noqa: T201
    print("|:--|--:|--:|--:|--:|--:|")  # noqa: T201
    for job in made:
        row = (job.name, f"{job.seconds:.1f}", job.kills, job.early, job.differences, job.leftovers)
        print("| " + " | ".join(map(str, row)) + " |")  # noqa: T201
    sys.exit(any(job.differences or job.leftovers for job in made))


if __name__ == "__main__":
    main()
