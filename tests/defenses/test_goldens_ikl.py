"""IKL against figures of the official implementation (https://github.com/jiequancui/DKL, version 1, commit c5e8ad2)."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch

from bench.defenses.ikl import ImprovedDivergence, soft_cross_entropy, weighted_square
from bench.interfaces import LinearClassifier, ThreatModel, TrainingContext
from tests.defenses.test_goldens_trades import (
    PRECISIONS,
    PrescribedLogits,
    Spy,
    cases,
    close,
    inject,
    load,
    prescribed,
    read,
    tiny_backbone,
    training_context,
)

GOLDEN = read("ikl.npz")
LAYERS = {"l1": "backbone.linear", "bn": "backbone.bn", "l2": "head"}


def of_case(case: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{case}/"): values for key, values in GOLDEN.items() if key.startswith(f"{case}/")}


def tensors(golden: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    named = {}
    for key, values in golden.items():
        if key.startswith(prefix):
            layer, rest = key.removeprefix(prefix).split(".")
            named[f"{LAYERS[layer]}.{rest}"] = torch.from_numpy(np.asarray(values))
    return named


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


class PrescribedTable(PrescribedLogits):
    """Prescribed logits and a prescribed class table."""

    def __init__(self, table: torch.Tensor, *logits: torch.Tensor) -> None:
        super().__init__(*logits)
        self.class_table = table

    def accumulate(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        self.accumulated = scores, labels


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("case", cases(GOLDEN, "m10", "/"))
def test_losses_and_gradients_equal_the_official_ones(monkeypatch, case, dtype):
    golden = of_case(case)
    given, leaves, images, context = prescribed(monkeypatch, [golden["logits_clean"], golden["logits_adv"]], dtype)
    model = PrescribedTable(torch.tensor(golden["class_weights"], dtype=dtype), *given.logits)
    wmse_weight, soft_ce_weight = (float(golden[key]) for key in ("weight_wmse_quarter_included", "weight_soft_ce"))
    ikl = ImprovedDivergence(wmse_weight=wmse_weight, soft_ce_weight=soft_ce_weight)
    labels = torch.from_numpy(golden["labels"])
    terms = ikl.losses(model, images, labels, context)

    close(terms["clean"], golden["loss_clean_ce"], dtype)
    close(terms["wmse"], wmse_weight * golden["loss_wmse_unit"], dtype)
    close(terms["soft_ce"], soft_ce_weight * golden["loss_soft_ce_unit"], dtype)
    close(terms["wmse"] + terms["soft_ce"], golden["loss_ikl"], dtype)
    close(sum(terms.values()), golden["loss_total"], dtype)
    expected = {
        "total": sum(terms.values()),
        "ikl": terms["wmse"] + terms["soft_ce"],
        "wmse": terms["wmse"] / wmse_weight,
    }
    for name, loss in expected.items():
        for gradient, side in zip(gradients(loss, *leaves), ("clean", "adv"), strict=True):
            close(gradient, golden[f"grad_{name}_logits_{side}"], dtype)
    to_clean, to_perturbed = gradients(terms["soft_ce"] / soft_ce_weight, *leaves)
    assert not to_clean.any()
    close(to_perturbed, golden["grad_soft_ce_logits_adv"], dtype)


@pytest.mark.parametrize("script", ["ce_only", "ce_plus_wmse"])
@pytest.mark.parametrize("case", cases(GOLDEN, "m10", "/"))
def test_the_attack_loss_equals_the_official_one(case, script):
    golden = of_case(case)
    clean = torch.from_numpy(golden["logits_clean"])
    perturbed = torch.from_numpy(golden["logits_adv"]).requires_grad_()
    weights = torch.from_numpy(golden["class_weights"])[torch.from_numpy(golden["labels"])]
    close(weights, golden["class_scores_per_sample"])
    loss = ImprovedDivergence(attack_wmse=script == "ce_plus_wmse").attack_loss(clean, perturbed, weights).mean()
    close(loss, golden[f"attack_{script}_loss"])
    close(gradients(loss, perturbed)[0], golden[f"attack_{script}_grad_logits_adv"])


def test_the_weighted_square_is_the_double_sum():
    """The definition, pair by pair, for rows that do not sum to 1."""
    generator = torch.Generator().manual_seed(0)
    clean, perturbed, weights = (torch.rand(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    difference = clean - perturbed
    pairs = (difference[:, :, None] - difference[:, None, :]).square() * weights[:, :, None] * weights[:, None, :]
    close(weighted_square(clean, perturbed, weights), (pairs.sum((1, 2)) / 4).numpy())


def build(state: dict[str, torch.Tensor], defense: ImprovedDivergence) -> torch.nn.Module:
    """The defense's own model around the tiny backbone, with its fresh class table."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = defense.build(lambda activation="relu", final_activation=True: tiny_backbone(state), 10)
    finally:
        torch.set_default_dtype(previous)
    return load(model, state)


