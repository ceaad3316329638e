"""The cost of every suite against `full` on one model: as `bench eval --dry-run` says, and as it was.

    python -m benchmarks.suite_costs RUN --limit 20 --measure full quick union

A dry run is measured on a few images, and an upper bound: an image that is broken leaves early. `--measure` evaluates
these suites on the same images, without probes. Suites that draw are run as if the model were random.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from bench.catalogue.names import suite_names
from bench.catalogue.suites import load_suite
from bench.evaluation.cost import estimate
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest


def main():
    """Print a table: gradients, and seconds by dry run and as measured, with their shares of those of `full`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--measure", nargs="*", default=[], choices=suite_names())
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in suite_names() if load_suite(name).kind == "attacks" and load_suite(name).cells]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            request = EvaluationRequest(
                name, checkpoint=chosen.run, data=chosen.data, limit=chosen.limit, device="cpu", probes=0,
                randomised=load_suite(name).draws is not None, out=Path(folder) / f"{name}.h5",
            )  # fmt: skip
            costs, measured = estimate(request), None
            if name in chosen.measure:
                started = time.process_time()
                evaluate(request)
                measured = time.process_time() - started
            found[name] = sum(cost[1] for cost in costs), sum(cost[2] for cost in costs), measured
    whole = found["full"]
    print(f"{'suite':24} {'gradients':>12} {'dry run s':>10} {'of full':>8} {'CPU s':>8} {'of full':>8}")  # noqa: T201
    for name, (gradients, dry, measured) in sorted(found.items(), key=lambda item: item[1][1]):
        shown = f"{measured:8.1f}" if measured is not None else " " * 8
        share = f"{100 * measured / whole[2]:7.1f}%" if measured is not None and whole[2] is not None else ""
        print(f"{name:24} {gradients:12,} {dry:10.1f} {100 * dry / whole[1]:7.1f}% {shown} {share:>8}")  # noqa: T201


if __name__ == "__main__":
    main()
