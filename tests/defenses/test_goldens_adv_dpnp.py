"""Adv-DPNP against stored figures of a float64 NumPy reference of its equations, and by hand."""

import numpy as np
import pytest
import torch

from bench.attacks import cross_entropy, divergence, input_gradient
from bench.defenses import adv_dpnp
from bench.defenses.adv_dpnp import AdvDPNP, PrototypeClassifier
from tests.support.goldens import Pixels, Watched, each_case, each_precision, leaf, pixels, read, training_context

GOLDEN = read("adv_dpnp")
LOSSES = {case: golden for case, golden in GOLDEN.items() if "total" in golden}
REDUCTIONS = ["sum", "mean"]
each_dtype = each_precision(1e-10, 1e-5)


def assert_close(actual, expected, tolerance):
    """No element is further off than `tolerance` times the largest expected magnitude."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max()
    assert worst <= tolerance * expected.abs().max().clamp_min(1e-3), worst


def defense_of(arrays, alignment_reduction="sum", **options):
    """The defense of a stored case. The mean over d dimensions has the figures of the sum at d times the weight."""
    settings = {name: float(arrays[name]) for name in ("alpha", "lambda_dpp", "lambda_dnp", "lambda_dfa")}
    if alignment_reduction == "mean":
        settings["lambda_dpp"] *= arrays["prototypes"].shape[1]
    options["alignment_reduction"] = alignment_reduction
    return AdvDPNP(**settings, dnp_smoothing=float(arrays["dnp_eps"]), **options)


def tensors_of(arrays, dtype=torch.float64):
    """Clean features, perturbed features, prototypes (leaves that require a gradient) and labels."""
    return *(leaf(arrays[name], dtype) for name in ("feat_clean", "feat_adv", "prototypes")), arrays["labels"]


def terms_of(arrays, dtype=torch.float64, **options):
    clean, perturbed, prototypes, labels = tensors_of(arrays, dtype)
    terms = adv_dpnp.composite_terms(clean, perturbed, prototypes, labels, defense_of(arrays, **options))
    return terms, clean, perturbed, prototypes


def gradient(value, leaf):
    """The gradient of a scalar; None where no path leads from it to the leaf."""
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)[0]


class Replay(Watched):
    """Answers the stored features in turn, whatever the images are."""

    def __init__(self, *answers):
        super().__init__(answers[0].shape[1])
        self.answers = answers

    def features(self, images):
        return self.answers[(len(self.seen) - 1) % len(self.answers)]


def flat_model(arrays):
    prototypes = arrays["prototypes"].clone()
    return PrototypeClassifier(Pixels(prototypes.shape[1]), prototypes, float(arrays["alpha"]))


def as_images(features):
    return features[:, :, None, None]


def context_of(steps=0, **options):
    return training_context(steps=steps, **options)


# ------------------------------------------------------------------------------------- stored figures


@each_dtype
@each_case(LOSSES)
def test_values_per_sample(case, precision):
    golden = GOLDEN[case]
    clean, perturbed, prototypes, labels = tensors_of(golden, precision.dtype)
    logits = {}
    for side, features in (("clean", clean), ("adv", perturbed)):
        logits[side] = adv_dpnp.prototype_logits(features, prototypes, float(golden["alpha"]))
        distance = adv_dpnp.squared_distance(features, prototypes, labels)
        error = cross_entropy(logits[side], labels)
        assert_close(logits[side], golden[f"logits_{side}"], precision.tolerance)
        assert_close(error, golden[f"ce_{side}"], precision.tolerance)
        assert_close(distance, golden[f"sqdist_{side}"], precision.tolerance)
        assert_close(error + float(golden["lambda_dpp"]) / 2 * distance, golden[f"dpp_{side}"], precision.tolerance)
    assert_close(divergence(logits["clean"], logits["adv"]), golden["dfa"], precision.tolerance)


@each_dtype
@each_case(LOSSES)
def test_repulsion_and_rivals(case, precision):
    golden = GOLDEN[case]
    prototypes = golden["prototypes"].to(precision.dtype)
    assert adv_dpnp.nearest_rival(prototypes).tolist() == golden["rival"].tolist()
    smoothing = float(golden["dnp_eps"])
    assert_close(adv_dpnp.repulsion(prototypes, smoothing), golden["dnp"], precision.tolerance)
    assert_close(adv_dpnp.repulsion(prototypes, 0.0), golden["dnp_exact_unsmoothed"], precision.tolerance)
    summed = adv_dpnp.repulsion(prototypes, smoothing, reduction="sum")
    assert_close(summed, len(prototypes) * golden["dnp"], precision.tolerance)


@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
@each_dtype
@each_case(LOSSES)
def test_total_and_feature_gradients(case, precision, alignment_reduction):
    golden = GOLDEN[case]
    terms, clean, perturbed, _ = terms_of(golden, precision.dtype, alignment_reduction=alignment_reduction)
    total = sum(terms.values())
    assert total.dtype == precision.dtype
    assert_close(total, golden["total"], precision.tolerance)
    assert_close(gradient(total, clean), golden["grad_feat_clean"], precision.tolerance)
    assert_close(gradient(total, perturbed), golden["grad_feat_adv"], precision.tolerance)


@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
@each_dtype
@each_case(LOSSES)
def test_prototype_gradients_by_source(case, precision, alignment_reduction):
    golden = GOLDEN[case]
    terms, _, _, prototypes = terms_of(golden, precision.dtype, alignment_reduction=alignment_reduction)
    sources = {
        "clean": "grad_proto_ce_clean",
        "clean_alignment": "grad_proto_align_clean",
        "divergence": "grad_proto_dfa_clean_side",
        "repulsion": "grad_proto_dnp_both_ends",
    }
    for term, name in sources.items():
        assert_close(gradient(terms[term], prototypes), golden[name], precision.tolerance)
    for term in terms.keys() - sources.keys():
        assert gradient(terms[term], prototypes) is None
    fixed, _, _, prototypes = terms_of(golden, precision.dtype, dnp_rival_grad="fixed")
    assert_close(gradient(fixed["repulsion"], prototypes), golden["grad_proto_dnp_rival_fixed"], precision.tolerance)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "grad_proto_default"),
        ({"dfa_proto_grad": "both"}, "grad_proto_option_dfa_both_sides"),
        ({"dfa_proto_grad": "none"}, "grad_proto_option_no_dfa"),
        ({"dnp_rival_grad": "fixed"}, "grad_proto_option_rival_fixed"),
    ],
)
@each_dtype
@each_case(LOSSES)
def test_prototype_gradient_of_every_option(case, precision, options, name):
    terms, _, _, prototypes = terms_of(GOLDEN[case], precision.dtype, **options)
    assert_close(gradient(sum(terms.values()), prototypes), GOLDEN[case][name], precision.tolerance)


@each_case(LOSSES)
def test_what_is_blocked_is_what_plain_differentiation_would_add(case):
    golden = GOLDEN[case]
    clean, perturbed, prototypes, labels = tensors_of(golden)
    defense = defense_of(golden)
    swapped = adv_dpnp.composite_terms(perturbed, clean, prototypes, labels, defense)
    blocked = [gradient(swapped["clean"], prototypes), gradient(swapped["clean_alignment"], prototypes)]
    assert_close(blocked[0], golden["blocked_grad_proto_ce_adv"], 1e-10)
    assert_close(blocked[1], golden["blocked_grad_proto_align_adv"], 1e-10)
    both, _, _, one = terms_of(golden, dfa_proto_grad="both")
    clean_side, _, _, other = terms_of(golden)
    blocked.append(gradient(both["divergence"], one) - gradient(clean_side["divergence"], other))
    assert_close(blocked[2], golden["blocked_grad_proto_dfa_adv_side"], 1e-10)
    default = gradient(sum(clean_side.values()), other)
    assert_close(default + sum(blocked), golden["grad_proto_option_unblocked"], 1e-10)
    assert (default - golden["grad_proto_option_unblocked"]).abs().max() > 1e-3


@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
@each_case(LOSSES)
def test_adaptive_objective(case, alignment_reduction):
    golden = GOLDEN[case]
    model = flat_model(golden)
    labels = golden["labels"]
    defense = defense_of(golden, alignment_reduction)
    objective = defense.adaptive_objective(model, as_images(golden["feat_clean"]), labels)
    perturbed = as_images(golden["feat_adv"])
    assert_close(objective(model, perturbed), golden["adaptive_objective"], 1e-10)
    slope = input_gradient(objective, model, perturbed)
    assert_close(slope.flatten(1), golden["adaptive_grad_feat_adv"], 1e-10)
    assert model.prototypes.grad is None


@pytest.mark.parametrize(
    ("inner_loss", "name"), [("ce", "ce_adv"), ("dpp", "dpp_adv"), ("composite", "adaptive_objective")]
)
def test_inner_objective(inner_loss, name, monkeypatch):
    golden = GOLDEN["m3_hand"]
    model, crafted = flat_model(golden), as_images(golden["feat_adv"])
    ascended = []

    def craft(objective, view, start, images, context, **options):
        ascended.append(objective(view, crafted))
        return crafted

    monkeypatch.setattr(adv_dpnp, "craft", craft)
    defense, labels = defense_of(golden, inner_loss=inner_loss), golden["labels"]
    terms = defense.losses(model, as_images(golden["feat_clean"]), labels, context_of())
    assert_close(ascended[0], golden[name], 1e-10)
    assert_close(sum(terms.values()), golden["total"], 1e-10)


def test_prototypes_return_to_the_radius():
    golden = GOLDEN["renormalise"]
    prototypes = golden["prototypes_before"].clone()
    model = PrototypeClassifier(Pixels(prototypes.shape[1]), prototypes, 40.0)
    AdvDPNP(alpha=float(golden["alpha"])).begin_epoch(model, context_of())
    assert_close(model.prototypes, golden["prototypes_after"], 1e-10)


@pytest.mark.parametrize(("option", "prefix"), [(None, "wd_5e-4"), (0.0, "wd_0")])
def test_three_optimiser_steps(option, prefix):
    golden = GOLDEN["sgd"]
    backbone = Replay(golden["feat_clean"], golden["feat_adv"])
    model = PrototypeClassifier(backbone, golden["prototypes_initial"].clone(), 40.0)
    defense = defense_of(golden, proto_weight_decay=option)
    optimizer = torch.optim.SGD(
        defense.parameter_groups(model), lr=float(golden["lr"]), momentum=float(golden["momentum"]), weight_decay=5e-4
    )
    labels = golden["labels"]
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.float64)
    defense.begin_epoch(model, context_of())
    for step in (1, 2, 3):
        defense.update(model, optimizer, images, labels, context_of())
        assert_close(model.prototypes, golden[f"{prefix}.prototypes_after_step{step}"], 1e-10)


# ------------------------------------------------------------------------------------------- the options


def test_a_detached_target_teaches_the_perturbed_side_only():
    golden = GOLDEN["m10_signed_features"]
    terms, clean, perturbed, prototypes = terms_of(golden, dfa_target="detached")
    assert gradient(terms["divergence"], clean) is None
    assert gradient(terms["divergence"], prototypes) is None
    live, _, live_perturbed, _ = terms_of(golden)
    assert_close(terms["divergence"], live["divergence"].detach(), 1e-15)
    assert_close(gradient(sum(terms.values()), perturbed), golden["grad_feat_adv"], 1e-10)
    assert torch.equal(gradient(terms["divergence"], perturbed), gradient(live["divergence"], live_perturbed))


def test_summed_repulsion_is_classes_times_the_mean():
    golden = GOLDEN["m10_signed_features"]
    summed, _, _, prototypes = terms_of(golden, dnp_reduction="sum")
    classes = len(golden["prototypes"])
    assert_close(summed["repulsion"], classes * float(golden["lambda_dnp"]) * golden["dnp"], 1e-10)
    expected = classes * golden["grad_proto_dnp_both_ends"]
    assert_close(gradient(summed["repulsion"], prototypes), expected, 1e-10)


def test_repulsion_by_hand():
    prototypes = torch.tensor([[9.0, 0.0], [0.0, 16.0], [0.0, 100.0]], dtype=torch.float64)
    assert adv_dpnp.nearest_rival(prototypes).tolist() == [1, 0, 1]
    exact = -(2 * (3 + 4) + 84**0.5) / 3
    assert adv_dpnp.repulsion(prototypes, 0.0).item() == pytest.approx(exact, rel=1e-14)


def test_repulsion_and_its_slope_where_two_coordinates_nearly_meet():
    gap = smoothing = 1e-3
    prototypes = torch.tensor([[5.0, 0.0], [5.0 + gap, 0.0]], dtype=torch.float64, requires_grad=True)
    value = adv_dpnp.repulsion(prototypes, smoothing)
    # Per class the coordinate that differs by u gives (u^2 + e^2)^(1/4), the one that does not e^(1/2).
    assert value.item() == pytest.approx(-((2 * gap**2) ** 0.25) - smoothing**0.5, rel=1e-12)
    slope = gap / (2 * (2 * gap**2) ** 0.75)
    assert_close(gradient(value, prototypes), [[slope, 0.0], [-slope, 0.0]], 1e-9)


def test_near_rivals_far_from_the_origin_are_told_apart():
    generator = np.random.default_rng(3)
    prototypes = torch.from_numpy(1000 + 0.01 * generator.standard_normal((40, 8)).astype(np.float32))
    gaps = prototypes.double()[:, None] - prototypes.double()[None]
    expected = (gaps.square().sum(2) + torch.diag(torch.full((40,), torch.inf, dtype=torch.float64))).argmin(1)
    assert torch.equal(adv_dpnp.nearest_rival(prototypes), expected)


# ---------------------------------------------------------------------------------- the training run


def trainable(prototypes, **options):
    defense = AdvDPNP(alpha=5.0, **options)
    model = PrototypeClassifier(Pixels(2), torch.tensor(prototypes), 5.0)
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=0.1, momentum=0.9)
    return defense, model, optimizer


def radii(model):
    return torch.linalg.vector_norm(model.prototypes.detach(), dim=1).numpy()


def test_radius_and_momentum_across_an_epoch():
    images, labels = torch.rand(4, 2, 1, 1, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    for option, after_step, after_epoch in (("epoch", 0, 0), ("epoch+evaluation", 0, 1), ("step", 1, 1)):
        defense, model, optimizer = trainable([[3.0, 1.0], [0.0, 2.0], [-4.0, 1.0]], renormalise=option)
        defense.begin_epoch(model, context_of())
        assert_close(radii(model), np.full(3, 5.0), 1e-6)
        defense.update(model, optimizer, images, labels, context_of())
        momentum = optimizer.state[model.prototypes]["momentum_buffer"].clone()
        assert (np.abs(radii(model) - 5).max() < 1e-5) == after_step
        defense.end_epoch(model, context_of())
        assert (np.abs(radii(model) - 5).max() < 1e-5) == after_epoch
        defense.begin_epoch(model, context_of())
        assert_close(radii(model), np.full(3, 5.0), 1e-6)
        assert torch.equal(optimizer.state[model.prototypes]["momentum_buffer"], momentum)


def test_history_of_an_epoch_by_hand():
    history = {}
    defense, model, _ = trainable([[1.0, 0.0], [2.0, 2.0], [-3.0, 0.0]])
    context = context_of(record=lambda name, value: history.update({name: float(value)}))
    images = torch.tensor([[1.0, 1.0], [0.0, 0.5]])[:, :, None, None]
    defense.losses(model, images, torch.tensor([0, 1]), context)
    defense.end_epoch(model, context)
    # A point that is off by at most 8/255 in each of two coordinates.
    assert history.pop("perturbed_distance") == pytest.approx((1.0 + 2.5) / 2, abs=2**0.5 * 8 / 255)
    assert history == pytest.approx(
        {
            "feature_distance": (1.0 + 2.5) / 2,
            "prototype_radius": (1 + 8**0.5 + 3) / 3,
            "mean_separation": (45 + 45 + 135) / 3,
            "min_separation": 45.0,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, [(2, False), (2, False), (2, True), (2, True)]),
        ({"joint_forward": True}, [(2, False), (2, False), (4, True)]),
        ({"crafting_mode": "train"}, [(2, True)] * 4),
        ({"inner_loss": "composite"}, [(2, False)] * 3 + [(2, True)] * 2),
    ],
)
def test_forwards_of_a_batch(options, calls):
    defense, model, _ = trainable([[3.0, 4.0], [-5.0, 0.0]], **options)
    model.train()
    images = torch.tensor([[0.2, 0.9], [0.4, 0.1]])[:, :, None, None]
    terms = defense.losses(model, images, torch.tensor([0, 1]), context_of(steps=2))
    assert [(len(batch), training) for training, batch in model.backbone.seen] == calls
    # Clean images come first, joint or not: c_y . f / alpha by hand.
    gap = [(-0.2 - (0.6 * 0.2 + 0.8 * 0.9)), (0.6 * 0.4 + 0.8 * 0.1 + 0.4)]
    assert terms["clean"].item() == pytest.approx(np.log1p(np.exp(gap)).mean() / 2, rel=1e-6)


def test_build_follows_the_options():
    model = AdvDPNP().build(pixels(6), 4)
    assert model.prototypes.shape == (4, 6)
    assert torch.equal(model.class_centres(), model.prototypes)
    assert model.backbone.asked.get("final_activation", True)
    assert AdvDPNP(feature_relu=False).build(pixels(6), 4).backbone.asked["final_activation"] is False
    rows = AdvDPNP(prototype_init="orthogonal").build(pixels(6), 4).prototypes.detach()
    assert_close(rows @ rows.T, np.eye(4), 1e-6)
    assert torch.equal(AdvDPNP(prototype_init="linear").build(pixels(6), 4).prototypes, torch.eye(4, 6))


def test_prototypes_may_start_at_the_means_of_their_classes():
    """Of (1, 0), (3, 0) and (0, 2); the third class has no image, and keeps its direction. In the first epoch alone."""
    batches = [([[1.0, 0.0], [0.0, 2.0]], [0, 1]), ([[3.0, 0.0]], [0])]
    given = [(as_images(torch.tensor(images)), torch.tensor(labels)) for images, labels in batches]
    defense, model, _ = trainable([[-1.0, 1.0], [1.0, 1.0], [6.0, -8.0]], prototype_init="class-mean")
    defense.begin_epoch(model, context_of(training_set=lambda: given, epoch=1))
    assert_close(model.prototypes[1], np.full(2, 5 / np.sqrt(2)), 1e-6)
    adv_dpnp.start_at_class_means(model, context_of(training_set=lambda: given))
    assert_close(model.prototypes, [[2.0, 0.0], [0.0, 2.0], [3.0, -4.0]], 1e-6)
    defense.begin_epoch(model, context_of(training_set=lambda: given))
    assert_close(model.prototypes, [[5.0, 0.0], [0.0, 5.0], [3.0, -4.0]], 1e-6)
    assert model.training and model.prototypes.requires_grad


def test_parameter_groups_name_a_weight_decay_only_when_asked():
    _, model, _ = trainable([[3.0, 4.0], [-5.0, 0.0]])
    (shared,) = AdvDPNP().parameter_groups(model)
    assert list(shared) == ["params"]
    others, own = AdvDPNP(proto_weight_decay=0.0).parameter_groups(model)
    assert list(others) == ["params"]
    assert own["weight_decay"] == 0.0
    assert own["params"][0] is model.prototypes


def test_half_precision_features_are_scored_in_single_precision():
    golden = GOLDEN["m10_signed_features"]
    clean, perturbed, prototypes, labels = tensors_of(golden, torch.float32)
    rounded = [features.detach().bfloat16() for features in (clean, perturbed)]
    defense = defense_of(golden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = adv_dpnp.composite_terms(*rounded, prototypes, labels, defense)
    exact = adv_dpnp.composite_terms(*(features.double() for features in rounded), prototypes.double(), labels, defense)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert_close(term, exact[name].detach(), 1e-5)
