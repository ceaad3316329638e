"""Adv-DPNP against stored figures of a float64 NumPy reference, against its equations, and by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import cross_entropy, divergence, input_gradient
from bench.defenses import adv_dpnp
from bench.defenses.adv_dpnp import AdvDPNP, PrototypeClassifier
from bench.errors import BenchError
from bench.interfaces import Backbone, ThreatModel, TrainingContext
from tests import ROOT

WEIGHTS = ("lambda_dpp", "lambda_dnp", "lambda_dfa")
PRECISIONS = [pytest.param(torch.float64, 1e-10, id="float64"), pytest.param(torch.float32, 1e-5, id="float32")]


def load_cases():
    cases = {}
    with np.load(ROOT / "tests" / "goldens" / "adv_dpnp.npz") as arrays:
        for key in arrays.files:
            case, name = key.split("/")
            cases.setdefault(case, {})[name] = arrays[key]
    return cases


GOLDENS = load_cases()
REDUCTIONS = ["sum", "mean"]
LOSS_CASES = sorted(case for case, arrays in GOLDENS.items() if "total" in arrays)


def assert_close(actual, expected, tolerance):
    """No element is further off than `tolerance` times the largest expected magnitude."""
    actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    assert actual.shape == np.shape(expected)
    worst = np.abs(actual - expected).max()
    assert worst <= tolerance * max(np.abs(expected).max(), 1e-3), worst


def defense_of(arrays, alignment_reduction="sum", **options):
    """The defense of a stored case. The mean over d dimensions has the figures of the sum at d times the weight."""
    settings = {name: float(arrays[name]) for name in ("alpha", *WEIGHTS)}
    if alignment_reduction == "mean":
        settings["lambda_dpp"] *= arrays["prototypes"].shape[1]
    options["alignment_reduction"] = alignment_reduction
    return AdvDPNP(**settings, dnp_smoothing=float(arrays["dnp_eps"]), **options)


def tensors_of(arrays, dtype=torch.float64):
    """Clean features, perturbed features, prototypes (leaves that require a gradient) and labels."""
    leaves = [torch.from_numpy(arrays[name]).to(dtype) for name in ("feat_clean", "feat_adv", "prototypes")]
    return *(leaf.requires_grad_() for leaf in leaves), torch.from_numpy(arrays["labels"])


def terms_of(arrays, dtype=torch.float64, **options):
    clean, perturbed, prototypes, labels = tensors_of(arrays, dtype)
    terms = adv_dpnp.composite_terms(clean, perturbed, prototypes, labels, defense_of(arrays, **options))
    return terms, clean, perturbed, prototypes


def gradient(value, leaf):
    """The gradient of a scalar; None where no path leads from it to the leaf."""
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)[0]


class Replay(Backbone):
    """Answers the stored features in turn, whatever the images are, and notes how it was called."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.calls = answers, []
        self.feature_dim = self.map_channels = answers[0].shape[1]

    def feature_map(self, images):
        self.calls.append((len(images), self.training))
        return self.answers[(len(self.calls) - 1) % len(self.answers)][:, :, None, None]

    def embed(self, feature_map):
        return feature_map.flatten(1)


class Flat(Backbone):
    """The features are the pixels."""

    def __init__(self, feature_dim):
        super().__init__()
        self.feature_dim = self.map_channels = feature_dim
        self.calls = []

    def feature_map(self, images):
        self.calls.append((len(images), self.training))
        return images

    def embed(self, feature_map):
        return feature_map.flatten(1)

    def initialise_linear(self, linear):
        nn.init.constant_(linear.weight, 0.5)


