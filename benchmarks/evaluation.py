"""CPU time of the evaluation engine against plain scripts and other libraries, with the verdicts side by side.

    python -m benchmarks.evaluation --data DIR --small weights.npz [--parts table pgd apgd autoattack]

`table`: 20 cells under linf on a small model, by the engine under both conventions and by a plain script that runs
each cell on its own. `pgd`: PGD-20 on an undefended ResNet-18 against foolbox, and ART where it is installed. `apgd`:
APGD-CE on that model against pyautoattack. `autoattack`: all of AutoAttack on the small model against pyautoattack
(minutes).

`--data` holds CIFAR-10 as `cifar-10-batches-py`; `--small` is an .npz as benchmarks/autoattack.py describes. Time is
process CPU time on one thread (set OMP_WAIT_POLICY=PASSIVE); rounds alternate between the contestants, and medians are
shown. Every ratio depends on how many images stand: that share is printed beside it.
"""

import argparse
import logging
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import foolbox
import numpy as np
import pyautoattack
import torch
from torch.nn import functional

from bench.attacks import margin
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import Draws, Problem, ThreatModel
from bench.models.folding import folded
from benchmarks.autoattack import STAGES, cascade, load_images, load_model, ours, theirs

STEP = "1/255"
RADII = (1, 2, 4, 6, 8, 12, 16, 24)


def pgd_cell(label, epsilon="8/255", **parameters):
    """A cell of PGD with steps of 1/255."""
    return AttackCell(label, "pgd", "linf", epsilon, {"step_size": STEP, **parameters})


TABLE = (
    AttackCell("FGSM", "fgsm", "linf", "8/255"),
    *(pgd_cell(f"PGD-{steps}", steps=steps) for steps in (20, 40, 100, 250, 500)),
    AttackCell("C&W-30", "cw", "linf", "8/255", {"steps": 30, "step_size": STEP}),
    *(pgd_cell(f"PGD-20 x{restarts}", steps=20, restarts=restarts) for restarts in (1, 5, 10, 20)),
    *(pgd_cell(f"PGD-20 {radius}/255", f"{radius}/255", steps=20) for radius in RADII),
)


# ------------------------------------------------------------------------------------------- contestants


def engine(target, cells, convention):
    """Per cell: which samples are classified correctly under it."""
    suite = Suite("benchmark", 1, "", tuple(cells), {})
    outcome = run_suite(target, suite, convention=convention)
    field = "final_prediction" if convention == "final" else "prediction"
    standing = {name: getattr(record, field) == outcome.label for name, record in outcome.attacks.items()}
    return {"clean": outcome.clean_prediction == outcome.label, **standing}


def one_by_one(target, cells, convention):
    """The engine without anything to share: one suite per cell."""
    standing = {}
    for cell in cells:
        standing |= engine(target, [cell], convention)
    return standing


def plain_starts(images, cell):
    """The engine's starts of a cell, so that its verdicts can be compared with the plain script's."""
    if cell.attack == "fgsm" or not cell.parameters.get("random_start", True):
        return [images]
    draws = Draws(0, f"{cell.attack}/linf", np.arange(len(images)))
    radius = ThreatModel("linf", cell.epsilon).radius
    restarts = range(cell.parameters.get("restarts", 1))
    return [(images + radius * (2 * draws.uniform(images, key=restart) - 1)).clamp(0, 1) for restart in restarts]


def plain_cell(model, images, labels, cell, starts):
    """Which samples stand at the last iterate of every restart; batches of 500."""
    threat = ThreatModel("linf", cell.epsilon)
    epsilon, step = threat.radius, threat.length(cell.parameters.get("step_size", "eps"))
    standing = torch.ones_like(labels, dtype=torch.bool)
    for rows in torch.arange(len(labels)).split(500):
        clean, truth = images[rows], labels[rows]
        for start in starts:
            perturbed = start[rows]
            for _ in range(cell.parameters.get("steps", 1)):
                perturbed.requires_grad_()
                logits = model(perturbed)
                loss = margin(logits, truth, 50.0).sum() if cell.attack == "cw" else summed_loss(logits, truth)
                (gradient,) = torch.autograd.grad(loss, perturbed)
                perturbed = perturbed.detach() + step * gradient.sign()
                perturbed = torch.minimum(torch.maximum(perturbed, clean - epsilon), clean + epsilon).clamp(0, 1)
            with torch.no_grad():
                standing[rows] &= model(perturbed).argmax(1) == truth
    return standing.numpy()


