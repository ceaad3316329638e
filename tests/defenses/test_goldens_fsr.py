"""FSR against figures of the authors' code (mask, modules, losses, one training step, attacks), and by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import ascend, cross_entropy, margin
from bench.defenses import fsr
from bench.defenses.fsr import FeatureSeparationRecalibration, Outputs, RecalibratedClassifier
from bench.errors import BenchError
from bench.interfaces import Backbone, ThreatModel, TrainingContext
from tests import ROOT

PRECISIONS = {"64": (torch.float64, 1e-8), "32": (torch.float32, 1e-4)}
HEADS = ("out", "r", "nr", "rec")


def load_cases():
    cases = {}
    with np.load(ROOT / "tests" / "goldens" / "fsr.npz") as arrays:
        for key in arrays.files:
            case, name = key.split("/", 1)
            cases.setdefault(case, {})[name] = arrays[key]
    return cases


GOLDENS = load_cases()


def kind(prefix):
    return [case for case in GOLDENS if case.startswith(f"{prefix}_")]


def every(prefix):
    return [pytest.param(case, bits, id=f"fsr.npz-{case}-float{bits}") for case in kind(prefix) for bits in PRECISIONS]


def only_float64(prefix):
    return [pytest.param(case, id=f"fsr.npz-{case}-float64") for case in kind(prefix)]


def assert_close(actual, expected, tolerance):
    actual = actual.detach().double().numpy()
    assert actual.shape == np.shape(expected)
    assert (np.abs(actual - expected) <= tolerance * (1 + np.abs(expected))).all(), np.abs(actual - expected).max()


class MapBackbone(Backbone):
    """The image is the feature map, rectified as in the authors' tail or (modules) as it is."""

    def __init__(self, channels, rectify=True):
        super().__init__()
        self.feature_dim = self.map_channels = channels
        self.rectify = rectify

    def feature_map(self, images):
        return images.relu() if self.rectify else images.clone()

    def embed(self, feature_map):
        return feature_map.mean((2, 3))


class StoredNoise(RecalibratedClassifier):
    """Takes the stored uniform numbers where there are some."""

    noise = None

    def uniforms(self, like, generator):
        return super().uniforms(like, generator) if self.noise is None else self.noise.view(2, *like.shape).to(like)


def theirs(name):
    """The authors' name of one of our parameters or buffers."""
    renamed = {"separation": "separation.sep_net", "recalibration": "recalibration.rec_net"}
    renamed |= {"auxiliary": "aux.0", "head": "linear"}
    first, _, rest = name.partition(".")
    return f"{renamed[first]}.{rest}"


def restored(arrays, dtype, prefix, rectify=True):
    """The model of a case: weights from `prefix`, in eval mode, with the stored noise for train mode."""
    width, channels = arrays[f"{prefix}separation.sep_net.0.weight"].shape[:2]
    classes = arrays.get(f"{prefix}linear.bias", np.zeros(2)).shape[0]
    model = StoredNoise(MapBackbone(channels, rectify), classes, float(arrays["in/tau"]), width)
    names = {ours: f"{prefix}{theirs(ours)}" for ours in model.state_dict()}
    state = {ours: torch.as_tensor(arrays[name]) for ours, name in names.items() if name in arrays}
    left = set(model.load_state_dict(state, strict=False).missing_keys)
    assert left <= ({"auxiliary.weight", "auxiliary.bias", "head.weight", "head.bias"} if prefix == "in/" else set())
    if "in/u_pos" in arrays:
        model.noise = torch.from_numpy(np.stack([arrays["in/u_pos"], arrays["in/u_neg"]]))
    return model.to(dtype).eval()


def context(record=lambda name, value: None):
    return TrainingContext(ThreatModel(), 2, 2 / 255, torch.Generator().manual_seed(0), record=record)


def small_model(tau=0.1):
    torch.manual_seed(0)
    defense = FeatureSeparationRecalibration(tau=tau)
    batch = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return defense, defense.build(lambda: MapBackbone(3), 5), batch, torch.tensor([0, 4, 2, 1])


