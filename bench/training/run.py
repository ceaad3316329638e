"""One training: its model, optimiser and data, and one step with a batch."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.catalogue.plugins import find
from bench.catalogue.protocol import TrainingProtocol
from bench.data.augmentations import draw_placement
from bench.data.batches import mixed_batches, ordered_batches, shuffled_batches
from bench.data.splits import Dataset
from bench.engine.memory import shortage
from bench.errors import BenchError
from bench.interfaces import (
    Augmentation,
    Classifier,
    Defense,
    Images,
    Indices,
    Labels,
    Placement,
    Scalar,
    TrainingContext,
    require_terms,
)
from bench.models.checkpoints import build_model
from bench.models.folding import FoldedView
from bench.system.randomness import seeded
from bench.training.averaged_weights import AveragedWeights
from bench.training.averages import Averages
from bench.training.held_out import hold_out
from bench.training.kept_state import KeptState, image_tables
from bench.training.label_smoothing import smoothed_labels
from bench.training.observed_rates import ObservedRates
from bench.training.processes import GradientAveraging, Processes
from bench.training.recorded_steps import Graphs, Take
from bench.training.stray_state import StrayState
from bench.training.watching import Watch, watching
from bench.training.weight_perturbation import perturbed_update

_OTHER_STREAM = 2**31
"""Makes of `TrainingContext.generator`'s seed that of the global stream; of a seed a CPU's generator reads 32 bits."""


class TrainingRun:
    """A model in training, at its first epoch until a stored state is loaded.

    Its `config` is as `bench.training.request.describe` gives it; `requirements` are trained models that the defense
    needs, by name; `processes` share every batch. Weights to `start` with take the place of random ones.

    Raises:
        BenchError: they are those of another model.
    """

    def __init__(
        self,
        defense: Defense,
        protocol: TrainingProtocol,
        dataset: Dataset,
        device: torch.device,
        config: dict[str, Any],
        requirements: Mapping[str, nn.Module],
        processes: Processes = Processes(),  # noqa: B008 - frozen
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.defense, self.protocol, self.device, self.config = defense, protocol, device, config
        self.requirements, self.processes = requirements, processes
        self.deterministic = bool(config.get("environment", {}).get("deterministic"))
        self.seed, self.precision = config["seed"], config.get("precision", "fp32")
        self.train_split, self.held_out = hold_out(dataset.train.to(device), protocol.holdout, self.seed)
        self.watch: Watch | None = None
        if (count := config.get("watch")) is not None:
            self.watch = watching(self.train_split, dataset.test, count, protocol, self.seed)
        self.augmentation: Augmentation = find("augmentation", protocol.augmentation)()
        self.extra = None if dataset.extra is None else dataset.extra.to(device)
        with seeded(self.seed):
            self.model: Classifier = build_model(defense, config["backbone"], config["dataset"])
        if start is not None:
            self._begin_with(start)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.view = FoldedView(self.model, self.train_split.images(slice(0, 2)), half=self.precision == "bf16")
        self.optimizer = make_optimizer(defense.parameter_groups(self.model), protocol, device)
        self.rates = [group["lr"] / protocol.learning_rate for group in self.optimizer.param_groups]
        with seeded(self.seed ^ _OTHER_STREAM):
            tables = image_tables(defense, self.training_images, dataset.image_shape, device)
            self.kept = KeptState(defense, self.model, self.optimizer, tables)
        self.observed_rates = ObservedRates(self.optimizer, self.kept.optimizers)
        self.agreement = GradientAveraging(processes, self.model, self.optimizer, self.kept.optimizers.values())
        self.averaged = AveragedWeights(self.model, protocol)
        self.graphs: Graphs | None = None
        """Records the steps of each epoch; None: nobody does."""
        self.rate_places: list[Tensor] | None = None
        """Where recorded steps read the rates of the groups; None: no step is recorded."""

    def stepping(self, averages: Averages, stray: StrayState) -> AbstractContextManager[Take]:
        """The step for every batch of an epoch, in order, which adds its terms to the averages.

        On CUDA most are replays of one (`bench.training.recorded_steps`).
        """

        def take(images: Images, labels: Labels, told: TrainingContext) -> dict[str, Scalar]:
            terms = self.step(images, labels, told)
            averages.add(terms, self.agreement.weight)
            return {name: term.detach() for name, term in terms.items()}

        return self.graphs.epoch(self, take, averages, stray) if self.graphs else nullcontext(take)

    def how(self) -> dict[str, float]:
        """For the history: steps of the newest epoch that were replays; 1 where folding is refused while crafting."""
        replayed = {"graph_steps": float(self.graphs.replayed)} if self.graphs else {}
        return replayed | ({"crafting_unfolded": 1.0} if self.view.refused else {})

    def _begin_with(self, weights: Mapping[str, Tensor]) -> None:
        try:
            self.model.load_state_dict(dict(weights))
        except RuntimeError as error:
            model = f"{self.config['defense']} on {self.config['backbone']}"
            reason = " ".join(str(error).split())[:300]
            raise BenchError(
                f"the weights of {self.config['start']['path']} do not fit {model} ({reason}): give --start a model of "
                "the same form."
            ) from error

    def state(self) -> dict[str, Any]:
        """The state that the run goes on from: `model`, `optimizer` and, where there are any, `average` and `kept`."""
        state = {"average": self.averaged.state(), "kept": self.kept.saved()}
        some = {name: value for name, value in state.items() if value}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **some}

    def load(self, state: Mapping[str, Any], goes_on: bool) -> None:
        """Take over what `state` gave; where the run `goes_on`, also what the defense kept for the epochs left.

        Raises:
            BenchError: it kept other things.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged.load(state.get("average", {}))
        if goes_on:
            self.kept.restore(state.get("kept", {}))

    @property
    def training_images(self) -> int:
        """Images that are trained on, extra ones included."""
        return len(self.train_split) + (0 if self.extra is None else len(self.extra))

    @property
    def steps_per_epoch(self) -> int:
        """Batches, of which the last may be smaller."""
        return -(-len(self.train_split) // self.protocol.batch_size)

    def set_rates(self, epoch: int, step: int) -> None:
        """Give every group of parameters its share of a step's learning rate, and its momentum where that moves."""
        at = (epoch * self.steps_per_epoch + step, self.steps_per_epoch)
        rate = self.protocol.learning_rate_at(*at)
        places: Sequence[Tensor | None] = self.rate_places or [None] * len(self.rates)
        for group, relative, place in zip(self.optimizer.param_groups, self.rates, places, strict=True):
            group["lr"] = rate * relative if place is None else place.fill_(rate * relative)
            if self.protocol.momentum_peak is not None:
                group["momentum"] = self.protocol.momentum_at(*at)

    def seeded(self, epoch: int) -> AbstractContextManager[None]:
        """The global random states of an epoch; `TrainingContext.generator` has a stream of its own."""
        return seeded(epoch_seed(self.seed, epoch) ^ _OTHER_STREAM)

    def context(self, epoch: int, averages: Averages) -> TrainingContext:
        """The facts of this epoch that the defense is told; what it records goes into the averages."""
        generator = torch.Generator(self.device)
        generator.manual_seed(epoch_seed(self.seed, epoch))
        return TrainingContext(
            threat=self.protocol.threat,
            steps=self.protocol.attack_steps,
            step_size=self.protocol.step_size,
            generator=generator,
            epoch=epoch,
            epochs=self.protocol.epochs,
            batches_per_epoch=self.steps_per_epoch,
            training_images=self.training_images,
            training_set=lambda: ordered_batches(self.train_split, self.protocol.batch_size),
            requirements=self.requirements,
            view=self.view,
            record=lambda name, value: averages.add({name: value}, self.agreement.weight),
            half=self.precision == "bf16",
            state=self.kept.items,
        )

    @property
    def largest_batch(self) -> int:
        """Images of a step that is not an epoch's last."""
        size = self.protocol.batch_size
        return self.defense.views * (size if self.extra is not None else min(size, len(self.train_split)))

    def steps(self, context: TrainingContext) -> Iterator[tuple[Images, Labels, TrainingContext]]:
        """The `batches` of an epoch with this context, each with what its step is told."""
        for number, (images, labels, indices, placement) in enumerate(self._drawn(context.generator)):
            yield images, labels, dataclasses.replace(context, batch=number, indices=indices, placement=placement)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Images, Labels]]:
        """Shuffled, augmented batches, with extra images where there are some; without, the last one may be smaller."""
        for images, labels, _, _ in self._drawn(generator):
            yield images, labels

    def _drawn(self, generator: torch.Generator) -> Iterator[tuple[Images, Labels, Indices, Placement]]:
        """Batches, the indices of their images, and where these were cropped."""
        protocol, split = self.protocol, self.train_split
        if self.extra is None:
            batches = shuffled_batches(split, protocol.batch_size, generator)
        else:
            batches = mixed_batches(split, self.extra, protocol.extra_share, protocol.batch_size, generator)
        views, classes = self.defense.views, self.config["dataset"]["num_classes"]
        for images, labels, indices in batches:
            placement = draw_placement(views * len(images), protocol.crop_padding, protocol.flip, generator)
            images = placement.place(images.repeat(views, 1, 1, 1))
            images, labels = self.augmentation.apply(images, labels.repeat(views), classes, generator)
            yield images.contiguous(memory_format=torch.channels_last), labels, indices.repeat(views), placement

    def update_average(self, epoch: int) -> None:
        """Let the averaged weights follow an epoch, with augmented images of their own."""
        generator = torch.Generator(self.device)
        generator.manual_seed(epoch_seed(self.seed, epoch))
        with self.seeded(epoch):
            done = (epoch + 1) / self.protocol.epochs
            self.averaged.after_epoch(done, (images for images, _ in self.batches(generator)))

    def step(self, images: Images, labels: Labels, context: TrainingContext) -> dict[str, Scalar]:
        """One update with a batch, of which this process works on its share; returns that share's loss terms."""
        share = self.processes.share(len(labels))
        self.agreement.weight = self.processes.weight(share)
        if share is not None:
            rows = slice(share.first, share.end)
            images, labels, indices = images[rows], labels[rows], context.indices[rows]
            context = dataclasses.replace(context, share=share, indices=indices, placement=context.placement.rows(rows))
        advice = (
            f"A batch of {len(labels)} is too much here: free memory, or take --precision bf16, a smaller --backbone "
            "or torchrun; another --batch-size is another protocol."
        )
        with context.rounding(half=True), shortage(advice), self._batch_statistics(len(images)):
            terms = self._update(images, labels, context)
        require_terms(self.defense, "update", terms)
        return terms

    def _update(self, images: Images, labels: Labels, context: TrainingContext) -> Any:
        """What the defense's update returns, under the label smoothing and the weight perturbation of the protocol."""
        smoothing, awp = self.protocol.label_smoothing, self.protocol.awp
        with smoothed_labels(smoothing, context, type(self.defense).__name__) as told:
            given = (self.model, self.optimizer, images, labels, told)
            if not awp:
                return self.defense.update(*given)
            return perturbed_update(
                self.defense, *given, awp, lambda tensors: self.processes.sum(tensors, self.agreement.weight)
            )

    @contextmanager
    def _batch_statistics(self, images: int) -> Iterator[None]:
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


def make_optimizer(
    groups: list[dict[str, Any]], protocol: TrainingProtocol, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of a protocol for groups of parameters, which may have settings of their own."""
    given: dict[str, Any] = {"lr": protocol.learning_rate, "weight_decay": protocol.weight_decay}
    given["fused"] = device.type in ("cpu", "cuda")
    if protocol.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(protocol.momentum, 0.999), **given)
    return torch.optim.SGD(groups, momentum=protocol.momentum, nesterov=protocol.nesterov, **given)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of `TrainingContext.generator`: another one for every run and epoch."""
    return seed * 1_000_003 + epoch + 1
