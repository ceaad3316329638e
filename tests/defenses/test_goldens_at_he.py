"""AT-HE against values of the authors' code (https://github.com/ShawnXYang/AT_HE)."""

import torch
from torch.nn import functional

from bench.attacks import cross_entropy, divergence
from bench.defenses.at_he import CosineClassifier, HypersphereEmbedding, with_margin
from tests.support.goldens import (
    Pixels,
    Tiny,
    assert_close,
    each_case,
    each_precision,
    inject,
    leaf,
    pixels,
    read,
    same_gradients_and_buffers,
    tiny_state,
    training_context,
)

GOLDEN = read("at_he", "_")


def build(defense, make_backbone, weight):
    """The defense's model in float64 with the given weight rows, renormalised."""
    model = defense.build(make_backbone, len(weight)).double()
    with torch.no_grad():
        model.head.weight.copy_(weight)
    model.renormalise()
    return model


def tiny(defense, stored, monkeypatch):
    """The model of a stored attack, in train mode, with the stored noise as the start's draw."""
    state = {name.removeprefix("backbone."): value for name, value in tiny_state(stored, "backbone.fc2").items()}
    backbone = Tiny(tiny_state(stored, "backbone.fc2")).double()
    backbone.load_state_dict({**backbone.state_dict(), **state})
    inject(monkeypatch, "randn", stored["noise_std_normal"])
    return build(defense, lambda **asked: backbone, stored["param_Wc_raw"]).train()


@each_precision(absolute=1e-12)
@each_case(GOLDEN, "case")
def test_losses_on_cosines(case, precision):
    stored, bits = GOLDEN[case], precision.bits
    scale, margin, beta = (float(stored[name]) for name in ("s", "m", "beta"))
    clean, perturbed = (leaf(stored[f"cos_{side}"], precision.dtype) for side in ("clean", "adv"))

    def outer(cosines):
        return cross_entropy(with_margin(scale * cosines, stored["y"], scale * margin), stored["y"]).mean()

    for name, loss in (
        ("train", outer(perturbed)),
        ("attack", cross_entropy(scale * perturbed, stored["y"]).mean()),
        ("trades_he", outer(clean) + beta * divergence(scale * clean, scale * perturbed).mean()),
    ):
        precision.close(loss, stored[f"{name}_loss_f{bits}"])
        gradients = torch.autograd.grad(loss, (clean, perturbed), allow_unused=True)
        precision.close(gradients[1], stored[f"{name}_grad_cos_adv_f{bits}"])
        if name == "trades_he":
            precision.close(gradients[0], stored[f"{name}_grad_cos_clean_f{bits}"])


@each_case(GOLDEN, "head")
def test_head(case):
    stored = GOLDEN[case]
    scale, margin = float(stored["s"]), float(stored["m"])
    model = build(HypersphereEmbedding(scale=scale), pixels(stored["features"].shape[1]), stored["W_raw"])
    images = stored["features"][:, :, None, None].clone().requires_grad_()
    logits = model(images)
    logits.retain_grad()
    loss = cross_entropy(with_margin(logits, stored["y"], scale * margin), stored["y"]).mean()
    loss.backward()
    assert_close(model.class_centres(), stored["W_after_forward"])
    assert_close(logits / scale, stored["cos"])
    assert_close(loss, stored["loss"])
    assert_close(scale * logits.grad, stored["grad_cos"])
    assert_close(images.grad.flatten(1), stored["grad_features"])
    assert_close(model.head.weight.grad, stored["grad_W"])
    through_normalisation = stored["NOTofficial_grad_W_through_norm"]
    assert (model.head.weight.grad - through_normalisation).norm() > 0.1 * through_normalisation.norm()


