"""Everything that an evaluation needs, checked and loaded before any work."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bench.catalogue.plugins import find, make_attack, source_digest, sources_digest
from bench.catalogue.suites import Suite, load_suite
from bench.data.corruptions.image_sets import CorruptedFiles
from bench.data.corruptions.sets import CorruptedSet
from bench.data.datasets import load_dataset
from bench.data.splits import Dataset, Split
from bench.engine.adversarials import ENDING, adversarials_path
from bench.engine.drawn import Drawn, Expected
from bench.engine.memory import room_for
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.corrupted import find_corrupted
from bench.evaluation.extra_columns import extended, known_objectives, load_sources, origin_digests, without_adaptive
from bench.evaluation.features import require_features
from bench.evaluation.request import BATCH, EvaluationRequest, default_batch_size, result_path, search_precision
from bench.interfaces import NORMS, Images, ThreatModel
from bench.interop.contract import check_contract
from bench.interop.subjects import Subject
from bench.models.folding import folded
from bench.system.blocks import parts_folders
from bench.system.devices import choose_device, full_float32
from bench.system.environment import describe_environment
from bench.system.files import content_digest, require_no_other_thing, which_file


@dataclass(frozen=True)
class Prepared:
    """A request, checked and loaded."""

    request: EvaluationRequest
    subject: Subject
    dataset: Dataset
    target: Target
    suite: Suite
    path: Path
    environment: Mapping[str, Any]
    precision: str = "fp32"
    """How attacks search, as it came to be: `Target` holds what follows of it."""
    corrupted: CorruptedSet | CorruptedFiles | None = None
    replaced: tuple[int, ...] | None = None
    """Which file `--overwrite` means: the one that was there at the start."""

    @property
    def threat(self) -> ThreatModel | None:
        """The main one, in the first norm that there is; None: nothing is attacked in any."""
        cells = [cell for cell in self.suite.cells if cell.norm in NORMS]
        return ThreatModel(cells[0].norm, str(cells[0].epsilon)) if cells else None

    @property
    def looked_at(self) -> Target:
        """The target of the trust report's probes: of a random model, the mean of draws that are held."""
        target, drawn, make = self.target, self.target.drawn, self.target.another
        if drawn is None or self.suite.draws is None:
            return target
        held = partial(Expected, draws=self.suite.draws["search"], seed=drawn.seed, held=True)
        another = None if make is None else lambda: held(make())
        return dataclasses.replace(target, model=held(drawn.model), drawn=None, another=another)

    def identity(self) -> dict[str, Any]:
        """Everything that outcomes, or the borders of blocks, depend on."""
        request, target, described = self.request, self.target, self.subject.description
        own_files = [path for path in (request.python_file, request.adaptive_file) if path]
        attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in self.suite.cells}
        corrupted = {} if self.corrupted is None else {"corrupted": self.corrupted.identity()}
        return {
            **corrupted,
            **{name: described[name] for name in ("adapters", "backward_as", "library") if name in described},
            "checkpoint": described["checkpoint_digest"],
            "source": described.get("source"),
            "samples": target.split.digest(),
            "positions": hashlib.sha256(target.split.positions.astype("<i8").tobytes()).hexdigest(),
            "suite": json.loads(json.dumps(self.suite.describe())),
            "attacks": {label: [repr(attack), source_digest(type(attack))] for label, attack in attacks.items()},
            "files": [sources_digest(path) for path in own_files],
            "defense": source_digest(find("defense", self.subject.name)) if request.checkpoint else None,
            "sources": {name: content_digest(dict(model.state_dict())) for name, model in target.sources.items()},
            "seed": request.seed,
            "batch_size": target.batch_size,
            "convention": request.convention,
            "precision": self.precision,
            "images": request.save_adversarials,
            "versions": self.environment["versions"],
            "device": self.environment["device"],
        }


