"""DIO against figures of the authors' code (heads, losses, gradients and one SGD step), and by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.defenses import dio
from bench.defenses.dio import DiversityViaOrthogonality
from bench.errors import BenchError
from bench.interfaces import Backbone, ThreatModel, TrainingContext
from tests import ROOT

PRECISIONS = {"64": (torch.float64, 1e-9), "32": (torch.float32, 5e-5)}

ROUNDED = 2.0**-24
"""The stored float64 figures of cross-entropy alone are float32 numbers; the totals, which contain it, are not."""


def load_cases():
    cases = {}
    with np.load(ROOT / "tests" / "goldens" / "dio.npz") as arrays:
        for key in arrays.files:
            case, name = key.split("/", 1)
            cases.setdefault(case, {})[name] = arrays[key]
    return cases


GOLDENS = load_cases()
OFFICIAL_DRAWS = GOLDENS.pop("random_head")
EVERY = [pytest.param(case, bits, id=f"dio.npz-{case}-float{bits}") for case in GOLDENS for bits in PRECISIONS]


def assert_close(actual, expected, tolerance):
    actual = actual.detach().double().numpy()
    assert actual.shape == np.shape(expected)
    assert (np.abs(actual - expected) <= tolerance * (1 + np.abs(expected))).all(), np.abs(actual - expected).max()


class TableBackbone(Backbone):
    """Its features are a table of its own, whatever the images: as the authors' loss was run for the goldens."""

    map_channels = 1

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.feature_dim = table.shape[1]

    def feature_map(self, images):
        return self.table[:, :, None, None]

    def embed(self, feature_map):
        return feature_map.flatten(1)


class FlatBackbone(Backbone):
    """The pixels themselves."""

    map_channels = feature_dim = 12

    def feature_map(self, images):
        return images.flatten(1)[:, :, None, None]

    def embed(self, feature_map):
        return feature_map.flatten(1)


def context(steps=3):
    return TrainingContext(ThreatModel(), steps, ThreatModel().radius / 4, torch.Generator().manual_seed(0))


def restored(arrays, dtype):
    """Defense, model and labels of a case."""
    alpha, beta, tau = arrays["in/alpha_beta_tau"].tolist()
    heads, classes, _ = arrays["in/W"].shape
    defense = DiversityViaOrthogonality(heads, alpha, beta, tau)
    model = defense.build(lambda: TableBackbone(torch.from_numpy(arrays["in/emb"])), classes)
    with torch.no_grad():
        model.heads.copy_(torch.from_numpy(arrays["in/W"]))
    return defense, model.to(dtype), torch.from_numpy(arrays["in/labels"])


def small_model(heads=4, classes=3):
    torch.manual_seed(0)
    defense = DiversityViaOrthogonality(heads=heads)
    model = defense.build(FlatBackbone, classes)
    batch = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return defense, model, batch, torch.tensor([0, 1, 2, 0, 1])


def test_the_goldens_hold_every_kind_of_case():
    assert {"m10_L1", "m10_L2_none_correct", "m10_L2_exact_tie"} <= GOLDENS.keys() and len(GOLDENS) >= 8


@pytest.mark.parametrize(("case", "bits"), EVERY)
def test_heads(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    _, model, labels = restored(arrays, dtype)
    features = model.backbone.table
    logits = model.all_logits(features)
    assert_close(logits, arrays[f"out{bits}/all_logits"], tolerance)
    assert_close(model.score(features), arrays[f"out{bits}/head0_logits"], tolerance)
    assert_close(model.score(features), arrays[f"out{bits}/default_logits"], tolerance)
    for index in range(len(model.heads)):
        drawn = model.score_with(torch.tensor([index]), features)
        assert_close(drawn, arrays[f"out{bits}/all_logits"][index], tolerance)
        loss = nn.functional.cross_entropy(logits[index], labels)
        assert_close(loss, arrays[f"out{bits}/ce_per_head"][index], max(tolerance, ROUNDED))
    right = (logits.argmax(2) == labels).sum(1)
    assert right.tolist() == arrays[f"out{bits}/n_correct_per_head"].tolist()
    assert_close(model.mean_logits(features), arrays[f"out{bits}/all_logits"].mean(0), tolerance)


@pytest.mark.parametrize(("case", "bits"), EVERY)
def test_orthogonality_and_margin_with_gradients(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    defense, model, labels = restored(arrays, dtype)
    orthogonality = dio.orthogonality(model.heads)
    if len(model.heads) == 1:
        assert orthogonality.item() == 0.0
    else:
        assert_close(orthogonality, arrays[f"out{bits}/ortho_loss"], tolerance)
        (slope,) = torch.autograd.grad(orthogonality, model.heads)
        assert_close(slope, arrays[f"out{bits}/ortho_grad_W"], tolerance)
    logits = model.all_logits(model.backbone.table)
    margin = dio.margin_shortfall(logits, model.heads, labels, defense.tau)
    by_heads, by_features = torch.autograd.grad(margin, (model.heads, model.backbone.table))
    assert_close(margin, arrays[f"out{bits}/margin_loss"], tolerance)
    assert_close(by_heads, arrays[f"out{bits}/margin_grad_W"], tolerance)
    assert_close(by_features, arrays[f"out{bits}/margin_grad_emb"], tolerance)


@pytest.mark.parametrize(("case", "bits"), EVERY)
def test_total_gradient_and_one_step(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    defense, model, labels = restored(arrays, dtype)
    model.backbone.table.requires_grad_()
    batch = torch.zeros(len(labels), 3, 2, 2, dtype=dtype)
    optimizer = torch.optim.SGD([model.heads], lr=0.1, momentum=0.9, weight_decay=5e-4)
    terms = defense.update(model, optimizer, batch, labels, context(steps=0))
    values = torch.stack([sum(terms.values()), *(terms[name] for name in ("adversarial", "orthogonality", "margin"))])
    total, rounded, *parts = arrays[f"out{bits}/total_ce_ortho_margin"]
    orthogonality, margin = parts[0] * defense.alpha, parts[1] * defense.beta
    assert_close(values[1], rounded, max(tolerance, ROUNDED))
    expected = np.array([total, total - orthogonality - margin, orthogonality, margin])
    assert_close(values, expected, tolerance)
    assert_close(model.heads.grad, arrays[f"out{bits}/total_grad_W"], tolerance)
    assert_close(model.backbone.table.grad, arrays[f"out{bits}/total_grad_emb"], tolerance)
    assert_close(model.heads, arrays[f"out{bits}/W_after_sgd"], tolerance)


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
    heads = DiversityViaOrthogonality(heads=40).build(FlatBackbone, 100).heads
    bound = 1 / 12**0.5
    assert heads.abs().max().item() <= bound and heads.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert not torch.equal(heads[0], heads[1])


def test_no_head_is_refused_on_one_line():
    with pytest.raises(BenchError, match=r"^hyperparameter heads=0 is below 1: give [^\n]*$"):
        DiversityViaOrthogonality(heads=0)
