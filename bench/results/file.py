"""The outcomes of an evaluation, and the file they are kept in. `FORMAT.md` describes the file.

Only outcomes are stored: one prediction per sample and attack, or per sample and corruption. Every accuracy is derived
from them in `bench.results.metrics`. The exception are feature metrics, whose features would fill gigabytes.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16, Int64

from bench.errors import BenchError
from bench.radii import exact
from bench.results.forms import require_forms
from bench.system.budgets import Budget
from bench.system.sealed import SealedFormat, array, attribute, ordered_groups, parsed, slug, store, subgroup

RESULT_FILE = SealedFormat("bench-result", 3)
VOLATILE = frozenset({"created", "command", "seconds"})
"""Keys of `run` that may differ between two runs of the same evaluation; `content_digest` leaves them out."""
ORIGINS = ("source", "source_digest", "objective_sha256")
"""Keys of an attack's `parameters` that are none of its own: what images were crafted against, and the loss's file."""

_SAMPLE_ARRAYS = {"label": "<i2", "index": "<i8", "clean_prediction": "<i2", "clean_right_draws": "<i2"}
_ATTACK_ARRAYS = {
    **{"prediction": "<i2", "final_prediction": "<i2", "distance": "<f4", "loss": "<f4", "stage": "<i2"},
    "right_draws": "<i2",
}
_OPTIONAL = ("final_prediction", "loss", "stage")
_OF_DRAWS = ("clean_right_draws", "right_draws")
_ATTACK_TEXTS = ("label", "attack", "norm", "epsilon", "objective")
_CORRUPTION_NAME = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)


@dataclass(frozen=True, eq=False)
class AttackRecord:
    """One cell of a suite: what one attack did to every sample."""

    label: str
    """Column title, such as `PGD-20`."""
    attack: str
    """Name of the attack, such as `pgd`."""
    parameters: Mapping[str, Any]
    """Every parameter, defaults included, and the keys of `ORIGINS` that apply."""
    norm: str
    epsilon: str
    """The radius as it was written, such as `8/255`."""
    objective: str
    """`default`, `adaptive`, or `path.py:function`."""
    prediction: Int16[np.ndarray, " sample"]
    """Convention `any`: the class given to the first adversarial image found on the way, else to the final image."""
    final_prediction: Int16[np.ndarray, " sample"] | None
    """Convention `final`: the class given to the projected image that the attack returned; None: not measured."""
    distance: Float32[np.ndarray, " sample"]
    """Of the image behind `prediction` from the clean one, in `norm`, in pixel units [0, 1]."""
    seconds: float
    """Of wall time; cells that share a run share its time equally."""
    stage: Int16[np.ndarray, " sample"] | None = None
    """For a cascade of attacks: the number of the one that broke a sample, from 1; 0: none did."""
    loss: Float32[np.ndarray, " sample"] | None = None
    """Cross-entropy at the last iterate of the first restart, for cells that measure it."""
    right_draws: Int16[np.ndarray, " sample"] | None = None
    """Of a random model: how many draws of its verdict on the last iterate are right. `prediction` is then the first
    wrong one, else the label."""

    @property
    def shared(self) -> dict[str, Any]:
        """The parameters that rows of one column have in common: all but which file a row's own loss is from."""
        return {name: value for name, value in self.parameters.items() if name != "objective_sha256"}

    @property
    def settings(self) -> dict[str, Any]:
        """The attack's own parameters."""
        return {name: value for name, value in self.parameters.items() if name not in ORIGINS}


@dataclass(frozen=True, eq=False)
class CorruptionRecord:
    """The class that the model took every sample for, under one corruption at one severity."""

    corruption: str
    """Its name, such as `gaussian_noise`."""
    severity: int
    """From 1 (weak)."""
    prediction: Int16[np.ndarray, " sample"]
    seconds: float
    """Of wall time."""

    @property
    def label(self) -> str:
        """Such as `gaussian_noise-3`."""
        return f"{self.corruption}-{self.severity}"


