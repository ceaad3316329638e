"""An evaluation that is asked for, and the name of its file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from bench.catalogue.names import CHECKPOINTS, short_name
from bench.catalogue.suites import Suite
from bench.data.datasets import dataset_protocol
from bench.data.splits import Dataset, Sampling
from bench.errors import BenchError
from bench.interop.subjects import ModelReference, Subject, from_module
from bench.system.files import followed
from bench.text import setting_text

Precision: TypeAlias = Literal["auto", "fp32", "fp32-folded", "tf32", "bf16"]
"""How attacks search. All but fp32 fold BatchNorm; `auto` is tf32 on CUDA, else fp32. The judge is float32 always."""
_RECORDED = {"auto": ("fp32", "tf32"), "fp32-folded": ("fp32-folded", "fp32")}
"""What a record may say where this was asked for, if not the same: what `auto` comes to; that nothing was folded."""
BATCH, CUDA_PIXELS = 256, 2048 * 32 * 32
"""Images at once on a processor; pixels at once on CUDA, where 2,048 small images are no more launches than one is."""
"""Of the search: `fp32-folded` and `bf16` fold BatchNorm into convolutions; every claim is judged in plain fp32."""
_LONG = 40
"""Characters of an adapter that a file's name holds; of a longer one, its digest."""


@dataclass(frozen=True)
class EvaluationRequest(ModelReference):
    """A model, named or in memory, that is to be evaluated under a suite on a dataset."""

    suite: str
    _: KW_ONLY
    name: str | None = None
    module: nn.Module | None = None
    """A model in memory, instead of a named one."""
    dataset: str | None = None
    held: Dataset | None = None
    """A dataset in memory, whose name is `dataset`; None: it is read."""
    classes: int | tuple[str, ...] | None = None
    """How many there are, where an `npz:PATH` does not say it (None: as many as the model has outputs), or which of a
    dataset's classes to evaluate on, by name or label."""
    preprocessing: str | None = None
    """How images on disk become pixels, as `bench.data.stored_images.Preprocessing` says it; None: the dataset's."""
    data: Path = Path("data")
    limit: int | None = None
    """Evaluate so many test images, as `Split.take` chooses them; None: all."""
    sampling: Sampling | None = None
    """Which so many images: the first, or some of each class; None: as is the dataset's convention."""
    epsilons: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    batch_size: int | None = None
    """Images at once; None: `default_batch_size`."""
    convention: Literal["any", "final"] = "any"
    precision: Precision = "auto"
    randomised: bool = False
    """The model is random by design, whether it says so or not: for suites that draw."""
    adaptive: str | None = None
    """FILE.py:FUNCTION, a loss of one's own; it adds a column."""
    transfer: tuple[Path, ...] = ()
    """Runs to craft transferred images against; each adds a column."""
    corruptions: Path | None = None
    """Folder of corrupted test images; None: where `bench.evaluation.corrupted.find_corrupted` looks for it."""
    save_adversarials: bool = False
    """Keep the image behind every broken sample, in a file beside the result."""
    shard: tuple[int, int] = (0, 1)
    probes: int = 64
    """Images that the trust report's probes look at; 0: no probes."""
    device: str = "auto"
    out: Path | None = None
    overwrite: bool = False
    command: str = ""

    def load_model(self, device: torch.device) -> Subject:
        """The model in eval mode; one that cannot be loaded is refused."""
        if self.module is None:
            return self.load(device, self.dataset)
        return from_module(self.module, self.name, device, self.adapt)

    @property
    def adaptive_file(self) -> Path | None:
        """The file of a loss of one's own."""
        return Path(self.adaptive.rpartition(":")[0]) if self.adaptive else None


def search_precision(name: str, device: torch.device) -> str:
    """The precision of this name, on this device.

    Raises:
        BenchError: it does not exist, or not there.
    """
    known = get_args(Precision)
    if name not in known:
        raise BenchError(f"unknown precision {name!r}. Choose from: {', '.join(known)}.")
    if name == "tf32" and device.type != "cuda":
        raise BenchError(
            f"precision tf32 exists on CUDA devices only, not on {device.type}. Choose fp32, fp32-folded or bf16."
        )
    return ("tf32" if device.type == "cuda" else "fp32") if name == "auto" else name


