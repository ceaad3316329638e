"""OC against values of the authors' code (https://github.com/MTandHJ/roboc)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.defenses.oc import OrthogonalClassifier, OrthogonalClassifierTraining, orthogonal_rows, square_loss
from bench.errors import BenchError
from bench.interfaces import Backbone, ThreatModel, TrainingContext
from tests import GOLDENS

FILE = "oc.npz"
RAW = dict(np.load(GOLDENS / FILE).items())
STORED = {key: torch.tensor(value) for key, value in RAW.items() if value.dtype.kind in "fi"}
CASES = [pytest.param(f"case{i}", id=f"{FILE}:{RAW[f'case{i}_name']}") for i in range(6)]
ATTACKS = [pytest.param(f"attack{i}", id=f"{FILE}:attack{i}") for i in range(2)]
PRECISIONS = [pytest.param(torch.float64, "f64", 1e-9, id="f64"), pytest.param(torch.float32, "f32", 5e-5, id="f32")]
MATRICES = [
    pytest.param(d, m, id=f"{FILE}:W-d{d}-M{m}")
    for d, m in ((512, 10), (512, 100), (64, 10), (256, 10), (8, 4), (128, 100))
]


def case(prefix):
    return {key.removeprefix(prefix + "_"): value for key, value in STORED.items() if key.startswith(prefix + "_")}


def close(ours, stored, tolerance=1e-9, absolute=None):
    absolute = tolerance if absolute is None else absolute
    torch.testing.assert_close(ours, stored.to(ours.dtype), rtol=tolerance, atol=absolute)


class PixelBackbone(Backbone):
    """The features are the pixels; remembers how it was asked for."""

    map_channels = 1

    def __init__(self, feature_dim, **asked):
        super().__init__()
        self.feature_dim, self.asked = feature_dim, asked

    def feature_map(self, images):
        return images

    def embed(self, feature_map):
        return feature_map.flatten(1)


class TinyBackbone(Backbone):
    """Two linear layers with tanh between, as stored; remembers the images of every forward and its mode."""

    feature_dim, map_channels = 8, 8

    def __init__(self, stored):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 8)
        self.bn = nn.BatchNorm1d(16) if "param_bn_weight" in stored else nn.Identity()
        names = {"W1": "fc1.weight", "b1": "fc1.bias", "W2": "fc2.weight", "b2": "fc2.bias"}
        values = {name: stored[f"param_{key}"] for key, name in names.items()}
        values |= {key.replace("param_bn_", "bn."): value for key, value in stored.items() if "param_bn_" in key}
        # double before loading, or the stored values are rounded to float32
        self.double().load_state_dict(values, strict=False)
        self.seen = []

    def feature_map(self, images):
        self.seen.append((self.training, images.detach().clone()))
        hidden = self.fc2(torch.tanh(self.bn(self.fc1(images.flatten(1)))))
        return hidden[:, :, None, None]

    def embed(self, feature_map):
        return feature_map.flatten(1)


def factory(dimension):
    return lambda activation="relu", final_activation=True: PixelBackbone(
        dimension, activation=activation, final_activation=final_activation
    )


@pytest.mark.parametrize(("dimension", "classes"), MATRICES)
def test_class_rows(dimension, classes):
    stored = case(f"W_d{dimension}_M{classes}_s10")
    rows = orthogonal_rows(classes, dimension, 10.0)
    if "weight" in stored:
        assert torch.equal(rows, stored["weight"])
    else:
        assert torch.equal(rows.sign().to(torch.int8), stored["sign"])
    close(rows.double() @ rows.double().T, stored["gram"])
    close(rows.double().sum(1), stored["row_sums"])
    close(rows.abs().min().double(), stored["abs_entry_min"])
    close(rows.abs().max().double(), stored["abs_entry_max"])
    close(rows[0, 0].double(), stored["expected_abs_entry"], 1e-7)


def test_whole_sign_pattern_and_its_bit_rule():
    signs = orthogonal_rows(16, 16, 4.0)
    assert torch.equal(signs.to(torch.int8), STORED["W_sign_full_d16"])
    rule = [[(-1.0) ** (i & ~j).bit_count() for j in range(16)] for i in range(16)]
    assert signs.tolist() == rule


@pytest.mark.parametrize(("dimension", "classes", "block"), [(640, 100, 128), (640, 10, 128), (48, 10, 16)])
def test_blocks_are_tiled_where_the_dimension_is_no_power_of_two(dimension, classes, block):
    rows = orthogonal_rows(classes, dimension, 10.0)
    copies = rows.split(block, dim=1)
    assert len(copies) == dimension // block
    assert all(torch.equal(copy, copies[0]) for copy in copies)
    assert torch.equal(rows.abs(), torch.full_like(rows, 10 / math.sqrt(dimension)))
    close(rows.double() @ rows.double().T, 100 * torch.eye(classes), 1e-6)


@pytest.mark.parametrize(("dimension", "classes", "fitting"), [(2, 10, 16), (64, 100, 128), (640, 200, 256)])
def test_features_too_narrow_for_the_classes_are_refused(dimension, classes, fitting):
    with pytest.raises(BenchError, match=rf"dimension {dimension} .* {classes} classes.*multiple of {fitting}\.") as no:
        OrthogonalClassifierTraining().build(factory(dimension), classes)
    assert "\n" not in str(no.value)


def test_class_zero_ties_with_every_class_on_non_negative_features():
    model = OrthogonalClassifierTraining().build(factory(512), 10).double()
    logits = model.score(STORED["relu_demo_features_best_nonneg"].double())
    close(logits, STORED["relu_demo_logits"])
    close(logits[:, 0], logits.diagonal())


@pytest.mark.parametrize("prefix", CASES)
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), PRECISIONS)
def test_losses(prefix, dtype, suffix, tolerance):
    stored = case(prefix)
    assert torch.equal(orthogonal_rows(int(stored["num_classes"]), stored["W"].shape[1], 10.0), stored["W"])
    targets = stored["W"].to(dtype)[stored["y"]]
    clean = stored["features_clean"].to(dtype).requires_grad_()
    perturbed = stored["features_adv"].to(dtype).requires_grad_()
    leverage = float(stored["leverage"])
    on_clean, on_perturbed = square_loss(clean, targets), square_loss(perturbed, targets)
    total = leverage * on_clean + (1 - leverage) * on_perturbed
    gradients = torch.autograd.grad(total, (clean, perturbed))

    absolute = 1e-12 if dtype == torch.float64 else tolerance
    close(on_clean, stored[f"sq_clean_{suffix}"], tolerance, absolute)
    close(on_perturbed, stored[f"sq_adv_{suffix}"], tolerance, absolute)
    close(total, stored[f"total_{suffix}"], tolerance, absolute)
    close(gradients[0], stored[f"grad_features_clean_{suffix}"], tolerance, absolute)
    close(gradients[1], stored[f"grad_features_adv_{suffix}"], tolerance, absolute)
    model = OrthogonalClassifier(PixelBackbone(stored["W"].shape[1]), stored["W"].to(dtype))
    close(model.score(perturbed), stored[f"eval_logits_adv_{suffix}"], tolerance)


@pytest.mark.parametrize("prefix", ATTACKS)
def test_attack_and_one_optimiser_step(prefix, monkeypatch):
    stored = case(prefix)
    eps, y = float(stored["eps"]), stored["y"]
    assert eps == 8 / 255
    defense = OrthogonalClassifierTraining(leverage=float(stored["leverage"]))
    backbone = TinyBackbone(stored)
    model = defense.build(lambda activation="relu", final_activation=True: backbone, 4).train()
    close(model.weight, stored["param_W_oc"], 1e-6)
    model.weight = stored["param_W_oc"].clone()
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: (stored["noise_uniform_pm_eps"] / eps + 1) / 2)
    optimizer = torch.optim.SGD(
        defense.parameter_groups(model),
        lr=float(stored["lr"]),
        momentum=float(stored["momentum"]),
        weight_decay=float(stored["weight_decay"]),
    )
    context = TrainingContext(ThreatModel("linf", "8/255"), 10, float(stored["step"]), torch.Generator())
    terms = defense.update(model, optimizer, stored["x"], y, context)

    modes, points = zip(*backbone.seen, strict=True)
    assert modes == (False,) * 10 + (True, True)
    assert torch.equal(points[10], stored["x"])
    close(torch.stack([*points[:10], points[11]]), stored["traj"], 0, 1e-9)
    close(points[11], stored["x_adv"], 0, 1e-9)
    assert list(terms) == ["clean", "adversarial"]
    close(terms["clean"] + terms["adversarial"], stored["loss"])
    for name, parameter in backbone.named_parameters():
        key = name.replace(".", "_")
        close(parameter.grad, stored[f"grad_{key}"])
        close(parameter.detach(), stored[f"after_sgd_{key}"])
    for name, buffer in backbone.named_buffers():
        close(buffer, stored["after_" + name.replace(".", "_")])
    assert torch.equal(stored["grad_fc_weight"], torch.zeros(4, 8, dtype=torch.float64))
    assert torch.equal(model.weight, stored["after_sgd_fc_weight"])
    assert torch.equal(model.weight, stored["param_W_oc"])


def test_class_rows_are_saved_but_not_trained():
    model = OrthogonalClassifierTraining().build(factory(16), 10)
    assert list(model.state_dict()) == ["weight"]
    assert list(model.parameters()) == []
    assert torch.equal(model.class_centres(), orthogonal_rows(10, 16, 10.0))


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        ("prelu", {"activation": "prelu", "final_activation": True}),
        ("final-signed", {"activation": "relu", "final_activation": False}),
    ],
)
def test_the_backbone_has_signed_features(choice, asked):
    assert OrthogonalClassifierTraining(activation=choice).build(factory(16), 10).backbone.asked == asked


def test_adaptive_objective_has_a_gradient_where_raw_logits_have_none():
    """On its own row the true logit is 100 and the rival's 0; divided by 10, CE = log(1 + exp(-10))."""
    defense = OrthogonalClassifierTraining()
    model = defense.build(factory(2), 2)
    images = model.class_centres()[:1, :, None, None].clone().requires_grad_()
    labels = torch.tensor([0])
    raw = nn.functional.cross_entropy(model(images), labels)
    assert torch.autograd.grad(raw, images)[0].abs().max() < 1e-40

    model.weight = 10 / math.sqrt(2) * torch.tensor([[1, 1], [-1, 1]], dtype=torch.float64)
    images = model.weight[:1, :, None, None].clone().requires_grad_()
    value = defense.adaptive_objective(model, images, labels)(model, images)
    close(value, torch.tensor([math.log1p(math.exp(-10))], dtype=torch.float64))
    # d CE / df = p_1 (w_1 - w_0) / scale, with w_1 - w_0 = (-20 / sqrt 2, 0)
    slope = -2 / math.sqrt(2) / (1 + math.exp(10))
    gradient = torch.autograd.grad(value.sum(), images)[0].flatten()
    close(gradient, torch.tensor([slope, 0.0], dtype=torch.float64), 1e-9, 1e-13)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"leverage": 1.5}, {"leverage": -0.1}])
def test_hyperparameters_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(BenchError, match=f"{name}={value} is not") as refused:
        OrthogonalClassifierTraining(**wrong)
    assert "\n" not in str(refused.value)
