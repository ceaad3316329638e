"""OC against values of the authors' code (https://github.com/MTandHJ/roboc)."""

import math

import pytest
import torch
from torch import nn

from bench.defenses.oc import OrthogonalClassifier, OrthogonalClassifierTraining, orthogonal_rows, square_loss
from bench.errors import BenchError
from tests.support.goldens import (
    Pixels,
    Tiny,
    assert_close,
    each_case,
    each_precision,
    inject,
    leaf,
    loaded,
    part,
    pixels,
    read,
    same_gradients_and_buffers,
    tiny_state,
    training_context,
)

GOLDEN = read("oc", "_")
MATRICES = [(512, 10), (512, 100), (64, 10), (256, 10), (8, 4), (128, 100)]


@pytest.mark.parametrize(("dimension", "classes"), MATRICES)
def test_class_rows(dimension, classes):
    stored = part(GOLDEN["W"], f"d{dimension}_M{classes}_s10_")
    rows = orthogonal_rows(classes, dimension, 10.0)
    if "weight" in stored:
        assert torch.equal(rows, stored["weight"])
    else:
        assert torch.equal(rows.sign().to(torch.int8), stored["sign"])
    assert_close(rows.double() @ rows.double().T, stored["gram"])
    assert_close(rows.double().sum(1), stored["row_sums"])
    assert_close(rows.abs().min().double(), stored["abs_entry_min"])
    assert_close(rows.abs().max().double(), stored["abs_entry_max"])
    assert_close(rows[0, 0].double(), stored["expected_abs_entry"], 1e-7)


def test_whole_sign_pattern_and_its_bit_rule():
    signs = orthogonal_rows(16, 16, 4.0)
    assert torch.equal(signs.to(torch.int8), GOLDEN["W"]["sign_full_d16"])
    rule = [[(-1.0) ** (i & ~j).bit_count() for j in range(16)] for i in range(16)]
    assert signs.tolist() == rule


@pytest.mark.parametrize(("dimension", "classes", "block"), [(640, 100, 128), (640, 10, 128), (48, 10, 16)])
def test_blocks_are_tiled_where_the_dimension_is_no_power_of_two(dimension, classes, block):
    rows = orthogonal_rows(classes, dimension, 10.0)
    copies = rows.split(block, dim=1)
    assert len(copies) == dimension // block
    assert all(torch.equal(copy, copies[0]) for copy in copies)
    assert torch.equal(rows.abs(), torch.full_like(rows, 10 / math.sqrt(dimension)))
    assert_close(rows.double() @ rows.double().T, 100 * torch.eye(classes), 1e-6)


@pytest.mark.parametrize(("dimension", "classes", "fitting"), [(2, 10, 16), (64, 100, 128), (640, 200, 256)])
def test_features_too_narrow_for_the_classes_are_refused(dimension, classes, fitting):
    with pytest.raises(BenchError, match=rf"dimension {dimension} .* {classes} classes.*multiple of {fitting}\.") as no:
        OrthogonalClassifierTraining().build(pixels(dimension), classes)
    assert "\n" not in str(no.value)


def test_class_zero_ties_with_every_class_on_non_negative_features():
    model = OrthogonalClassifierTraining().build(pixels(512), 10).double()
    logits = model.score(GOLDEN["relu"]["demo_features_best_nonneg"].double())
    assert_close(logits, GOLDEN["relu"]["demo_logits"])
    assert_close(logits[:, 0], logits.diagonal())


@each_precision(absolute=1e-12)
@each_case(GOLDEN, "case")
def test_losses(case, precision):
    stored, (dtype, bits, *_) = GOLDEN[case], precision
    assert torch.equal(orthogonal_rows(int(stored["num_classes"]), stored["W"].shape[1], 10.0), stored["W"])
    targets = stored["W"].to(dtype)[stored["y"]]
    clean, perturbed = (leaf(stored[f"features_{side}"], dtype) for side in ("clean", "adv"))
    leverage = float(stored["leverage"])
    on_clean, on_perturbed = square_loss(clean, targets), square_loss(perturbed, targets)
    total = leverage * on_clean + (1 - leverage) * on_perturbed
    gradients = torch.autograd.grad(total, (clean, perturbed))
    precision.close(on_clean, stored[f"sq_clean_f{bits}"])
    precision.close(on_perturbed, stored[f"sq_adv_f{bits}"])
    precision.close(total, stored[f"total_f{bits}"])
    precision.close(gradients[0], stored[f"grad_features_clean_f{bits}"])
    precision.close(gradients[1], stored[f"grad_features_adv_f{bits}"])
    model = OrthogonalClassifier(Pixels(stored["W"].shape[1]), stored["W"].to(dtype))
    precision.close(model.score(perturbed), stored[f"eval_logits_adv_f{bits}"])


