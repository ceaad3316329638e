"""The functions that `import bench` offers: the commands, with the same results, files and trust reports."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from bench.catalogue.names import DEFAULT_RECIPE
from bench.data.datasets import held_dataset
from bench.data.datasets import load_dataset as read_dataset
from bench.data.splits import Dataset
from bench.evaluation.evaluate import evaluate as run_evaluation
from bench.evaluation.request import EvaluationRequest, Precision
from bench.interop.kinds import kind_of
from bench.models.checkpoints import Checkpoint
from bench.models.checkpoints import load_checkpoint as read_checkpoint
from bench.results.file import EvaluationResult
from bench.results.file import read_result as read_file
from bench.system.progress import EvaluationProgress
from bench.training.request import TrainingRequest
from bench.training.train import train as run_training

Classes: TypeAlias = "int | Sequence[str | int] | None"
"""Some of a dataset's classes, by name or label; or how many there are; None: all."""


def train(
    defense: str,
    dataset: str = "cifar10",
    *,
    backbone: str | None = None,
    seed: int = 0,
    hyperparameters: Mapping[str, Any] | None = None,
    classes: Classes = None,
    preprocessing: str | None = None,
    limit_train: int | None = None,
    extra: str | None = None,
    recipe: str = DEFAULT_RECIPE,
    start: str | Path | None = None,
    watch: int | None = None,
    data: str | Path = "data",
    runs: str | Path = "runs",
    folder: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    resume: bool = False,
    quiet: bool = False,
    **protocol: Any,
) -> Path:
    """The run folder of a training, as `bench train` makes it; a finished one is not trained again.

    Example:
        >>> run = bench.train("at", "digits", epochs=1, limit_train=64, quiet=True)
        >>> run.as_posix()
        'runs/digits/cnn-small/at/seed-0'

    Args:
        defense: by name (`bench list defenses`).
        dataset: by name, or npz:PATH.
        backbone: by name; None: the recipe's for the dataset.
        seed: of initialisation, order, augmentation and attacks.
        hyperparameters: of the defense, that differ from its defaults.
        classes: a list of the dataset's classes to train on, by name or label; or how many an npz:PATH has.
        preprocessing: of images on disk, as --preprocessing takes it.
        limit_train: how many training images; None: all.
        extra: npz:PATH of images to train on beside the dataset's; `extra_share` says how many of each batch.
        recipe: by name (`bench list recipes`), or a JSON file.
        start: a checkpoint or run folder, whose weights the training starts with; None: random ones.
        watch: how many training and test images to look at after each epoch, which chooses nothing; None: none.
        data: the folder of the datasets.
        runs: the folder of all runs.
        folder: of this run; None: runs/<dataset>/<backbone>/<defense>/seed-<seed>.
        device: auto, cpu, cuda, ...
        precision: fp32, tf32 or bf16; auto: tf32 on CUDA, else fp32.
        resume: go on with an unfinished training.
        quiet: show no progress.
        protocol: settings in the place of the recipe's, such as `epochs` and `milestones`.

    Raises:
        BenchError: whatever `bench train` refuses, in one line.
    """
    request = TrainingRequest(
        defense,
        dataset,
        backbone,
        seed,
        hyperparameters or {},
        protocol,
        limit_train,
        extra,
        recipe=recipe,
        start=None if start is None else Path(start),
        watch=watch,
        classes=_as_requested(classes),
        preprocessing=preprocessing,
        data=Path(data),
        runs=Path(runs),
        folder=None if folder is None else Path(folder),
        device=device,
        precision=precision,
    )
    return run_training(request, resume=resume, quiet=quiet)


