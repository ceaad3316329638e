"""Recorded steps give the images of the steps themselves, or are not used. The recorder here stands in for CUDA's."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bench.attacks import craft, cross_entropy
from bench.attacks._ascent import ascend
from bench.interfaces import ThreatModel
from bench.training.averages import Averages
from bench.training.cuda_graphs import Graphs
from bench.training.request import TrainingRequest
from bench.training.train import prepare_run
from tests.support.refusals import raising
from tests.support.trainings import Plain, plug_in


class Recorder:
    """Like a CUDA graph it writes its result to one place, at every replay."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, step, images):
        self.recorded += 1
        output = torch.full_like(images, torch.nan)

        def replay():
            self.replayed += 1
            return output.copy_(step(images))

        return replay


refusing = raising(RuntimeError("operation not permitted when stream is capturing\nmore"))


def frozen(step, images):
    """What a graph makes of a number that a step took from the CPU: it stays as it was."""
    moved = step(images) - images
    return lambda: images + moved


def trained(defense, record, said):
    """The weights after three steps on digits."""
    request = TrainingRequest(defense, "digits", protocol={"batch_size": 16, "attack_steps": 4}, limit_train=48)
    run = prepare_run(request, quiet=True)
    if record is not None:
        run.graphs = Graphs(said.append, record)
    run.model.train()
    context = run.context(0, Averages())
    for images, labels, told in run.steps(context):
        run.step(images, labels, told)
    return {**run.model.state_dict(), **run.kept.saved()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("defense", "replays"), [("at", 3), ("trades", 2)])
def test_a_training_with_recorded_steps_is_the_same_training(defense, replays):
    said, recorder = [], Recorder()
    ours, expected = trained(defense, recorder, said), trained(defense, None, said)
    assert all(torch.equal(ours[key], value) for key, value in expected.items())
    assert said == []
    assert recorder.recorded == 3  # once per batch
    assert recorder.replayed == 3 * replays + 1  # all steps but those in float32 and the warm-up; once to compare


@pytest.mark.parametrize(("record", "reason"), [(refusing, "stream is capturing."), (frozen, "reads the CPU.")])
def test_what_cannot_be_recorded_is_run_step_by_step_and_said_once(record, reason):
    said = []
    ours, expected = trained("dio", record, said), trained("dio", None, [])
    assert all(torch.equal(ours[key], value) for key, value in expected.items())
    assert len(said) == 1
    assert said[0].endswith(reason)


class Traced:
    """Keeps the operations of a step with every number that it took from Python, as a CUDA graph does."""

    def __init__(self, once):
        self.once, self.graph = once, None

    def __call__(self, step, images):
        if self.graph is None or not self.once:
            self.graph = make_fx(step)(images)
        graph = self.graph
        return torch.no_grad()(lambda: graph(images))


class Alternating(Plain):
    """Pixels are moved up in one batch and down in the next, unless the table of the image says otherwise."""

    def tables(self, image_shape):
        return {"up": ()}

    def losses(self, model, images, labels, context):
        table, rows = context.state["up"], context.indices
        upward = 0.5 - context.batch % 2 + table[rows]
        with context.crafting(model) as view:
            perturbed = craft(
                lambda view, x: cross_entropy(view(x), labels) + 1000 * upward * x.sum((1, 2, 3)),
                *(view, images, images, context, False),
            )
        table[rows] = (perturbed - images).sum((1, 2, 3))
        return {"adversarial": cross_entropy(model(perturbed), labels).mean()}


@pytest.mark.parametrize("once", [False, True])
def test_numbers_and_rows_of_a_batch_are_not_frozen_in_the_next(monkeypatch, once):
    """A graph that was recorded once for all batches would be: that is seen here."""
    plug_in(monkeypatch, "alternating", Alternating)
    said = []
    ours, expected = trained("alternating", Traced(once), said), trained("alternating", None, said)
    assert said == []
    assert {float(up) > 0 for up in expected["up"]} == {False, True}
    assert all(torch.equal(ours[key], value) for key, value in expected.items()) is not once


def test_an_ascent_may_exchange_its_step():
    start, generator = torch.full((2, 1, 2, 2), 0.5), torch.Generator().manual_seed(0)

    def objective(model, images):
        return (model(images) * torch.arange(-1.0, 3.0).view(1, 1, 2, 2)).sum((1, 2, 3))

    arguments = (objective, torch.nn.Identity(), start, start, ThreatModel("linf", "0.3"), 5, 0.05)
    plain = ascend(*arguments)
    assert torch.equal(ascend(*arguments, Graphs(print, Recorder()).repeated(generator)), plain)
    torch.testing.assert_close(plain[0, 0], torch.tensor([[0.25, 0.5], [0.75, 0.75]]))
