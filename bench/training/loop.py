"""The one training loop, from a request to a checkpoint.

Everything random is a function of (seed, epoch), so a run resumed from its last finished epoch continues to the
same bits as one that was never stopped.
"""

import dataclasses
import inspect
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.catalogue.plugins import find, imported_digest, make_defense
from bench.catalogue.protocol import DATASET_BACKBONES, TrainingProtocol, protocol_for
from bench.catalogue.suites import load_suite
from bench.data.augmentation import augment
from bench.data.datasets import load_dataset
from bench.data.splits import Dataset, Split
from bench.engine.memory import shortage
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import Classifier, Defense, Images, Labels, Scalar, TrainingContext, require_terms
from bench.models.checkpoints import (
    MOST_CLASSES,
    MOST_VALUES,
    Checkpoint,
    build_model,
    describes_a_model,
    load_checkpoint,
    load_training_state,
    older_state,
    save_checkpoint,
    save_training_state,
)
from bench.models.folding import FoldedView
from bench.system.devices import check_precision, choose_device, tensor_floats, warning_of_slow_bfloat16
from bench.system.environment import describe_environment
from bench.system.files import clear_temporaries, content_digest, require_writable, write_text
from bench.system.locks import LOCK_FILE, sole_writer
from bench.system.progress import TrainingProgress
from bench.system.randomness import untouched_randomness
from bench.system.signals import to_its_end
from bench.training import run_folder
from bench.training.attacked_weights import require_trained_weights
from bench.training.cuda_graphs import Graphs
from bench.training.kept_state import KeptState
from bench.training.optimizer_steps import OptimizerSteps
from bench.training.processes import Agreement, Processes
from bench.training.stray_state import StrayState


@dataclass(frozen=True)
class TrainingRequest:
    """What to train. `hyperparameters` and `protocol` hold only what was given; the rest takes its defaults."""

    defense: str
    dataset: str = "cifar10"
    backbone: str | None = None
    seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    limit_train: int | None = None
    """Train on so many images, as `Split.take` chooses them; None: on all."""
    classes: int | None = None
    """How many there are, where an `npz:PATH` does not say it; None: 1 + the largest label."""
    data: Path = Path("data")
    runs: Path = Path("runs")
    folder: Path | None = None
    device: str = "auto"
    precision: str = "fp32"
    """fp32, tf32 (CUDA) or bf16; losses are in float32 with all of them."""
    cuda_graphs: bool = False
    """Whether steps of the inner maximum are recorded and replayed; on CUDA only."""

    @property
    def run_folder(self) -> Path:
        """Where the run lives: `folder`, or runs/<dataset>/<backbone>/<defense>/seed-<seed>."""
        dataset = f"npz-{Path(self.dataset).stem}" if self.dataset.startswith("npz:") else self.dataset
        default = self.runs / dataset / self.resolved_backbone / self.defense / f"seed-{self.seed}"
        return self.folder or default

    @property
    def resolved_backbone(self) -> str:
        """The backbone asked for, or the dataset's default."""
        return self.backbone or DATASET_BACKBONES.get(self.dataset, "resnet18")


def train(request: TrainingRequest, resume: bool = False, quiet: bool = False) -> Path:
    """Train what the request asks for, requirements first, and return the run's folder.

    A finished run is left alone, but for damaged files, which are written again from its training state. An unfinished
    one is continued with `resume`, and refused without.

    Raises:
        BenchError: bad input, an unfinished or different run in the folder, damage that cannot be mended, another
            process that trains there, or a loss that is not finite.
    """
    run, folder = prepare_run(request, quiet), request.run_folder
    if (
        run.exported_epoch() == run.protocol.epochs
        and run.restore(resume) == run.protocol.epochs
        and not run.damaged(run.protocol.epochs)
    ):
        run.require_the_same_start(run.protocol.epochs)
        if (folder / LOCK_FILE).exists() and run.processes.writes:
            # Killed at its very end. Others who are at work here, or may not write, are let be.
            with suppress(BenchError), sole_writer(folder):
                _tidy(folder)
        TrainingProgress(quiet or not run.processes.writes).say(f"{folder} is already finished: nothing to do.")
    else:
        with sole_writer(folder) if run.processes.writes else nullcontext():
            _continue(run, resume, quiet)
    # Nobody goes on to read what process 0 still writes.
    run.processes.wait()
    return folder


