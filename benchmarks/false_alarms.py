"""How often the trust report warns of sound models: committed checkpoints, on many different subsets of CIFAR-10.

    python -m benchmarks.false_alarms [--data DIR --out DIR] [--suite linf] [--subsets 20] [--sizes 150 1000]

First the checks on outcomes, on random subsets of the stored results of 10,000 images (seconds). Then, where `--data`
holds CIFAR-10, whole evaluations of the checkpoints, each on `--evaluated` subsets of 150 images that no other has;
those whose result is in `--out` are not made again. A model may have no error, and a warning in one of twenty
subsets. Exit code 1 where one has more.
"""

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from bench.data.datasets import load_dataset
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.results.file import read_result
from bench.trust.outcome_checks import file_findings
from bench.trust.report import concluded

BOARDS = Path(__file__).parent.parent / "leaderboard"
SOUND = ("at", "trades", "adv-dpnp", "fsr", "dio")
FIRING = ("error", "warning")


def subset(result, rows):
    """A result of some of its samples."""

    def of(record):
        arrays = {
            field.name: getattr(record, field.name)[rows]
            for field in dataclasses.fields(record)
            if isinstance(getattr(record, field.name), np.ndarray)
        }
        return dataclasses.replace(record, **arrays)

    return dataclasses.replace(
        result,
        label=result.label[rows],
        index=result.index[rows],
        clean_prediction=result.clean_prediction[rows],
        attacks={label: of(record) for label, record in result.attacks.items()},
        findings=(),
    )


def fired(findings):
    """Names of checks that fired, by severity."""
    return [(one["severity"], one["name"]) for one in findings if one["severity"] in FIRING]


def stored(path, sizes, count):
    """Per size, what fired in each of the subsets of a stored result."""
    result = read_result(path)
    draws = np.random.default_rng(0)
    for size in sizes:
        rows = [draws.choice(len(result.label), min(size, len(result.label)), replace=False) for _ in range(count)]
        yield size, [fired(concluded([], file_findings(subset(result, chosen)))) for chosen in rows]


def evaluated(run, dataset, suite, out, numbers, size):
    """What fired in evaluations of a checkpoint on the subsets with some numbers, of images that no other has."""
    reports = []
    for number in numbers:
        path = out / f"subset-{number}.npz"
        rows = slice(number * size, (number + 1) * size)
        named = {}
        for part, split in (("train", dataset.train), ("test", dataset.test)):
            named |= {
                f"x_{part}": split.pixels[rows].permute(0, 2, 3, 1).numpy(),
                f"y_{part}": split.labels[rows].numpy(),
            }
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **named)
        done = out / f"{run.parent.name}-{run.name}-{suite}-{number}.h5"
        if not done.exists():
            evaluate(EvaluationRequest(suite, checkpoint=run, dataset=f"npz:{path}", device="cpu", out=done))
        reports.append(fired(read_result(done).findings))
    return reports


def row(name, what, reports):
    """Markdown, and whether it is fine."""
    counts = {severity: sum(any(one == severity for one, _ in report) for report in reports) for severity in FIRING}
    names = Counter(check for report in reports for _, check in set(report))
    shown = ", ".join(f"{check} {count}" for check, count in names.items())
    cells = (name, what, len(reports), counts["error"], counts["warning"], shown)
    fine = not counts["error"] and counts["warning"] <= max(1, len(reports) // 20)
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)  # noqa: T201
    return fine


def main():
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--suite", default="linf")
    parser.add_argument("--subsets", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[150, 1000])
    parser.add_argument("--evaluated", type=int, nargs="+", default=list(range(20)), help="numbers of subsets")
    parser.add_argument("--models", nargs="+", default=SOUND)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | what | subsets | with errors | with warnings | checks |\n|:--|:--|--:|--:|--:|:--|")  # noqa: T201
    fine = []
    for board in ("cifar10-linf-full-without-autoattack-v1", "cifar10-linf-full-v2-first1000-seeds"):
        for path in sorted((BOARDS / "boards" / board).glob("*.h5")):
            if path.name.partition("-seed")[0] in chosen.models:
                for size, reports in stored(path, chosen.sizes, chosen.subsets):
                    fine.append(row(path.stem, f"{board}, {size} images", reports))
    if chosen.data:
        dataset = load_dataset("cifar10", chosen.data)
        for name in chosen.models:
            for run in sorted((BOARDS / "checkpoints" / "cifar10" / "cnn-small-bn" / name).glob("seed-*")):
                reports = evaluated(run, dataset, chosen.suite, chosen.out, chosen.evaluated, 150)
                fine.append(row(f"{name} {run.name}", f"evaluated, {chosen.suite}, 150 images", reports))
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
