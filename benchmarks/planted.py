"""What the trust report says about models with planted faults, beside their true robustness.

    python -m benchmarks.planted --out DIR [--suites linf full] [--limit 200] [--only WORD ...]

Every model of tests/support/planted.py is made from two small networks, which are trained on the digits first
(seconds), and evaluated as any model file is. The truth is bounded from above by adversarial images of the network
inside. The table is printed and written to DIR/planted.md, with everything that was found in DIR/planted.json. Exit
code 1 where a gate does not hold: under `linf`, no model whose worst case is more than 5 points too high has no
warning, none that is more than 20 too high is ranked, and no sound one has a warning or an error.
"""

import argparse
import json
import sys
import time
from functools import cache
from pathlib import Path

import torch

from bench.data.datasets import load_dataset
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.models.checkpoints import load_checkpoint
from bench.results.findings import SEVERITIES
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests.support.planted import PLANTED, Sound, upper_bound

EPOCHS = {"st": 8, "at": 12}
MARKS = {"error": "✗", "warning": "!", "note": "✓", "passed": "✓"}
FACTORY = """from pathlib import Path
from benchmarks.planted import networks
from tests.support.planted import PLANTED
def make():
    return PLANTED[{name!r}].plant(networks(Path({out!r})))
"""


@cache
def networks(out):
    """The networks inside, from run folders below `out` that are there already."""
    runs = {name: out / "runs" / "digits" / "cnn-small" / name / "seed-0" for name in EPOCHS}
    for name, run in runs.items():
        if not (run / "last").exists():
            train(TrainingRequest(name, "digits", protocol={"epochs": EPOCHS[name]}, runs=out / "runs"), quiet=True)
    built = [load_checkpoint(run).build() for run in runs.values()]
    return Sound(*built, load_dataset("digits", out))


def examine(name, out, suites, limit):
    """A row: the truth, and per suite the worst case, what was found, and the seconds."""
    sound = networks(out)
    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    known = out / "truth" / f"{slug}-{limit}.txt"
    if not known.exists():
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(str(100 * upper_bound(name, sound, limit)))
    row = {"name": name, "kind": PLANTED[name].kind, "truth": float(known.read_text())}
    file = out / "models" / f"{slug}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FACTORY.format(name=name, out=str(out)), encoding="utf-8")
    for suite in suites:
        started = time.process_time()
        request = EvaluationRequest(
            suite, model=f"{file}:make", name=name, dataset="digits", data=out, limit=limit, device="cpu",
            out=out / "results" / suite / f"{slug}.h5", overwrite=True,
        )  # fmt: skip
        result, _ = evaluate(request)
        standing = result.clean_prediction == result.label
        for record in result.attacks.values():
            if record.norm == "linf":
                standing &= record.prediction == result.label
        found = {
            severity: [one["name"] for one in result.findings if one["severity"] == severity]
            for severity in ("error", "warning")
        }
        severity = next(
            severity for severity in SEVERITIES if any(one["severity"] == severity for one in result.findings)
        )
        row[suite] = {
            "clean": 100 * float((result.clean_prediction == result.label).mean()),
            "worst case": 100 * float(standing.mean()),
            "mark": MARKS[severity],
            "seconds": time.process_time() - started,
            **found,
            "messages": {one["name"]: one["message"] for one in result.findings if one["severity"] in found},
        }
    return row


def broken_gates(row, suite="linf"):
    """What a row breaks of the gates under a suite."""
    if suite not in row:
        return
    excess, mark = row[suite]["worst case"] - row["truth"], row[suite]["mark"]
    if row["kind"] == "sound":
        if mark != "✓":
            yield "false alarm"
    elif excess > 20 and mark != "✗":
        yield "ranked"
    elif excess > 5 and mark == "✓":
        yield "✓"


def table(rows, suites):
    """Markdown."""
    heads = ["model", "kind", "true at most"]
    for suite in suites:
        heads += [f"{suite}", "mark", "errors", "warnings"]
    lines = ["| " + " | ".join([*heads, "gate"]) + " |", "|" + ":--|" * (len(heads) + 1)]
    for row in rows:
        cells = [row["name"], row["kind"], f"{row['truth']:.1f}"]
        for suite in suites:
            found = row[suite]
            cells += [
                f"{found['worst case']:.1f}",
                found["mark"],
                ", ".join(found["error"]),
                ", ".join(found["warning"]),
            ]
        lines.append("| " + " | ".join([*cells, ", ".join(broken_gates(row))]) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Run, print a table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suites", nargs="+", default=["linf"])
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--only", nargs="+", default=[""], help="models whose name or kind holds one of these")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, fault in PLANTED.items():
        if any(word in name or word == fault.kind for word in chosen.only):
            rows.append(examine(name, chosen.out.resolve(), chosen.suites, chosen.limit))
            print(table(rows[-1:], chosen.suites).splitlines()[-1], flush=True)  # noqa: T201
    text = table(rows, chosen.suites)
    (chosen.out / "planted.md").write_text(text, encoding="utf-8")
    (chosen.out / "planted.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    broken = [row["name"] for row in rows for _ in broken_gates(row)]
    print(f"{len(rows)} models, gates broken by {len(broken)}: {', '.join(broken) or 'none'}")  # noqa: T201
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