def _continue(run: "TrainingRun", resume: bool, quiet: bool) -> None:
    if run.processes.writes:
        _tidy(run.folder)
    finished = run.restore(resume)
    run.require_the_same_start(finished)
    about = run.config["dataset"]
    if not finished and run.processes.writes and about.get("classes_from") == "labels":
        TrainingProgress(quiet).say(
            f"{about['name']} does not say how many classes there are: {about['num_classes']}, 1 + its largest label. "
            "To say it: --classes N, or num_classes in the file."
        )
    if finished and run.processes.writes:
        run.mend(finished)
    if finished < run.protocol.epochs:
        if run.processes.writes:
            run.require_room()
        run.fit(quiet)


def _tidy(folder: Path) -> None:
    for place in (folder, folder / "last", folder / "best"):
        clear_temporaries(place)


def prepare_run(request: TrainingRequest, quiet: bool = False, trial: bool = False) -> "TrainingRun":
    """The run that a request asks for, at its first epoch; models that it requires are trained, if they are not yet.

    In a `trial`, whose steps are thrown away, they are there untrained: a forward pass costs the same.

    Raises:
        BenchError: bad input, or a defense that cannot be trained by several processes.
    """
    processes = Processes.from_environment()
    device = processes.device(choose_device(request.device))
    check_precision(request.precision, device)
    if request.cuda_graphs and device.type != "cuda":
        raise BenchError(f"CUDA graphs exist on CUDA devices only, not on {device.type}. Leave out --cuda-graphs.")
    defense = make_defense(request.defense, request.dataset, request.hyperparameters)
    if processes.count > 1 and defense.undivided:
        raise BenchError(
            f"{request.defense} cannot be trained by {processes.count} processes: {defense.undivided}. "
            "Train it with `bench train`, without torchrun."
        )
    processes.meet(device)
    dataset, protocol = dataset_and_protocol(request)
    needed = type(defense).requires
    requirements = {} if trial else {name: _requirement(request, name, quiet) for name in needed}
    with tensor_floats(allowed=request.precision == "tf32"):
        config = _describe(request, defense, protocol, dataset, device, requirements)
    if not describes_a_model({**config, "epoch": 0}):
        raise BenchError(
            f"a model of {dataset.num_classes} classes for images of shape {dataset.image_shape} could not be loaded "
            f"again: checkpoints hold 2 to {MOST_CLASSES} classes, and images of at most {MOST_VALUES} values."
        )
    config["processes"] = processes.count
    config["environment"]["cuda_graphs"] = request.cuda_graphs
    run = TrainingRun(request.run_folder, defense, protocol, dataset, device, config, requirements, processes, quiet)
    if request.cuda_graphs:
        run.graphs = Graphs(TrainingProgress(quiet).say)
    if trial:
        run.requirements = {name: _untrained(request.dataset, name, config).to(device) for name in needed}
    return run


def _untrained(dataset: str, name: str, config: Mapping[str, Any]) -> nn.Module:
    """A model of another defense, as the run's own is built."""
    return build_model(make_defense(name, dataset, {}), config["backbone"], config["dataset"]).eval()


def dataset_and_protocol(request: TrainingRequest) -> tuple[Dataset, TrainingProtocol]:
    """What to train on, and how.

    Raises:
        BenchError: an unknown or missing dataset, one without training images, a limit that does not fit it, or a bad
            protocol setting.
    """
    dataset = load_dataset(request.dataset, request.data, request.classes)
    if not len(dataset.train):
        raise BenchError(
            f"{request.dataset} has no array x_train, y_train: it serves evaluations only. To train, add both to it."
        )
    if request.limit_train is not None:
        dataset = dataclasses.replace(dataset, train=dataset.train.take(request.limit_train))
    protocol = protocol_for(request.dataset, dataset.epsilons, dataset.crop_padding, dataset.flip, request.protocol)
    return dataset, protocol


def needed_request(request: TrainingRequest, name: str) -> TrainingRequest:
    """The training of a model that the defense of another one needs."""
    return dataclasses.replace(request, defense=name, hyperparameters={}, folder=None)