@each_case(GOLDEN, "attack")
def test_attack_and_one_optimiser_step(case, monkeypatch):
    stored, y = GOLDEN[case], GOLDEN[case]["y"]
    defense = OrthogonalClassifierTraining(leverage=float(stored["leverage"]))
    state = tiny_state(stored, "backbone.fc2")
    model = loaded(defense.build(lambda **asked: Tiny(state), 4), {**state, "weight": stored["param_W_oc"]})
    assert_close(orthogonal_rows(4, 8, 10.0), stored["param_W_oc"], 1e-6)
    inject(monkeypatch, "rand", (stored["noise_uniform_pm_eps"] / stored["eps"] + 1) / 2)
    rates = {key: float(stored[key]) for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(defense.parameter_groups(model), **rates)
    context = training_context(stored["eps"], stored["step"])
    terms = defense.update(model, optimizer, stored["x"], y, context)

    modes, points = zip(*model.backbone.seen, strict=True)
    assert modes == (False,) * 10 + (True, True)
    assert torch.equal(points[10], stored["x"])
    assert_close(torch.stack([*points[:10], points[11]]), stored["traj"], 0, 1e-9)
    assert_close(points[11], stored["x_adv"], 0, 1e-9)
    assert list(terms) == ["clean", "adversarial"]
    assert_close(terms["clean"] + terms["adversarial"], stored["loss"])
    same_gradients_and_buffers(model.backbone, stored)
    for name, parameter in model.backbone.named_parameters():
        assert_close(parameter, stored[f"after_sgd_{name.replace('.', '_')}"])
    assert not stored["grad_fc_weight"].any()
    assert torch.equal(model.weight, stored["after_sgd_fc_weight"])
    assert torch.equal(model.weight, stored["param_W_oc"])


def test_class_rows_are_saved_but_not_trained():
    model = OrthogonalClassifierTraining().build(pixels(16), 10)
    assert list(model.state_dict()) == ["weight"]
    assert list(model.parameters()) == []
    assert torch.equal(model.class_centres(), orthogonal_rows(10, 16, 10.0))


@pytest.mark.parametrize(
    ("choice", "asked"),
    [("prelu", {"activation": "prelu"}), ("final-signed", {"final_activation": False})],
)
def test_the_backbone_has_signed_features(choice, asked):
    assert OrthogonalClassifierTraining(activation=choice).build(pixels(16), 10).backbone.asked == asked


def test_adaptive_objective_has_a_gradient_where_raw_logits_have_none():
    """On its own row the true logit is 100 and the rival's 0; divided by 10, CE = log(1 + exp(-10))."""
    defense = OrthogonalClassifierTraining()
    model = defense.build(pixels(2), 2)
    images = model.class_centres()[:1, :, None, None].clone().requires_grad_()
    labels = torch.tensor([0])
    raw = nn.functional.cross_entropy(model(images), labels)
    assert torch.autograd.grad(raw, images)[0].abs().max() < 1e-40

    model.weight = 10 / math.sqrt(2) * torch.tensor([[1, 1], [-1, 1]], dtype=torch.float64)
    images = model.weight[:1, :, None, None].clone().requires_grad_()
    value = defense.adaptive_objective(model, images, labels)(model, images)
    assert_close(value, torch.tensor([math.log1p(math.exp(-10))], dtype=torch.float64))
    # d CE / df = p_1 (w_1 - w_0) / scale, with w_1 - w_0 = (-20 / sqrt 2, 0)
    slope = -2 / math.sqrt(2) / (1 + math.exp(10))
    gradient = torch.autograd.grad(value.sum(), images)[0].flatten()
    assert_close(gradient, torch.tensor([slope, 0.0], dtype=torch.float64), 1e-9, 1e-13)
