"""Pictures of a model, for figures: features of clean and attacked images, and images before and after an attack."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64

from bench.data.datasets import load_dataset
from bench.data.splits import Dataset, Split
from bench.engine.adversarials import Adversarials, adversarials_path, read_adversarials
from bench.engine.outcomes import Report
from bench.engine.run import run_suite
from bench.errors import BenchError, cause, ran_out, unknown_name
from bench.evaluation.prepare import prepare
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import NO_CLASS, Classifier, Features, Images, LinearClassifier, ThreatModel
from bench.models.checkpoints import load_checkpoint
from bench.results.file import read_result
from bench.results.pictures import AdversarialExample, FeatureCloud, NearestPair
from bench.system.devices import full_float32
from bench.trust.attack_comparisons import Outcomes

_AT_ONCE = 256
"""Images whose features are computed together."""


def feature_cloud(request: EvaluationRequest, report: Report) -> FeatureCloud:
    """Features under a suite of kind `features`, such as `figure2`; nothing is written.

    Raises:
        BenchError: bad input, another kind of suite, or a model without features.
    """
    prepared = prepare(dataclasses.replace(request, overwrite=True))
    if prepared.suite.kind != "features":
        raise BenchError(f"suite {prepared.suite.name} measures no features: choose figure2 or features.")
    outcome = run_suite(prepared.target, prepared.suite, report=report)
    pair = next(iter(outcome.features.values()))
    model = prepared.subject.model
    centres = None
    if isinstance(model, Classifier) and not isinstance(model, LinearClassifier):
        centres = model.class_centres().detach().cpu().numpy()
    classes = tuple(class_name(prepared.dataset, number) for number in range(prepared.dataset.num_classes))
    labels = outcome.label.astype(np.int64)
    return FeatureCloud(prepared.subject.name, pair.clean, pair.adversarial, labels, classes, centres)


def crafted_examples(
    request: EvaluationRequest, label: str | None, count: int, report: Report
) -> list[AdversarialExample]:
    """The first images, at most `count`, that an attack of the suite (None: the last) breaks; nothing is written.

    Raises:
        BenchError: bad input, no such attack, or one that breaks nothing.
    """
    prepared = prepare(dataclasses.replace(request, overwrite=True, save_adversarials=True))
    cells = {cell.label: cell for cell in prepared.suite.cells}
    cell = cells[_chosen(label, list(cells), prepared.suite.name)]
    outcome = run_suite(prepared.target, dataclasses.replace(prepared.suite, cells=(cell,), worst_of={}), report=report)
    kept = outcome.adversarials[cell.label]
    return _examples(prepared.target.split.to("cpu"), kept, outcome, cell.label, prepared.dataset, count)


def kept_examples(path: Path, data: Path, label: str | None, count: int) -> list[AdversarialExample]:
    """The first images, at most `count`, that an attack (None: the last) broke and that were kept beside a result.

    Raises:
        BenchError: no images were kept, the dataset is not that of the result, or no such attack.
    """
    result = read_result(path)
    images = adversarials_path(path)
    if not images.is_file():
        raise BenchError(
            f"no images beside {path}: evaluate with --save-adversarials, or give the run folder to craft some."
        )
    chosen = _chosen(label, list(result.attacks), str(path))
    run = result.run
    dataset = load_dataset(str(run.get("dataset")), data, run.get("kept_classes"), run.get("preprocessing"))
    rows = result.index
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(dataset.test):
        raise BenchError(f"{path} is not of the test images of {dataset.name}.")
    split = dataset.test.chosen(rows)
    if split.digest() != result.run.get("dataset_digest"):
        raise BenchError(f"{path} is of other images than {dataset.name} has in {data} (dataset_digest differs).")
    kept = read_adversarials(images, result, dataset.image_shape)[chosen]
    return _examples(split, kept, result, chosen, dataset, count)


def nearest_pairs(
    dataset: Dataset,
    test: Split,
    extra: Split,
    rows: Int64[np.ndarray, " count"],
    distances: Float[np.ndarray, " count"],
    most: int,
) -> list[NearestPair]:
    """At most so many pairs of a test image and the extra one that `bench.data.extra.nearest` found, nearest first."""
    return [
        NearestPair(
            test.images(slice(row, row + 1))[0].numpy(),
            extra.images(slice(rows[row], rows[row] + 1))[0].numpy(),
            class_name(dataset, int(test.labels[row])),
            class_name(dataset, int(extra.labels[rows[row]])),
            float(distances[row]),
        )
        for row in np.argsort(distances, kind="stable")[:most].tolist()
    ]


def feature_space(path: Path, dataset: Dataset, device: torch.device) -> Callable[[Images], Features]:
    """A function that gives images their places in the feature space of a checkpoint.

    Raises:
        BenchError: the checkpoint is of other images than the dataset's, or cannot be loaded; and the function, where
            the model fails or a feature is not finite.
    """
    checkpoint = load_checkpoint(path)
    expected = tuple(checkpoint.config["dataset"]["image_shape"])
    if expected != dataset.image_shape:
        raise BenchError(
            f"{path} is a model for images of {expected}; {dataset.name} has images of {dataset.image_shape}. Give "
            "one that was trained on it."
        )
    model = checkpoint.build(device)

    @torch.no_grad()
    def features_of(images: Images) -> Features:
        try:
            with full_float32():
                found = torch.cat([model.features(part).float().flatten(1) for part in torch.split(images, _AT_ONCE)])
        except Exception as error:
            if ran_out(error):
                raise
            raise BenchError(f"the features of {path} cannot be computed: {cause(error)}") from error
        if len(found) != len(images):
            raise BenchError(f"{path} returned {len(found)} features for {len(images)} images: one of each is needed.")
        if not found.isfinite().all():
            raise BenchError(f"{path} returned features that are not finite: they have no distances.")
        return found

    return features_of


def run_names(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[str]:
    """The names if they differ, else the ends of the paths, as short as they differ."""
    if names is not None and len(set(names)) == len(names):
        return list(names)
    parts = [folder.resolve().parts[1:] for folder in folders]
    for length in range(2, max(map(len, parts)) + 1):
        shown = ["/".join(part[-length:]) for part in parts]
        if len(set(shown)) == len(shown):
            return shown
    raise BenchError("the same run was given twice. Give each run once.")


def class_name(dataset: Dataset, number: int) -> str:
    """The name of a class, its number where the dataset has no name for it, `none` for the answer NaN."""
    if number == NO_CLASS:
        return "none"
    return dataset.class_names[number] if 0 <= number < len(dataset.class_names) else str(number)


def _chosen(label: str | None, labels: Sequence[str], where: str) -> str:
    if not labels:
        raise BenchError(f"{where} has no attack to show.")
    if label is not None and label not in labels:
        raise unknown_name("attack", label, labels)
    return label or labels[-1]


def _examples(
    split: Split, kept: Adversarials, outcomes: Outcomes, label: str, dataset: Dataset, count: int
) -> list[AdversarialExample]:
    record = outcomes.attacks[label]
    threat = ThreatModel(record.norm, record.epsilon)
    predictions = (outcomes.label, outcomes.clean_prediction, record.prediction)
    chosen = np.sort(kept.rows)[:count]
    if not len(chosen):
        raise BenchError(
            "the attack broke none of these images. Take another attack with --attack, or a higher --limit."
        )
    coded, exact = np.isin(kept.row, chosen), np.isin(kept.exact_row, chosen)
    few = Adversarials(kept.row[coded], kept.scale[coded], kept.code[coded], kept.exact_row[exact], kept.exact[exact])
    images = {
        row: image.numpy()
        for rows, batch in few.images(split, threat, len(chosen))
        for row, image in zip(rows.tolist(), batch, strict=True)
    }
    return [
        AdversarialExample(
            split.images(slice(row, row + 1))[0].numpy(),
            images[row],
            *(class_name(dataset, int(of[row])) for of in predictions),
        )
        for row in chosen.tolist()
    ]
