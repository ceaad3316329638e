"""What a defense keeps outlives a stop to the same bits; what it keeps elsewhere is refused or named."""

import copy
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.models.checkpoints import load_checkpoint, load_training_state
from bench.training.kept_state import KeptState
from bench.training.processes import GradientAveraging, Processes
from bench.training.request import TrainingRequest
from bench.training.stray_state import StrayState
from bench.training.train import train
from tests.support.refusals import refusal
from tests.support.trainings import Plain, assert_same_run, assert_same_weights, plug_in, rows, train_and_stop


class WithCritic(nn.Module):
    """Judges logits; part of the model, but not of the shared optimiser."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(classes, 1)


class Critic(Plain):
    """A critic with an optimiser of its own, a schedule of that, a running table and a number of steps."""

    def build(self, backbone: Any, num_classes: int) -> Any:
        model = super().build(backbone, num_classes)
        model.critic = WithCritic(num_classes)
        return model

    def parameter_groups(self, model: Any) -> Any:
        return [{"params": [*model.backbone.parameters(), *model.head.parameters()]}]

    def state(self, model: Any, optimizer: Any) -> Any:
        own = torch.optim.Adam(model.critic.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, 12)
        steps = torch.zeros((), dtype=torch.int64)
        return {"critic": own, "schedule": schedule, "table": torch.zeros(3), "steps": steps}

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        state = context.state
        logits = model(images)
        judged = model.critic.layer(logits.detach()).mean()
        loss = (judged - 1).square()
        state["critic"].zero_grad()
        loss.backward()
        state["critic"].step()
        state["schedule"].step()
        state["table"].mul_(0.9).add_(logits.detach().mean(0))
        state["steps"].add_(1)
        weight = 1 + 0.1 * state["steps"] + state["table"].abs().sum() + judged.detach()
        clean = weight * functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        clean.backward()
        optimizer.step()
        return {"clean": clean.detach(), "critic_loss": loss.detach()}


def asked(tmp_path, blobs, monkeypatch, kind, epochs=3):
    plug_in(monkeypatch, "mine", kind)
    protocol = {"epochs": epochs, "batch_size": 32}
    return TrainingRequest("mine", blobs, "cnn-small", protocol=protocol, runs=tmp_path, device="cpu")


def assert_resumes_to_the_same_bits(tmp_path, blobs, monkeypatch, kind):
    whole = train(asked(tmp_path / "whole", blobs, monkeypatch, kind), quiet=True)
    train_and_stop(asked(tmp_path, blobs, monkeypatch, kind), 2)
    resumed = train(asked(tmp_path, blobs, monkeypatch, kind), resume=True, quiet=True)
    assert_same_run(whole, resumed)
    return resumed


def test_an_optimiser_a_schedule_a_table_and_a_number_resume_to_the_same_bits(tmp_path, blobs, monkeypatch):
    folder = assert_resumes_to_the_same_bits(tmp_path, blobs, monkeypatch, Critic)
    kept = load_training_state(folder / "training_state.pt")["kept"]
    assert (int(kept["steps"]), kept["schedule"]["last_epoch"]) == (9, 9)
    # The rate of the critic's last step: 0.05 * (1 + cos(pi * 8 / 12)) / 2.
    assert rows(folder)[-1]["critic_learning_rate_lowest"] == pytest.approx(0.05 * (1 - 0.5) / 2)


class ScheduleOfTheSharedOptimiser(Plain):
    def state(self, model: Any, optimizer: Any) -> Any:
        return {"schedule": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)}

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        (optimizer.param_groups[0]["lr"],) = context.state["schedule"].get_last_lr()
        terms = super().update(model, optimizer, images, labels, context)
        context.state["schedule"].step()
        return terms


class Average(Plain):
    """A module that is no part of the model."""

    def state(self, model: Any, optimizer: Any) -> Any:
        return {"average": copy.deepcopy(model)}

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        average = context.state["average"]
        with torch.no_grad():
            target = average(images).softmax(1)
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        return {"clean": functional.cross_entropy(model(images), labels), "like": -(target * model(images)).mean()}


@pytest.mark.parametrize("kind", [ScheduleOfTheSharedOptimiser, Average])
def test_other_kinds_of_state_resume_to_the_same_bits(tmp_path, blobs, monkeypatch, kind):
    assert_resumes_to_the_same_bits(tmp_path, blobs, monkeypatch, kind)


def test_what_state_draws_is_a_function_of_the_seed_and_moves_no_other_draw(tmp_path, blobs, monkeypatch):
    class Draws(Plain):
        def state(self, model: Any, optimizer: Any) -> Any:
            return {"noise": torch.rand(3)}

    folders = [train(asked(tmp_path / name, blobs, monkeypatch, Draws, 1), quiet=True) for name in "ab"]
    noise = [load_training_state(folder / "training_state.pt")["kept"]["noise"] for folder in folders]
    assert torch.equal(*noise)
    plain = load_checkpoint(train(asked(tmp_path / "c", blobs, monkeypatch, Plain, 1), quiet=True)).weights
    assert_same_weights(load_checkpoint(folders[0]).weights, plain)


PLACES = {}


class OnTheModel(Plain):
    def build(self, backbone: Any, num_classes: int) -> Any:
        model = super().build(backbone, num_classes)
        model.own = torch.optim.Adam(model.parameters())
        return model

    def own(self, model: Any) -> Any:
        return model.own

    def update(self, model: Any, optimizer: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        return super().update(model, self.own(model), images, labels, context)


class OnTheDefense(OnTheModel):
    build = Plain.build

    def own(self, model: Any) -> Any:
        if "kept" not in vars(self):
            object.__setattr__(self, "kept", torch.optim.Adam(model.parameters()))
        return self.kept


class InAGlobal(OnTheModel):
    build = Plain.build

    def own(self, model: Any) -> Any:
        return PLACES.setdefault(id(model), torch.optim.Adam(model.parameters()))


class InADefaultArgument(OnTheModel):
    build = Plain.build

    def own(self, model: Any, kept: list[Any] = []) -> Any:  # noqa: B006 - what a plug-in may do
        kept[:] = kept or [torch.optim.Adam(model.parameters())]
        return kept[0]


@pytest.mark.parametrize("kind", [OnTheModel, OnTheDefense, InAGlobal, InADefaultArgument])
def test_an_optimiser_that_is_not_registered_is_refused_at_its_first_step(tmp_path, blobs, monkeypatch, kind):
    monkeypatch.setattr(f"{__name__}.PLACES", {})
    request = asked(tmp_path, blobs, monkeypatch, kind)
    told = (f"{kind.__name__} steps an optimiser of its own (Adam)", "return it from state(", "from context.state")
    refusal(lambda: train(request, quiet=True), *told)
    assert not (request.run_folder / "training_state.pt").exists()


def test_an_optimiser_of_an_inner_loop_is_no_state(tmp_path, blobs, monkeypatch):
    class InnerLoop(Plain):
        def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
            moved = images.clone().requires_grad_()
            inner = torch.optim.Adam([moved], lr=0.01)
            functional.cross_entropy(model(moved), labels).backward()
            inner.step()
            inner.itself = inner  # a circle, which only the collector frees
            return super().losses(model, moved.detach(), labels, context)

    assert train(asked(tmp_path, blobs, monkeypatch, InnerLoop), quiet=True).is_dir()


class Watch:
    """A defense and a model; `changes` is what is said and refused after `change` has changed them."""

    def __init__(self, registered=()):
        self.model, self.defense, self.said = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), Holder(), []
        kept = SimpleNamespace(items=dict(enumerate(registered)))
        self.stray = StrayState(self.defense, self.model, kept.items.values(), self.said.append)

    def look(self):
        self.stray.require_none([])
        return [
            line.partition(", which Holder")[0].removeprefix("warning: a resumed run starts anew with ")
            for line in self.said
        ]


class Holder(Plain):
    counter: ClassVar[list[int]] = [0]

    def uses(self) -> Any:
        return PLACES


class Helper:
    """The class that everyone writes."""

    def __init__(self):
        self.shadow = {"weight": torch.zeros(2)}
        self.updates = 0


CHANGES = {
    "a counter": (lambda w: setattr(w.model, "count", 0), lambda w: setattr(w.model, "count", 1), "model.count"),
    "a table": (
        lambda w: setattr(w.model[0], "table", torch.zeros(3)),
        lambda w: w.model[0].table.add_(1),
        "model.0.table",
    ),
    "an array": (
        lambda w: setattr(w.model, "table", np.zeros(3)),
        lambda w: w.model.table.__iadd__(1),
        "model.table",
    ),
    "a buffer that is not saved": (
        lambda w: w.model.register_buffer("mean", torch.zeros(1), persistent=False),
        lambda w: w.model.mean.add_(1),
        "model.mean",
    ),
    "a generator": (
        lambda w: setattr(w.model, "draws", torch.Generator().manual_seed(0)),
        lambda w: torch.rand(1, generator=w.model.draws),
        "model.draws",
    ),
    "numpy's generator": (
        lambda w: object.__setattr__(w.defense, "draws", np.random.default_rng(0)),
        lambda w: w.defense.draws.random(),
        "self.draws",
    ),
    "a helper": (
        lambda w: setattr(w.model, "ema", Helper()),
        lambda w: w.model.ema.shadow["weight"].add_(1),
        "model.ema.shadow['weight']",
    ),
    "the class": (lambda w: None, lambda w: Holder.counter.__setitem__(0, Holder.counter[0] + 1), "Holder.counter"),
    "a global": (lambda w: PLACES.update(n=0), lambda w: PLACES.update(n=PLACES["n"] + 1), "PLACES['n']"),
    "momentum of BatchNorm": (lambda w: None, lambda w: setattr(w.model[1], "momentum", 0.5), "model.1.momentum"),
}


@pytest.mark.parametrize(("make", "change", "name"), CHANGES.values(), ids=CHANGES)
def test_what_may_be_state_is_named_once(make, change, name):
    watch = Watch()
    make(watch)
    assert watch.look() == []
    change(watch)
    assert watch.look() == [name]
    change(watch)
    assert watch.look() == [name]


STATEFUL = {
    "a module in a list": (lambda: [nn.Linear(1, 1)], lambda kept: kept[0].weight.data.add_(1), "self.kept[0]"),
    "a schedule": (
        lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 3),
        lambda kept: (kept.optimizer.step(), kept.step()),
        "self.kept of Holder (StepLR)",
    ),
}


@pytest.mark.parametrize(("make", "change", "name"), STATEFUL.values(), ids=STATEFUL)
def test_modules_and_schedules_that_are_not_registered_are_refused(make, change, name):
    watch, kept = Watch(), make()
    object.__setattr__(watch.defense, "kept", kept)
    watch.look()
    change(kept)
    refusal(watch.look, name, "changes in training", "return")


def test_what_is_saved_anyway_or_does_not_change_is_not_named():
    table, module = torch.zeros(3), nn.Linear(1, 1)
    watch = Watch([table, module])
    model = watch.model
    model.table, model.again, model.weights, model.last = table, [model[0]], [model[0].weight, model[1].running_mean], 5
    object.__setattr__(watch.defense, "inner", [module])
    object.__setattr__(watch.defense, "teacher", nn.Linear(1, 1))
    watch.look()
    table.add_(1), model[0].weight.data.add_(1), model[1].running_mean.add_(1), module.weight.data.add_(1)
    assert watch.look() == []


def test_a_run_says_what_it_may_lose(tmp_path, blobs, monkeypatch, capsys):
    class Counts(Plain):
        def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
            model.count = getattr(model, "count", 0) + 1
            return super().losses(model, images, labels, context)

    train(asked(tmp_path, blobs, monkeypatch, Counts))
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    for text in ("model.count, which Counts changes in training", "register a buffer", "return it from state("):
        assert text in told


def kept(defense):
    model = nn.Linear(1, 1)
    return KeptState(defense, model, torch.optim.SGD(model.parameters(), lr=0.1), {})


class HoldsALambda:
    def state_dict(self):
        return {"rule": lambda: 0}

    def load_state_dict(self, state_dict):
        pass


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "state() of Returns returned no dictionary: return what is kept, by name"),
        ({0: torch.zeros(1)}, "state() of Returns returned no dictionary"),
        ({"steps": 5}, "state() of Returns returned a int for 'steps': it must be a tensor, or have state_dict()"),
        (
            {"rule": HoldsALambda()},
            "'rule' in the state of Returns cannot be saved: its state_dict() must hold tensors",
        ),
    ],
)
def test_what_has_no_state_is_refused(returned, message):
    class Returns(Plain):
        def state(self, model: Any, optimizer: Any) -> Any:
            return returned

    refusal(lambda: kept(Returns()), message)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "keeps nothing for Keeps, whose state() and tables() name table: train again"),
        ({"table": torch.zeros(4)}, "'table' of the training state does not fit that of Keeps ((4,) is not (3,)"),
        ({"table": 5}, "'table' of the training state does not fit"),
    ],
)
def test_the_state_of_another_version_is_refused(saved, message):
    class Keeps(Plain):
        def state(self, model: Any, optimizer: Any) -> Any:
            return {"table": torch.zeros(3)}

    refusal(lambda: kept(Keeps()).restore(saved), message)


def test_gradients_of_a_registered_optimiser_are_those_of_the_whole_batch(monkeypatch):
    """The other process has the same gradient, times three; a quarter of the batch is here."""
    monkeypatch.setattr(
        Processes, "sum", lambda self, tensors, weight: [t.mul_(weight + 3 * (1 - weight)) for t in tensors]
    )
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(4.0)
    shared, own = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2))
    agreement = GradientAveraging(Processes(count=2), model, shared, [own])
    agreement.weight = 0.25
    for optimizer in (own, shared):
        (weight,) = optimizer.param_groups[0]["params"]
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() == -2.5
    # Statistics are averaged with the shared optimiser, once.
    assert model.running_mean.item() == 10.0


def test_processes_that_do_not_keep_the_same_are_refused(tmp_path, blobs, monkeypatch):
    monkeypatch.setattr(Processes, "differences", lambda processes, mine: sorted(mine))
    wanted = asked(tmp_path, blobs, monkeypatch, Critic)
    told = "processes do not keep the same critic, schedule, steps, table: let it move"
    refusal(lambda: train(wanted, quiet=True), told)
