"""What an evaluation found, and the file it is kept in. `RESULT_FORMAT.md` describes the file.

Only outcomes are stored: one prediction per sample and attack. Every accuracy is derived from them in `bench.metrics`.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16, Int64

from bench.errors import BenchError
from bench.files import write_whole

FORMAT = "bench-result"
FORMAT_VERSION = 1
VOLATILE = frozenset({"created", "command", "seconds"})
"""Keys of `run` that may differ between two runs of the same evaluation; `content_digest` leaves them out."""

_SEAL_SIZE = 512
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DEFLATE_RATIO = 1032
_SAMPLE_ARRAYS = {"label": "<i2", "index": "<i8", "clean_prediction": "<i2"}
_ATTACK_ARRAYS = {"prediction": "<i2", "final_prediction": "<i2", "distance": "<f4", "loss": "<f4", "stage": "<i2"}
_OPTIONAL = ("final_prediction", "loss", "stage")
_ATTACK_TEXTS = ("label", "attack", "norm", "epsilon", "objective")


@dataclass(frozen=True, eq=False)
class AttackRecord:
    """One cell of a suite: what one attack did to every sample."""

    label: str
    """Column title, such as `PGD-20`."""
    attack: str
    """Name of the attack, such as `pgd`."""
    parameters: Mapping[str, Any]
    """Every parameter, defaults included."""
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


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Outcomes of one model under one suite.

    Raises:
        BenchError: the arrays differ in length, a record's label is not its key, or a record's text is not printable.
    """

    run: Mapping[str, Any]
    """Everything needed to repeat the evaluation; keys in RESULT_FORMAT.md."""
    suite: Mapping[str, Any]
    """Name, version, threat, cells and derived columns; keys in RESULT_FORMAT.md."""
    label: Int16[np.ndarray, " sample"]
    index: Int64[np.ndarray, " sample"]
    """Position in the dataset's test split, counted from 0."""
    clean_prediction: Int16[np.ndarray, " sample"]
    attacks: Mapping[str, AttackRecord]
    """By label, in the suite's order."""
    findings: tuple[Mapping[str, Any], ...] = ()
    """What the evaluation noticed about the model: `name`, `severity` and `message` each."""

    def __post_init__(self) -> None:
        for key, record in self.attacks.items():
            texts = [getattr(record, name) for name in _ATTACK_TEXTS]
            if key != record.label or not all(text.strip() and text.isprintable() for text in texts):
                raise BenchError(
                    f"attack {key!r} is described by {texts!r}. Use printable texts, and its label as key."
                )
        for name, values in _arrays(self):
            if values.shape != self.label.shape:
                raise BenchError(
                    f"/{name} has shape {values.shape}, /samples/label {self.label.shape}. Give one value per sample."
                )


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
    content = hashlib.sha256(canonical_json("content", stable).encode())
    for name, values in _arrays(result):
        content.update(f"\n{name} {len(values)}\n".encode())
        content.update(values.astype(_stored_type(name)).tobytes())
    return content.hexdigest()


def write_result(result: EvaluationResult, path: str | Path) -> None:
    """Write the whole file at once; a reader sees the old file or the new one, never a part.

    Raises:
        BenchError: the path cannot be written, or `run`, `suite`, parameters or findings are not JSON.
    """
    body = _encode(result)
    write_whole(Path(path), lambda temporary: temporary.write_bytes(_seal(body) + body))


def read_result(path: str | Path) -> EvaluationResult:
    """The result in a file that `write_result` made.

    Raises:
        BenchError: the file is unreadable, of another format or version, incomplete, altered or damaged.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read {str(path)!r}: {_reason(error)}. Give a result file.") from None
    try:
        return _decode(_unsealed(data))
    except BenchError as error:
        raise BenchError(f"{str(path)!r}: {error}") from None


def canonical_json(name: str, value: Any) -> str:
    """`value` as JSON with sorted keys: equal values give equal text. `name` is what an error calls it.

    Raises:
        BenchError: the value holds something JSON cannot.
    """
    try:
        return json.dumps(value, sort_keys=True, default=_as_dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise BenchError(f"{name} cannot be written as JSON: {error}. Use plain values.") from None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "not a usable path"


def _as_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _slug(order: int, label: str) -> str:
    return f"{order:03d}-{re.sub('[^a-z0-9]+', '-', label.lower())[:40].strip('-')}"


def _arrays(result: EvaluationResult) -> Iterator[tuple[str, np.ndarray]]:
    for name in _SAMPLE_ARRAYS:
        yield f"samples/{name}", getattr(result, name)
    for order, record in enumerate(result.attacks.values()):
        for name in _ATTACK_ARRAYS:
            if getattr(record, name) is not None:
                yield f"attacks/{_slug(order, record.label)}/{name}", getattr(record, name)


def _stored_type(name: str) -> str:
    return (_SAMPLE_ARRAYS | _ATTACK_ARRAYS)[name.rpartition("/")[2]]


# -------------------------------------------------------------------------------------------------- seal


def _seal(body: bytes) -> bytes:
    """The first 512 bytes of a file: format, version and the digest of the HDF5 body behind them.

    libhdf5 can loop for ever on damaged metadata, where no exception is left to catch; so the body is verified before
    the library sees it.
    """
    return f"{FORMAT} {FORMAT_VERSION} {hashlib.sha256(body).hexdigest()}\n".encode().ljust(_SEAL_SIZE, b"\0")


def _unsealed(data: bytes) -> bytes:
    """`data`, once the seal is known to be right."""
    head, body = data[:_SEAL_SIZE], data[_SEAL_SIZE:]
    if not (data.startswith(_HDF5_SIGNATURE) or body.startswith(_HDF5_SIGNATURE)):
        raise BenchError("not an HDF5 file, or cut short. Give a file that `bench eval` wrote.")
    version = re.match(rb"bench-result (\d{1,9}) ", head)
    if not version:
        raise BenchError(f"HDF5, but not of format {FORMAT}. Give a file that `bench eval` wrote.")
    _require_version(int(version[1]))
    if head != _seal(body):
        raise BenchError("the file was altered or damaged: its bytes do not match its seal. Evaluate again.")
    return data


def _require_version(version: int) -> None:
    if version != FORMAT_VERSION:
        raise BenchError(
            f"unknown format_version {version}. This program reads: {FORMAT_VERSION}. Use the program that wrote it."
        )


# -------------------------------------------------------------------------------------------------- HDF5


def _encode(result: EvaluationResult) -> bytes:
    """The HDF5 body: a file made with a user block of the seal's size, less that block."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_SEAL_SIZE, libver=("v110", "v110")) as file:
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, digest=content_digest(result))
        for name in ("run", "suite", "findings"):
            file.attrs[name] = canonical_json(name, getattr(result, name))
        for name, values in _arrays(result):
            storage = {"chunks": values.shape, "compression": "gzip", "shuffle": True, "fletcher32": True}
            file.create_dataset(name, data=values.astype(_stored_type(name)), **(storage if values.size else {}))
        file.require_group("attacks")
        for order, record in enumerate(result.attacks.values()):
            attributes = file["attacks"][_slug(order, record.label)].attrs
            attributes.update({name: getattr(record, name) for name in _ATTACK_TEXTS})
            attributes.update(
                parameters=canonical_json("parameters", record.parameters), seconds=record.seconds, order=order
            )
    return buffer.getvalue()[_SEAL_SIZE:]


