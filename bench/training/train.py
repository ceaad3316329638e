"""From a request to a run folder: what is needed first, then a new run, one that goes on, or a refusal."""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bench.catalogue.plugins import make_defense
from bench.errors import BenchError
from bench.interfaces import Defense
from bench.models.checkpoints import MOST_CLASSES, MOST_VALUES, build_model, describes_a_model, load_checkpoint
from bench.results.trainings import recorded_recipe
from bench.system.devices import choose_device, training_arithmetic, training_precision
from bench.system.locks import LOCK_FILE, sole_writer
from bench.system.progress import TrainingProgress
from bench.training.loop import fit
from bench.training.processes import Processes
from bench.training.recorded_steps import Graphs
from bench.training.refusals import require_the_same_start
from bench.training.request import TrainingRequest, dataset_and_protocol, describe, needed_request
from bench.training.run import TrainingRun
from bench.training.run_folder import RunFolder
from bench.training.soft_labels import require_soft_labels


def train(request: TrainingRequest, resume: bool = False, quiet: bool = False) -> Path:
    """Train what the request asks for, requirements first, and return the run's folder.

    A finished run is left alone, but for damaged files, which are written again from its training state. An unfinished
    one is continued with `resume`, and refused without.

    Raises:
        BenchError: bad input, an unfinished or different run in the folder, damage that cannot be mended, another
            process that trains there, or a loss that is not finite.
    """
    run = prepare_run(request, quiet)
    writes, say = run.processes.writes, TrainingProgress(quiet or not run.processes.writes).say
    folder = RunFolder(request.run_folder, run.config, say)
    if folder.exported_epoch() == folder.epochs and _restored(run, folder, resume) and not folder.damaged():
        require_the_same_start(run, folder)
        if (folder.path / LOCK_FILE).exists() and writes:
            # Killed at its very end. Others who are at work here, or may not write, are let be.
            with suppress(BenchError), sole_writer(folder.path):
                folder.tidy()
        say(f"{folder.path} is already finished: nothing to do.")
    else:
        with sole_writer(folder.path) if writes else nullcontext():
            _continue(run, folder, resume, quiet, request.save_every)
    # Nobody goes on to read what process 0 still writes.
    run.processes.wait()
    return folder.path


def _restored(run: TrainingRun, folder: RunFolder, resume: bool) -> bool:
    """Take over what the folder holds; return True if all epochs are finished."""
    state = folder.restore(resume)
    finished = folder.finished == folder.epochs
    if state is not None:
        run.load(state, goes_on=not finished)
    return finished


def _continue(run: TrainingRun, folder: RunFolder, resume: bool, quiet: bool, save_every: float) -> None:
    writes, about = run.processes.writes, run.config["dataset"]
    if writes:
        folder.tidy()
    finished = _restored(run, folder, resume)
    require_the_same_start(run, folder)
    if writes and folder.finished:
        folder.mend()
    elif writes and about.get("classes_from") == "labels":
        TrainingProgress(quiet).say(
            f"{about['name']} does not say how many classes there are: {about['num_classes']}, 1 + its largest label. "
            "To say it: --classes N, or num_classes in the file."
        )
    if not finished:
        if writes:
            folder.require_room()
            TrainingProgress(quiet).say(f"Recipe {recorded_recipe(run.config)}.")
        fit(run, folder, quiet, save_every)


def prepare_run(request: TrainingRequest, quiet: bool = False, trial: bool = False) -> TrainingRun:
    """The run that a request asks for, at its first epoch; models that it requires are trained, if they are not yet.

    In a `trial`, whose steps are thrown away, they are there untrained: a forward pass costs the same.

    Raises:
        BenchError: bad input, or a defense that cannot be trained by several processes.
    """
    processes = Processes.from_environment()
    device = processes.device(choose_device(request.device))
    request = replace(request, precision=training_precision(request.precision, device))
    if request.cuda_graphs and device.type != "cuda":
        raise BenchError(f"CUDA graphs exist on CUDA devices only, not on {device.type}. Leave out --cuda-graphs.")
    if request.cuda_graphs and processes.count > 1:
        raise BenchError("CUDA graphs record the steps of one process. Leave out --cuda-graphs, or torchrun.")
    defense = make_defense(request.defense, request.dataset, request.hyperparameters)
    undivided = defense.undivided or ("the views of an image belong together" if defense.views > 1 else "")
    if not undivided and type(defense).tables is not Defense.tables:
        undivided = "its tables are changed by one process"
    if processes.count > 1 and undivided:
        raise BenchError(
            f"{request.defense} cannot be trained by {processes.count} processes: {undivided}. "
            "Train it with `bench train`, without torchrun."
        )
    processes.meet(device)
    dataset, protocol = dataset_and_protocol(request)
    own_awp = getattr(defense, "awp", 0)
    if protocol.awp and own_awp:
        raise BenchError(f"{request.defense} perturbs weights itself, by awp={own_awp}: give --awp 0, or --set awp=0.")
    needed = type(defense).requires
    requirements = {} if trial else {name: _requirement(request, name, quiet) for name in needed}
    with training_arithmetic(request.precision, request.deterministic):
        config = describe(request, defense, protocol, dataset, device, requirements)
    if not describes_a_model({**config, "epoch": 0}):
        raise BenchError(
            f"a model of {dataset.num_classes} classes for images of shape {dataset.image_shape} could not be loaded "
            f"again: checkpoints hold 2 to {MOST_CLASSES} classes, and images of at most {MOST_VALUES} values."
        )
    config["processes"] = processes.count
    graphs = device.type == "cuda" and processes.count == 1 and request.cuda_graphs is not False
    config["environment"] |= {"cuda_graphs": graphs} | ({"deterministic": True} if request.deterministic else {})
    models: dict[str, nn.Module] = {name: load_checkpoint(path).build(device) for name, path in requirements.items()}
    if trial:
        models = {name: _untrained(request.dataset, name, config).to(device) for name in needed}
    start = None if request.start is None else load_checkpoint(request.start).weights
    run = TrainingRun(defense, protocol, dataset, device, config, models, processes, start)
    if run.augmentation.soft_labels:
        require_soft_labels(run)
    if graphs:
        run.graphs = Graphs(TrainingProgress(quiet).say)
    return run


def _untrained(dataset: str, name: str, config: Mapping[str, Any]) -> nn.Module:
    """A model of another defense, as the run's own is built."""
    return build_model(make_defense(name, dataset, {}), config["backbone"], config["dataset"]).eval()


def _requirement(request: TrainingRequest, name: str, quiet: bool) -> Path:
    """The run folder of a model that the defense needs: found where `bench train` puts it, or trained now."""
    needed = needed_request(request, name)
    TrainingProgress(quiet).say(f"{request.defense} needs a trained {name}: {needed.run_folder}")
    return train(needed, resume=True, quiet=quiet)