def summed_loss(logits, labels):
    """Summed cross-entropy."""
    return functional.cross_entropy(logits, labels, reduction="sum")


def plain(model, images, labels, cells, starts):
    """Every cell on its own."""
    with torch.no_grad():
        clean = torch.cat([model(part) for part in images.split(500)]).argmax(1) == labels
    standing = {cell.label: plain_cell(model, images, labels, cell, starts[cell.label]) for cell in cells}
    return {"clean": clean.numpy(), **standing}


def foolbox_pgd(model, images, labels):
    """PGD-20 of foolbox, without random start."""
    attack = foolbox.attacks.LinfPGD(abs_stepsize=1 / 255, steps=20, random_start=False)
    peer = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, perturbed, _ = attack(peer, images, labels, epsilons=8 / 255)
    return {"PGD-20": (model(perturbed).argmax(1) == labels).numpy()}


def art_pgd(model, images, labels):
    """PGD-20 without random start of the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    peer = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        peer, eps=8 / 255, eps_step=1 / 255, max_iter=20, num_random_init=0, batch_size=len(images), verbose=False
    )
    perturbed = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    return {"PGD-20": (model(perturbed).argmax(1) == labels).numpy()}


def undefended_resnet18():
    """The ResNet-18 that comes with pyautoattack."""
    folder = Path(pyautoattack.__file__).parent / "examples"
    model = load_model(f"{folder / 'resnet.py'}:ResNet18")
    model.load_state_dict(torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True))
    return model


# ----------------------------------------------------------------------------------------- measurements


def measured(contestants, rounds):
    """Median CPU seconds and last answer of each, in rounds that alternate."""
    seconds, answers = {name: [] for name in contestants}, {}
    for _ in range(rounds):
        for name, run in contestants.items():
            before = time.process_time()
            answers[name] = run()
            seconds[name].append(time.process_time() - before)
    return {name: float(np.median(values)) for name, values in seconds.items()}, answers


def show(title, seconds, baseline, images):
    """CPU time of each contestant, and how many times less that is than the baseline's."""
    print(f"\n{title}\n{'':34} {'CPU s':>9} {'ms/image':>9} {'ratio':>7}")  # noqa: T201
    for name, value in seconds.items():
        print(f"{name:34} {value:9.2f} {1000 * value / images:9.2f} {seconds[baseline] / value:7.2f}")  # noqa: T201


def same(first, second):
    """`equal`, or the cells whose verdicts differ and on how many samples."""
    differing = {name: int((first[name] != second[name]).sum()) for name in second}
    return "equal" if not any(differing.values()) else str({name: n for name, n in differing.items() if n})


def table(chosen):
    """The 20-cell table on the small model."""
    model = load_model(chosen.small)
    images, labels = load_images(chosen.data, chosen.images)
    target = Target(model, Split((images * 255).round().to(torch.uint8), labels), batch_size=500)
    bf16 = Target(model, target.split, batch_size=500, half=True)
    starts = {cell.label: plain_starts(images, cell) for cell in TABLE}
    with torch.no_grad():
        rows = (model(images).argmax(1) == labels).nonzero().flatten()
    some = {label: [start[rows] for start in of_cell] for label, of_cell in starts.items()}
    seconds, verdicts = measured(
        {
            "plain script, final": partial(plain, model, images, labels, TABLE, starts),
            "plain script, clean-correct only": partial(plain, model, images[rows], labels[rows], TABLE, some),
            "engine, any": partial(engine, target, TABLE, "any"),
            "engine, final": partial(engine, target, TABLE, "final"),
            "engine, any, bf16 search": partial(engine, bf16, TABLE, "any"),
            "engine, any, cells one by one": partial(one_by_one, target, TABLE, "any"),
            "engine, final, cells one by one": partial(one_by_one, target, TABLE, "final"),
        },
        chosen.rounds,
    )
    show(f"(a) 20 cells, linf, {len(images)} images", seconds, "plain script, final", len(images))
    shared = verdicts["engine, any"], verdicts["engine, final"]
    reference = verdicts["plain script, final"]
    print(f"\n{'standing of all, %':20} {'any':>7} {'final':>7} {'plain':>7}")  # noqa: T201
    for name in reference:
        shares = [100 * standing[name].mean() for standing in (*shared, reference)]
        print(f"{name:20} " + " ".join(f"{share:7.2f}" for share in shares))  # noqa: T201
    correct = {name: standing & reference["clean"] for name, standing in reference.items()}
    for label, first, second in (
        ("any = any, cells one by one", shared[0], verdicts["engine, any, cells one by one"]),
        ("final = final, cells one by one", shared[1], verdicts["engine, final, cells one by one"]),
        ("final = plain script, of clean-correct", shared[1], correct),
        ("any, bf16 search = any", verdicts["engine, any, bf16 search"], shared[0]),
    ):
        print(f"{label:40} {same(first, second)}")  # noqa: T201