@pytest.mark.parametrize("case", cases(GOLDEN, "train", "/"))
def test_training_equals_the_official_routine(monkeypatch, case):
    golden = of_case(case)
    ikl = ImprovedDivergence(
        wmse_weight=float(golden["weight_wmse_quarter_included"]),
        soft_ce_weight=float(golden["weight_soft_ce"]),
        temperature=float(golden["T"]),
        attack_wmse=str(golden["attack_loss"]) != "ce_only",
        eps_ramp=True,
    )
    model = build(tensors(golden, "net."), ikl)
    uniform = torch.full((10, 10), 0.1, dtype=torch.float64)
    assert torch.equal(model.class_table, uniform)
    rates = {key: float(golden[key]) for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(ikl.parameter_groups(model), **rates)
    images, labels = torch.from_numpy(golden["x"]), torch.from_numpy(golden["labels"])
    spy = Spy(model)
    for epoch in sorted(int(key[5:8]) for key in golden if key.endswith(".epsilon")):
        recorded = {key[9:]: values for key, values in golden.items() if key.startswith(f"epoch{epoch}.")}
        inject(monkeypatch, "randn", *torch.from_numpy(recorded["start_noise"]))
        # Official steps are half a radius long, so the ramp has to shorten them too.
        context = training_context(
            golden["epsilon_full"],
            golden["epsilon_full"] / 2,
            recorded["steps"],
            epoch=epoch - 1,
            epochs=int(golden["total_epochs"]),
        )
        spy.training.clear()
        ikl.begin_epoch(model, context)
        for batch in range(len(images)):
            terms = ikl.update(model, optimizer, images[batch], labels[batch], context)
        ikl.end_epoch(model, context)

        close(torch.stack(spy.training[0::2]), recorded["x_adv"])
        close(torch.stack(spy.training[1::2]), golden["x"])
        close(sum(terms.values()), recorded["last_batch_loss"])
        official = recorded["class_weights_after"]
        seen = np.isin(np.arange(10), golden["labels"])
        assert np.isfinite(official).all(1).tolist() == seen.tolist()
        close(model.class_table, np.where(seen[:, None], official, uniform.numpy()))
        expected = tensors(recorded, "net.")
        assert set(expected) == set(model.state_dict()) - {"class_table", "score_sums"}
        for name, value in expected.items():
            close(model.state_dict()[name].double(), value.numpy())


def test_the_ramp_equals_the_official_schedule():
    golden = of_case("schedule_high_budget")
    for epoch, epsilon, step_size in zip(golden["epochs"], golden["epsilon"], golden["step_size"], strict=True):
        context = TrainingContext(ThreatModel(), 5, 4 / 255, torch.Generator(), epoch=int(epoch) - 1, epochs=200)
        budget = ImprovedDivergence(eps_ramp=True).budget(context)
        ours = torch.tensor([budget.threat.radius, budget.step_size], dtype=torch.float64)
        close(ours, np.array([epsilon, step_size]))
        assert Fraction(budget.threat.epsilon) == Fraction(8, 255) * int(epoch) / 200
        assert ImprovedDivergence().budget(context) is context


def test_a_table_row_is_the_mean_softened_prediction_of_its_class():
    """Class 0 twice, class 2 once; class 1 is absent and keeps its row."""
    model = build(tensors(of_case("train_absent_class_m10"), "net."), ImprovedDivergence())
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

    def loss(network: LinearClassifier) -> torch.Tensor:
        adversarial, clean = network(perturbed), network(images)
        return (
            torch.nn.functional.cross_entropy(clean, labels)
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
    golden = of_case("train_cifar10_script_m10")
    ikl = ImprovedDivergence(awp=0.005, awp_epoch=10)
    state = tensors(golden, "net.")
    model = build(state, ikl)
    images, labels = torch.from_numpy(golden["x"][0]), torch.from_numpy(golden["labels"][0])
    rates = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    inject(monkeypatch, "randn", *torch.from_numpy(golden["epoch150.start_noise"])[[0, 0]])
    context = training_context(8 / 255, 4 / 255, 5, epoch=9, epochs=200)
    spy = Spy(model)
    ikl.update(model, torch.optim.SGD(ikl.parameter_groups(model), **rates), images, labels, context)
    assert model.backbone.bn.num_batches_tracked == 2
    assert model.score_sums.sum().item() == pytest.approx(len(labels))

    weights = torch.full((len(labels), 10), 0.1, dtype=torch.float64)
    expected = awp_reference(build(state, ikl), images, spy.training[0], labels, weights, rates, 0.005)
    for name, value in model.state_dict().items():
        if name != "score_sums":
            close(value.double(), expected[name].double().numpy())

    early, plain = build(state, ikl), build(state, ikl)
    inject(monkeypatch, "randn", *torch.from_numpy(golden["epoch150.start_noise"])[[0, 0]])
    before = training_context(8 / 255, 4 / 255, 5, epoch=8, epochs=200)
    for network, defense in ((early, ikl), (plain, ImprovedDivergence())):
        defense.update(network, torch.optim.SGD(network.parameters(), **rates), images, labels, before)
    assert all(torch.equal(early.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_the_adaptive_objective_by_hand():
    """p = (1/2, 1/2) and q = (3/4, 1/4): CE = log 4 for class 1, KL = log(4/3) / 2."""
    model = PrescribedLogits(torch.zeros(1, 2), torch.tensor([[np.log(3.0), 0.0]]).float())
    images = torch.zeros(1, 1, 1, 1)
    value = ImprovedDivergence().adaptive_objective(model, images, torch.tensor([1]))(model, images + 0.001)
    assert value.item() == pytest.approx(np.log(4) + 4 * np.log(4 / 3) / 2, rel=1e-6)


def test_published_values_for_cifar100():
    assert ImprovedDivergence.published["cifar100"] == {"soft_ce_weight": 5.0}