def evaluate(
    model: nn.Module | str | Path,
    dataset: str | tuple[Tensor, Tensor] | None = None,
    suite: str = "linf",
    *,
    weights: str | Path | None = None,
    adapt: str | Sequence[str] = (),
    download: bool = False,
    name: str | None = None,
    classes: Classes = None,
    preprocessing: str | None = None,
    epsilon: str | Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    convention: Literal["any", "final"] = "any",
    search_precision: Precision = "auto",
    save_adversarials: bool = False,
    probes: int = 64,
    data: str | Path = "data",
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    processes: int = 1,
    quiet: bool = False,
) -> EvaluationResult:
    """The result of a model under a suite: every sample's outcome and the trust report; `bench eval` in Python.

    It is written to a file as well: `out`, or the file that the command would choose.

    Example:
        >>> run = bench.train("at", "digits", epochs=1, limit_train=64, quiet=True)
        >>> result = bench.evaluate(run, suite="quick", limit=20, quiet=True)
        >>> list(result.attacks), len(result.label)
        (['FGSM', 'PGD-20'], 20)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> images, labels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20) % 10
        >>> result = bench.evaluate(model, (images, labels), "clean", name="line", quiet=True)
        >>> result.run["model"], result.run["dataset"][:8]
        ('line', 'tensors:')

    Args:
        model: a module that takes float images in [0, 1] and returns logits; a checkpoint or run folder; or a name as
            --model takes it, such as FILE.py:FACTORY or timm:NAME.
        dataset: by name, or (images, labels); None: what the checkpoint was trained on.
        suite: by name (`bench list suites`), or a JSON file.
        weights: for FILE.py:FACTORY, timm:NAME and torchvision:NAME.
        adapt: what is put around the model, such as "resize=224" or ["output=logits", "half"].
        download: what a library publishes and is not on this machine may be downloaded.
        name: of the row.
        classes: a list of the dataset's classes to evaluate on, by name or label; or how many there are, of a dataset
            that does not say it.
        preprocessing: of images on disk, as --preprocessing takes it.
        epsilon: the radius, of linf, or by norm; None: the dataset's.
        limit: how many test images; None: all.
        seed: of the attacks.
        batch_size: images at once; None: 256, on CUDA 2,048 of 32x32 pixels.
        convention: `any`, or `final`, which measures both.
        search_precision: of the attacks' search, auto: tf32 on CUDA, else fp32; every success is judged in float32.
        save_adversarials: keep the images, in a file beside the result.
        probes: images that the trust report looks at.
        data: the folder of the datasets.
        device: auto, cpu, cuda, ...
        out: the result file.
        overwrite: replace it.
        processes: that share the work; one for a model or data in memory.
        quiet: show no progress.

    Raises:
        BenchError: whatever `bench eval` refuses, in one line.
    """
    held = None if dataset is None or isinstance(dataset, str) else _held(*dataset, classes)
    text = str(model)
    named = isinstance(model, str) and (kind_of(text)[1] != text or ".py:" in text)
    request = EvaluationRequest(
        suite,
        checkpoint=None if named or isinstance(model, nn.Module) else Path(text),
        model=text if named else None,
        module=model if isinstance(model, nn.Module) else None,
        weights=None if weights is None else Path(weights),
        adapt=(adapt,) if isinstance(adapt, str) else tuple(adapt),
        download=download,
        name=name,
        dataset=dataset if held is None else held.name,  # type: ignore[arg-type]
        held=held,
        classes=_as_requested(classes) if held is None else None,
        preprocessing=preprocessing,
        epsilons={"linf": epsilon} if isinstance(epsilon, str) else epsilon or {},
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        convention=convention,
        precision=search_precision,
        save_adversarials=save_adversarials,
        probes=probes,
        data=Path(data),
        device=device,
        out=None if out is None else Path(out),
        overwrite=overwrite,
    )
    with closing(EvaluationProgress(quiet=quiet)) as progress:
        return run_evaluation(request, progress, processes, progress.say, progress.overall)[0]


def _held(images: Tensor, labels: Tensor, classes: Classes) -> Dataset:
    wanted = _as_requested(classes)
    if isinstance(wanted, tuple):
        return held_dataset(images, labels).of_classes(wanted)
    return held_dataset(images, labels, wanted)


def _as_requested(classes: Classes) -> int | tuple[str, ...] | None:
    """The classes as requests have them; a text is read as --classes reads a list."""
    if classes is None or isinstance(classes, int):
        return classes
    return tuple(classes.split(",")) if isinstance(classes, str) else tuple(map(str, classes))


def load_dataset(
    name: str, data: str | Path = "data", classes: Classes = None, preprocessing: str | None = None
) -> Dataset:
    """A dataset by name, such as npz:PATH: `train` and `test` splits of integer images.

    Example:
        >>> digits = bench.load_dataset("digits")
        >>> digits.test.images(slice(0, 2)).shape
        torch.Size([2, 1, 8, 8])

    Raises:
        BenchError: the name is unknown, or files are missing or damaged.
    """
    return read_dataset(name, Path(data), _as_requested(classes), preprocessing)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a run folder or file: its configuration and weights; `build()` makes the model.

    Example:
        >>> run = bench.train("at", "digits", epochs=1, limit_train=64, quiet=True)
        >>> checkpoint = bench.load_checkpoint(run)
        >>> checkpoint.config["defense"], checkpoint.build()(torch.zeros(1, 1, 8, 8)).shape
        ('at', torch.Size([1, 10]))

    Raises:
        BenchError: the file is missing, damaged or of another program.
    """
    return read_checkpoint(Path(path))


def read_result(path: str | Path) -> EvaluationResult:
    """The evaluation in a result file: `bench.results.metrics` derives every number from its outcomes.

    Example:
        >>> run = bench.train("at", "digits", epochs=1, limit_train=64, quiet=True)
        >>> written = bench.evaluate(run, suite="quick", limit=20, quiet=True, out="quick.h5", overwrite=True)
        >>> result = bench.read_result("quick.h5")
        >>> (result.clean_prediction == written.clean_prediction).all()
        np.True_

    Raises:
        BenchError: the file is missing, damaged or of another program.
    """
    return read_file(Path(path))