@dataclass(frozen=True)
class FeatureRecord:
    """How the features of all samples separate classes: not derived from anything in the file."""

    attack: str
    """Label of the attack whose last iterates are the adversarial images."""
    centres: str
    """Where the class centres come from."""
    samples: int
    classes: int
    """With at least one sample."""
    fdr_clean: float
    fdr_adversarial: float
    afs_clean: float
    afs_adversarial: float
    scr_clean: float
    scr_adversarial: float
    mean_separation: float
    """In degrees."""
    min_separation: float
    """In degrees."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Outcomes of one model under one suite.

    Raises:
        BenchError: the arrays differ in length, a record's label is not its key, a record's text is not printable, its
            epsilon is no number, a corruption has no plain name, features are of an attack that is not there, or run,
            suite or findings hold a value of another type than FORMAT.md says; or right draws are not of a suite that
            draws verdicts, are more than it draws, or are all of them where the prediction is wrong.
    """

    run: Mapping[str, Any]
    """Everything needed to repeat the evaluation; keys in FORMAT.md."""
    suite: Mapping[str, Any]
    """Name, version, threat, cells and derived columns; keys in FORMAT.md."""
    label: Int16[np.ndarray, " sample"]
    index: Int64[np.ndarray, " sample"]
    """Position in the dataset's test split, counted from 0."""
    clean_prediction: Int16[np.ndarray, " sample"]
    attacks: Mapping[str, AttackRecord]
    """By label, in the suite's order."""
    findings: tuple[Mapping[str, Any], ...] = ()
    """Faults and facts that the evaluation noticed about the model: `name`, `severity` and `message` each."""
    corruptions: Mapping[str, CorruptionRecord] = field(default_factory=dict)
    """By label, in the suite's order, severity 1 first."""
    features: FeatureRecord | None = None
    clean_right_draws: Int16[np.ndarray, " sample"] | None = None
    """Of a random model: how many draws of its verdict on the clean image are right."""

    @property
    def draws(self) -> int | None:
        """How many draws a verdict is of, where the model is random; None: it is not."""
        stated = self.suite.get("draws")
        return None if stated is None else stated.get("verdict")

    def __post_init__(self) -> None:
        require_forms({"run": self.run, "suite": self.suite, "findings": self.findings})
        for key, record in self.attacks.items():
            texts = [getattr(record, name) for name in _ATTACK_TEXTS]
            if key != record.label or not all(text.strip() and text.isprintable() for text in texts):
                raise BenchError(
                    f"attack {key!r} is described by {texts!r}. Use printable texts, and its label as key."
                )
            _require_radius(record.epsilon)
        for key, shown in self.corruptions.items():
            if key != shown.label or not _CORRUPTION_NAME.fullmatch(shown.corruption) or shown.severity < 1:
                raise BenchError(f"corruption {key!r} is not NAME-SEVERITY with letters, digits and _ in its name.")
        if self.features and self.features.attack not in self.attacks:
            raise BenchError(f"features are of {self.features.attack!r}, which is no attack here. Evaluate again.")
        for name, values in _arrays(self):
            if values.shape != self.label.shape:
                raise BenchError(
                    f"/{name} has shape {values.shape}, /samples/label {self.label.shape}. Give one value per sample."
                )
        self._require_draws()

    def _require_draws(self) -> None:
        shown = {"clean": (self.clean_prediction, self.clean_right_draws)}
        shown |= {record.label: (record.prediction, record.right_draws) for record in self.attacks.values()}
        for name, (prediction, right) in shown.items():
            fits = (right is None) == (self.draws is None)
            if right is not None and self.draws is not None:
                fits = self.draws > 0 and bool(((right >= 0) & (right <= self.draws)).all())
                fits = fits and bool(((right == self.draws) == (prediction == self.label)).all())
            if not fits:
                raise BenchError(
                    f"{name}: right draws do not fit the predictions, or the draws of the suite. Evaluate again."
                )


def _require_radius(text: str) -> None:
    try:
        known = exact(text) >= 0
    except (ValueError, ZeroDivisionError):
        known = False
    if not known:
        raise BenchError(f"epsilon {text[:40]!r} is no radius. Use a number of at least 0, such as 8/255 or 0.15.")


def content_digest(result: EvaluationResult) -> str:
    """SHA-256 (hex) of everything but times and the command: the same seed gives the same digest."""
    texts = [[*(getattr(record, name) for name in _ATTACK_TEXTS)] for record in result.attacks.values()]
    stable = {
        "run": {key: value for key, value in result.run.items() if key not in VOLATILE},
        "suite": result.suite,
        "findings": result.findings,
        "attacks": texts,
        "parameters": [record.parameters for record in result.attacks.values()],
    }
    if result.corruptions:
        stable["corruptions"] = [shown.label for shown in result.corruptions.values()]
    if result.features:
        stable["features"] = vars(result.features)
    content = hashlib.sha256(canonical_json("content", stable).encode())
    for name, values in _arrays(result):
        content.update(f"\n{name} {len(values)}\n".encode())
        content.update(values.astype(_stored_type(name)).tobytes())
    return content.hexdigest()


def write_result(result: EvaluationResult, path: str | Path, replace: bool = True) -> None:
    """Write the whole file at once; a reader sees the old file or the new one, never a part.

    Raises:
        AlreadyThereError: without `replace`, and there is a file; it is left as it is.
        BenchError: the path cannot be written, or `run`, `suite`, parameters or findings are not JSON.
    """
    RESULT_FILE.write(Path(path), lambda file: _fill(file, result), _version(result), replace)


def require_storable(result: EvaluationResult) -> None:
    """Refuse a result that no file could hold and be read again from."""
    for record in result.attacks.values():
        canonical_json(f"a parameter of {record.label}", record.parameters)
    RESULT_FILE.opened(RESULT_FILE.sealed(lambda file: _fill(file, result), _version(result)), _take)


def _version(result: EvaluationResult) -> int:
    """Whoever knows version 1 only can go on reading whatever it can hold."""
    if result.clean_right_draws is not None:
        return 3
    return 2 if result.corruptions or result.features else 1