def test_the_goldens_hold_every_kind_of_case():
    kinds = ("gumbel", "module", "tail", "loss", "attack", "cw")
    assert all(len(kind(prefix)) >= 1 for prefix in kinds) and len(GOLDENS) == sum(len(kind(p)) for p in kinds)


@pytest.mark.parametrize(("case", "bits"), every("gumbel"))
def test_mask(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    probability = torch.from_numpy(arrays["in/p"]).to(dtype).requires_grad_()
    uniforms = None
    if "in/u_pos" in arrays:
        uniforms = torch.from_numpy(np.stack([arrays["in/u_pos"], arrays["in/u_neg"]])).to(dtype)
    mask = fsr.soft_mask(probability, float(arrays["in/tau"]), uniforms)
    both = torch.stack([mask, 1 - mask], 1)
    (slope,) = torch.autograd.grad((both * torch.from_numpy(arrays["in/cotangent"]).to(dtype)).sum(), probability)
    assert_close(both, arrays[f"out{bits}/soft"], tolerance)
    assert_close(slope, arrays[f"out{bits}/grad_p"], tolerance)


@pytest.mark.parametrize(("case", "bits"), every("module"))
def test_separation_and_recalibration(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    model = restored(arrays, dtype, "in/", rectify=False).train(str(arrays["in/mode"]) == "train_noise")
    feature_map = torch.from_numpy(arrays["in/feat"]).to(dtype).requires_grad_()
    parts = model.separate(feature_map)
    names = {"mask": "mask", "robust": "r_feat", "fragile": "nr_feat", "recalibrated": "rec_feat"}
    total = torch.zeros((), dtype=dtype)
    for ours, name in names.items():
        assert_close(getattr(parts, ours), arrays[f"out{bits}/{name}"], tolerance)
        total = total + (getattr(parts, ours) * torch.from_numpy(arrays[f"in/cotangent_{name}"]).to(dtype)).sum()
    total.backward()
    assert_close(feature_map.grad, arrays[f"out{bits}/grad_feat"], tolerance)
    for name, parameter in model.named_parameters():
        if name.startswith(("separation", "recalibration")):
            assert_close(parameter.grad, arrays[f"out{bits}/grad_{theirs(name)}"], tolerance)
    if model.training:
        for name, buffer in model.named_buffers():
            if "running" in name:
                assert_close(buffer, arrays[f"out{bits}/after_{theirs(name)}"], tolerance)


@pytest.mark.parametrize(("case", "bits"), every("tail"))
def test_logits_and_attack_gradient_in_evaluation(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    model = restored(arrays, dtype, "in/net.")
    images = torch.from_numpy(arrays["in/feat"]).to(dtype).requires_grad_()
    outputs = model.outputs(model.separate(model.backbone.feature_map(images)))
    for logits, name in zip(outputs, HEADS, strict=True):
        assert_close(logits, arrays[f"out{bits}/eval_logits_{name}"], tolerance)
    assert torch.equal(outputs.final, model(images))
    loss = cross_entropy(model(images), torch.from_numpy(arrays["in/labels"])).mean()
    assert_close(loss, arrays[f"out{bits}/eval_ce"], tolerance)
    (slope,) = torch.autograd.grad(loss, images)
    assert_close(slope, arrays[f"out{bits}/eval_ce_grad_feat"], tolerance)


@pytest.mark.parametrize(("case", "bits"), every("tail"))
def test_training_step(case, bits, monkeypatch):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    model = restored(arrays, dtype, "in/net.").train()
    images = torch.from_numpy(arrays["in/feat"]).to(dtype).requires_grad_()
    monkeypatch.setattr(fsr, "craft", lambda *arguments, **options: images)
    seen, outputs = [], type(model).outputs
    monkeypatch.setattr(type(model), "outputs", lambda self, parts: seen.append(outputs(self, parts)) or seen[-1])
    defense = FeatureSeparationRecalibration(*arrays["in/lam_sep_lam_rec"].tolist())
    rate, momentum, decay = arrays["in/sgd_lr_mom_wd"].tolist()
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=rate, momentum=momentum, weight_decay=decay)
    terms = defense.update(model, optimizer, images, torch.from_numpy(arrays["in/labels"]), context())

    for logits, name in zip(seen[0], HEADS, strict=True):
        assert_close(logits, arrays[f"out{bits}/train_logits_{name}"], tolerance)
    rivals = fsr.strongest_rival(seen[0].final, torch.from_numpy(arrays["in/labels"]))
    assert rivals.tolist() == arrays[f"out{bits}/nr_targets"].tolist()
    weights = (1.0, defense.separation, defense.separation, defense.recalibration)
    for value, name, weight in zip(terms.values(), HEADS, weights, strict=True):
        assert_close(value, weight * arrays[f"out{bits}/train_ce_{name}"], tolerance)
    assert_close(sum(terms.values()), arrays[f"out{bits}/train_total"], tolerance)
    assert_close(images.grad, arrays[f"out{bits}/train_grad_feat"], tolerance)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, arrays[f"out{bits}/train_grad.{theirs(name)}"], tolerance)
    for name, value in model.state_dict().items():
        assert_close(value, arrays[f"out{bits}/after_sgd.{theirs(name)}"], tolerance)


@pytest.mark.parametrize(("case", "bits"), every("loss"))
def test_losses_of_given_logits(case, bits):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    logits = Outputs(*(torch.from_numpy(arrays[f"in/logits_{name}"]).to(dtype).requires_grad_() for name in HEADS))
    labels = torch.from_numpy(arrays["in/labels"])
    separation, recalibration = arrays["in/lam_sep_lam_rec"].tolist()
    terms = FeatureSeparationRecalibration(separation, recalibration).terms(logits, labels)
    assert fsr.strongest_rival(logits.final, labels).tolist() == arrays[f"out{bits}/nr_targets"].tolist()
    for value, name, weight in zip(terms.values(), HEADS, (1.0, separation, separation, recalibration), strict=True):
        assert_close(value, weight * arrays[f"out{bits}/ce_{name}"], tolerance)
    assert_close(sum(terms.values()), arrays[f"out{bits}/total"], tolerance)
    for slope, name in zip(torch.autograd.grad(sum(terms.values()), logits), HEADS, strict=True):
        assert_close(slope, arrays[f"out{bits}/grad_{name}"], tolerance)


ATTACKS = {
    "train_pgd10_no_random_start": (cross_entropy, 10, "eps/4"),
    "fgsm": (cross_entropy, 1, "eps"),
    "pgd20_step0.1eps": (cross_entropy, 20, "0.1*eps"),
    "cw30_step0.1eps": (lambda z, y: margin(z, y, 50.0), 30, "0.1*eps"),
}


@pytest.mark.parametrize("case", only_float64("attack"))
@pytest.mark.parametrize("name", ATTACKS)
def test_attacked_images(case, name):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS["64"]
    model, threat = restored(arrays, dtype, "in/net."), ThreatModel()
    images, labels = torch.from_numpy(arrays["in/x"]).to(dtype), torch.from_numpy(arrays["in/labels"])
    loss, steps, step = ATTACKS[name]
    perturbed = ascend(
        lambda model, x: loss(model(x), labels), model, images, images, threat, steps, threat.length(step)
    )
    assert_close(model(images), arrays["out64/clean_logits"], tolerance)
    assert_close(perturbed, arrays[f"out64/{name}"], tolerance)
    assert_close(model(perturbed), arrays[f"out64/{name}_logits"], tolerance)


@pytest.mark.parametrize("case", only_float64("cw"))
def test_margin_objective_of_the_authors_attack(case):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS["64"]
    logits = torch.from_numpy(arrays["in/logits"]).to(dtype).requires_grad_()
    value = margin(logits, torch.from_numpy(arrays["in/labels"]), 50.0).sum()
    (slope,) = torch.autograd.grad(value, logits)
    assert_close(value, arrays["out64/cw_objective_maximised"], tolerance)
    assert_close(slope, arrays["out64/grad_logits"], tolerance)


def test_noise_in_train_mode_only():
    _, model, batch, _ = small_model()
    model.eval()
    state = torch.random.get_rng_state()
    assert torch.equal(model(batch), model(batch)) and torch.equal(torch.random.get_rng_state(), state)
    model.train()
    first, second, again = (model.separate(batch, torch.Generator().manual_seed(seed)).mask for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_training_draws_its_mask_from_the_run_generator_and_crafts_without_noise(monkeypatch):
    defense, model, batch, labels = small_model()
    model.train()
    drawn, uniforms = [], type(model).uniforms
    monkeypatch.setattr(
        type(model),
        "uniforms",
        lambda self, like, generator: drawn.append(generator) or uniforms(self, like, generator),
    )
    run, state = context(), torch.random.get_rng_state()
    defense.losses(model, batch, labels, run)
    assert drawn == [run.generator]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert int(model.separation[1].num_batches_tracked) == 1


def test_a_mask_is_a_draw_of_its_probability():
    probability = torch.full((40_000,), 0.3)
    uniforms = torch.rand((2, 40_000), generator=torch.Generator().manual_seed(0))
    kept = (fsr.soft_mask(probability, 0.1, uniforms) > 0.5).float().mean()
    assert kept.item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 40_000) ** 0.5)