class Wrapped(nn.Module):
    """Another module with the same attributes, as a harness may pass to an objective."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    features = property(lambda self: self.inner.features)
    score = property(lambda self: self.inner.score)
    prototypes = property(lambda self: self.inner.prototypes)


def flat_model(arrays):
    prototypes = torch.from_numpy(arrays["prototypes"]).clone()
    return PrototypeClassifier(Flat(prototypes.shape[1]), prototypes, float(arrays["alpha"]))


def as_images(features):
    return torch.from_numpy(features)[:, :, None, None]


def context_of(steps=0, **options):
    return TrainingContext(ThreatModel("linf", "8/255"), steps, 2 / 255, torch.Generator().manual_seed(0), **options)


# ------------------------------------------------------------------------------------- stored figures


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_values_per_sample(case, dtype, tolerance):
    golden = GOLDENS[case]
    clean, perturbed, prototypes, labels = tensors_of(golden, dtype)
    logits = {}
    for side, features in (("clean", clean), ("adv", perturbed)):
        logits[side] = adv_dpnp.prototype_logits(features, prototypes, float(golden["alpha"]))
        distance = adv_dpnp.squared_distance(features, prototypes, labels)
        error = cross_entropy(logits[side], labels)
        assert_close(logits[side], golden[f"logits_{side}"], tolerance)
        assert_close(error, golden[f"ce_{side}"], tolerance)
        assert_close(distance, golden[f"sqdist_{side}"], tolerance)
        assert_close(error + float(golden["lambda_dpp"]) / 2 * distance, golden[f"dpp_{side}"], tolerance)
    assert_close(divergence(logits["clean"], logits["adv"]), golden["dfa"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_repulsion_and_rivals(case, dtype, tolerance):
    golden = GOLDENS[case]
    prototypes = torch.from_numpy(golden["prototypes"]).to(dtype)
    assert adv_dpnp.nearest_rival(prototypes).tolist() == golden["rival"].tolist()
    smoothing = float(golden["dnp_eps"])
    assert_close(adv_dpnp.repulsion(prototypes, smoothing), golden["dnp"], tolerance)
    assert_close(adv_dpnp.repulsion(prototypes, 0.0), golden["dnp_exact_unsmoothed"], tolerance)
    summed = adv_dpnp.repulsion(prototypes, smoothing, reduction="sum")
    assert_close(summed, len(prototypes) * golden["dnp"], tolerance)


@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_total_and_feature_gradients(case, dtype, tolerance, alignment_reduction):
    golden = GOLDENS[case]
    terms, clean, perturbed, _ = terms_of(golden, dtype, alignment_reduction=alignment_reduction)
    total = sum(terms.values())
    assert total.dtype == dtype
    assert_close(total, golden["total"], tolerance)
    assert_close(gradient(total, clean), golden["grad_feat_clean"], tolerance)
    assert_close(gradient(total, perturbed), golden["grad_feat_adv"], tolerance)


@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_prototype_gradients_by_source(case, dtype, tolerance, alignment_reduction):
    golden = GOLDENS[case]
    terms, _, _, prototypes = terms_of(golden, dtype, alignment_reduction=alignment_reduction)
    sources = {
        "clean": "grad_proto_ce_clean",
        "clean_alignment": "grad_proto_align_clean",
        "divergence": "grad_proto_dfa_clean_side",
        "repulsion": "grad_proto_dnp_both_ends",
    }
    for term, name in sources.items():
        assert_close(gradient(terms[term], prototypes), golden[name], tolerance)
    for term in terms.keys() - sources.keys():
        assert gradient(terms[term], prototypes) is None
    fixed, _, _, prototypes = terms_of(golden, dtype, dnp_rival_grad="fixed")
    assert_close(gradient(fixed["repulsion"], prototypes), golden["grad_proto_dnp_rival_fixed"], tolerance)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "grad_proto_default"),
        ({"dfa_proto_grad": "both"}, "grad_proto_option_dfa_both_sides"),
        ({"dfa_proto_grad": "none"}, "grad_proto_option_no_dfa"),
        ({"dnp_rival_grad": "fixed"}, "grad_proto_option_rival_fixed"),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_prototype_gradient_of_every_option(case, dtype, tolerance, options, name):
    terms, _, _, prototypes = terms_of(GOLDENS[case], dtype, **options)
    assert_close(gradient(sum(terms.values()), prototypes), GOLDENS[case][name], tolerance)


@pytest.mark.parametrize("case", LOSS_CASES)
def test_what_is_blocked_is_what_plain_differentiation_would_add(case):
    golden = GOLDENS[case]
    clean, perturbed, prototypes, labels = tensors_of(golden)
    defense = defense_of(golden)
    swapped = adv_dpnp.composite_terms(perturbed, clean, prototypes, labels, defense)
    blocked = [gradient(swapped["clean"], prototypes), gradient(swapped["clean_alignment"], prototypes)]
    assert_close(blocked[0], golden["blocked_grad_proto_ce_adv"], 1e-10)
    assert_close(blocked[1], golden["blocked_grad_proto_align_adv"], 1e-10)
    both, _, _, leaf = terms_of(golden, dfa_proto_grad="both")
    clean_side, _, _, other_leaf = terms_of(golden)
    blocked.append(gradient(both["divergence"], leaf) - gradient(clean_side["divergence"], other_leaf))
    assert_close(blocked[2], golden["blocked_grad_proto_dfa_adv_side"], 1e-10)
    default = gradient(sum(clean_side.values()), other_leaf)
    assert_close(default + sum(blocked), golden["grad_proto_option_unblocked"], 1e-10)
    assert np.abs(default.numpy() - golden["grad_proto_option_unblocked"]).max() > 1e-3


@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_adaptive_objective(case, wrapped, alignment_reduction):
    golden = GOLDENS[case]
    model = flat_model(golden)
    view = Wrapped(model) if wrapped else model
    labels = torch.from_numpy(golden["labels"])
    defense = defense_of(golden, alignment_reduction)
    objective = defense.adaptive_objective(model, as_images(golden["feat_clean"]), labels)
    perturbed = as_images(golden["feat_adv"])
    assert_close(objective(view, perturbed), golden["adaptive_objective"], 1e-10)
    slope = input_gradient(objective, view, perturbed)
    assert_close(slope.flatten(1), golden["adaptive_grad_feat_adv"], 1e-10)
    assert model.prototypes.grad is None


@pytest.mark.parametrize(
    ("inner_loss", "name"), [("ce", "ce_adv"), ("dpp", "dpp_adv"), ("composite", "adaptive_objective")]
)
def test_inner_objective(inner_loss, name, monkeypatch):
    golden = GOLDENS["m3_hand"]
    model, crafted = flat_model(golden), as_images(golden["feat_adv"])
    ascended = []

    def craft(objective, view, start, images, context, **options):
        ascended.append(objective(view, crafted))
        return crafted

    monkeypatch.setattr(adv_dpnp, "craft", craft)
    defense, labels = defense_of(golden, inner_loss=inner_loss), torch.from_numpy(golden["labels"])
    terms = defense.losses(model, as_images(golden["feat_clean"]), labels, context_of())
    assert_close(ascended[0], golden[name], 1e-10)
    assert_close(sum(terms.values()), golden["total"], 1e-10)


def test_prototypes_return_to_the_radius():
    golden = GOLDENS["renormalise"]
    prototypes = torch.from_numpy(golden["prototypes_before"]).clone()
    model = PrototypeClassifier(Flat(prototypes.shape[1]), prototypes, 40.0)
    AdvDPNP(alpha=float(golden["alpha"])).begin_epoch(model, context_of())
    assert_close(model.prototypes, golden["prototypes_after"], 1e-10)


@pytest.mark.parametrize(("option", "prefix"), [(None, "wd_5e-4"), (0.0, "wd_0")])
def test_three_optimiser_steps(option, prefix):
    golden = GOLDENS["sgd"]
    backbone = Replay(torch.from_numpy(golden["feat_clean"]), torch.from_numpy(golden["feat_adv"]))
    model = PrototypeClassifier(backbone, torch.from_numpy(golden["prototypes_initial"]).clone(), 40.0)
    defense = defense_of(golden, proto_weight_decay=option)
    optimizer = torch.optim.SGD(
        defense.parameter_groups(model), lr=float(golden["lr"]), momentum=float(golden["momentum"]), weight_decay=5e-4
    )
    labels = torch.from_numpy(golden["labels"])
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.float64)
    defense.begin_epoch(model, context_of())
    for step in (1, 2, 3):
        defense.update(model, optimizer, images, labels, context_of())
        assert_close(model.prototypes, golden[f"{prefix}.prototypes_after_step{step}"], 1e-10)


# ---------------------------------------------------------------------------------------- the equations


def equations(clean, perturbed, prototypes, labels, defense):
    """Eq. 7 and its gradients for clean features, perturbed features and prototypes, term by term in NumPy."""
    batch, classes = len(labels), len(prototypes)
    share = 1 / (2 * batch)
    weight = defense.lambda_dpp / (clean.shape[1] if defense.alignment_reduction == "mean" else 1)
    one_hot = np.eye(classes)[labels]
    logs = []
    for features in (clean, perturbed):
        logits = features @ prototypes.T / defense.alpha
        top = logits.max(1, keepdims=True)
        logs.append(logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True)))
    p, q, ratio = np.exp(logs[0]), np.exp(logs[1]), logs[0] - logs[1]
    divergences = (p * ratio).sum(1)
    gaps = [clean - prototypes[labels], perturbed - prototypes[labels]]
    total = sum(-log[np.arange(batch), labels].sum() for log in logs) * share
    total += sum((gap**2).sum() for gap in gaps) * weight / 2 * share
    total += defense.lambda_dfa * divergences.sum() * share
    to_clean = share * (p - one_hot + defense.lambda_dfa * p * (ratio - divergences[:, None]))
    to_perturbed = share * (q - one_hot + defense.lambda_dfa * (q - p))
    grad_clean = to_clean @ prototypes / defense.alpha + share * weight * gaps[0]
    grad_perturbed = to_perturbed @ prototypes / defense.alpha + share * weight * gaps[1]
    grad_prototypes = to_clean.T @ clean / defense.alpha - share * weight * one_hot.T @ gaps[0]
    for j in range(classes):
        distances = [np.inf if k == j else np.linalg.norm(prototypes[k] - prototypes[j]) for k in range(classes)]
        rival = int(np.argmin(distances))
        u = prototypes[j] - prototypes[rival]
        soft = u**2 + defense.dnp_smoothing**2
        total -= defense.lambda_dnp / classes * (soft**0.25).sum()
        force = defense.lambda_dnp / classes * u / (2 * soft**0.75)
        grad_prototypes[j] -= force
        grad_prototypes[rival] += force
    return total, grad_clean, grad_perturbed, grad_prototypes


def drawn_case(kind):
    generator = np.random.default_rng(7)
    if kind == "nonnegative_m100":
        prototypes, shape = generator.standard_normal((100, 24)), (7, 24)
        defense = AdvDPNP(**AdvDPNP.published["cifar100"])
        clean, perturbed = (10 * generator.random(shape) for _ in range(2))
    else:
        prototypes, shape = generator.standard_normal((10, 16)), (8, 16)
        defense = AdvDPNP()
        clean, perturbed = (10 * generator.standard_normal(shape) for _ in range(2))
    prototypes *= 40 / np.linalg.norm(prototypes, axis=1, keepdims=True)
    if kind == "nearly_coincident_m10":
        prototypes[4] = prototypes[1] + 1e-4 * generator.standard_normal(16)
        prototypes[4, 3] = prototypes[1, 3]
    return clean, perturbed, prototypes, generator.integers(0, len(prototypes), shape[0]), defense


@pytest.mark.parametrize("kind", ["random_m10", "nonnegative_m100", "nearly_coincident_m10"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("alignment_reduction", REDUCTIONS)
def test_gradients_equal_the_equations(kind, dtype, tolerance, alignment_reduction):
    *arrays, labels, defense = drawn_case(kind)
    defense = dataclasses.replace(defense, alignment_reduction=alignment_reduction)
    leaves = [torch.from_numpy(array).to(dtype).requires_grad_() for array in arrays]
    expected = equations(*(leaf.detach().double().numpy() for leaf in leaves), labels, defense)
    total = sum(adv_dpnp.composite_terms(*leaves, torch.from_numpy(labels), defense).values())
    assert_close(total, expected[0], tolerance)
    for leaf, gradients in zip(leaves, expected[1:], strict=True):
        assert_close(gradient(total, leaf), gradients, tolerance)


def test_a_detached_target_teaches_the_perturbed_side_only():
    golden = GOLDENS["m10_signed_features"]
    terms, clean, perturbed, prototypes = terms_of(golden, dfa_target="detached")
    assert gradient(terms["divergence"], clean) is None
    assert gradient(terms["divergence"], prototypes) is None
    live, _, live_perturbed, _ = terms_of(golden)
    assert_close(terms["divergence"], live["divergence"].detach().numpy(), 1e-15)
    assert_close(gradient(sum(terms.values()), perturbed), golden["grad_feat_adv"], 1e-10)
    assert torch.equal(gradient(terms["divergence"], perturbed), gradient(live["divergence"], live_perturbed))


def test_summed_repulsion_is_classes_times_the_mean():
    golden = GOLDENS["m10_signed_features"]
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


def test_near_rivals_far_from_the_origin_are_told_apart():
    generator = np.random.default_rng(3)
    prototypes = torch.from_numpy(1000 + 0.01 * generator.standard_normal((40, 8)).astype(np.float32))
    gaps = prototypes.double()[:, None] - prototypes.double()[None]
    expected = (gaps.square().sum(2) + torch.diag(torch.full((40,), torch.inf, dtype=torch.float64))).argmin(1)
    assert torch.equal(adv_dpnp.nearest_rival(prototypes), expected)


# ---------------------------------------------------------------------------------- the training run


def trainable(prototypes, **options):
    defense = AdvDPNP(alpha=5.0, **options)
    model = PrototypeClassifier(Flat(2), torch.tensor(prototypes), 5.0)
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
    assert model.backbone.calls == calls
    # Clean images come first, joint or not: c_y . f / alpha by hand.
    gap = [(-0.2 - (0.6 * 0.2 + 0.8 * 0.9)), (0.6 * 0.4 + 0.8 * 0.1 + 0.4)]
    assert terms["clean"].item() == pytest.approx(np.log1p(np.exp(gap)).mean() / 2, rel=1e-6)


def test_build_follows_the_options():
    asked = []

    def factory(activation="relu", final_activation=True):
        asked.append(final_activation)
        return Flat(6)

    model = AdvDPNP().build(factory, 4)
    assert model.prototypes.shape == (4, 6)
    assert torch.equal(model.class_centres(), model.prototypes)
    AdvDPNP(feature_relu=False).build(factory, 4)
    assert asked == [True, False]
    rows = AdvDPNP(prototype_init="orthogonal").build(factory, 4).prototypes.detach()
    assert_close(rows @ rows.T, np.eye(4), 1e-6)
    assert torch.equal(AdvDPNP(prototype_init="linear").build(factory, 4).prototypes, torch.full((4, 6), 0.5))


def test_parameter_groups_name_a_weight_decay_only_when_asked():
    _, model, _ = trainable([[3.0, 4.0], [-5.0, 0.0]])
    (shared,) = AdvDPNP().parameter_groups(model)
    assert list(shared) == ["params"]
    others, own = AdvDPNP(proto_weight_decay=0.0).parameter_groups(model)
    assert list(others) == ["params"]
    assert own["weight_decay"] == 0.0
    assert own["params"][0] is model.prototypes


def test_half_precision_features_are_scored_in_single_precision():
    golden = GOLDENS["m10_signed_features"]
    clean, perturbed, prototypes, labels = tensors_of(golden, torch.float32)
    rounded = [features.detach().bfloat16() for features in (clean, perturbed)]
    defense = defense_of(golden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = adv_dpnp.composite_terms(*rounded, prototypes, labels, defense)
    exact = adv_dpnp.composite_terms(*(features.double() for features in rounded), prototypes.double(), labels, defense)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert_close(term, exact[name].detach().numpy(), 1e-5)


@pytest.mark.parametrize("name", ["alpha", "dnp_smoothing"])
def test_refuses_what_would_divide_by_zero(name):
    with pytest.raises(BenchError, match=f"{name} 0.0 is not above 0"):
        AdvDPNP(**{name: 0.0})
