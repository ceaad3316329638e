"""A checkpoint as a folder for the Hugging Face Hub: the checkpoint as it is, and a model card.

The front matter follows https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Its values are JSON, which
YAML contains.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.catalogue.plugins import find
from bench.errors import BenchError
from bench.models.checkpoints import Checkpoint, checkpoint_files
from bench.results import metrics
from bench.results.file import EvaluationResult
from bench.results.trainings import recorded_recipe, recorded_start, shown_protocol
from bench.system.files import write_together
from bench.text import escape

_TEXT = """\
# {title}

An image classifier for {dataset}, trained with {defense} ({paper}).

It takes float images of shape (batch, {shape}) with pixels in [0, 1], normalises inside if at all, and returns logits
of {classes} classes.

## How to load it

`config.json` describes the model, and `model.safetensors` carries the same configuration and a digest over both.
With the benchmark it was trained by installed:

```python
from pathlib import Path

from bench.models.checkpoints import load_checkpoint

model = load_checkpoint(Path("DIR")).build()
```

```
bench eval DIR --suite autoattack
```

Digest: `{digest}`.

## Training

{training}

{board}
"""

_ON_THE_HUB = ("cifar10", "cifar100", "mnist", "svhn")
"""Datasets that the Hub knows by the same name."""
_LICENCE = "No licence is stated. Before you publish the model, add `license: ...` to the front matter of this file."


def export_model(
    checkpoint: Checkpoint,
    folder: Path,
    result: EvaluationResult | None = None,
    board: str = "",
    replace: bool = True,
) -> None:
    """Write model.safetensors, config.json and README.md, with an evaluation of the checkpoint and its row as markdown.

    Raises:
        BenchError: the result is of another checkpoint; without `replace`, other files are there; or the folder cannot
            be written.
    """
    if result is not None and result.run.get("checkpoint_digest") != checkpoint.digest:
        raise BenchError(
            f"the result is of another model ({result.run.get('model')}, digest "
            f"{str(result.run.get('checkpoint_digest'))[:12]}): this checkpoint is {checkpoint.digest[:12]}."
        )
    text = card(checkpoint, result, board)
    write_together({**checkpoint_files(checkpoint, folder), folder / "README.md": text.encode()}, replace)


def card(checkpoint: Checkpoint, result: EvaluationResult | None = None, board: str = "") -> str:
    """The model card: YAML front matter and markdown."""
    config = checkpoint.config
    title = f"{config['defense']}, {config['backbone']}, {config['dataset']['name']}, seed {config['seed']}"
    front: dict[str, Any] = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        **({"datasets": [config["dataset"]["name"]]} if config["dataset"]["name"] in _ON_THE_HUB else {}),
        "tags": ["adversarial-robustness", "robustbench", config["defense"]],
    }
    if result is not None:
        front["model-index"] = [_metrics(title, result)]
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items())
    text = _TEXT.format(
        title=escape(title),
        dataset=escape(config["dataset"]["name"]),
        defense=escape(config["defense"]),
        paper=find("defense", config["defense"]).paper,
        shape=", ".join(map(str, config["dataset"]["image_shape"])),
        classes=config["dataset"]["num_classes"],
        digest=checkpoint.digest,
        training=_training(config),
        board=_LICENCE if not board else f"{board.strip()}\n\n{_LICENCE}",
    )
    return f"---\n{lines}---\n\n{text}"


def _training(config: Mapping[str, Any]) -> str:
    """Epochs, hyperparameters and the protocol."""
    rows = {
        "epoch": f"{config['epoch']} of {config['protocol']['epochs']}",
        **({"weights": config["weights"]} if "weights" in config else {}),
        "recipe": recorded_recipe(config),
        "first weights": recorded_start(config),
        "seed": config["seed"],
        "training images": config["dataset"].get("train_size"),
        **{
            f"extra images: {key.replace('_', ' ')}": value for key, value in config["dataset"].get("extra", {}).items()
        },
        **{f"{config['defense']}: {key}": value for key, value in config["hyperparameters"].items()},
        **{key.replace("_", " "): value for key, value in shown_protocol(config).items() if key != "epochs"},
    }
    return "| | |\n|:--|:--|\n" + "\n".join(f"| {escape(key)} | {_cell(value)} |" for key, value in rows.items())


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return escape(value) if isinstance(value, str | dict) else str(value)


def _metrics(title: str, result: EvaluationResult) -> dict[str, Any]:
    """The accuracies of a result, in percent, as the Hub's `model-index` wants them."""
    dataset = str(result.run.get("dataset"))
    accuracies = [
        {"type": "accuracy", "name": f"{name} accuracy", "value": round(100 * float(outcomes.mean()), 2)}
        for name, outcomes in metrics.columns(result).items()
    ]
    described = {"type": dataset, "name": f"{dataset}, {len(result.label)} test images", "split": "test"}
    return {
        "name": title,
        "results": [{"task": {"type": "image-classification"}, "dataset": described, "metrics": accuracies}],
    }
