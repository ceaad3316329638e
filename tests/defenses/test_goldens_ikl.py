"""IKL against figures of the official implementation (https://github.com/jiequancui/DKL, version 1, commit c5e8ad2)."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional

from bench.defenses.ikl import ImprovedDivergence, soft_cross_entropy, weighted_square
from bench.interfaces import ThreatModel, TrainingContext
from tests.defenses.test_goldens_hat import named
from tests.support.goldens import (
    PrescribedLogits,
    Tiny,
    adaptive_value,
    assert_close,
    each_case,
    each_precision,
    inject,
    leaf,
    loaded,
    part,
    prescribed,
    read,
    training_context,
)

GOLDEN = read("ikl")


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


class PrescribedTable(PrescribedLogits):
    """Prescribed logits and a prescribed class table."""

    def __init__(self, table, *logits):
        super().__init__(*logits)
        self.class_table = table

    def accumulate(self, scores, labels):
        self.accumulated = scores, labels


@each_precision()
@each_case(GOLDEN, "m10")
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, precision):
    golden = GOLDEN[case]
    given = [golden["logits_clean"], golden["logits_adv"]]
    model, images, context = prescribed(monkeypatch, given, precision.dtype)
    leaves = model.logits
    model = PrescribedTable(golden["class_weights"].to(precision.dtype), *leaves)
    wmse_weight, soft_ce_weight = (float(golden[key]) for key in ("weight_wmse_quarter_included", "weight_soft_ce"))
    ikl = ImprovedDivergence(wmse_weight=wmse_weight, soft_ce_weight=soft_ce_weight)
    terms = ikl.losses(model, images, golden["labels"], context)

    precision.close(terms["clean"], golden["loss_clean_ce"])
    precision.close(terms["wmse"], wmse_weight * golden["loss_wmse_unit"])
    precision.close(terms["soft_ce"], soft_ce_weight * golden["loss_soft_ce_unit"])
    precision.close(terms["wmse"] + terms["soft_ce"], golden["loss_ikl"])
    precision.close(sum(terms.values()), golden["loss_total"])
    expected = {
        "total": sum(terms.values()),
        "ikl": terms["wmse"] + terms["soft_ce"],
        "wmse": terms["wmse"] / wmse_weight,
    }
    for name, loss in expected.items():
        for gradient, side in zip(gradients(loss, *leaves), ("clean", "adv"), strict=True):
            precision.close(gradient, golden[f"grad_{name}_logits_{side}"])
    to_clean, to_perturbed = gradients(terms["soft_ce"] / soft_ce_weight, *leaves)
    assert not to_clean.any()
    precision.close(to_perturbed, golden["grad_soft_ce_logits_adv"])


@pytest.mark.parametrize("script", ["ce_only", "ce_plus_wmse"])
@each_case(GOLDEN, "m10")
def test_the_attack_loss_equals_the_official_one(case, script):
    golden = GOLDEN[case]
    perturbed = leaf(golden["logits_adv"], torch.float64)
    weights = golden["class_weights"][golden["labels"]]
    assert_close(weights, golden["class_scores_per_sample"])
    ikl = ImprovedDivergence(attack_wmse=script == "ce_plus_wmse")
    loss = ikl.attack_loss(golden["logits_clean"], perturbed, weights).mean()
    assert_close(loss, golden[f"attack_{script}_loss"])
    assert_close(gradients(loss, perturbed)[0], golden[f"attack_{script}_grad_logits_adv"])


def test_the_weighted_square_is_the_double_sum():
    """The definition, pair by pair, for rows that do not sum to 1."""
    generator = torch.Generator().manual_seed(0)
    clean, perturbed, weights = (torch.rand(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    difference = clean - perturbed
    pairs = (difference[:, :, None] - difference[:, None, :]).square() * weights[:, :, None] * weights[:, None, :]
    assert_close(weighted_square(clean, perturbed, weights), pairs.sum((1, 2)) / 4)


def build(state, defense):
    """The defense's own model around the tiny backbone, with its fresh class table."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = defense.build(lambda **asked: Tiny(state), 10)
    finally:
        torch.set_default_dtype(previous)
    return loaded(model, state)