def _decode(data: bytes) -> EvaluationResult:
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise BenchError(f"HDF5, but not of format {FORMAT}. Give a file that `bench eval` wrote.")
            _require_version(int(_attribute(file, "format_version", np.integer)))
            result = _result(file, largest=_DEFLATE_RATIO * len(data))
            if content_digest(result) != _attribute(file, "digest", str):
                raise BenchError(
                    "the file was altered or damaged: its content does not match its digest. Evaluate again."
                )
            return result
    except BenchError:
        raise
    except Exception as error:  # h5py raises nearly every built-in exception on a malformed file
        raise BenchError(f"the file is malformed ({type(error).__name__} in HDF5). Evaluate again.") from error


def _result(file: Any, largest: int) -> EvaluationResult:
    samples = _group(file, "samples")
    label = _array(samples, "label", None, largest)
    arrays = {name: _array(samples, name, len(label), largest) for name in _SAMPLE_ARRAYS}
    attacks = _group(file, "attacks")
    groups = {_attribute(group, "order", np.integer): group for group in (_group(attacks, name) for name in attacks)}
    records = [_record(groups[order], len(label), largest) for order in sorted(groups)]
    if len({record.label for record in records}) < len(attacks):
        raise BenchError("two attacks have the same label or order. Evaluate again.")
    return EvaluationResult(
        run=_parsed(file, "run", dict),
        suite=_parsed(file, "suite", dict),
        **arrays,
        attacks={record.label: record for record in records},
        findings=tuple(_parsed(file, "findings", list)),
    )


def _record(group: Any, count: int, largest: int) -> AttackRecord:
    texts: dict[str, Any] = {name: _attribute(group, name, str) for name in _ATTACK_TEXTS}
    arrays: dict[str, Any] = {
        name: None if name in _OPTIONAL and name not in group else _array(group, name, count, largest)
        for name in _ATTACK_ARRAYS
    }
    return AttackRecord(
        **texts,
        **arrays,
        parameters=_parsed(group, "parameters", dict),
        seconds=float(_attribute(group, "seconds", np.floating)),
    )


def _child(group: Any, name: str) -> Any:
    """What the file itself holds under a name; soft and external links, which may lead elsewhere, count as nothing."""
    import h5py

    return group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def _group(parent: Any, name: str) -> Any:
    import h5py

    group = _child(parent, name)
    if not isinstance(group, h5py.Group):
        raise BenchError(f"group {name!r} is missing. Evaluate again.")
    return group


def _array(group: Any, name: str, count: int | None, largest: int) -> np.ndarray:
    import h5py

    where, expected = f"dataset {group.name + '/' + name!r}", _stored_type(name)
    values = _child(group, name)
    if not isinstance(values, h5py.Dataset) or values.external or values.is_virtual:
        raise BenchError(f"{where} is missing or kept in another file. Evaluate again.")
    if values.dtype != np.dtype(expected):
        raise BenchError(f"{where} has type {values.dtype}, not {np.dtype(expected)}. Evaluate again.")
    if values.ndim != 1 or count not in (None, len(values)):
        raise BenchError(f"{where} has shape {values.shape}, not one value per sample. Evaluate again.")
    if values.nbytes > largest:
        raise BenchError(f"{where} claims {values.nbytes} bytes, more than its file can hold. Evaluate again.")
    return values[...].astype(expected[1:])


def _attribute(node: Any, name: str, kind: type) -> Any:
    value = node.attrs.get(name)
    if not isinstance(value, kind):
        raise BenchError(f"attribute {name!r} of {node.name!r} is missing or of the wrong type. Evaluate again.")
    return value


def _parsed(node: Any, name: str, kind: type[dict] | type[list]) -> Any:
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(_attribute(node, name, str))
    if not isinstance(value, kind) or (kind is list and not all(isinstance(item, dict) for item in value)):
        raise BenchError(f"attribute {name!r} of {node.name!r} is not the JSON it should be. Evaluate again.")
    return value