def pgd(chosen):
    """PGD-20 on the undefended ResNet-18."""
    model = undefended_resnet18()
    images, labels = load_images(chosen.data, chosen.pgd_images)
    split = Split((images * 255).round().to(torch.uint8), labels)
    cells = [pgd_cell("PGD-20", steps=20, random_start=False)]
    before = time.process_time()
    fast = folded(model, images[:8])
    folding = time.process_time() - before
    targets = {
        "": Target(model, split),
        ", folded": Target(model, split, search_model=fast),
        ", folded, bf16 search": Target(model, split, search_model=fast, half=True),
    }
    contestants = {"foolbox": partial(foolbox_pgd, model, images, labels)}
    if find_spec("art"):
        contestants["ART"] = partial(art_pgd, model, images, labels)
    contestants["plain script"] = partial(plain, model, images, labels, cells, {"PGD-20": [images]})
    for suffix, target in targets.items():
        contestants[f"engine, final{suffix}"] = partial(engine, target, cells, "final")
    contestants["engine, any"] = partial(engine, targets[""], cells, "any")
    seconds, verdicts = measured(contestants, chosen.rounds)
    show(f"(c) PGD-20, undefended ResNet-18, {len(images)} images", seconds, "foolbox", len(images))
    print(f"folding once: {folding:.2f} CPU s; clean-correct: {verdicts['engine, final']['clean'].mean():.2f}")  # noqa: T201
    for name, standing in verdicts.items():
        print(f"{name:34} standing {int(standing['PGD-20'].sum())}")  # noqa: T201


def against_pyautoattack(title, model, stages, chosen, count):
    """The stages of AutoAttack, ours and pyautoattack's, and whether the same samples stand."""
    images, labels = load_images(chosen.data, count)
    draws = Draws(0, "autoattack/linf", np.arange(count))
    problem = Problem(model, images, labels, ThreatModel("linf", "8/255"), draws)
    contestants = {"pyautoattack": partial(cascade, theirs, problem, stages, 0)}
    contestants["ours"] = partial(cascade, ours, problem, stages, 0)
    seconds, outcomes = measured(contestants, chosen.rounds)
    show(f"{title}, {count} images", seconds, "pyautoattack", count)
    for stage in ["clean", *stages]:
        first, second = (outcomes[name][stage][1] for name in ("pyautoattack", "ours"))
        print(f"{stage:10} standing {len(first)} / {len(second)}, {'equal' if first == second else 'DIFFERENT'}")  # noqa: T201


def apgd(chosen):
    """APGD-CE on the undefended ResNet-18."""
    title = "(d) APGD-CE, undefended ResNet-18"
    against_pyautoattack(title, undefended_resnet18(), ["apgd-ce"], chosen, chosen.apgd_images)


def autoattack(chosen):
    """AutoAttack on the small model."""
    title = "(b) AutoAttack, small model"
    against_pyautoattack(title, load_model(chosen.small), list(STAGES), chosen, chosen.autoattack_images)


PARTS = {"table": table, "pgd": pgd, "apgd": apgd, "autoattack": autoattack}


def main():
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--small", help="weights.npz or FILE.py:factory, for table and autoattack")
    parser.add_argument("--parts", nargs="+", default=["table", "pgd", "apgd"], choices=list(PARTS))
    parser.add_argument("--images", type=int, default=300, help="for table")
    parser.add_argument("--pgd-images", type=int, default=64)
    parser.add_argument("--apgd-images", type=int, default=16)
    parser.add_argument("--autoattack-images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.small is None and {"table", "autoattack"} & set(chosen.parts):
        parser.error("--small names the model of table and autoattack.")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for part in chosen.parts:
        PARTS[part](chosen)


if __name__ == "__main__":
    main()