@each_case(GOLDEN, "train")
def test_training_equals_the_official_routine(monkeypatch, case):
    golden = GOLDEN[case]
    ikl = ImprovedDivergence(
        wmse_weight=float(golden["weight_wmse_quarter_included"]),
        soft_ce_weight=float(golden["weight_soft_ce"]),
        temperature=float(golden["T"]),
        attack_wmse=golden["attack_loss"] != "ce_only",
        eps_ramp=True,
    )
    model = build(named(golden, "net."), ikl)
    uniform = torch.full((10, 10), 0.1, dtype=torch.float64)
    assert torch.equal(model.class_table, uniform)
    rates = {key: float(golden[key]) for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(ikl.parameter_groups(model), **rates)
    images, labels = golden["x"], golden["labels"]
    for epoch in sorted(int(key[5:8]) for key in golden if key.endswith(".epsilon")):
        recorded = part(golden, f"epoch{epoch}.")
        inject(monkeypatch, "randn", *recorded["start_noise"])
        # Official steps are half a radius long, so the ramp has to shorten them too.
        radius, epochs = golden["epsilon_full"], int(golden["total_epochs"])
        context = training_context(radius, radius / 2, recorded["steps"], epoch=epoch - 1, epochs=epochs)
        model.backbone.seen.clear()
        ikl.begin_epoch(model, context)
        for batch in range(len(images)):
            terms = ikl.update(model, optimizer, images[batch], labels[batch], context)
        ikl.end_epoch(model, context)

        assert_close(model.backbone.shown(training=True)[0::2], recorded["x_adv"])
        assert_close(model.backbone.shown(training=True)[1::2], images)
        assert_close(sum(terms.values()), recorded["last_batch_loss"])
        official = recorded["class_weights_after"]
        seen = torch.isin(torch.arange(10), labels)
        assert torch.equal(official.isfinite().all(1), seen)
        assert_close(model.class_table, torch.where(seen[:, None], official, uniform))
        expected = named(recorded, "net.")
        assert set(expected) == set(model.state_dict()) - {"class_table", "score_sums"}
        for name, value in expected.items():
            assert_close(model.state_dict()[name], value)


def test_the_ramp_equals_the_official_schedule():
    golden = GOLDEN["schedule_high_budget"]
    for epoch, epsilon, step_size in zip(
        *(golden[key].tolist() for key in ("epochs", "epsilon", "step_size")), strict=True
    ):
        context = TrainingContext(ThreatModel(), 5, 4 / 255, torch.Generator(), epoch=epoch - 1, epochs=200)
        budget = ImprovedDivergence(eps_ramp=True).budget(context)
        assert (budget.threat.radius, budget.step_size) == pytest.approx((epsilon, step_size), rel=1e-9)
        assert Fraction(budget.threat.epsilon) == Fraction(8, 255) * epoch / 200
        assert ImprovedDivergence().budget(context) is context


def test_a_table_row_is_the_mean_softened_prediction_of_its_class():
    """Class 0 twice, class 2 once; class 1 is absent and keeps its row."""
    model = build(named(GOLDEN["train_absent_class_m10"], "net."), ImprovedDivergence())
    scores = torch.eye(10, dtype=torch.float64)[[3, 4, 5]]
    model.accumulate(scores, torch.tensor([0, 0, 2]))
    model.rebuild_table()
    expected = torch.full((10, 10), 0.1, dtype=torch.float64)
    expected[0] = (scores[0] + scores[1]) / 2
    expected[2] = scores[2]
    assert torch.equal(model.class_table, expected)
    assert {"class_table", "score_sums"} <= set(model.state_dict())


def awp_reference(model, images, perturbed, labels, weights, rates, size):
    """Weight perturbation as its authors write it: an ascent step of a proxy copy, rescaled per tensor."""

    def loss(network):
        adversarial, clean = network(perturbed), network(images)
        return (
            functional.cross_entropy(clean, labels)
            + 20 * weighted_square(clean, adversarial, weights).mean()
            + 4 * soft_cross_entropy(clean, adversarial).mean()
        )

    proxy = copy.deepcopy(model)
    ascent = torch.optim.SGD(proxy.parameters(), lr=rates["lr"])
    (-loss(proxy)).backward()
    ascent.step()
    optimizer = torch.optim.SGD(model.parameters(), **rates)
    moves = {}
    for (name, weight), moved in zip(model.named_parameters(), proxy.parameters(), strict=True):
        if weight.dim() > 1:
            change = (moved - weight).detach()
            moves[name] = size * change * weight.detach().norm() / change.norm()
            weight.data += moves[name]
    loss(model).backward()
    optimizer.step()
    for name, weight in model.named_parameters():
        weight.data -= moves.get(name, 0)
    return model.state_dict()


def test_weight_perturbation_equals_a_proxy_copy(monkeypatch):
    golden = GOLDEN["train_cifar10_script_m10"]
    ikl = ImprovedDivergence(awp=0.005, awp_epoch=10)
    state = named(golden, "net.")
    model = build(state, ikl)
    images, labels, noise = golden["x"][0], golden["labels"][0], golden["epoch150.start_noise"][0]
    rates = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    inject(monkeypatch, "randn", noise, noise, noise)
    context = training_context(8 / 255, 4 / 255, 5, epoch=9, epochs=200)
    ikl.update(model, torch.optim.SGD(ikl.parameter_groups(model), **rates), images, labels, context)
    assert model.backbone.bn.num_batches_tracked == 2
    assert model.score_sums.sum().item() == pytest.approx(len(labels))

    weights = torch.full((len(labels), 10), 0.1, dtype=torch.float64)
    perturbed = model.backbone.shown(training=True)[0]
    expected = awp_reference(build(state, ikl), images, perturbed, labels, weights, rates, 0.005)
    for name, value in model.state_dict().items():
        if name != "score_sums":
            assert_close(value, expected[name])

    early, plain = build(state, ikl), build(state, ikl)
    before = training_context(8 / 255, 4 / 255, 5, epoch=8, epochs=200)
    for network, defense in ((early, ikl), (plain, ImprovedDivergence())):
        defense.update(network, torch.optim.SGD(network.parameters(), **rates), images, labels, before)
    assert all(torch.equal(early.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_the_adaptive_objective_by_hand():
    """CE = log 4 for class 1, KL = log(4/3) / 2."""
    assert adaptive_value(ImprovedDivergence()) == pytest.approx(math.log(4) + 4 * math.log(4 / 3) / 2, rel=1e-6)


def test_published_values_for_cifar100():
    assert ImprovedDivergence.published["cifar100"] == {"soft_ce_weight": 5.0}