def is_finished(request: TrainingRequest, dataset: Dataset, protocol: TrainingProtocol) -> bool:
    """Whether the run's checkpoint is there, of its last epoch; the models that it needs must be finished.

    Raises:
        BenchError: an unknown defense, or the folder holds another run.
    """
    try:
        found = load_checkpoint(request.run_folder / "last").config
    except BenchError:
        return False
    defense = make_defense(request.defense, request.dataset, request.hyperparameters)
    needed = {name: needed_request(request, name).run_folder for name in type(defense).requires}
    _refuse_another(
        request.run_folder, _describe(request, defense, protocol, dataset, torch.device("cpu"), needed), found
    )
    finished = int(found["epoch"]) >= protocol.epochs
    return finished and not run_folder.damaged_copy(request.run_folder, protocol.epochs)


def _requirement(request: TrainingRequest, name: str, quiet: bool) -> Path:
    """The run folder of a model that the defense needs: found where `bench train` puts it, or trained now."""
    needed = needed_request(request, name)
    progress = TrainingProgress(quiet)
    progress.say(f"{request.defense} needs a trained {name}: {needed.run_folder}")
    return train(needed, resume=True, quiet=quiet)


def _describe(
    request: TrainingRequest,
    defense: Defense,
    protocol: TrainingProtocol,
    dataset: Dataset,
    device: torch.device,
    requirements: Mapping[str, Path],
) -> dict[str, Any]:
    config = {
        "defense": request.defense,
        "defense_sha256": imported_digest(type(defense)),
        "hyperparameters": dataclasses.asdict(defense),
        "hyperparameters_given": dict(request.hyperparameters),
        "backbone": request.resolved_backbone,
        "dataset": {
            "name": request.dataset,
            "num_classes": dataset.num_classes,
            "classes_from": dataset.classes_from,
            "image_shape": list(dataset.image_shape),
            "train_digest": dataset.train.digest(),
            "train_size": len(dataset.train),
        },
        "protocol": dataclasses.asdict(protocol),
        "protocol_given": dict(request.protocol),
        "seed": request.seed,
        "precision": request.precision,
        "requirements": {name: load_checkpoint(folder).digest for name, folder in requirements.items()},
        "environment": describe_environment(device),
    }
    return dict(json.loads(json.dumps(config, default=str)))


