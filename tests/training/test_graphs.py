"""Recorded steps are the steps themselves, or are not used. The recorders here stand in for CUDA's."""

import inspect
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.attacks import craft, cross_entropy
from bench.catalogue.plugins import find, make_defense, names
from bench.catalogue.recipes import protocol_for
from bench.data.datasets import load_dataset
from bench.interfaces import Backbone, evaluation_mode
from bench.models.checkpoints import build_model
from bench.training.averages import Averages
from bench.training.cuda_graphs import CudaRecorder
from bench.training.observed_rates import ObservedRates
from bench.training.recorded_steps import EAGER, FEWEST, Graphs
from bench.training.run import TrainingRun
from bench.training.stray_state import StrayState
from tests.support.refusals import raising
from tests.support.trainings import Plain, plug_in

DESCRIPTION = {"name": "digits", "num_classes": 10, "image_shape": [1, 8, 8]}
SYNCHRONISES = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero")


class Tape(TorchDispatchMode):
    """Keeps the operations of a step, each with the tensors that it read and wrote and the numbers that Python gave it.

    Replayed, they compute in the same places, as a CUDA graph's kernels do, and no Python of the step is run.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if str(function).startswith(SYNCHRONISES):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        result = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value.view(place.shape))  # another one where squeeze_ came after it


class Recorder:
    """On a CPU recording runs the operations as well: what they did is put back."""

    def __init__(self):
        self.recorded = 0

    def working(self):
        return nullcontext()

    def __call__(self, step, generator):
        self.recorded += 1
        with Tape() as tape:
            terms = step()
        return tape.replay, terms


class Failing(Recorder):
    """Fails at the end of a step, whose means and gradients are then nobody's."""

    def __call__(self, step, generator):
        step()
        averages = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, tuple))
        averages[2].record("nobody's", torch.ones(()))
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Frozen(Recorder):
    """Remembers the images of the step that it recorded, as if they had not lain in a fixed place."""

    def __call__(self, step, generator):
        replay, terms = super().__call__(step, generator)
        images = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, tuple))[0]
        stale = torch.rand_like(images)
        return lambda: (images.copy_(stale), replay()), terms


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    dataset = load_dataset("digits", tmp_path_factory.mktemp("data"))
    return replace(dataset, train=dataset.train.take(84))


class Small(Backbone):
    """One convolution, normalised."""

    feature_dim = map_channels = 16

    def __init__(self, in_channels, image_size, make_activation, final_activation):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.last = make_activation() if final_activation else nn.Identity()

    def feature_map(self, images):
        return self.last(self.norm(self.conv(images)))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    plug_in(monkeypatch, "small", Small, "backbone")


def new_run(name, digits, recorder=None, said=None, backbone="small", **given):
    """A run in float64, of eleven steps an epoch: the last batch is a smaller one."""
    torch.manual_seed(1)
    others = {other: make_defense(other, "digits", {}) for other in find("defense", name).requires}
    needed = {other: build_model(made, backbone, DESCRIPTION).eval() for other, made in others.items()}
    # A rate that float32 holds, as recorded steps read it from a tensor of that.
    given = {"batch_size": 8, "learning_rate": 2**-7, "epsilon": "0.1", "attack_steps": 2, "epochs": 2, **given}
    config = {"defense": name, "seed": 0, "backbone": backbone, "dataset": DESCRIPTION}
    protocol = protocol_for("cifar10", {}, 1, True, given)
    run = TrainingRun(make_defense(name, "digits", {}), protocol, digits, torch.device("cpu"), config, needed)
    kept = [item for item in run.kept.items.values() if isinstance(item, nn.Module)]
    for model in (run.model, *needed.values(), *kept):
        model.double()
    run.view.images = run.view.images.double()
    for table, item in run.kept.items.items():
        if isinstance(item, torch.Tensor) and item.is_floating_point():
            run.kept.items[table] = item.double()
    if recorder is not None:
        run.graphs = Graphs(said.append, recorder, fewest=5)
    return run


def epochs(run, count=2):
    """The run after so many epochs: weights, what is kept, and a row of means and rates for each."""
    rows, kept = [], [item for item in run.kept.items.values() if isinstance(item, torch.Tensor)]
    stray = StrayState(run.defense, run.model, (run.optimizer, *run.kept.items.values()), lambda text: None)
    for epoch in range(count):
        averages = Averages()
        context = run.context(epoch, averages)
        run.set_rates(epoch, 0)
        with run.observed_rates.watched(), run.seeded(epoch), run.stepping(averages, stray) as take:
            run.model.train()
            run.defense.begin_epoch(run.model, context)
            for step, (images, labels, told) in enumerate(run.steps(context)):
                if step and run.protocol.schedule_by == "step":
                    run.set_rates(epoch, step)
                take(images.double(), labels, told)
                if step == 0:
                    stray.require_none(())
            run.defense.end_epoch(run.model, context)
        rows.append({**averages.means(), **run.observed_rates.row()})
    return [*run.model.state_dict().values(), *kept], rows