def test_features_are_the_plain_ones_and_a_residual_gated_twice():
    _, model, batch, _ = small_model()
    model.eval()
    mask = (model.separation(batch) / 0.1).sigmoid()
    by_hand = batch + (1 - mask) * model.recalibration((1 - mask) * batch)
    torch.testing.assert_close(model.features(batch), by_hand.mean((2, 3)), rtol=1e-4, atol=1e-6)
    assert torch.equal(model(batch), model.head(model.features(batch)))
    assert torch.equal(model.class_centres(), model.head.weight)


@pytest.mark.parametrize(("bias", "share"), [(1e4, 0.0), (0.0, 1.0)])
def test_recorded_share_of_undecided_mask_elements(bias, share, monkeypatch):
    defense, model, batch, labels = small_model()
    monkeypatch.setattr(model, "separation", Constant(bias))
    monkeypatch.setattr(type(model), "uniforms", lambda self, like, generator: torch.full((2, *like.shape), 0.5))
    recorded = {}
    defense.losses(model, batch, labels, context(recorded.__setitem__))
    assert recorded["undecided_mask_share"].item() == share
    if bias:
        assert recorded["relative_residual"].item() < 1e-6


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, feature_map):
        return torch.full_like(feature_map, self.value)


@pytest.mark.parametrize("score", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mask_gradient_stays_finite_where_half_precision_would_not(score, dtype, monkeypatch):
    _, model, batch, _ = small_model()
    scores = torch.full(batch.shape, score, dtype=dtype, requires_grad=True)
    monkeypatch.setattr(model, "separation", Returns(scores))
    mask = model.separate(batch).mask
    mask.sum().backward()
    assert mask.dtype == torch.float32 and bool(mask.isfinite().all()) and bool(scores.grad.isfinite().all())


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, feature_map):
        return self.value


