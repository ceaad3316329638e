"""FSR against figures of the authors' code (mask, modules, losses, one training step, attacks), and by hand."""

import pytest
import torch
from torch import nn

from bench.attacks import ascend, cross_entropy, margin
from bench.defenses import fsr
from bench.defenses.fsr import FeatureSeparationRecalibration, Outputs, RecalibratedClassifier
from bench.interfaces import Backbone, ThreatModel
from tests.support.goldens import assert_close, each_case, each_precision, leaf, part, read, training_context

GOLDEN = read("fsr")
HEADS = ("out", "r", "nr", "rec")
each_of_both = each_precision(1e-8, 1e-4)


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


def restored(given, dtype, prefix, rectify=True):
    """The model of a case: weights from `prefix`, in eval mode, with the stored noise for train mode."""
    width, channels = given[f"{prefix}separation.sep_net.0.weight"].shape[:2]
    classes = len(given.get(f"{prefix}linear.bias", (0, 0)))
    model = StoredNoise(MapBackbone(channels, rectify), classes, float(given["tau"]), width)
    names = {ours: f"{prefix}{theirs(ours)}" for ours in model.state_dict()}
    state = {ours: given[name] for ours, name in names.items() if name in given}
    left = set(model.load_state_dict(state, strict=False).missing_keys)
    assert left <= (set() if prefix else {"auxiliary.weight", "auxiliary.bias", "head.weight", "head.bias"})
    if "u_pos" in given:
        model.noise = torch.stack([given["u_pos"], given["u_neg"]])
    return model.to(dtype).eval()


def context(**options):
    return training_context(steps=2, **options)


def split(case, precision=None):
    """What a case was computed from, and its figures."""
    return part(GOLDEN[case], "in/"), part(GOLDEN[case], f"out{precision.bits if precision else 64}/")


def small_model(tau=0.1):
    torch.manual_seed(0)
    defense = FeatureSeparationRecalibration(tau=tau)
    batch = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return defense, defense.build(lambda: MapBackbone(3), 5), batch, torch.tensor([0, 4, 2, 1])


@each_of_both
@each_case(GOLDEN, "gumbel_")
def test_mask(case, precision):
    (given, figures), dtype = split(case, precision), precision.dtype
    probability = leaf(given["p"], dtype)
    uniforms = None
    if "u_pos" in given:
        uniforms = torch.stack([given["u_pos"], given["u_neg"]]).to(dtype)
    mask = fsr.soft_mask(probability, float(given["tau"]), uniforms)
    both = torch.stack([mask, 1 - mask], 1)
    (slope,) = torch.autograd.grad((both * given["cotangent"].to(dtype)).sum(), probability)
    precision.close(both, figures["soft"])
    precision.close(slope, figures["grad_p"])


@each_of_both
@each_case(GOLDEN, "module_")
def test_separation_and_recalibration(case, precision):
    (given, figures), dtype = split(case, precision), precision.dtype
    model = restored(given, dtype, "", rectify=False).train(given["mode"] == "train_noise")
    feature_map = leaf(given["feat"], dtype)
    parts = model.separate(feature_map)
    names = {"mask": "mask", "robust": "r_feat", "fragile": "nr_feat", "recalibrated": "rec_feat"}
    total = torch.zeros((), dtype=dtype)
    for ours, name in names.items():
        precision.close(getattr(parts, ours), figures[f"{name}"])
        total = total + (getattr(parts, ours) * given[f"cotangent_{name}"].to(dtype)).sum()
    total.backward()
    precision.close(feature_map.grad, figures["grad_feat"])
    for name, parameter in model.named_parameters():
        if name.startswith(("separation", "recalibration")):
            precision.close(parameter.grad, figures[f"grad_{theirs(name)}"])
    if model.training:
        for name, buffer in model.named_buffers():
            if "running" in name:
                precision.close(buffer, figures[f"after_{theirs(name)}"])


@each_of_both
@each_case(GOLDEN, "tail_")
def test_logits_and_attack_gradient_in_evaluation(case, precision):
    (given, figures), dtype = split(case, precision), precision.dtype
    model = restored(given, dtype, "net.")
    images = leaf(given["feat"], dtype)
    outputs = model.outputs(model.separate(model.backbone.feature_map(images)))
    for logits, name in zip(outputs, HEADS, strict=True):
        precision.close(logits, figures[f"eval_logits_{name}"])
    assert torch.equal(outputs.final, model(images))
    loss = cross_entropy(model(images), given["labels"]).mean()
    precision.close(loss, figures["eval_ce"])
    (slope,) = torch.autograd.grad(loss, images)
    precision.close(slope, figures["eval_ce_grad_feat"])


