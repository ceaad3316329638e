"""A model of one's own, evaluated: `python examples/evaluate_my_model.py`.

The model is a plain torch module. It is trained on scikit-learn's digits and saved; then the evaluation is given this
file, the name of the function that makes the model, and the weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from bench.data.datasets import load_dataset
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.results.metrics import clean_accuracy, robust_accuracy, wilson_interval


class Digits(nn.Module):
    """Images (count, 1, 8, 8) in [0, 1] to logits. Normalises inside, so that radii keep their meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - 0.3) / 0.38)


def make_model() -> nn.Module:
    """What `--model evaluate_my_model.py:make_model` calls; weights are loaded into it."""
    return Digits()


@click.command()
@click.option("--steps", default=300, show_default=True, help="Of training, 64 images each.")
@click.option("--limit", default=500, show_default=True, help="Test images, 500 at most.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("example-runs"), show_default=True)
def main(steps: int, limit: int, folder: Path) -> None:
    """Train and save a model, evaluate it, and print what the trust report says."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "mine.pt"
    torch.save(trained(steps).state_dict(), weights)
    request = EvaluationRequest(
        suite="quick",
        model=f"{__file__}:make_model",
        weights=weights,
        dataset="digits",
        limit=limit,
        out=folder / "mine.h5",
        overwrite=True,
    )
    result, path = evaluate(request)
    click.echo(f"clean {100 * clean_accuracy(result):.1f} %")
    for label, record in result.attacks.items():
        accuracy = robust_accuracy(result, label)
        low, high = wilson_interval(round(accuracy * limit), limit)
        click.echo(
            f"{label}, {record.norm} {record.epsilon}: {100 * accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        )
    click.echo(verdict(result.findings))
    click.echo(f"\nAll of it: bench trust {path}")


def verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """The worst of a trust report in words, and what raised it."""
    raised = [one for one in findings if one["severity"] in ("error", "warning")]
    lines = [f"{one['severity']}: {one['name']}: {one['message']}" for one in raised]
    if any(one["severity"] == "error" for one in raised):
        return "\n".join(["The numbers cannot be believed.", *lines])
    return "\n".join(["The numbers may be too high.", *lines]) if raised else "No check found anything wrong."


def trained(steps: int) -> nn.Module:
    """The model after plain training on the training images."""
    torch.manual_seed(0)
    split = load_dataset("digits", Path("data")).train
    images, labels = split.images(slice(None)), split.labels
    model = Digits()
    optimiser = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimiser.step()
    return model


if __name__ == "__main__":
    main()