def test_adaptive_objective_adds_the_losses_of_the_parts():
    defense, model, batch, labels = small_model()
    model.eval()
    outputs = model.outputs(model.separate(batch))
    parts = [outputs.final, outputs.robust, outputs.recalibrated]
    expected = sum(nn.functional.cross_entropy(logits, labels, reduction="none") for logits in parts)
    torch.testing.assert_close(defense.adaptive_objective(model, batch, labels)(model, batch), expected)


def test_a_backbone_that_embeds_otherwise_keeps_its_own_features():
    class Flattening(MapBackbone):
        def __init__(self):
            super().__init__(3)
            self.feature_dim = 48

        def embed(self, feature_map):
            return feature_map.flatten(1)

    model = FeatureSeparationRecalibration().build(Flattening, 5).eval()
    outputs = model.outputs(model.separate(torch.rand(2, 3, 4, 4)))
    assert (model.auxiliary.in_features, model.head.in_features) == (3, 48)
    assert [tuple(logits.shape) for logits in outputs] == [(2, 5)] * 4


def test_parameter_count_of_the_authors_modules():
    model = FeatureSeparationRecalibration().build(lambda: MapBackbone(512), 10)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model.separation, model.recalibration, model.auxiliary)]
    assert sizes == [626_944, 626_944, 5_130]


def test_temperature_zero_is_refused_on_one_line():
    with pytest.raises(BenchError, match=r"^hyperparameter tau=0.0 is not above 0: give [^\n]*$"):
        FeatureSeparationRecalibration(tau=0.0)
