"""Whether the checks on watched trainings fire where they should: trainings that are sound, overfit, and collapse.

    python -m benchmarks.training_curves --out DIR [--seeds 10]

All on digits, on a CPU, in a few minutes. Sound: AT, ten seeds. Overfitting: AT on 200 images of which 60 have a wrong
label, at a small radius, until they are learned by heart. Collapsing: FGSM without a random start at a large radius,
of a network of sines that begins with weights from AT. Shown is what the checks say of the last epoch, in an
evaluation, and in how many of all epochs each would have fired. Exit code 1 where a failure raises not exactly its own
check, or a sound training any.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.attacks import craft, cross_entropy
from bench.catalogue import plugins
from bench.data.datasets import load_dataset
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import Backbone, Defense, FeatureMap, Images, Labels, MakeActivation, Scalar, TrainingContext
from bench.results.trainings import read_history
from bench.results.watched import watched_curve
from bench.training.request import TrainingRequest
from bench.training.train import train
from bench.trust.watched_training import curve_findings

CHECKS = ("catastrophic-overfitting", "robust-overfitting")
ADAM = {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.0}


@dataclass(frozen=True)
class FromTheImage(Defense):
    """AT without a random start: with one step as long as the radius, training on FGSM images."""

    paper: ClassVar[str] = "Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572, section 6"

    def losses(self, model: Any, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        """Cross-entropy of perturbed images."""
        with context.crafting(model) as view:
            perturbed = craft(lambda view, x: cross_entropy(view(x), labels), view, images, images, context)
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}


class Sine(nn.Module):
    """sin(5 x): in two layers, rough enough to hide a slope from one step."""

    def forward(self, values: Tensor) -> Tensor:
        """The sine of each value."""
        return torch.sin(5.0 * values)


class Sines(Backbone):
    """Two dense layers of sines."""

    feature_dim = map_channels = 256
    smallest = 1

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], make_activation: MakeActivation, final_activation: bool
    ) -> None:
        super().__init__()
        size = in_channels * image_size[0] * image_size[1]
        self.layers = nn.Sequential(nn.Linear(size, 256), Sine(), nn.Linear(256, 256), Sine())

    def feature_map(self, images: Images) -> FeatureMap:
        """A map of one pixel."""
        return self.layers(images.flatten(1))[:, :, None, None]


def sound(out: Path, seed: int) -> Path:
    """AT on digits; returns its run folder."""
    protocol = {"epochs": 10, "batch_size": 64, "schedule": "linear", **ADAM}
    return fit("at", out / f"sound-{seed}", protocol, backbone="cnn-small-bn", seed=seed, watch=300)


def overfitting(out: Path) -> Path:
    """AT on few images with wrong labels at a small radius; returns its run folder."""
    digits, draws = load_dataset("digits", Path("data")), np.random.default_rng(0)
    few = digits.train.take(200)
    labels, wrong = few.labels.numpy().copy(), draws.choice(200, 60, replace=False)
    labels[wrong] = (labels[wrong] + draws.integers(1, 10, len(wrong))) % 10
    few_pixels, pixels = (np.round(split.pixels[:, 0].numpy() * (255 / split.levels)) for split in (few, digits.test))
    path = out / "wrong-labels.npz"
    named = {"x_test": pixels.astype(np.uint8), "y_test": digits.test.labels.numpy(), "num_classes": 10}
    np.savez(path, x_train=few_pixels.astype(np.uint8), y_train=labels, **named)
    protocol = {"epochs": 30, "batch_size": 32, "schedule": "linear", "epsilon": "0.05", "crop_padding": 0, **ADAM}
    return fit("at", out / "overfitting", protocol, dataset=f"npz:{path}", backbone="cnn-small-bn", watch=200)


def collapsing(out: Path) -> Path:
    """Training on FGSM images, from weights of AT; returns its run folder."""
    protocol = {"batch_size": 64, "epsilon": "0.2", **ADAM}
    robust = fit("at", out / "robust", {"epochs": 12, "schedule": "linear", **protocol}, backbone="sines")
    one_step = {"attack_steps": 1, "attack_step": "eps", "epochs": 14, "milestones": (), "warm_up": 0.3}
    given = {**protocol, **one_step, "learning_rate": 0.0045}
    return fit("from-the-image", out / "collapsing", given, backbone="sines", start=robust, watch=500)


def fit(defense: str, folder: Path, protocol: dict[str, Any], **options: Any) -> Path:
    """The run folder of a training, on digits unless another dataset is given."""
    request = TrainingRequest(
        defense, protocol=protocol, folder=folder, device="cpu", **{"dataset": "digits", **options}
    )
    return train(request, resume=True, quiet=True)


def row(run: Path, expected: str | None) -> bool:
    """Print a row of the table; returns True if the checks say what is expected."""
    asked = EvaluationRequest(
        "clean", checkpoint=run, limit=100, probes=0, device="cpu", out=run / "r.h5", overwrite=True
    )
    result, _ = evaluate(asked)
    raised = [one["name"] for one in result.findings if one["name"] in CHECKS and one["severity"] != "passed"]
    history = read_history(run)
    curve = watched_curve(history, len(history), result.run["watch"])
    early = [curve_findings(curve[: epoch + 1]) for epoch in range(len(curve))]
    times = [
        sum(one["name"] == name and one["severity"] != "passed" for seen in early for one in seen) for name in CHECKS
    ]
    best = curve[:-1, 1, 2].mean(axis=1).argmax()  # test images, PGD-10
    percents = 100 * curve[[best, -1]].mean(axis=3)
    courses = [f"{percents[0][place]:.1f} to {percents[1][place]:.1f}" for place in ((1, 2), (1, 1), (0, 2))]
    cells = (run.name, f"{best + 1} to {len(curve)}", *courses, ", ".join(raised) or "none", *map(str, times))
    print("| " + " | ".join(cells) + " |", flush=True)  # noqa: T201
    return raised == ([expected] if expected else [])


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    plugins.added |= {("defense", "from-the-image"): FromTheImage, ("backbone", "sines"): Sines}
    chosen.out.mkdir(parents=True, exist_ok=True)
    print("| training | epochs | test, PGD-10 | test, FGSM | train, PGD-10 | raises | collapsed | overfitted |")  # noqa: T201
    print("|:--|:--|:--|:--|:--|:--|--:|--:|")  # noqa: T201
    fine = [row(overfitting(chosen.out), CHECKS[1]), row(collapsing(chosen.out), CHECKS[0])]
    fine += [row(sound(chosen.out, seed), None) for seed in range(chosen.seeds)]
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
