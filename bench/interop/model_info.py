"""RobustBench's `model_info` files: one JSON object per row of its leaderboards.

The curated files (https://github.com/RobustBench/robustbench/tree/master/model_info) give accuracies as text in
percent and the radius as text (`8/255`; null for corruptions). `benchmark(to_disk=True)` writes another form: the
radius as a number, and null for everything it does not know. Both are read, the curated one is written.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.catalogue.names import built_in
from bench.catalogue.plugins import find, names
from bench.errors import BenchError
from bench.interop.zoo import DATASETS, NORMS
from bench.radii import exact
from bench.results import metrics
from bench.results.file import AttackRecord, EvaluationResult
from bench.results.trainings import recorded_extra
from bench.system.budgets import read_json
from bench.system.files import followed, write_together

BOARD_RADII: Mapping[str, str] = {"Linf": "8/255", "L2": "0.5"}
"""Of RobustBench's boards for CIFAR."""

_ACCURACIES = ("clean_acc", "reported", "autoattack_acc", "external", "corruptions_acc", "corruptions_acc_3d")
_OPTIONAL = ("autoattack_acc", "corruptions_acc", "corruptions_acc_3d", "corruptions_mce", "corruptions_mce_3d")
# What AutoAttack itself would warn of, by the names of our checks.
_FLAGS = ("attack-warning", "not-deterministic", "probabilities", "dynamic", "gradients-margin", "blind-attacks")
_ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "preactresnet18": "PreActResNet-18",
    **{f"wrn-{depth}-10{end}": f"WideResNet-{depth}-10" for depth in (28, 34) for end in ("", "-swish")},
}
_OPTIONS: Mapping[str, str] = {
    "link": "--link",
    "authors": "--authors",
    "additional_data": "--[no-]additional-data",
    "number_forward_passes": "--forward-passes",
    "architecture": "--architecture",
    "reported": "--reported",
}
"""Of what a result may not know, and every curated file says."""
_LINK = re.compile(r"https?://[^\s,]+")


@dataclass(frozen=True)
class ModelInfo:
    """A row of a RobustBench leaderboard. Accuracies and errors are texts in percent, None where unknown.

    Raises:
        BenchError: an accuracy is not a number from 0 to 100, or the radius is none.
    """

    link: str | None = None
    name: str | None = None
    """Title of the paper."""
    authors: str | None = None
    additional_data: bool | None = None
    """True if it was trained on more than the dataset's training images."""
    number_forward_passes: int | None = None
    dataset: str | None = None
    venue: str | None = None
    architecture: str | None = None
    eps: str | None = None
    """The radius as written; None on boards of corruptions."""
    clean_acc: str | None = None
    reported: str | None = None
    """By the authors."""
    autoattack_acc: str | None = None
    external: str | None = None
    """Best known accuracy under another attack, where it is lower."""
    unreliable: bool | None = None
    """True if AutoAttack raised a flag; None: unknown."""
    footnote: str | None = None
    corruptions_acc: str | None = None
    corruptions_mce: str | None = None
    corruptions_acc_3d: str | None = None
    corruptions_mce_3d: str | None = None

    def __post_init__(self) -> None:
        for key in _ACCURACIES:
            text = getattr(self, key)
            if text is not None and not 0 <= _number(key, text) <= 100:
                raise BenchError(f"{key} {text!r} is not a percentage from 0 to 100.")
        if self.eps is not None:
            _number("eps", self.eps)

    @property
    def robust_accuracy(self) -> float | None:
        """The number that RobustBench sorts its boards by, in percent: `external` where there is one."""
        known = (self.external, self.autoattack_acc, self.corruptions_acc, self.corruptions_acc_3d)
        return next((float(text) for text in known if text is not None), None)