@each_of_both
@each_case(GOLDEN, "tail_")
def test_training_step(case, precision, monkeypatch):
    (given, figures), dtype = split(case, precision), precision.dtype
    model = restored(given, dtype, "net.").train()
    images = leaf(given["feat"], dtype)
    monkeypatch.setattr(fsr, "craft", lambda *arguments, **options: images)
    seen, outputs = [], type(model).outputs
    monkeypatch.setattr(type(model), "outputs", lambda self, parts: seen.append(outputs(self, parts)) or seen[-1])
    defense = FeatureSeparationRecalibration(*given["lam_sep_lam_rec"].tolist())
    rate, momentum, decay = given["sgd_lr_mom_wd"].tolist()
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=rate, momentum=momentum, weight_decay=decay)
    terms = defense.update(model, optimizer, images, given["labels"], context())

    for logits, name in zip(seen[0], HEADS, strict=True):
        precision.close(logits, figures[f"train_logits_{name}"])
    rivals = fsr.strongest_rival(seen[0].final, given["labels"])
    assert torch.equal(rivals, figures["nr_targets"])
    weights = (1.0, defense.separation, defense.separation, defense.recalibration)
    for value, name, weight in zip(terms.values(), HEADS, weights, strict=True):
        precision.close(value, weight * figures[f"train_ce_{name}"])
    precision.close(sum(terms.values()), figures["train_total"])
    precision.close(images.grad, figures["train_grad_feat"])
    for name, parameter in model.named_parameters():
        precision.close(parameter.grad, figures[f"train_grad.{theirs(name)}"])
    for name, value in model.state_dict().items():
        precision.close(value, figures[f"after_sgd.{theirs(name)}"])


@each_of_both
@each_case(GOLDEN, "loss_")
def test_losses_of_given_logits(case, precision):
    (given, figures), dtype = split(case, precision), precision.dtype
    logits = Outputs(*(leaf(given[f"logits_{name}"], dtype) for name in HEADS))
    labels = given["labels"]
    separation, recalibration = given["lam_sep_lam_rec"].tolist()
    terms = FeatureSeparationRecalibration(separation, recalibration).terms(logits, labels)
    assert torch.equal(fsr.strongest_rival(logits.final, labels), figures["nr_targets"])
    for value, name, weight in zip(terms.values(), HEADS, (1.0, separation, separation, recalibration), strict=True):
        precision.close(value, weight * figures[f"ce_{name}"])
    precision.close(sum(terms.values()), figures["total"])
    for slope, name in zip(torch.autograd.grad(sum(terms.values()), logits), HEADS, strict=True):
        precision.close(slope, figures[f"grad_{name}"])


ATTACKS = {
    "train_pgd10_no_random_start": (cross_entropy, 10, "eps/4"),
    "fgsm": (cross_entropy, 1, "eps"),
    "pgd20_step0.1eps": (cross_entropy, 20, "0.1*eps"),
    "cw30_step0.1eps": (lambda z, y: margin(z, y, 50.0), 30, "0.1*eps"),
}


@each_case(GOLDEN, "attack_")
@pytest.mark.parametrize("name", ATTACKS)
def test_attacked_images(case, name):
    given, figures = split(case)
    model, threat = restored(given, torch.float64, "net."), ThreatModel()
    images, labels = given["x"].double(), given["labels"]
    loss, steps, step = ATTACKS[name]
    perturbed = ascend(
        lambda model, x: loss(model(x), labels), model, images, images, threat, steps, threat.length(step)
    )
    assert_close(model(images), figures["clean_logits"], 1e-8)
    assert_close(perturbed, figures[name], 1e-8)
    assert_close(model(perturbed), figures[f"{name}_logits"], 1e-8)


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
    monkeypatch.setattr(model, "separation", Returns(torch.full(batch.shape, bias)))
    monkeypatch.setattr(type(model), "uniforms", lambda self, like, generator: torch.full((2, *like.shape), 0.5))
    recorded = {}
    defense.losses(model, batch, labels, context(record=recorded.__setitem__))
    assert recorded["undecided_mask_share"].item() == share
    if bias:
        assert recorded["relative_residual"].item() < 1e-6


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