def test_weight_rows_over_five_optimiser_steps(monkeypatch):
    stored = GOLDEN["sgd"]
    defense = HypersphereEmbedding(scale=float(stored["s"]), margin=float(stored["m"]))
    model = build(defense, pixels(stored["features"].shape[1]), stored["W0_raw"])
    images = stored["features"][:, :, None, None]
    inject(monkeypatch, "randn", *5 * [torch.zeros_like(images)])
    rates = {key: float(stored[key]) for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(defense.parameter_groups(model), **rates)
    after_step = []
    optimizer.register_step_post_hook(lambda *_: after_step.append(model.head.weight.detach().clone()))
    for step in range(5):
        assert_close(model.class_centres(), stored["W_used_in_forward"][step])
        assert_close(model(images) / defense.scale, stored["cos"][step])
        terms = defense.update(model, optimizer, images, stored["y"], training_context(steps=0))
        assert_close(terms["adversarial"], stored["loss"][step])
        assert_close(after_step[-1], stored["W_after_step"][step + 1])
    assert_close(model.head.weight.norm(dim=1), torch.ones(len(model.head.weight)))


@each_case(GOLDEN, "attack")
def test_attack_and_outer_loss(case, monkeypatch):
    stored = GOLDEN[case]
    defense = HypersphereEmbedding(scale=float(stored["s"]), margin=float(stored["m"]))
    model = tiny(defense, stored, monkeypatch)
    terms = defense.losses(model, stored["x"], stored["y"], training_context(step_size=stored["step"]))
    sum(terms.values()).backward()

    modes, points = zip(*model.backbone.seen, strict=True)
    assert modes == (False,) * 10 + (True,)
    assert_close(torch.stack(points), stored["traj"], 0, 1e-9)
    assert_close(points[-1], stored["x_adv"], 0, 1e-9)
    assert list(terms) == ["adversarial"]
    assert_close(terms["adversarial"], stored["loss"])
    same_gradients_and_buffers(model.backbone, stored)
    assert_close(model.head.weight.grad, stored["grad_Wc"])
    assert_close(model.class_centres(), stored["after_Wc"])


def test_the_inner_maximum_has_the_scale_but_no_margin(monkeypatch):
    """The signs of a gradient hide a margin, so the ascended values are looked at themselves."""
    ascended = []

    def craft(objective, view, start, *arguments, **options):
        ascended.append(objective)
        return start

    monkeypatch.setattr("bench.defenses.at_he.craft", craft)
    stored = GOLDEN["attack1"]
    model = tiny(HypersphereEmbedding(), stored, monkeypatch)
    HypersphereEmbedding().losses(model, stored["x"], stored["y"], training_context())
    model.eval()
    cosines = functional.cosine_similarity(
        model.backbone(stored["x"])[:, None], stored["param_Wc_raw"][None], dim=2, eps=1e-12
    )
    expected = -(15 * cosines).log_softmax(1)[range(6), stored["y"]]
    assert_close(ascended[0](model, stored["x"]), expected)


def test_trades_variant_matches_a_plain_reference(monkeypatch):
    stored = GOLDEN["attack1"]
    x, y, scale, margin, beta = stored["x"], stored["y"], 15.0, 0.2, 6.0
    defense = HypersphereEmbedding(variant="trades")
    model = tiny(defense, stored, monkeypatch)
    terms = defense.losses(model, x, y, training_context())
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
        assert_close(point, perturbed, 0, 1e-9)
        perturbed = perturbed.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(disagreement(logits(x, "eval"), logits(perturbed, "eval")).sum(), perturbed)
        moved = perturbed.detach() + 2 / 255 * gradient.sign()
        perturbed = torch.min(torch.max(moved, x - 8 / 255), x + 8 / 255).clamp(0, 1)
    assert_close(points[12], perturbed, 0, 1e-9)
    clean = logits(x, "train")
    lowered = clean.clone()
    lowered[range(len(y)), y] -= scale * margin
    assert_close(terms["clean"], -lowered.log_softmax(1)[range(len(y)), y].mean())
    assert_close(terms["robust"], beta * disagreement(clean, logits(perturbed, "train")).mean())


def test_logits_are_scaled_cosines():
    model = build(HypersphereEmbedding(), pixels(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    images = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)[:, :, None, None]
    assert_close(model(images), torch.tensor([[9.0, 12.0], [0.0, 0.0]]))
    assert_close(model.features(images), torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=torch.float64))
    assert_close(model.class_centres(), torch.eye(2))


def test_rows_are_unit_at_build_and_again_at_the_start_of_an_epoch():
    torch.manual_seed(0)
    model = CosineClassifier(Pixels(6), 4, 15.0)
    assert_close(model.head.weight.norm(dim=1), torch.ones(4), 1e-6)
    direction = model.class_centres().clone()
    with torch.no_grad():
        model.head.weight.mul_(3)
    HypersphereEmbedding().begin_epoch(model, training_context())
    assert_close(model.class_centres(), direction, 1e-6)


def test_margin_lowers_the_true_logit_in_the_logits_own_precision():
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    lowered = with_margin(logits, torch.tensor([0, 2]), 3.0)
    assert lowered.tolist() == [[-2.0, 2.0, 3.0], [4.0, 5.0, 3.0]]
    assert lowered.dtype == torch.float64
