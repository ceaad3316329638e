"""The model under attack, as the engine uses it: one that is searched on, and one that judges."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from bench.catalogue.suites import AttackCell
from bench.data.splits import Split
from bench.engine.drawn import Drawn, DrawnVerdicts
from bench.engine.groups import Group
from bench.engine.observed import Faults, ModelView, WatchedModel
from bench.errors import BenchError
from bench.interfaces import (
    Classifier,
    Draws,
    Features,
    Images,
    Labels,
    Logits,
    Objective,
    ObjectiveFactory,
    Problem,
    classes,
    fooled,
)
from bench.system.devices import full_float32, tensor_floats


@dataclass
class Target:
    """A model, the images it is attacked on, and how."""

    model: nn.Module
    """Judges every claim, in float32."""
    split: Split
    seed: int = 0
    batch_size: int = 256
    half: bool = False
    """Search in bfloat16; every claim and every last iterate is still judged in float32."""
    tf32: bool = False
    """Search with TF32, which exists on CUDA; judged in float32 as well."""
    search_model: nn.Module | None = None
    """A faster model of the same function, which every attack searches on; None: the model itself."""
    objectives: Mapping[str, ObjectiveFactory] = field(default_factory=dict)
    """Losses that cells may ascend besides an attack's own, by name."""
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    """Models that transferred images are crafted against, by name."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the checkpoints of `sources`, and of the files of `objectives` that a person wrote, by name."""
    keeps_images: bool = False
    """Keep the image behind every verdict that a cell broke a sample."""
    keeps_features: bool = False
    """Keep the features of clean images and of last iterates; the model is then a `Classifier`."""
    drawn: Drawn | None = None
    """The random model behind `model`, which is then the mean of its draws: it gives the verdicts, on clean images and
    on the last iterates of every attack. None: the model is not random."""
    another: Callable[[], nn.Module] | None = None
    """Makes the judge, or the random model behind it, once more, as it was before anything was shown to it; None: only
    a copy can be made."""
    room: int | None = None
    """Images at once that memory has room for, where it ran out with more. Blocks, which have names, do not change."""
    seconds: float | None = field(default=None, init=False)
    """That the judge took for an image, clean; None: not known."""
    modes_changed: bool = field(default=False, init=False)
    """True if the model was found in other modes than those `eval()` left it in, and put back."""

    @property
    def models(self) -> list[nn.Module]:
        """The judge, and the model that is searched on where it is another one."""
        return [self.model] if self.search_model is None else [self.model, self.search_model]

    @property
    def searches_otherwise(self) -> bool:
        """True if attacks meet other logits than the judge's: by rounding, or as a model that rounds otherwise."""
        return self.half or self.tf32 or self.search_model is not None

    @property
    def keeps_last(self) -> bool:
        """True if last iterates are looked at beyond their prediction."""
        return self.keeps_features or self.drawn is not None

    def attacks_all(self, cell: AttackCell) -> bool:
        """True if a cell attacks every image, also those that are wrong already."""
        return cell.measure_loss or self.drawn is not None

    def searching(self) -> AbstractContextManager[None]:
        """For all that an attack computes: TF32 or not."""
        return tensor_floats(self.tf32)

    def samples(self, indices: Tensor) -> tuple[Images, Labels]:
        """Images and labels by index."""
        return self.split.images(indices), self.split.labels[indices]

    @property
    def at_once(self) -> int:
        """Images that the model is shown at once."""
        return min(self.batch_size, self.room or self.batch_size)

    @torch.no_grad()
    def judge(self, images: Images) -> Logits:
        """Logits in float32, in batches."""
        self._put_back_modes()
        with full_float32():
            return torch.cat([self.model(part) for part in torch.split(images, self.at_once)])

    def predict(self, images: Images) -> Labels:
        """Classes in float32, in batches; `NO_CLASS` where logits are not finite."""
        return classes(self.judge(images))

    def drawn_verdicts(self, images: Images, indices: Tensor, attacked: bool) -> DrawnVerdicts:
        """Verdicts of a random model on an image of each of these samples, in float32."""
        assert self.drawn is not None
        self._put_back_modes()
        with full_float32():
            named = self.drawn.classes(images, self.split.positions[indices.cpu().numpy()])
        return DrawnVerdicts.of(named, self.split.labels[indices], attacked)

    def fooled(self, images: Images, labels: Labels) -> Bool[Tensor, " batch"]:
        """True for each image that fools the model, in float32, in batches."""
        return fooled(images, self.judge(images), labels)

    @torch.no_grad()
    def features(self, images: Images) -> Features:
        """Features in float32, in batches."""
        assert isinstance(self.model, Classifier)
        self._put_back_modes()
        with full_float32():
            return torch.cat([self.model.features(part) for part in torch.split(images, self.at_once)])

    @cached_property
    def _modes(self) -> list[tuple[nn.Module, bool]]:
        return [(module, module.training) for model in self.models for module in model.eval().modules()]

    def _put_back_modes(self) -> None:
        """An attack can reach the model and leave it in training mode, in which it would judge otherwise."""
        for module, training in self._modes:
            if module.training != training:
                module.training = training
                self.modes_changed = True

    @cached_property
    def cut(self) -> bool:
        """True if the logits have no gradient with respect to the images, as far as autograd knows."""
        images = self.split.images(slice(0, 2)).requires_grad_()
        with torch.enable_grad():
            logits = self.model.eval()(images)
            return not logits.requires_grad or torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is None

    def search_view(self, faults: Faults | None = None) -> ModelView:
        """The model as an iterative attack sees it."""
        return ModelView(self.search_model or self.model, self.half, self.cut, faults)

    def watched(self, images: Images, labels: Labels, group: Group, plain: bool = False) -> WatchedModel:
        """The model as any other attack sees it: what it is shown is kept. `plain`: the judge, in float32."""
        source = group.cell.source
        own = self.model if plain else self.search_model or self.model
        model = own if source is None else self.sources[source]
        half = self.half and not plain
        return WatchedModel(model, images, labels, group.threat, half, self.cut and source is None)

    def problem(self, view: ModelView, indices: Tensor, group: Group) -> Problem:
        """The problem of a group on some samples. An attack gets copies: it is judged against the originals."""
        images, labels = self.samples(indices)
        return Problem(
            model=view.eval(),
            images=images,
            labels=labels.clone(),
            threat=group.threat,
            draws=Draws(self.seed, group.stream, self.split.positions[indices.cpu().numpy()]),
            objective=self._objective(group, images, labels),
        )

    def origin(self, cell: AttackCell) -> dict[str, str]:
        """The other model that a cell crafts images against, and the file of its loss; empty where there is neither."""
        found = {
            "source": cell.source,
            "source_digest": cell.source and self.digests.get(cell.source),
            "objective_sha256": self.digests.get(cell.objective),
        }
        return {name: value for name, value in found.items() if value}

    def _objective(self, group: Group, images: Images, labels: Labels) -> Objective | None:
        name = group.cell.objective
        if name == "default":
            return None
        if name not in self.objectives:
            raise BenchError(
                f"{group.cell.label} ascends the objective {name!r}, which this model does not have: "
                "name a loss of your own with --adaptive FILE.py:FUNCTION."
            )
        return self.objectives[name](self.model, images, labels)
