"""DIO against figures of the authors' code (heads, losses, gradients and one SGD step), and by hand."""

import pytest
import torch
from torch import nn

from bench.defenses import dio
from bench.defenses.dio import DiversityViaOrthogonality
from bench.interfaces import ThreatModel
from tests.support.goldens import Watched, each_case, each_precision, part, pixels, read, training_context

ROUNDED = 2.0**-24
"""The stored float64 figures of cross-entropy alone are float32 numbers; the totals, which contain it, are not."""

GOLDEN = read("dio")
OFFICIAL_DRAWS = GOLDEN.pop("random_head")


class Table(Watched):
    """Its features are a table of its own, whatever the images: as the authors' loss was run for the figures."""

    def __init__(self, table):
        super().__init__(table.shape[1])
        self.table = nn.Parameter(table)

    def features(self, images):
        return self.table


def context(steps=3):
    return training_context(step_size=2 / 255, steps=steps)


def restored(golden, precision):
    """Defense, model, labels and figures of a case."""
    alpha, beta, tau = golden["in/alpha_beta_tau"].tolist()
    heads, classes, _ = golden["in/W"].shape
    defense = DiversityViaOrthogonality(heads, alpha, beta, tau)
    model = defense.build(lambda: Table(golden["in/emb"].clone()), classes)
    with torch.no_grad():
        model.heads.copy_(golden["in/W"])
    return defense, model.to(precision.dtype), golden["in/labels"], part(golden, f"out{precision.bits}/")


def small_model(heads=4, classes=3):
    torch.manual_seed(0)
    defense = DiversityViaOrthogonality(heads=heads)
    model = defense.build(pixels(12), classes)
    batch = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return defense, model, batch, torch.tensor([0, 1, 2, 0, 1])


def test_the_goldens_hold_every_kind_of_case():
    assert {"m10_L1", "m10_L2_none_correct", "m10_L2_exact_tie"} <= GOLDEN.keys() and len(GOLDEN) >= 8


@each_precision()
@each_case(GOLDEN)
def test_heads(case, precision):
    _, model, labels, figures = restored(GOLDEN[case], precision)
    features = model.backbone.table
    logits = model.all_logits(features)
    precision.close(logits, figures["all_logits"])
    precision.close(model.score(features), figures["head0_logits"])
    precision.close(model.score(features), figures["default_logits"])
    for index in range(len(model.heads)):
        precision.close(model.score_with(torch.tensor([index]), features), figures["all_logits"][index])
        loss = nn.functional.cross_entropy(logits[index], labels)
        precision.close(loss, figures["ce_per_head"][index], ROUNDED)
    right = (logits.argmax(2) == labels).sum(1)
    assert torch.equal(right, figures["n_correct_per_head"])
    precision.close(model.mean_logits(features), figures["all_logits"].mean(0))


@each_precision()
@each_case(GOLDEN)
def test_orthogonality_and_margin_with_gradients(case, precision):
    defense, model, labels, figures = restored(GOLDEN[case], precision)
    orthogonality = dio.orthogonality(model.heads)
    if len(model.heads) == 1:
        assert orthogonality.item() == 0.0
    else:
        precision.close(orthogonality, figures["ortho_loss"])
        (slope,) = torch.autograd.grad(orthogonality, model.heads)
        precision.close(slope, figures["ortho_grad_W"])
    logits = model.all_logits(model.backbone.table)
    margin = dio.margin_shortfall(logits, model.heads, labels, defense.tau)
    by_heads, by_features = torch.autograd.grad(margin, (model.heads, model.backbone.table))
    precision.close(margin, figures["margin_loss"])
    precision.close(by_heads, figures["margin_grad_W"])
    precision.close(by_features, figures["margin_grad_emb"])