def same(ours, theirs):
    return ours[1] == theirs[1] and all(map(torch.equal, ours[0], theirs[0]))


@pytest.fixture(autouse=True)
def one_hot_of_cuda(monkeypatch):
    """On a CPU one_hot reads its input to check it; on CUDA it does not, given the number of classes."""
    monkeypatch.setattr(functional, "one_hot", lambda labels, count: (labels[:, None] == torch.arange(count)).long())


def plain(run):
    """The same run without folding, channels_last and fused SGD, as no recorder runs it."""
    run.view = evaluation_mode
    run.model.to(memory_format=torch.contiguous_format)
    settings = run.optimizer.defaults | {"fused": None, "foreach": False}
    run.optimizer = torch.optim.SGD(run.defense.parameter_groups(run.model), **settings)
    run.observed_rates = ObservedRates(run.optimizer, run.kept.optimizers)
    return run


@pytest.mark.parametrize("name", names("defense"))
def test_twenty_two_recorded_steps_end_at_the_weights_of_the_plain_path(digits, name):
    """With the means and rates of both epochs, and the small batch at the end of each.

    In float64: in float32 one rounding decides the sign of a gradient near 0, and the paths part.
    """
    said, recorder = [], Recorder()
    given = {"backbone": "cnn-small-bn", "attack_steps": 1}
    run = new_run(name, digits, recorder, said, **given)
    ours, theirs = epochs(run), epochs(plain(new_run(name, digits, **given)))
    for found, expected in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert ours[1] == [pytest.approx(row, rel=1e-8) for row in theirs[1]]
    source = Path(inspect.getfile(find("defense", name))).read_text(encoding="utf-8")
    objects = ", ".join(name for name, item in run.kept.items.items() if not isinstance(item, torch.Tensor))
    reasons = {
        "a step reads context.batch, which a replay could not move": "context.batch" in source and not objects,
        f"the defense keeps {objects}, whose Python code would not run": bool(objects),
    }
    assert said == [f"Without CUDA graphs: {reason}." for reason, holds in reasons.items() if holds]
    if said:
        assert run.how() == {"graph_steps": 0}
    else:
        assert recorder.recorded == 2  # once an epoch, whose Python may say other things
        assert run.how() == {"graph_steps": 7}  # of eleven: three are run, and the last batch has four images
    assert all(isinstance(group["lr"], float) for group in run.optimizer.param_groups)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in run.model.modules())
    assert norms > 0
    assert (run.model in run.view.shown) is ("crafting(" in source)
    assert not run.view.shown or len(run.view.pairs) == norms


@pytest.mark.parametrize(
    "given",
    [{"optimizer": "adamw", "momentum": 0.9}, {"schedule_by": "step", "schedule": "cosine"}, {"label_smoothing": 0.1}],
)
def test_optimisers_rates_that_move_and_smoothed_labels_are_recorded_too(digits, given):
    said = []
    ours, theirs = (
        epochs(new_run("at", digits, Recorder(), said, **given), 1),
        epochs(new_run("at", digits, **given), 1),
    )
    assert said == []
    assert ours[1][0].keys() == theirs[1][0].keys()
    for name, value in theirs[1][0].items():
        assert ours[1][0][name] == pytest.approx(value, rel=1e-6)
    for found, expected in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # rates are float32


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Failing, "operation not permitted when stream is capturing."),
        (Frozen, "replayed, three steps end at other weights"),
    ],
)
def test_what_cannot_be_recorded_or_differs_is_run_step_by_step_and_said_once(digits, recorder, reason):
    said = []
    run = new_run("at", digits, recorder(), said)
    assert same(epochs(run), epochs(new_run("at", digits)))
    assert len(said) == 1 and said[0].startswith(f"Without CUDA graphs: {reason}")
    assert run.how() == {"graph_steps": 0}


class Moving(Plain):
    def losses(self, model, images, labels, context):
        return {"loss": (2 - context.progress) * cross_entropy(model(images), labels).mean()}


class Waiting(Plain):
    def losses(self, model, images, labels, context):
        loss = cross_entropy(model(images), labels).mean()
        return {"loss": loss * (2 if loss > 1.0 else 1)}


class Counting(Plain):
    def losses(self, model, images, labels, context):
        model.calls = getattr(model, "calls", 0) + 1
        return {"loss": cross_entropy(model(images), labels).mean() * (2 if model.calls % 5 == 0 else 1)}


class Drawing(Plain):
    def losses(self, model, images, labels, context):
        return {"loss": np.random.random() * cross_entropy(model(images), labels).mean()}


class Rating(Plain):
    def update(self, model, optimizer, images, labels, context):
        group = optimizer.param_groups[0]
        group["lr"] = 0.5 * float(group["lr"])
        return super().update(model, optimizer, images, labels, context)


