"""AT-HE against values of the authors' code (https://github.com/ShawnXYang/AT_HE)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.attacks import cross_entropy, divergence
from bench.defenses.at_he import CosineClassifier, HypersphereEmbedding, with_margin
from bench.errors import BenchError
from bench.interfaces import Backbone, ThreatModel, TrainingContext
from tests import GOLDENS

FILE = "at_he.npz"
STORED = {
    key: torch.from_numpy(np.atleast_1d(value)).reshape(value.shape)
    for key, value in np.load(GOLDENS / FILE).items()
    if value.dtype.kind in "fi"
}
NAMES = {key: str(value) for key, value in np.load(GOLDENS / FILE).items() if "_name" in key}
CASES = [pytest.param(f"case{i}", id=f"{FILE}:{NAMES[f'case{i}_name']}") for i in range(7)]
HEADS = [pytest.param(f"head{i}", id=f"{FILE}:head{i}") for i in range(3)]
ATTACKS = [pytest.param(f"attack{i}", id=f"{FILE}:attack{i}-{NAMES[f'attack{i}_name']}") for i in range(3)]
PRECISIONS = [pytest.param(torch.float64, "f64", 1e-9, id="f64"), pytest.param(torch.float32, "f32", 5e-5, id="f32")]


def case(prefix):
    return {key.removeprefix(prefix + "_"): value for key, value in STORED.items() if key.startswith(prefix + "_")}


def close(ours, stored, tolerance=1e-9, absolute=None):
    absolute = tolerance if absolute is None else absolute
    torch.testing.assert_close(ours, stored.to(ours.dtype), rtol=tolerance, atol=absolute)


class PixelBackbone(Backbone):
    """The features are the pixels."""

    map_channels = 1

    def __init__(self, feature_dim):
        super().__init__()
        self.feature_dim = feature_dim

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


def build(defense, backbone, weight):
    """The defense's model in float64 with the given weight rows, renormalised."""
    model = defense.build(lambda activation="relu", final_activation=True: backbone, len(weight)).double()
    with torch.no_grad():
        model.head.weight.copy_(weight)
    model.renormalise()
    return model


def context(step=2 / 255, steps=10):
    return TrainingContext(ThreatModel("linf", "8/255"), steps, step, torch.Generator())


@pytest.fixture
def tiny(monkeypatch):
    """(defense, stored case) -> the tiny model, with the stored noise as the start's draw."""

    def make(defense, stored):
        model = build(defense, TinyBackbone(stored), stored["param_Wc_raw"]).train()
        monkeypatch.setattr(torch, "randn", lambda *shape, **options: stored["noise_std_normal"])
        return model

    return make


@pytest.mark.parametrize("prefix", CASES)
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), PRECISIONS)
def test_losses_on_cosines(prefix, dtype, suffix, tolerance):
    stored = case(prefix)
    scale, margin, beta = (float(stored[name]) for name in ("s", "m", "beta"))
    clean = stored["cos_clean"].to(dtype).requires_grad_()
    perturbed = stored["cos_adv"].to(dtype).requires_grad_()

    def outer(cosines):
        return cross_entropy(with_margin(scale * cosines, stored["y"], scale * margin), stored["y"]).mean()

    absolute = 1e-12 if dtype == torch.float64 else tolerance
    for name, loss in (
        ("train", outer(perturbed)),
        ("attack", cross_entropy(scale * perturbed, stored["y"]).mean()),
        ("trades_he", outer(clean) + beta * divergence(scale * clean, scale * perturbed).mean()),
    ):
        assert loss.dtype == dtype
        close(loss, stored[f"{name}_loss_{suffix}"], tolerance, absolute)
        gradients = torch.autograd.grad(loss, (clean, perturbed), allow_unused=True)
        close(gradients[1], stored[f"{name}_grad_cos_adv_{suffix}"], tolerance, absolute)
        if name == "trades_he":
            close(gradients[0], stored[f"{name}_grad_cos_clean_{suffix}"], tolerance, absolute)


@pytest.mark.parametrize("prefix", HEADS)
def test_head(prefix):
    stored = case(prefix)
    scale, margin = float(stored["s"]), float(stored["m"])
    model = build(HypersphereEmbedding(scale=scale), PixelBackbone(stored["features"].shape[1]), stored["W_raw"])
    images = stored["features"][:, :, None, None].clone().requires_grad_()
    logits = model(images)
    logits.retain_grad()
    loss = cross_entropy(with_margin(logits, stored["y"], scale * margin), stored["y"]).mean()
    loss.backward()
    close(model.class_centres(), stored["W_after_forward"])
    close(logits / scale, stored["cos"])
    close(loss, stored["loss"])
    close(scale * logits.grad, stored["grad_cos"])
    close(images.grad.flatten(1), stored["grad_features"])
    close(model.head.weight.grad, stored["grad_W"])
    through_normalisation = stored["NOTofficial_grad_W_through_norm"]
    assert (model.head.weight.grad - through_normalisation).norm() > 0.1 * through_normalisation.norm()


def test_weight_rows_over_five_optimiser_steps(monkeypatch):
    stored = case("sgd")
    defense = HypersphereEmbedding(scale=float(stored["s"]), margin=float(stored["m"]))
    model = build(defense, PixelBackbone(stored["features"].shape[1]), stored["W0_raw"])
    images = stored["features"][:, :, None, None]
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.zeros_like(images))
    optimizer = torch.optim.SGD(
        defense.parameter_groups(model),
        lr=float(stored["lr"]),
        momentum=float(stored["momentum"]),
        weight_decay=float(stored["weight_decay"]),
    )
    after_step = []
    optimizer.register_step_post_hook(lambda *_: after_step.append(model.head.weight.detach().clone()))
    for step in range(5):
        close(model.class_centres(), stored["W_used_in_forward"][step])
        close(model(images) / defense.scale, stored["cos"][step])
        terms = defense.update(model, optimizer, images, stored["y"], context(steps=0))
        close(terms["adversarial"], stored["loss"][step])
        close(after_step[-1], stored["W_after_step"][step + 1])
    close(model.head.weight.norm(dim=1), torch.ones(len(model.head.weight)))