class TrainingRun:
    """One run folder and what happens in it."""

    def __init__(
        self,
        folder: Path,
        defense: Defense,
        protocol: TrainingProtocol,
        dataset: Dataset,
        device: torch.device,
        config: dict[str, Any],
        requirements: Mapping[str, Path],
        processes: Processes = Processes(),  # noqa: B008 - frozen
        quiet: bool = False,
    ) -> None:
        self.folder, self.defense, self.protocol, self.device, self.config = folder, defense, protocol, device, config
        self.processes, self.precision = processes, config.get("precision", "fp32")
        self.train_split, self.held_out = _hold_out(dataset.train.to(device), protocol.holdout, config["seed"])
        self.requirements: dict[str, nn.Module] = {
            name: load_checkpoint(path).build(device) for name, path in requirements.items()
        }
        with seeded(config["seed"]):
            self.model: Classifier = build_model(defense, config["backbone"], config["dataset"])
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.view = FoldedView(self.model, self.train_split.images(slice(0, 2)), half=self.precision == "bf16")
        self.optimizer = torch.optim.SGD(
            defense.parameter_groups(self.model),
            lr=protocol.learning_rate,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            nesterov=protocol.nesterov,
            fused=device.type in ("cpu", "cuda"),
        )
        self.rates = [group["lr"] / protocol.learning_rate for group in self.optimizer.param_groups]
        with seeded(config["seed"] ^ _OTHER_STREAM):
            self.kept = KeptState(defense, self.model, self.optimizer)
        self.optimizer_steps = OptimizerSteps(self.optimizer, self.kept.optimizers)
        self.agreement = Agreement(processes, self.model, self.optimizer, self.kept.optimizers.values())
        self.graphs: Graphs | None = None
        self.history: list[dict[str, Any]] = []
        self.best: Checkpoint | None = None
        """Of the best epoch on held-out images, as far as it is known."""
        self.quiet, self.state_is_sound, self.has_state = quiet, True, False

    def restore(self, resume: bool) -> int:
        """Take over what the folder holds; return the number of finished epochs.

        Raises:
            BenchError: the folder holds another run, an unfinished one and `resume` is False, or an unfinished one
                without its training state.
        """
        state = self._stored_state(resume)
        self.has_state = state is not None
        if state is None:
            return self._epochs_without_a_state()
        _refuse_another(self.folder, self.config, state["config"])
        finished = len(state["history"])
        if finished < self.protocol.epochs and not resume:
            raise BenchError(
                f"{self.folder} holds {finished} of {self.protocol.epochs} epochs of this run: "
                "add --resume to continue it."
            )
        self._keep_environments(state["config"], finished)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if finished < self.protocol.epochs:
            self.kept.restore(state.get("kept", {}))
        self.history = list(state["history"])
        self.best = Checkpoint(**state["best"]) if "best" in state else None
        return finished

    def require_the_same_start(self, finished: int) -> None:
        """Nothing, where all processes go on with the same model in the same way.

        Raises:
            BenchError: in every process, if they do not.
        """
        if self.processes.count == 1:
            return
        start = _identity(self.config) | {"defense's file": self.config.get("defense_sha256"), "epochs": finished}
        start |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        start |= {f"state {name}": digest for name, digest in self._kept().items()}
        different = self.processes.differences({name: content_digest(value) for name, value in start.items()})
        if different:
            raise BenchError(
                f"{self.folder}: the {self.processes.count} processes do not start alike (different "
                f"{', '.join(different)}): give all the same options, version, data and folder of runs."
            )

    def _keep_environments(self, stored: Mapping[str, Any], finished: int) -> None:
        """Record what the finished epochs were trained with: that alone, where no epoch is left for the present one."""
        if finished == self.protocol.epochs:
            self.config = dict(stored)
            return
        before, earlier = stored.get("environment", {}), list(stored.get("earlier_environments", []))
        if before != self.config["environment"]:
            earlier.append({"until_epoch": finished, **before})
        if earlier:
            self.config["earlier_environments"] = earlier

    def _epochs_without_a_state(self) -> int:
        """All of them where `last` is this run's last epoch, as in a copy without states; 0: there is no `last`."""
        try:
            config = load_checkpoint(self.folder / "last").config
        except BenchError:
            left = [place for place in ("last", "best") if (self.folder / place / "model.safetensors").exists()]
            if left:
                raise BenchError(
                    f"{self.folder} holds {' and '.join(left)}, and neither its last checkpoint nor a training state "
                    "can be read: delete the folder, or choose another one with --out."
                ) from None
            return 0
        _refuse_another(self.folder, self.config, config)
        epoch, epochs = int(config["epoch"]), self.protocol.epochs
        if epoch != epochs:
            raise BenchError(
                f"{self.folder} holds epoch {epoch} of {epochs} of this run, and its training state is missing: "
                "delete the folder, or choose another one with --out."
            )
        return epochs

    def _stored_state(self, resume: bool) -> dict[str, Any] | None:
        """The folder's training state; where it is damaged, the one before it, and a line that says so.

        A finished run does not need it.
        """
        path = self.folder / "training_state.pt"
        if not (path.exists() or older_state(path).exists()):
            return None
        try:
            return load_training_state(path)
        except BenchError as error:
            finished = self.exported_epoch() == self.protocol.epochs
            try:
                older = load_training_state(older_state(path))
            except BenchError:
                if finished:
                    return None
                raise BenchError(f"{error} No older copy can be read: delete {self.folder} and train again.") from error
            if finished and not resume:
                return None
            if self.state_is_sound and self.processes.writes:
                TrainingProgress(self.quiet).say(f"{error} Its older copy has {len(older['history'])} epochs.")
            self.state_is_sound = False
            return older

    def fit(self, quiet: bool) -> None:
        """Train the epochs that are missing, saving after each."""
        batches = -(-len(self.train_split) // self.protocol.batch_size)
        quiet = quiet or not self.processes.writes
        folder = self.folder if self.processes.writes else None
        progress = TrainingProgress(quiet, folder, self.protocol.epochs, batches, self.device, len(self.history))
        registered = (self.optimizer, *self.kept.items.values())
        self.stray = StrayState(self.defense, self.model, registered, progress.say)
        if self.precision == "bf16" and not quiet and (warning := warning_of_slow_bfloat16(self.device)):
            progress.say(warning)
        with progress, tensor_floats(allowed=self.precision == "tf32"):
            for epoch in range(len(self.history), self.protocol.epochs):
                row = self.train_epoch(epoch, progress)
                if self.held_out is not None:
                    row |= self.validate()
                self.history.append(row)
                progress.epoch_done(row)
                if self.processes.writes:
                    with to_its_end():
                        self.save(epoch)

    def train_epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, Any]:
        """One pass over the training set; returns the means of all loss terms and recorded values."""
        averages = Averages()
        context = self.context(epoch, averages)
        rate = self.protocol.learning_rate_at(epoch)
        for group, relative in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * relative
        with seeded(_seed_of(self.config["seed"], epoch) ^ _OTHER_STREAM), self.optimizer_steps.watched():
            self.model.train()
            self.defense.begin_epoch(self.model, context)
            for step, (images, labels) in enumerate(self.batches(context.generator)):
                with to_its_end():
                    terms = self.step(images, labels, context)
                if step == 0:
                    self.kept.require_savable()
                    self.require_what_is_recorded()
                averages.add(terms, self.agreement.weight)
                progress.step(len(labels), terms, partial(self.require_finite, averages, epoch, step))
            self.agreement.weight = self.processes.weight(None)
            self.defense.end_epoch(self.model, context)
        averages.unite(self.processes, self.device)
        self.require_finite(averages, epoch, step)
        self.require_finite_weights(epoch)
        self.require_what_is_recorded()
        self.require_the_same_state()
        used = self.optimizer_steps.row()
        return {"epoch": epoch + 1, **used, **{name: v for name, v in averages.means().items() if name not in used}}

    def step(self, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        """One update with a batch, of which this process works on its share; returns that share's loss terms."""
        share = self.processes.share(len(labels))
        self.agreement.weight = self.processes.weight(share)
        if share is not None:
            images, labels = images[share.first : share.end], labels[share.first : share.end]
            context = dataclasses.replace(context, share=share)
        advice = (
            f"A batch of {len(labels)} is too much here: free memory, or take --precision bf16, a smaller --backbone "
            "or torchrun; another --batch-size is another protocol."
        )
        with context.rounding(half=True), shortage(advice), self.batch_statistics(len(images)):
            terms = self.defense.update(self.model, self.optimizer, images, labels, context)
        require_terms(self.defense, "update", terms)
        return terms

    @contextmanager
    def batch_statistics(self, images: int) -> Iterator[None]:
        """BatchNorm cannot normalise one image whose maps are 1x1: a `BenchError` that says what to do."""
        try:
            yield
        except ValueError as error:
            if images > 1 or "more than 1 value per channel" not in str(error):
                raise
            size, count, total = self.protocol.batch_size, self.processes.count, len(self.train_split)
            among = f" among {count} processes" if count > 1 else ""
            raise BenchError(
                f"{total} images in batches of {size}{among} leave one image alone, and BatchNorm cannot normalise one "
                f"where {self.config['backbone']} has maps of 1x1: give another --batch-size."
            ) from error

    def context(self, epoch: int, averages: "Averages") -> TrainingContext:
        """What the defense is told about this epoch."""
        generator = torch.Generator(self.device)
        generator.manual_seed(_seed_of(self.config["seed"], epoch))
        return TrainingContext(
            threat=self.protocol.threat,
            steps=self.protocol.attack_steps,
            step_size=self.protocol.step_size,
            generator=generator,
            epoch=epoch,
            epochs=self.protocol.epochs,
            requirements=self.requirements,
            view=self.view,
            record=lambda name, value: averages.add({name: value}, self.agreement.weight),
            half=self.precision == "bf16",
            repeated=self.graphs.repeated(generator) if self.graphs else lambda step: step,
            state=self.kept.items,
        )

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Images, Labels]]:
        """Shuffled, augmented batches; the last one may be smaller."""
        order = torch.randperm(len(self.train_split), generator=generator, device=self.device)
        for indices in torch.split(order, self.protocol.batch_size):
            images = self.train_split.images(indices)
            images = augment(images, self.protocol.crop_padding, self.protocol.flip, generator)
            yield images.contiguous(memory_format=torch.channels_last), self.train_split.labels[indices]

    def require_finite(self, averages: "Averages", epoch: int, step: int) -> None:
        """Stop a run whose loss is not a number any more.

        Raises:
            BenchError: naming the epoch, the term, and the last good checkpoint.
        """
        bad = averages.not_finite()
        if bad:
            raise self._diverged(f"the loss is not finite in epoch {epoch + 1}, by step {step + 1}", bad, epoch)

    def require_finite_weights(self, epoch: int) -> None:
        """Stop a run whose last step broke the model, which no loss shows.

        Raises:
            BenchError: naming the epoch, the parameters or buffers, and the last good checkpoint.
        """
        state = self.model.state_dict().items()
        bad = [name for name, tensor in state if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
        if bad:
            raise self._diverged(f"the model is not finite after epoch {epoch + 1}", bad[:5], epoch)

    def _diverged(self, what: str, where: list[str], epoch: int) -> BenchError:
        kept = f"the checkpoint of epoch {epoch} is in {self.folder / 'last'}" if epoch else "no epoch was finished"
        return BenchError(
            f"{what}: {', '.join(where)}; {kept}. Lower --learning-rate, or change the defense's weights with --set."
        )

    def require_what_is_recorded(self) -> None:
        """Stop a run that is not what its record says, or that a resumed run would not continue.

        Raises:
            BenchError: crafting attacks other weights than those that are trained, or the defense keeps a state of its
                own that is not registered.
        """
        optimizers = (self.optimizer, *self.kept.optimizers.values())
        trained = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
        for shown in self.view.shown:
            require_trained_weights(shown, self.view.images, trained)
        self.stray.require_none(self.optimizer_steps.strangers)

    def require_the_same_state(self) -> None:
        """Stop where processes keep different things for the defense, of which only the first one's are saved.

        Raises:
            BenchError: in every process, naming them.
        """
        different = self.processes.differences(self._kept()) if self.kept.items else []
        if different:
            raise BenchError(
                f"the {self.processes.count} processes do not keep the same {', '.join(different)}: let it move alike "
                "in all, or declare in the defense why it is `undivided`."
            )

    def _kept(self) -> dict[str, str]:
        """Digests of what the defense keeps, by name."""
        return {name: content_digest(value) for name, value in self.kept.saved().items()}

    def validate(self) -> dict[str, float]:
        """Clean and PGD accuracy (percent) on the held-out training images, under the suite `selection`."""
        assert self.held_out is not None
        suite = load_suite("selection")
        cells = tuple(
            dataclasses.replace(c, norm=self.protocol.norm, epsilon=self.protocol.epsilon) for c in suite.cells
        )
        suite = dataclasses.replace(suite, cells=cells)
        outcome = run_suite(Target(self.model, self.held_out, seed=self.config["seed"]), suite)
        right = outcome.clean_prediction == outcome.label
        robust = [right & (record.prediction == outcome.label) for record in outcome.attacks.values()]
        return {
            "held_out_clean": 100.0 * float(right.mean()),
            "held_out_pgd": 100.0 * float(np.logical_and.reduce(robust).mean()),
        }

    def save(self, epoch: int) -> None:
        """Make the epoch final: first the state a resumed run reads, then the checkpoints for evaluation."""
        if run_folder.best_epoch(self.history) == epoch + 1:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = Checkpoint({**self.config, "epoch": epoch + 1}, weights)
        state = {
            "config": self.config,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        if self.kept.items:
            state["kept"] = self.kept.saved()
        if self.best is not None:
            state["best"] = {"config": self.best.config, "weights": self.best.weights}
        save_training_state(self.folder / "training_state.pt", state, keep_older=self.state_is_sound)
        self.state_is_sound = self.has_state = True
        self.export(epoch)

    def require_room(self) -> None:
        """Nothing, where every file of the run could be written now.

        Raises:
            BenchError: one could not.
        """
        checkpoints = ("last",) if self.held_out is None else ("last", "best")
        files = [f"{name}/{file}" for name in checkpoints for file in ("model.safetensors", "config.json")]
        for file in ("training_state.pt", "history.jsonl", *files):
            require_writable(self.folder / file)

    def exported_epoch(self) -> int:
        """The epoch of `last`, 0 where there is none: behind the state if the run was killed between the two."""
        try:
            return int(load_checkpoint(self.folder / "last").config["epoch"])
        except BenchError:
            return 0

    def export(self, epoch: int) -> None:
        """Write history.jsonl, `best` where this epoch is the best so far on held-out images, and `last`.

        `last` comes last: where it is behind the state, all are written again.
        """
        write_text(self.folder / "history.jsonl", run_folder.history_text(self.history))
        if self.best is not None and self.best.config["epoch"] == epoch + 1:
            save_checkpoint(self.best, self.folder / "best")
        save_checkpoint(self._last(), self.folder / "last")

    def _last(self) -> Checkpoint:
        return Checkpoint({**self.config, "epoch": len(self.history)}, self.model.state_dict())

    def damaged(self, finished: int) -> dict[Path, run_folder.Content]:
        """Files of the folder that are not what `finished` epochs leave, with what belongs there."""
        if self.has_state:
            return run_folder.damaged(self.folder, self.history, self._last(), self.best)
        return run_folder.damaged_copy(self.folder, finished)

    def mend(self, finished: int) -> None:
        """Write damaged files again, and say so.

        Raises:
            BenchError: nobody knows what belongs there.
        """
        found = self.damaged(finished)
        for path, content in found.items():
            run_folder.write_again(path, content)
        again = [str(path) for path, content in found.items() if content is not None]
        if again:
            TrainingProgress(self.quiet).say(f"Written again from the training state: {', '.join(again)}.")


def _hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split | None]:
    if count == 0:
        return split, None
    if count >= len(split):
        raise BenchError(f"holdout {count} leaves nothing to train on: the training set has {len(split)} images.")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed)).to(split.labels.device)
    kept, held = (
        dataclasses.replace(split, pixels=split.pixels[rows], labels=split.labels[rows], origin=None)
        for rows in (order[count:], order[:count])
    )
    return kept, held


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("defense", "hyperparameters", "backbone", "dataset", "protocol", "seed", "requirements")
    later = {"precision": "fp32", "processes": 1}
    same = {key: config.get(key) for key in keys} | {key: config.get(key, value) for key, value in later.items()}
    # Whoever said how many classes there are, older runs do not record it.
    about = dict(config.get("dataset", {}))
    return same | {"dataset": {key: value for key, value in about.items() if key != "classes_from"}}