class Keeping(Plain):
    def state(self, model, optimizer):
        return {"own": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)}


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        (Moving, "a step reads context."),
        (Waiting, "operation not permitted when stream is capturing"),
        (Counting, "model.calls changes in Python"),
        (Drawing, "a step draws random numbers on the CPU"),
        (Rating, "a step uses rates of its own"),
        (Keeping, "the defense keeps own, whose Python code would not run"),
    ],
)
def test_a_plug_in_that_takes_numbers_from_python_is_run_step_by_step(digits, monkeypatch, owner, reason):
    plug_in(monkeypatch, "mine", owner)
    said = []
    ours = epochs(new_run("mine", digits, Recorder(), said), 1)
    assert same(ours, epochs(new_run("mine", digits), 1))
    assert len(said) == 1
    assert said[0].startswith(f"Without CUDA graphs: {reason}")


class Remembering(Plain):
    """Pixels move by what the table holds of the image, whose row is written in every epoch."""

    def tables(self, image_shape):
        return {"up": ()}

    def losses(self, model, images, labels, context):
        table, rows = context.state["up"], context.indices
        upward = 0.5 - table[rows]
        with context.crafting(model) as view:
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels) + 1000 * upward * x.sum((1, 2, 3)),
                *(view, images, images, context, False),
            )
        table[rows] = (perturbed - images).sum((1, 2, 3)).to(table) + context.placement.offsets.sum(0)
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}


def test_rows_and_crops_of_a_batch_are_not_frozen_in_the_next(digits, monkeypatch):
    plug_in(monkeypatch, "remembering", Remembering)
    said = []
    ours = epochs(new_run("remembering", digits, Recorder(), said))
    assert said == []
    assert same(ours, epochs(new_run("remembering", digits)))
    assert (ours[0][-1] != 0).sum() > 80


def test_epochs_of_few_steps_are_not_recorded(digits):
    recorder = Recorder()
    run = new_run("st", digits, recorder, [], batch_size=42)
    epochs(run, 1)
    assert recorder.recorded == 0


def test_a_momentum_that_moves_with_every_step_is_a_number_of_python(digits):
    said = []
    given = {"schedule": "one-cycle", "schedule_by": "step", "momentum_peak": 0.95}
    epochs(new_run("st", digits, Recorder(), said, **given), 1)
    assert said == ["Without CUDA graphs: the momentum moves at every step."]


class Machine:
    """A CUDA device as far as a recorder sees it, which notes what is left open."""

    def __init__(self, patch, invalid):
        self.streams, self.pooled, self.invalid, machine = ["outside"], False, invalid, self
        self.generators = [self.Generator(), self.Generator()]

        class Graph:
            def register_generator_state(self, generator):
                self.generators = [generator, machine.generators[1]]

            def capture_begin(self, pool, capture_error_mode):
                assert (pool, capture_error_mode, machine.streams[-1]) == ("pool", "thread_local", machine.stream)
                machine.pooled = True
                for generator in self.generators:
                    generator.recorded = True

            def capture_end(self):
                if machine.invalid:
                    raise RuntimeError("operation failed due to a previous error during capture")
                machine.pooled = False
                for generator in self.generators:
                    generator.recorded = False

            def replay(self):
                return "replayed"

        class Stream:
            def wait_stream(self, other):
                machine.waited = other

        class Inside:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                machine.streams.append(self.stream)

            def __exit__(self, *ignored):
                machine.streams.pop()

        self.stream, outside = Stream(), Stream()
        calls = {
            "CUDAGraph": Graph,
            "Stream": lambda: self.stream,
            "current_stream": lambda: outside,
            "stream": Inside,
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "graph_pool_handle": lambda: "pool",
            "current_device": lambda: 0,
            "default_generators": self.generators[1:],
        }
        for name, call in calls.items():
            patch.setattr(torch.cuda, name, call)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    class Generator(torch.Generator):
        recorded = False

        def clone_state(self):
            return self.recorded

        def graphsafe_set_state(self, state):
            self.recorded = state

    def end(self, device, pool):
        if not self.pooled:
            raise RuntimeError("not currently recording to mempool_id")
        self.pooled = False

    @property
    def sound(self):
        return self.streams == ["outside"] and not self.pooled and not any(g.recorded for g in self.generators)


@pytest.mark.parametrize("invalid", [False, True])
def test_a_failed_recording_leaves_stream_allocator_and_generators_as_they_were(monkeypatch, invalid):
    machine = Machine(monkeypatch, invalid)
    recorder = CudaRecorder()
    with pytest.raises(RuntimeError, match="not permitted"), recorder.working():
        recorder(raising(RuntimeError("operation not permitted")), machine.generators[0])
    assert machine.sound
    machine.invalid = False
    with recorder.working():
        replay, terms = recorder(lambda: {"loss": torch.ones(())}, machine.generators[0])
    assert (replay(), list(terms), machine.sound) == ("replayed", ["loss"], True)


def test_a_recorded_rate_is_shown_as_the_number_that_it_is():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=torch.tensor(0.1))
    rates = ObservedRates(optimizer, {})
    with rates.watched():
        rates.note(optimizer)
        with rates.set_aside() as seen:
            optimizer.step()
        assert seen == [optimizer]
    assert rates.row() == {"learning_rate": 0.1}
    assert EAGER < FEWEST
