"""What a job of a sweep costs: a sweep in one process, and the same as jobs, in CPU seconds.

    python -m benchmarks.jobs [--defenses NAMES] [--rounds 3] [--engines local] [--folder DIR]

Each round trains the defenses (thirteen) on digits for one epoch and evaluates them under `quick` on 60 images, in one
process and then with each engine at `--jobs 2`; a defense is a training and an evaluation. CPU seconds are of the
command and all processes that it waited for, user and system. Result files must have equal content digests. Exit code 1
where they differ, or where an engine takes more than 1.5 times what one process takes, in the median.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.results.file import content_digest, read_result

ROOT = Path(__file__).resolve().parent.parent
MOST = 1.5
THIRTEEN = "st,drp,at,at-he,dio,fsr,adv-dpnp,mart,oc,pcl,ikl,trades,hat"


def sweep(runs: Path, defenses: str, engine: str | None) -> tuple[float, float]:
    """CPU seconds and seconds by the clock of a sweep into a folder."""
    how = [] if engine is None else ["--engine", engine, "--jobs", "2"]
    command = [sys.executable, "-m", "bench", "sweep", "--dataset", "digits", "--defenses", defenses, "--epochs", "1"]
    command += ["--suite", "quick", "--limit", "60", "--runs", str(runs), *how]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    with (runs.parent / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        _, code, used = os.wait4(process.pid, 0)
    if code:
        raise SystemExit((runs.parent / "output").read_text()[-3000:])
    return used.ru_utime + used.ru_stime, time.perf_counter() - started


def digests(runs: Path) -> dict[str, str]:
    """Content digests of all results, by path."""
    return {str(path.relative_to(runs)): content_digest(read_result(path)) for path in sorted(runs.rglob("*.h5"))}


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--defenses", default=THIRTEEN)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="*", default=["local"])
    parser.add_argument("--folder", type=Path, help="[default: a temporary one]")
    chosen = parser.parse_args()
    ways: list[str | None] = [None, *chosen.engines]
    cpu: dict[str | None, list[float]] = {way: [] for way in ways}
    differ = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        print("| round | where | results | CPU seconds | seconds |\n|--:|:--|--:|--:|--:|")  # noqa: T201
        for number in range(chosen.rounds):
            for way in ways:
                runs = folder / f"{way}-{number}"
                runs.mkdir(parents=True)
                used, passed = sweep(runs, chosen.defenses, way)
                cpu[way].append(used)
                found = digests(runs)
                differ |= found != digests(folder / "None-0")
                row = (number, way or "one process", len(found), f"{used:.1f}", f"{passed:.0f}")
                print("| " + " | ".join(map(str, row)) + " |", flush=True)  # noqa: T201
    ratios = {way: median(cpu[way]) / median(cpu[None]) for way in chosen.engines}
    print(f"equal digests: {not differ}; CPU time by that of one process:", ratios)  # noqa: T201
    sys.exit(differ or any(ratio > MOST for ratio in ratios.values()))


if __name__ == "__main__":
    main()