def answers(recorded: object, asked: str) -> bool:
    """True if the precision that a record names is what the asked one comes to somewhere."""
    return recorded in _RECORDED.get(asked, (asked,))


def default_batch_size(device: torch.device, image_shape: Sequence[int]) -> int:
    """Images at once: 256; on CUDA 2,048 of at most 32x32 pixels, and of larger ones fewer, 16 at least."""
    if device.type != "cuda":
        return BATCH
    return max(min(CUDA_PIXELS // (image_shape[-2] * image_shape[-1]), 2048), 16)


def result_path(request: EvaluationRequest, suite: Suite, trained_on: str | None = None) -> Path:
    """`--out`, else <run>/results/<suite>-v<version>.h5, else results/<model>-<suite>-v<version>.h5.

    The name holds all that was chosen besides the suite (`_choices`), so that evaluations that differ in it have files
    of their own: linf-v1-first100-eps4_255-seed1-final.h5.

    A folder that holds a checkpoint itself, as `bench export huggingface` writes it, is a model and no run: it is left
    as it is.
    """
    if request.out is not None:
        return followed(request.out)
    file = _in_a_name("-".join([suite.name, f"v{suite.version}", *_choices(request, trained_on)]))
    if request.checkpoint is not None:
        folder = request.checkpoint.parent if request.checkpoint.is_file() else request.checkpoint
        run, which = (folder.parent, folder.name) if folder.name in CHECKPOINTS else (folder, "last")
        if (run / "model.safetensors").is_file():
            return Path("results") / f"{run.resolve().name}-{file}.h5"
        return run / "results" / f"{file}{'' if which == 'last' else f'-{which}'}.h5"
    # Of a path, or OWNER/NAME, the name alone.
    stem = request.weights.stem if request.weights else Path(str(request.model).rpartition(":")[2]).absolute().name
    if request.module is not None:
        stem = request.name or type(request.module).__name__
    if request.from_zoo:
        stem += f"-{request.dataset}-{request.threat_model or 'Linf'}"
    return Path("results") / f"{stem}-{file}.h5"


def _choices(request: EvaluationRequest, trained_on: str | None) -> Iterator[str]:
    """Choices that outcomes depend on besides model and suite, where they are not the default; no places of files."""
    yield from _choices_of_images(request, trained_on)
    for norm, radius in sorted(request.epsilons.items()):
        yield f"{'' if norm == 'linf' else f'{norm}-'}eps{radius.strip()}"
    if request.seed:
        yield f"seed{request.seed}"
    if request.convention != "any":
        yield request.convention
    for adapter in request.adapt:
        name, digest = adapter.partition("=")[0], sha256(adapter.encode()).hexdigest()[:8]
        yield adapter if len(adapter) <= _LONG else f"{name}={digest}"
    if request.precision not in ("auto", "fp32"):
        yield request.precision
    if request.adaptive:
        file, _, function = request.adaptive.rpartition(":")
        yield f"loss-{Path(file).stem}-{function}"
    for source in request.transfer:
        yield "-".join(("from", *source.resolve().parts[-2:]))


def _choices_of_images(request: EvaluationRequest, trained_on: str | None) -> Iterator[str]:
    dataset = request.dataset or trained_on
    if request.checkpoint is not None and dataset != trained_on:
        yield f"on-{short_name(str(dataset))}"
    if isinstance(request.classes, tuple):
        yield f"classes-{setting_text(request.classes)}"
    if request.preprocessing:
        yield request.preprocessing
    if request.limit:
        usual = "first" if dataset is None else dataset_protocol(dataset).sampling
        chosen = request.sampling or usual
        yield f"{'limit' if chosen == usual == 'stratified' else chosen}{request.limit}"


def _in_a_name(text: str) -> str:
    """As part of a file's name, the same everywhere: 4/255 becomes 4_255."""
    return re.sub(r"[^\w.+=-]+", "_", text).lstrip(".")