def prepare(request: EvaluationRequest) -> Prepared:
    """A request's model, place, images, suite and target, each checked before the next is loaded.

    Raises:
        BenchError: bad input, or a result file that exists already; where parts lie beside it, only
            `refuse_existing` can tell.
    """
    device = choose_device(request.device)
    suite = load_suite(request.suite)
    suite.refuse_idle_radii(request.epsilons)
    subject = request.load_model(device)
    _require_draws(request, suite, subject)
    path = _free_path(request, result_path(request, suite, subject.dataset))
    replaced = which_file(path) if request.overwrite else None
    _require_numbers(request)
    _require_images(request, suite)
    precision = search_precision(request.precision, device) if suite.cells or request.precision != "auto" else "fp32"
    dataset = _named_dataset(request, subject)
    test = _chosen_images(request, dataset).to(device)
    room = room_for(dataset.image_shape, device)
    corrupted = None
    if suite.corruptions:
        corrupted = find_corrupted(request.corruptions, dataset, test, suite.corruptions, request.data)
    if suite.kind == "features":
        require_features(subject.name, subject.model, test)
    objectives = known_objectives(request, subject, test)
    suite = extended(suite, request).resolve(dataset.epsilons, request.epsilons)
    if "adaptive" not in objectives:
        suite = without_adaptive(suite)
    size = request.batch_size or default_batch_size(device, dataset.image_shape)
    with full_float32():
        shown = test.images(slice(0, min(size, room or size, BATCH)))
        guessed = dataset.classes_from == "labels"
        outputs = check_contract(subject.model, shown, dataset.num_classes, bool(suite.cells), guessed)
        dataset = dataset.seen_by(outputs)
        environment = describe_environment(device)
    sources = load_sources(suite, shown, dataset.num_classes, device)
    model, drawn = subject.model, None
    if suite.draws is None:
        search_model, precision = _searched_on(model, test.images(slice(0, 8)), precision)
    else:
        search_model, precision = None, "fp32"
        drawn = Drawn(model, suite.draws["verdict"], request.seed)
        model = Expected(model, suite.draws["search"], request.seed)
        # Every image at once is as many as its draws.
        room = max(1, (room or size) // suite.draws["search"])
    target = Target(
        model,
        test,
        seed=request.seed,
        batch_size=size,
        half=precision == "bf16",
        tf32=precision in ("tf32", "bf16"),
        search_model=search_model,
        objectives=objectives,
        sources={name: source.model for name, source in sources.items()},
        digests=origin_digests(sources, request),
        keeps_images=request.save_adversarials,
        keeps_features=suite.kind == "features",
        another=None if request.module is not None else lambda: request.load_model(device).model,
        room=room,
        drawn=drawn,
    )
    return Prepared(request, subject, dataset, target, suite, path, environment, precision, corrupted, replaced)


def _require_draws(request: EvaluationRequest, suite: Suite, subject: Subject) -> None:
    """Refuse a suite that draws on a model that is not random, one that does not on a model that is, and idle options.

    A single answer of a random model says nothing, and an attack on single answers finds little.
    """
    randomised = request.randomised or subject.randomised
    if suite.draws is None and randomised:
        raise BenchError(f"{subject.name} is random, and suite {suite.name} asks it once. Choose eot or eot-quick.")
    if suite.draws is None:
        return
    if not randomised:
        raise BenchError(
            f"suite {suite.name} is for random models: say `randomised = True` in the model, or --randomised; else "
            "choose linf."
        )
    if request.precision not in ("auto", "fp32"):
        raise BenchError(f"precision {request.precision} is not for random models: they are searched in fp32.")
    if request.convention != "any" or request.save_adversarials:
        raise BenchError(
            "of a random model the last images count, and are not kept: leave out --convention and --save-adversarials."
        )


def _searched_on(model: nn.Module, images: Images, precision: str) -> tuple[nn.Module | None, str]:
    """The model to search on, None for the model itself, and the precision that this comes to; a refusal is said."""
    if precision == "fp32":
        return None, precision
    fast = folded(model, images)
    if fast is not None:
        return fast, precision
    precision = "fp32" if precision == "fp32-folded" else precision
    if norms(model) or precision == "fp32":
        reason = "a copy with BatchNorm folded computes something else" if norms(model) else "it has no BatchNorm"
        logging.getLogger(__name__).warning("attacks search on the model as it is, in %s: %s", precision, reason)
    return None, precision


def norms(model: nn.Module) -> int:
    """How many BatchNorms of images a model has."""
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def _free_path(request: EvaluationRequest, path: Path) -> Path:
    """The path of the result, where it and the images beside it may be written."""
    if path.name.endswith(ENDING):
        raise BenchError(f"{path} has the name of a file of images ({ENDING}). Give the result another one.")
    for existing in (path, adversarials_path(path)):
        require_no_other_thing(existing)
    if not parts_folders(path):  # else this very evaluation may have been killed at its end
        refuse_existing(request, path)
    return path


def refuse_existing(request: EvaluationRequest, path: Path) -> None:
    """Refuse to replace a result, or the images beside it, that nobody asked to replace."""
    for folder in parts_folders(path):
        with suppress(OSError):
            folder.rmdir()  # an empty one: who wrote the result was killed as it cleared up
    for existing in (path, adversarials_path(path)):
        if os.path.lexists(existing) and not request.overwrite:
            raise BenchError(f"{existing} exists: add --overwrite to replace it, or --out for another file.")


def _require_images(request: EvaluationRequest, suite: Suite) -> None:
    """Refuse to keep images whose budget only their parameters show."""
    transforming = [cell.label for cell in suite.cells if cell.norm not in NORMS]
    if request.save_adversarials and transforming:
        raise BenchError(
            f"{', '.join(transforming)}: images that a transformation makes prove no budget by themselves, and are not "
            "kept: leave out --save-adversarials."
        )


def _require_numbers(request: EvaluationRequest) -> None:
    """Refuse numbers of a request that cannot be used."""
    if request.batch_size is not None and request.batch_size < 1:
        raise BenchError(f"batch size {request.batch_size} is below 1.")
    if abs(request.seed) >= 2**63:
        raise BenchError(f"seed {request.seed} is beyond the 64 bits of a result file. Give one below 2**63.")


def _named_dataset(request: EvaluationRequest, subject: Subject) -> Dataset:
    """The dataset of the request, else the one that the model was trained on."""
    if request.held is not None:
        return request.held
    name = request.dataset or subject.dataset
    if name is None:
        raise BenchError("say what to evaluate on: --dataset NAME (see `bench list datasets`).")
    classes, preprocessing = request.classes, request.preprocessing
    if request.dataset is None:  # what it was trained on, unless something else is said
        trained = subject.description.get("training_data", {})
        classes = trained.get("kept_classes") if classes is None else classes
        preprocessing = trained.get("preprocessing") if preprocessing is None else preprocessing
    return load_dataset(name, request.data, classes, preprocessing)


def _chosen_images(request: EvaluationRequest, dataset: Dataset) -> Split:
    """The test images that are asked for."""
    if request.sampling is not None and request.limit is None:
        raise BenchError(f"--sampling {request.sampling} would change nothing: all test images are taken. Add --limit.")
    if request.limit is None:
        return dataset.test
    return dataclasses.replace(dataset.test, sampling=request.sampling or dataset.sampling).take(request.limit)