@pytest.mark.parametrize("prefix", ATTACKS)
def test_attack_and_outer_loss(prefix, tiny):
    stored = case(prefix)
    defense = HypersphereEmbedding(scale=float(stored["s"]), margin=float(stored["m"]))
    model = tiny(defense, stored)
    terms = defense.losses(model, stored["x"], stored["y"], context(float(stored["step"])))
    sum(terms.values()).backward()

    modes, points = zip(*model.backbone.seen, strict=True)
    assert modes == (False,) * 10 + (True,)
    close(torch.stack(points), stored["traj"], 0, 1e-9)
    close(points[-1], stored["x_adv"], 0, 1e-9)
    assert list(terms) == ["adversarial"]
    close(terms["adversarial"], stored["loss"])
    for name, parameter in model.backbone.named_parameters():
        close(parameter.grad, stored["grad_" + name.replace(".", "_")])
    close(model.head.weight.grad, stored["grad_Wc"])
    close(model.class_centres(), stored["after_Wc"])
    for name, buffer in model.backbone.named_buffers():
        close(buffer, stored["after_" + name.replace(".", "_")])


def test_the_inner_maximum_has_the_scale_but_no_margin(tiny, monkeypatch):
    """The signs of a gradient hide a margin, so the ascended values are looked at themselves."""
    ascended = []

    def craft(objective, view, start, *arguments, **options):
        ascended.append(objective)
        return start

    monkeypatch.setattr("bench.defenses.at_he.craft", craft)
    stored = case("attack1")
    model = tiny(HypersphereEmbedding(), stored)
    HypersphereEmbedding().losses(model, stored["x"], stored["y"], context())
    model.eval()
    cosines = functional.cosine_similarity(
        model.backbone(stored["x"])[:, None], stored["param_Wc_raw"][None], dim=2, eps=1e-12
    )
    expected = -(15 * cosines).log_softmax(1)[range(6), stored["y"]]
    close(ascended[0](model, stored["x"]), expected)


def test_trades_variant_matches_a_plain_reference(tiny):
    stored = case("attack1")
    x, y, scale, margin, beta = stored["x"], stored["y"], 15.0, 0.2, 6.0
    defense = HypersphereEmbedding(variant="trades")
    model = tiny(defense, stored)
    terms = defense.losses(model, x, y, context())
    modes, points = zip(*model.backbone.seen, strict=True)
    assert modes == (False,) * 11 + (True, True)

    def logits(images, mode):
        hidden = functional.linear(images.flatten(1), stored["param_W1"], stored["param_b1"])
        mean, variance = stored["param_bn_running_mean"], stored["param_bn_running_var"]
        if mode == "train":
            mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt() * stored["param_bn_weight"] + stored["param_bn_bias"]
        features = torch.tanh(hidden) @ stored["param_W2"].T + stored["param_b2"]
        rows = stored["param_Wc_raw"]
        rows = rows / rows.norm(dim=1, keepdim=True)
        return scale * (features / features.norm(dim=1, keepdim=True)) @ rows.T

    def disagreement(clean, other):
        p, q = clean.softmax(1), other.softmax(1)
        return (p * (p / q).log()).sum(1)

    perturbed = x + 0.001 * stored["noise_std_normal"]
    for point in points[1:11]:
        close(point, perturbed, 0, 1e-9)
        perturbed = perturbed.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(disagreement(logits(x, "eval"), logits(perturbed, "eval")).sum(), perturbed)
        moved = perturbed.detach() + 2 / 255 * gradient.sign()
        perturbed = torch.min(torch.max(moved, x - 8 / 255), x + 8 / 255).clamp(0, 1)
    close(points[12], perturbed, 0, 1e-9)
    clean = logits(x, "train")
    lowered = clean.clone()
    lowered[range(len(y)), y] -= scale * margin
    close(terms["clean"], -lowered.log_softmax(1)[range(len(y)), y].mean())
    close(terms["robust"], beta * disagreement(clean, logits(perturbed, "train")).mean())


def test_logits_are_scaled_cosines():
    model = build(HypersphereEmbedding(), PixelBackbone(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    images = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)[:, :, None, None]
    close(model(images), torch.tensor([[9.0, 12.0], [0.0, 0.0]]))
    close(model.features(images), torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=torch.float64))
    close(model.class_centres(), torch.eye(2))


def test_rows_are_unit_at_build_and_again_at_the_start_of_an_epoch():
    torch.manual_seed(0)
    model = CosineClassifier(PixelBackbone(6), 4, 15.0)
    close(model.head.weight.norm(dim=1), torch.ones(4), 1e-6)
    direction = model.class_centres().clone()
    with torch.no_grad():
        model.head.weight.mul_(3)
    HypersphereEmbedding().begin_epoch(model, context())
    close(model.class_centres(), direction, 1e-6)


def test_margin_lowers_the_true_logit_in_the_logits_own_precision():
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    lowered = with_margin(logits, torch.tensor([0, 2]), 3.0)
    assert lowered.tolist() == [[-2.0, 2.0, 3.0], [4.0, 5.0, 3.0]]
    assert lowered.dtype == torch.float64


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(BenchError, match=r"scale=0\.0 is not above 0") as refused:
        HypersphereEmbedding(scale=0.0)
    assert "\n" not in str(refused.value)