@each_precision()
@each_case(GOLDEN)
def test_total_gradient_and_one_step(case, precision):
    defense, model, labels, figures = restored(GOLDEN[case], precision)
    model.backbone.table.requires_grad_()
    batch = torch.zeros(len(labels), 3, 2, 2, dtype=precision.dtype)
    optimizer = torch.optim.SGD([model.heads], lr=0.1, momentum=0.9, weight_decay=5e-4)
    terms = defense.update(model, optimizer, batch, labels, context(steps=0))
    total, rounded, *parts = figures["total_ce_ortho_margin"].tolist()
    orthogonality, margin = parts[0] * defense.alpha, parts[1] * defense.beta
    precision.close(terms["adversarial"], rounded, ROUNDED)
    precision.close(terms["adversarial"], total - orthogonality - margin)
    precision.close(terms["orthogonality"], orthogonality)
    precision.close(terms["margin"], margin)
    precision.close(sum(terms.values()), total)
    precision.close(model.heads.grad, figures["total_grad_W"])
    precision.close(model.backbone.table.grad, figures["total_grad_emb"])
    precision.close(model.heads, figures["W_after_sgd"])


def test_one_head_is_drawn_for_the_whole_batch_at_every_attack_step(monkeypatch):
    defense, model, batch, labels = small_model(heads=10)
    drawn, score_with = [], type(model).score_with
    monkeypatch.setattr(
        type(model), "score_with", lambda self, head, e: drawn.append(head.clone()) or score_with(self, head, e)
    )
    state = torch.random.get_rng_state()
    defense.losses(model, batch, labels, context(steps=30))
    assert bool(OFFICIAL_DRAWS["one_head_for_whole_batch"]) and all(head.shape == (1,) for head in drawn)
    assert len(drawn) == len(OFFICIAL_DRAWS["seq"])
    assert len(set(torch.cat(drawn).tolist())) > 5
    assert torch.equal(torch.random.get_rng_state(), state)


def test_crafting_ascends_the_drawn_heads_with_a_reference_loop_beside_it(monkeypatch):
    defense, model, batch, labels = small_model()
    threat, sizes = ThreatModel(), context()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch.shape, generator=generator)
    expected = (batch + threat.radius * (2 * noise - 1)).clamp(0, 1)
    for _ in range(sizes.steps):
        head = torch.randint(4, (1,), generator=generator)
        expected.requires_grad_()
        loss = nn.functional.cross_entropy(expected.flatten(1) @ model.heads[int(head)].T, labels)
        (slope,) = torch.autograd.grad(loss, expected)
        moved = expected.detach() + sizes.step_size * slope.sign()
        expected = torch.minimum(torch.maximum(moved, batch - threat.radius), batch + threat.radius).clamp(0, 1)
    seen = []
    monkeypatch.setattr(model.backbone, "feature_map", lambda x: seen.append(x) or x.flatten(1)[:, :, None, None])
    defense.losses(model, batch, labels, sizes)
    torch.testing.assert_close(seen[-1], expected)


def test_evaluation_is_head_zero_and_draws_nothing():
    _, model, batch, _ = small_model()
    state = torch.random.get_rng_state()
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(batch), batch.flatten(1) @ model.heads[0].T)
    assert torch.equal(model.class_centres(), model.heads[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_adaptive_objective_is_the_mean_cross_entropy_over_heads():
    defense, model, batch, labels = small_model()
    losses = [nn.functional.cross_entropy(batch.flatten(1) @ head.T, labels, reduction="none") for head in model.heads]
    objective = defense.adaptive_objective(model, batch, labels)
    torch.testing.assert_close(objective(model, batch), torch.stack(losses).mean(0))


def test_losses_are_float32_under_autocast():
    defense, model, batch, labels = small_model()
    exact = defense.losses(model, batch, labels, context(steps=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = defense.losses(model, batch, labels, context(steps=0))
    assert {name: value.item() for name, value in mixed.items()} == {
        name: value.item() for name, value in exact.items()
    }


def test_heads_start_apart_within_the_bound_of_a_linear_layer():
    torch.manual_seed(0)
    heads = DiversityViaOrthogonality(heads=40).build(pixels(12), 100).heads
    bound = 1 / 12**0.5
    assert heads.abs().max().item() <= bound and heads.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert not torch.equal(heads[0], heads[1])