def read_result(path: str | Path) -> EvaluationResult:
    """The result in a file that `write_result` made.

    Raises:
        BenchError: the file is unreadable, of another format or version, incomplete, altered or damaged.
    """
    return RESULT_FILE.read(path, _take)


def canonical_json(name: str, value: Any) -> str:
    """`value` as JSON with sorted keys: equal values give equal text. `name` is what an error calls it.

    Raises:
        BenchError: the value holds something JSON cannot.
    """
    try:
        return json.dumps(value, sort_keys=True, default=_as_dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise BenchError(f"{name} cannot be written as JSON: {error}. Use plain values.") from None


def _as_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _arrays(result: EvaluationResult) -> Iterator[tuple[str, np.ndarray]]:
    for name in _SAMPLE_ARRAYS:
        if getattr(result, name) is not None:
            yield f"samples/{name}", getattr(result, name)
    for order, record in enumerate(result.attacks.values()):
        for name in _ATTACK_ARRAYS:
            if getattr(record, name) is not None:
                yield f"attacks/{slug(order, record.label)}/{name}", getattr(record, name)
    for order, shown in enumerate(result.corruptions.values()):
        yield f"corruptions/{slug(order, shown.label)}/prediction", shown.prediction


def _stored_type(name: str) -> str:
    return (_SAMPLE_ARRAYS | _ATTACK_ARRAYS)[name.rpartition("/")[2]]


def _fill(file: Any, result: EvaluationResult) -> None:
    file.attrs["digest"] = content_digest(result)
    for name in ("run", "suite", "findings"):
        file.attrs[name] = canonical_json(name, getattr(result, name))
    for name, values in _arrays(result):
        store(file, name, values.astype(_stored_type(name)))
    file.require_group("attacks")
    for order, record in enumerate(result.attacks.values()):
        attributes = file["attacks"][slug(order, record.label)].attrs
        attributes.update({name: getattr(record, name) for name in _ATTACK_TEXTS})
        attributes.update(
            parameters=canonical_json("parameters", record.parameters), seconds=record.seconds, order=order
        )
    for order, shown in enumerate(result.corruptions.values()):
        about = {name: getattr(shown, name) for name in ("label", "corruption", "severity", "seconds")}
        file["corruptions"][slug(order, shown.label)].attrs.update(about, order=order)
    if result.features:
        file.require_group("features").attrs.update(vars(result.features))


def _take(file: Any, budget: Budget) -> EvaluationResult:
    samples, version = subgroup(file, "samples"), attribute(file, "format_version", np.integer)
    label = _array(samples, "label", None, budget)
    unread = () if version > 2 else _OF_DRAWS
    arrays = {name: _array(samples, name, len(label), budget) for name in _SAMPLE_ARRAYS if name not in unread}
    records = [_record(group, len(label), unread, budget) for group in ordered_groups(subgroup(file, "attacks"))]
    newer = set(file) if version > 1 else set()
    shown = ordered_groups(subgroup(file, "corruptions")) if "corruptions" in newer else []
    corruptions = [_corruption(group, len(label), budget) for group in shown]
    result = EvaluationResult(
        run=parsed(file, "run", dict, budget),
        suite=parsed(file, "suite", dict, budget),
        **arrays,
        attacks={record.label: record for record in records},
        findings=tuple(parsed(file, "findings", list, budget)),
        corruptions={record.label: record for record in corruptions},
        features=_features(subgroup(file, "features")) if "features" in newer else None,
    )
    if content_digest(result) != attribute(file, "digest", str):
        raise BenchError("the file was altered or damaged: its content does not match its digest. Evaluate again.")
    return result


def _record(group: Any, count: int, unread: tuple[str, ...], budget: Budget) -> AttackRecord:
    texts: dict[str, Any] = {name: attribute(group, name, str) for name in _ATTACK_TEXTS}
    arrays: dict[str, Any] = {
        name: None if name in _OPTIONAL and name not in group else _array(group, name, count, budget)
        for name in _ATTACK_ARRAYS
        if name not in unread
    }
    return AttackRecord(
        **texts,
        **arrays,
        parameters=parsed(group, "parameters", dict, budget),
        seconds=float(attribute(group, "seconds", np.floating)),
    )


def _corruption(group: Any, count: int, budget: Budget) -> CorruptionRecord:
    return CorruptionRecord(
        corruption=attribute(group, "corruption", str),
        severity=int(attribute(group, "severity", np.integer)),
        prediction=_array(group, "prediction", count, budget),
        seconds=float(attribute(group, "seconds", np.floating)),
    )


def _features(group: Any) -> FeatureRecord:
    kinds: dict[Any, Any] = {str: str, int: np.integer, float: np.floating}
    types: dict[str, Any] = {item.name: item.type for item in fields(FeatureRecord)}
    return FeatureRecord(**{name: kind(attribute(group, name, kinds[kind])) for name, kind in types.items()})


def _array(group: Any, name: str, count: int | None, budget: Budget) -> np.ndarray:
    return array(group, name, _stored_type(name), (count,), budget)
