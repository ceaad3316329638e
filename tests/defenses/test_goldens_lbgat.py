"""LBGAT against figures of the authors' code, and the second network's place."""

import copy

import torch
from torch.nn import functional

from bench.defenses.lbgat import BoundaryGuidedTraining
from bench.training.kept_state import KeptState
from tests.support.goldens import (
    assert_close,
    each_case,
    inject,
    part,
    read,
    same_gradients_and_buffers,
    tiny_classifier,
    tiny_state,
    training_context,
)

GOLDEN = read("lbgat")


@each_case(GOLDEN)
def test_a_training_step_is_the_authors(case, monkeypatch):
    stored = GOLDEN[case]
    guided = part(stored, "guide_")
    model, guide = tiny_classifier(tiny_state(stored)), tiny_classifier(tiny_state(guided))
    inject(monkeypatch, "randn", stored["noise"])
    context = training_context(stored["eps"], stored["step"], stored["steps"], state={"guide": guide})
    terms = BoundaryGuidedTraining(beta=float(stored["beta"])).losses(model, stored["x"], stored["y"], context)
    sum(terms.values()).backward()
    assert_close(model.backbone.shown(training=True), torch.stack([stored["x_adv"], stored["x"]]), 0, 1e-12)
    assert_close(guide.backbone.shown(training=True), stored["x"][None])
    assert not [images for training, images in guide.backbone.seen if not training]
    assert_close(sum(terms.values()), stored["loss"])
    same_gradients_and_buffers(model, stored)
    same_gradients_and_buffers(guide, guided)


def begun(stored, **settings):
    """Defense, model, shared optimiser and what is kept of a run at its start."""
    defense = BoundaryGuidedTraining(**settings)
    model = tiny_classifier(tiny_state(stored))
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=0.1, momentum=0.9, weight_decay=0.01)
    return defense, model, optimizer, KeptState(defense, model, optimizer, {})


def steps(run, stored, count, rate=0.1):
    defense, model, optimizer, kept = run
    optimizer.param_groups[0]["lr"] = rate
    context = training_context(steps=1, state=kept.items)
    for _ in range(count):
        defense.update(model, optimizer, stored["x"], stored["y"], context)
    return model.state_dict(), kept.items["guide"].state_dict()


def test_the_second_network_moves_as_if_the_shared_optimiser_had_it(monkeypatch):
    """Two steps beside one SGD over the parameters of both networks, as the authors have it."""
    stored = GOLDEN["step1"]
    monkeypatch.setattr("bench.defenses.lbgat.gaussian_start", lambda images, context: images + 0.001)
    run = begun(stored, beta=2.0)
    defense, model, _, kept = run
    theirs, guide = copy.deepcopy((model, kept.items["guide"]))
    both = torch.optim.SGD([*theirs.parameters(), *guide.parameters()], lr=0.03, momentum=0.9, weight_decay=0.01)
    context = training_context(steps=1, state={"guide": guide})
    for _ in range(2):
        both.zero_grad()
        sum(defense.losses(theirs, stored["x"], stored["y"], context).values()).backward()
        both.step()
    for ours, expected in zip(steps(run, stored, 2, rate=0.03), (theirs, guide), strict=True):
        for name, value in expected.state_dict().items():
            assert_close(ours[name], value, 1e-12)


def test_the_second_network_is_kept_resumed_and_no_part_of_the_classifier():
    stored = GOLDEN["step0"]
    first, second = begun(stored), begun(stored)
    alone = set(first[1].state_dict())
    steps(first, stored, 2)
    (_, model, optimizer, kept), (_, other, others, restored) = first, second
    assert set(model.state_dict()) == alone and restored.saved().keys() == {"guide", "guide_optimizer"}
    other.load_state_dict(model.state_dict())
    others.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    restored.restore(copy.deepcopy(kept.saved()))
    # The start's noise is a function of the context, which is alike.
    for ours, expected in zip(steps(second, stored, 1), steps(first, stored, 1), strict=True):
        assert all(torch.equal(ours[name], value) for name, value in expected.items())
    before = model.eval()(stored["x"])
    with torch.no_grad():
        for weight in kept.items["guide"].parameters():
            weight.add_(1)
    assert torch.equal(model(stored["x"]), before)


def test_the_boundary_draws_both_networks(monkeypatch):
    """A gradient of the squared difference reaches the second network as well, with the opposite sign."""
    stored = GOLDEN["step0"]
    defense, model, _, kept = begun(stored)
    guide = kept.items["guide"]
    with torch.no_grad():
        guide.head.bias.add_(1)
    inject(monkeypatch, "randn", torch.zeros_like(stored["x"]))
    context = training_context(steps=0, state=kept.items)
    term = defense.losses(model, stored["x"], stored["y"], context)["boundary"]
    term.backward()
    assert_close(term, functional.mse_loss(model(stored["x"]), guide(stored["x"])), 1e-12)
    assert_close(model.head.bias.grad, -guide.head.bias.grad, 1e-12)