def _refuse_another(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    sources = ours.get("defense_sha256"), theirs.get("defense_sha256")
    ours, theirs = _identity(ours), _identity(theirs)
    different = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if different:
        raise BenchError(
            f"{folder} holds another run (different {', '.join(different)}): "
            "choose another folder with --out or --runs."
        )
    if None not in sources and len(set(sources)) > 1:  # runs of older versions do not say
        file = inspect.getfile(find("defense", str(ours["defense"])))
        raise BenchError(
            f"{folder} was trained with another version of {file}: undo the edit, or choose another folder with --out "
            "or --runs."
        )


def _seed_of(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch + 1


_OTHER_STREAM = 2**31
"""Makes of `TrainingContext.generator`'s seed that of the global stream; of a seed a CPU's generator reads 32 bits."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's, NumPy's and Python's random states from a seed, for plug-ins that draw from them; then as before."""
    with untouched_randomness():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


class Averages:
    """Running means of named scalars, kept on their device so that adding costs no synchronisation."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one value per name, multiplied by a process's share in it.

        Raises:
            BenchError: a value is not one number.
        """
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim():
                shape = tuple(value.shape)
                raise BenchError(
                    f"{name!r} was recorded with shape {shape}: reduce it to one number, such as its mean."
                )
            number = value.detach().double() if isinstance(value, Tensor) else torch.tensor(float(value)).double()
            number = number * weight
            self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._counts[name] = self._counts.get(name, 0) + 1

    def unite(self, processes: Processes, device: torch.device) -> None:
        """Add up what all processes have."""
        self._sums = {name: total.to(device) for name, total in self._sums.items()}
        processes.sum(list(self._sums.values()))

    def not_finite(self) -> list[str]:
        """Names whose sum is NaN or infinite."""
        return [f"{name} = {float(total)}" for name, total in self._sums.items() if not torch.isfinite(total)]

    def means(self) -> dict[str, float]:
        """Mean of each name."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}