def read_model_info(path: Path) -> ModelInfo:
    """A curated file, or one that `benchmark(to_disk=True)` wrote. Unknown keys are left out.

    Raises:
        BenchError: the file is not a JSON object of such a form.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read as a model_info file: {error}.") from None
    if not isinstance(found, dict):
        raise BenchError(f"{path} holds no JSON object, as a model_info file does.")
    try:
        return ModelInfo(**{field.name: _curated(field.name, found.get(field.name)) for field in fields(ModelInfo)})
    except BenchError as error:
        raise BenchError(f"{path} is not a model_info file: {error}") from None


def write_model_info(info: ModelInfo, path: Path, replace: bool = True) -> None:
    """Write the curated form: every key that all curated files have, and of the others those that are known.

    Raises:
        BenchError: a key that all of them have is unknown; without `replace`, another file is there; or it cannot be
            written.
    """
    values = dataclasses.asdict(info)
    optional = {*_OPTIONAL, "external", "unreliable", "footnote"}
    missing = [key for key, value in values.items() if value is None and key not in {*optional, "eps"}]
    if missing or not any(values[key] is not None for key in _OPTIONAL):
        raise BenchError(f"RobustBench's files all have {', '.join(missing or ['autoattack_acc'])}: give a value.")
    kept = {key: value for key, value in values.items() if value is not None or key == "eps"}
    write_together({followed(path): (json.dumps(kept, indent=2) + "\n").encode()}, replace)


def from_result(result: EvaluationResult, details: Mapping[str, Any]) -> tuple[ModelInfo, str]:
    """The facts of a result in RobustBench's form, and the threat model whose board it belongs to.

    Nothing is guessed. A model that the benchmark's own defense and code trained on the dataset itself saw no other
    images than its record says and classifies in one pass, and what is measured here is what its authors report; of any
    other model that is unknown.

    Fields of `ModelInfo` that a person gave in `details` come before the result's.

    Raises:
        BenchError: RobustBench has no board for the dataset or the norm, the suite has no AutoAttack, neither the
            result nor the person says what every row says, or the person denies extra images.
    """
    run = result.run
    record = metrics.main_autoattack(result)
    if record is None:
        raise BenchError("the result has no AutoAttack column. Evaluate with --suite autoattack or full.")
    if record.norm not in NORMS or run.get("dataset") not in DATASETS:
        boards = f"{', '.join(DATASETS)} under {', '.join(NORMS)}"
        raise BenchError(f"RobustBench has no board for {run.get('dataset')} under {record.norm}. It has: {boards}.")
    threat_model = NORMS[record.norm]
    robust, best_known = _robust_accuracies(result, record)
    plugins = {"backbone_sha256", "augmentation_sha256"} & run.keys()
    ours = run.get("defense") in built_in("defense") and "training_data" in run and not plugins
    on_the_dataset = ours and run["training_data"].get("name") == run["dataset"]
    measured = {
        "link": _link(run),
        "name": str(run.get("model", "")),
        "additional_data": "extra" in run["training_data"] if on_the_dataset else None,
        "number_forward_passes": 1 if ours else None,
        "dataset": run["dataset"],
        "venue": "N/A",
        "architecture": _ARCHITECTURES.get(str(run.get("backbone")), run.get("backbone")),
        "eps": record.epsilon,
        "clean_acc": _percent(metrics.clean_accuracy(result)),
        "reported": _percent(robust) if ours else None,
        "autoattack_acc": _percent(robust),
        "external": _percent(best_known) if best_known < robust else None,
        "unreliable": _flagged(result),
        "footnote": _footnote(result, record, threat_model) or None,
    }
    if measured["additional_data"] and details.get("additional_data") is False:
        raise BenchError("the model was trained on extra images, as its result says: leave out --no-additional-data.")
    info = ModelInfo(**{**measured, **details})
    unknown = {key: option for key, option in _OPTIONS.items() if getattr(info, key) is None}
    if unknown:
        raise BenchError(
            f"the result does not say {', '.join(unknown)}, and every row of RobustBench does: give "
            f"{', '.join(unknown.values())}."
        )
    return info, threat_model


def _robust_accuracies(result: EvaluationResult, record: AttackRecord) -> tuple[float, float]:
    """Under AutoAttack, and under all attacks of its threat model together, in [0, 1]."""
    threat = record.norm, record.epsilon
    same = [other.label for other in result.attacks.values() if (other.norm, other.epsilon) == threat]
    return metrics.robust_accuracy(result, record.label), metrics.worst_case_accuracy(result, same)


def _flagged(result: EvaluationResult) -> bool | None:
    """True if a check that AutoAttack makes too has fired; None: none was made."""
    severities = [found.get("severity") for found in result.findings if found.get("name") in _FLAGS]
    return any(severity in ("warning", "error") for severity in severities) if severities else None


def _footnote(result: EvaluationResult, record: AttackRecord, threat_model: str) -> str:
    """Sentences on how the row differs from others of the board."""
    notes = []
    board = BOARD_RADII[threat_model]
    if exact(record.epsilon) != exact(board):
        notes.append(f"Uses {threat_model} = {record.epsilon} instead of {board}.")
    if len(result.label) != result.run.get("dataset_size", len(result.label)):
        first = "the first " if result.run.get("sampling") == "first" else ""
        notes.append(f"Evaluated on {first}{len(result.label)} of {result.run['dataset_size']} test images.")
    if extra := recorded_extra(result.run):
        notes.append(f"Trained with {extra}.")
    if "weights" in result.run:
        notes.append("Weights are an average over the training.")
    precision = result.run.get("evaluation", {}).get("precision", "fp32")
    if precision != "fp32":
        notes.append(f"Attacks searched in {precision} and judged in fp32: robust accuracies are upper bounds.")
    return " ".join(notes)


def _link(run: Mapping[str, Any]) -> str | None:
    """The address in the citation of the defense, if it is here and has one."""
    if run.get("defense") not in names("defense"):
        return None
    found = _LINK.search(find("defense", run["defense"]).paper)
    return found[0] if found else None


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _number(key: str, text: str) -> float:
    try:
        return float(exact(text))
    except (ValueError, ZeroDivisionError):
        raise BenchError(f"{key} {text!r} is not a number.") from None


def _curated(key: str, value: Any) -> Any:
    """A value as the curated files have it: numbers that they write as text become text, 8/255 among them."""
    if value is None or isinstance(value, bool) or key == "number_forward_passes":
        return value
    if isinstance(value, int | float) and key == "eps":
        levels = round(255 * value)
        return f"{levels}/255" if levels and abs(255 * value - levels) < 1e-6 else str(value)
    if isinstance(value, int | float):
        return f"{value:.2f}"
    if not isinstance(value, str):
        raise BenchError(f"{key} is {value!r}, no text or number.")
    return value
