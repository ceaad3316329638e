"""The second command of a borrowed GPU: adv-dpnp under both readings of its alignment, then as much protocol as fits.

    python -m benchmarks.gpu_train --data DIR [--seconds 540] [--out gpu_train]
    python -m benchmarks.gpu_train --device cpu --toy

1. Ten epochs with `alignment_reduction` mean, and ten with sum: angles between prototypes, SCR, and cross-entropy under
   PGD-20, beside the figures that the paper prints in Tables 4 and 6 after 110 epochs.
2. As many epochs of the protocol, with its milestones scaled, as the seconds left have room for.
3. `bench eval` of that model on some test images.

A table is printed, and OUT/gpu_train.json written after each part, so that a machine that is taken away leaves what is
done; checkpoints stay in OUT/runs. In toy size all of it runs on a CPU in seconds, on digits.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

import bench
from bench.attacks import cross_entropy
from bench.attacks._ascent import ascend
from bench.catalogue.names import DATASETS
from bench.interfaces import ThreatModel
from bench.system.devices import choose_device, full_float32
from bench.system.files import write_text

PAPER = {"mean_separation": 95.32, "min_separation": 94.51, "scr_clean": 1.681, "scr_adversarial": 1.615, "ce": 1.24}
"""ResNet-18 on CIFAR-10 after 110 epochs: Table 4, and cross-entropy under PGD-20 of Table 6."""
EVALUATION_SECONDS = 90.0


def trained(chosen, folder, epochs, **hyperparameters):
    """A training of adv-dpnp: its folder, its history, and seconds an epoch, without the first one's start."""
    started = time.monotonic()
    run = bench.train(
        "adv-dpnp",
        chosen.dataset,
        backbone=chosen.backbone,
        hyperparameters=hyperparameters,
        limit_train=chosen.limit_train,
        data=chosen.data,
        runs=chosen.out / "runs",
        folder=folder,
        device=chosen.device,
        precision=chosen.precision,
        resume=True,
        quiet=True,
        epochs=epochs,
    )
    seconds = time.monotonic() - started
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return run, history, seconds / epochs


def attacked_cross_entropy(run, chosen):
    """The mean on test images under PGD-20, from a random start, by steps of 2/255 or a quarter of the radius."""
    dataset, device = bench.load_dataset(chosen.dataset, chosen.data), choose_device(chosen.device)
    model = bench.load_checkpoint(run).build(device)
    threat = ThreatModel("linf", dataset.epsilons["linf"])
    split, losses = dataset.test.take(chosen.limit).to(device), []
    with full_float32():
        for rows in torch.arange(len(split), device=device).split(256):
            batch, truth = split.images(rows), split.labels[rows]
            noise = torch.rand(batch.shape, generator=torch.Generator().manual_seed(0)).to(device)
            start = (batch + threat.radius * (2 * noise - 1)).clamp(0, 1)
            objective = lambda model, x, truth=truth: cross_entropy(model(x), truth)  # noqa: E731
            perturbed = ascend(objective, model, start, batch, threat, 20, threat.radius / 4)
            with torch.no_grad():
                losses.append(objective(model, perturbed))
    return float(torch.cat(losses).mean())


def evaluated(run, suite, chosen):
    """The result of a suite on some test images."""
    out = chosen.out / f"{run.name}-{suite}.h5"
    options = {"limit": chosen.limit, "data": chosen.data, "device": chosen.device, "probes": 0, "quiet": True}
    return bench.evaluate(run, suite=suite, out=out, overwrite=True, **options)


def reading(reduction, chosen):
    """What ten epochs under a reading come to."""
    run, history, seconds = trained(
        chosen, chosen.out / "runs" / reduction, chosen.epochs, alignment_reduction=reduction
    )
    features = asdict(evaluated(run, "features", chosen).features)
    found = {name: features[name] for name in PAPER if name in features}
    return {**found, "ce": attacked_cross_entropy(run, chosen), "seconds_an_epoch": seconds, "history": history}


def protocol(seconds_an_epoch, until, chosen):
    """The protocol in as many epochs as fit before `until`, at most 110, and its evaluation."""
    epochs = int(max(1, min(110, (until - time.monotonic() - EVALUATION_SECONDS) / seconds_an_epoch)))
    epochs = chosen.epochs if chosen.toy else epochs
    run, history, seconds = trained(chosen, chosen.out / "runs" / "protocol", epochs)
    started = time.monotonic()
    result = evaluated(run, chosen.suite, chosen)
    clean = result.clean_prediction == result.label
    robust = {name: float((clean & (one.prediction == result.label)).mean()) for name, one in result.attacks.items()}
    return {
        "epochs": epochs,
        "seconds_an_epoch": seconds,
        "seconds_of_evaluation": time.monotonic() - started,
        "clean": float(clean.mean()),
        "robust": robust,
        "history": history,
    }


def main(arguments=None):
    """Do all parts; returns what is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="cifar10", choices=DATASETS)
    parser.add_argument("--backbone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=540.0, help="Of all parts together.")
    parser.add_argument("--epochs", type=int, default=10, help="Of each reading.")
    parser.add_argument("--limit", type=int, default=1000, help="Test images.")
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--suite", default="linf")
    parser.add_argument("--out", type=Path, default=Path("gpu_train"))
    parser.add_argument("--toy", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.toy:
        chosen.dataset, chosen.backbone, chosen.epochs, chosen.suite = "digits", "cnn-small", 1, "quick"
        chosen.limit, chosen.limit_train = 20, 64
    until, found = time.monotonic() + chosen.seconds, {"device": str(choose_device(chosen.device)), "paper": PAPER}
    print(f"{'reading':10} " + " ".join(f"{name:>16}" for name in (*PAPER, "seconds_an_epoch")))  # noqa: T201
    print(f"{'paper':10} " + " ".join(f"{value:16.3f}" for value in PAPER.values()), flush=True)  # noqa: T201
    for reduction in ("mean", "sum"):
        row = found[reduction] = reading(reduction, chosen)
        values = (row[name] for name in (*PAPER, "seconds_an_epoch"))
        print(f"{reduction:10} " + " ".join(f"{value:16.3f}" for value in values), flush=True)  # noqa: T201
        write_text(chosen.out / "gpu_train.json", json.dumps(found, indent=1) + "\n")
    found["protocol"] = protocol(found["mean"]["seconds_an_epoch"], until, chosen)
    write_text(chosen.out / "gpu_train.json", json.dumps(found, indent=1) + "\n")
    shown = {name: value for name, value in found["protocol"].items() if name != "history"}
    print(json.dumps(shown), flush=True)  # noqa: T201
    return found


if __name__ == "__main__":
    main()
