"""PCL against figures of the authors' code (its two losses, and whole steps of its training loop), and by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.defenses import pcl
from bench.defenses.pcl import PrototypeConformity
from bench.errors import BenchError
from bench.interfaces import Backbone, ThreatModel, TrainingContext
from tests import ROOT

PRECISIONS = {"64": (torch.float64, 1e-9), "32": (torch.float32, 2e-5)}


def load_cases():
    cases = {}
    with np.load(ROOT / "tests" / "goldens" / "pcl.npz") as arrays:
        for key in arrays.files:
            case, name = key.split("/", 1)
            cases.setdefault(case, {})[name] = arrays[key]
    return cases


GOLDENS = load_cases()
LOSSES = [case for case in GOLDENS if not case.startswith("step_")]
STEPS = [case for case in GOLDENS if case.startswith("step_")]


def every(cases):
    return [pytest.param(case, bits, id=f"pcl.npz-{case}-float{bits}") for case in cases for bits in PRECISIONS]


def assert_close(actual, expected, tolerance):
    actual = actual.detach().double().numpy()
    assert actual.shape == np.shape(expected)
    assert (np.abs(actual - expected) <= tolerance * (1 + np.abs(expected))).all(), np.abs(actual - expected).max()


class FlatBackbone(Backbone):
    """One rectified linear layer; remembers how many images each train-mode forward held."""

    def __init__(self, pixels, size):
        super().__init__()
        self.body = nn.Linear(pixels, size)
        self.feature_dim = self.map_channels = size
        self.batches = []

    def feature_map(self, images):
        if self.training:
            self.batches.append(len(images))
        return self.body(images.flatten(1)).relu()[:, :, None, None]

    def embed(self, feature_map):
        return feature_map.flatten(1)


def small_model(classes=3, size=4, width=5, **options):
    torch.manual_seed(0)
    defense = PrototypeConformity(width=width, **options)
    model = defense.build(lambda: FlatBackbone(12, size), classes).double()
    return defense, model, torch.optim.SGD(defense.parameter_groups(model), lr=0.1, momentum=0.9)


def context(epoch=0, epochs=1, record=lambda name, value: None):
    threat = ThreatModel()
    return TrainingContext(threat, 2, threat.radius / 2, torch.Generator().manual_seed(0), epoch, epochs, record=record)


def images(count):
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_goldens_hold_losses_and_steps():
    assert len(LOSSES) >= 7 and len(STEPS) >= 2


@pytest.mark.parametrize(("case", "bits"), every(LOSSES))
@pytest.mark.parametrize(("name", "loss"), [("prox", pcl.attraction), ("con", pcl.repulsion)])
def test_loss_and_gradients(case, bits, name, loss):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    features = torch.from_numpy(arrays["in/feats"]).to(dtype).requires_grad_()
    centres = torch.from_numpy(arrays[f"in/{name}_centers"]).to(dtype).requires_grad_()
    value = loss(features, centres, torch.from_numpy(arrays["in/labels"]))
    by_features, by_centres = torch.autograd.grad(value, (features, centres))
    assert_close(value, arrays[f"out{bits}/{name}_loss"], tolerance)
    assert_close(by_features, arrays[f"out{bits}/{name}_grad_feats"], tolerance)
    assert_close(by_centres, arrays[f"out{bits}/{name}_grad_centers"], tolerance)


@pytest.mark.parametrize(("case", "bits"), every(STEPS))
def test_whole_steps_of_network_and_centres(case, bits, monkeypatch):
    arrays, (dtype, tolerance) = GOLDENS[case], PRECISIONS[bits]
    rate, momentum, decay, attraction, attracting_rate, repulsion, repelling_rate = arrays["in/hparams"].tolist()
    classes, width = arrays["in/net.fcf.weight"].shape
    defense = PrototypeConformity(
        attraction, repulsion, attracting_rate, repelling_rate, warm_up=0.0, ramp=0.0, width=width
    )
    size, pixels = arrays["in/net.body.weight"].shape
    model = defense.build(lambda: FlatBackbone(pixels, size), classes)
    places = {
        **{f"net.body.{part}": f"backbone.body.{part}" for part in ("weight", "bias")},
        **{f"net.fc.{part}": f"wide.{part}" for part in ("weight", "bias")},
        **{f"net.fcf.{part}": f"head.{part}" for part in ("weight", "bias")},
        **{"prox_z_centers": "attracting.pooled", "prox_x_centers": "attracting.wide"},
        **{"con_z_centers": "repelling.pooled", "con_x_centers": "repelling.wide"},
    }
    model.load_state_dict({ours: torch.from_numpy(arrays[f"in/{theirs}"]) for theirs, ours in places.items()})
    model.to(dtype)
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=rate, momentum=momentum, weight_decay=decay)

    for step, labels in enumerate(torch.from_numpy(arrays["in/labels"])):
        perturbed = torch.from_numpy(arrays["in/adv"][step]).to(dtype)
        monkeypatch.setattr(pcl, "craft", lambda *arguments, perturbed=perturbed, **options: perturbed)
        clean = torch.from_numpy(arrays["in/clean"][step]).to(dtype)
        terms = defense.update(model, optimizer, clean, labels, context())
        names = ["cross_entropy", "wide_attraction", "pooled_attraction", "wide_repulsion", "pooled_repulsion"]
        signs = torch.tensor([1, 1, 1, 1, -1, -1])
        values = torch.stack([sum(terms.values()), *(terms[name] for name in names)])
        assert_close(values * signs, arrays[f"out{bits}/loss_terms"][step], tolerance)
    for theirs, ours in places.items():
        after = theirs.replace("net.", "net_after.") if theirs.startswith("net.") else f"{theirs}_after"
        assert_close(model.state_dict()[ours], arrays[f"out{bits}/{after}"], tolerance)


@pytest.mark.parametrize(
    ("epochs", "shares"),
    [
        (110, {0: 0.0, 9: 0.0, 10: 0.1, 14: 0.5, 19: 1.0, 20: 1.0, 109: 1.0}),
        (20, {0: 0.0, 1: 0.0, 2: 0.5, 3: 1.0, 19: 1.0}),
        (5, {0: 0.0, 1: 1.0, 4: 1.0}),
        (1, {0: 0.0}),
    ],
)
def test_weight_is_zero_in_the_warm_up_and_then_grows_to_one(epochs, shares):
    defense = PrototypeConformity()
    assert {epoch: defense.share_of_weight(epoch, epochs) for epoch in shares} == pytest.approx(shares)


def test_in_the_warm_up_attracting_centres_reach_the_class_mean_and_only_cross_entropy_trains(monkeypatch):
    defense, model, optimizer = small_model()
    _, plain, plain_optimizer = small_model()
    clean, labels = images(6), torch.full((6,), 2)
    perturbed = (clean + 0.03).clamp(0, 1)
    monkeypatch.setattr(pcl, "craft", lambda *arguments, **options: perturbed)
    both = torch.cat([clean, perturbed])
    with torch.no_grad():
        pooled = model.backbone(both)
        means = {"pooled": pooled.mean(0), "wide": model.wide(pooled).mean(0)}
    others = {name: table[:2].clone() for name, table in model.attracting.items()}

    terms = defense.update(model, optimizer, clean, labels, context(epoch=0, epochs=110))
    nn.functional.cross_entropy(plain(both), labels.repeat(2)).backward()
    plain_optimizer.step()

    assert [terms[name].item() for name in terms if name != "cross_entropy"] == [0.0] * 4
    for name, mean in means.items():
        torch.testing.assert_close(model.attracting[name][2].detach(), mean, rtol=1e-12, atol=1e-12)
        assert torch.equal(model.attracting[name][:2], others[name])
    for part in ("backbone.body.weight", "wide.weight", "head.weight", "head.bias"):
        torch.testing.assert_close(model.state_dict()[part], plain.state_dict()[part], rtol=1e-12, atol=1e-12)


def test_centres_are_in_the_checkpoint_but_not_in_the_shared_optimiser():
    defense, model, _ = small_model()
    names = {f"{table}.{layer}" for table in ("attracting", "repelling") for layer in ("pooled", "wide")}
    shared = {id(value) for group in defense.parameter_groups(model) for value in group["params"]}
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert names <= model.state_dict().keys() and names <= trainable
    assert {name for name, value in model.named_parameters() if id(value) not in shared} == names


def test_clean_and_perturbed_images_share_one_train_mode_forward():
    defense, model, optimizer = small_model()
    defense.update(model, optimizer, images(4), torch.tensor([0, 1, 2, 0]), context())
    assert model.backbone.batches == [8]


def test_a_step_leaves_no_gradient_on_the_centres():
    defense, model, optimizer = small_model(warm_up=0.0)
    defense.update(model, optimizer, images(4), torch.tensor([0, 1, 2, 0]), context())
    tables = [*model.attracting.values(), *model.repelling.values()]
    assert [table.grad for table in tables] == [None] * 4


def test_stiffness_is_recorded_by_its_definition():
    recorded = {}
    defense, model, optimizer = small_model(warm_up=0.0, ramp=0.0, attraction=0.25)
    with torch.no_grad():
        model.backbone.body.weight.zero_()
        model.backbone.body.bias.copy_(torch.tensor([1.0, 2.0, -5.0, 0.0]))
    defense.update(model, optimizer, images(2), torch.tensor([0, 1]), context(record=recorded.__setitem__))
    assert recorded["pooled_square_norm"].item() == pytest.approx(1 + 4)
    assert recorded["stiffness"].item() == pytest.approx(0.1 * 0.25 * (5 + 1))
    assert {"unweighted_pooled_attraction", "unweighted_wide_attraction"} <= recorded.keys()


def test_logits_are_two_linear_maps_of_the_pooled_features_and_centres_are_the_last_rows():
    _, model, _ = small_model()
    batch = images(3)
    by_hand = (model.backbone(batch) @ model.wide.weight.T + model.wide.bias) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(batch), by_hand)
    assert torch.equal(model.class_centres(), model.head.weight)
    assert model.class_centres().shape[1] == model.features(batch).shape[1]


def test_distances_to_float32_centres_are_taken_in_float32():
    centres = torch.tensor([[1.0, 1.0], [1.0, 1.001]])
    distances = pcl.squared_distances(torch.ones(1, 2, dtype=torch.bfloat16), centres)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances[0, 1], (centres[1, 1] - 1).square())


def test_adaptive_objective_is_the_distance_to_the_own_centre_less_that_to_the_nearest_other():
    defense, model, _ = small_model(classes=3, width=2)
    with torch.no_grad():
        model.attracting["wide"].copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]]))
        model.wide.weight.zero_()
        model.wide.bias.copy_(torch.tensor([1.0, 0.0]))
    batch, labels = images(3), torch.tensor([0, 1, 2])
    objective = defense.adaptive_objective(model, batch, labels)
    # h = (1, 0) is at squared distances 1, 4, 2 from the centres.
    torch.testing.assert_close(objective(model, batch), torch.tensor([1 - 2, 4 - 1, 2 - 1], dtype=torch.float64))


@pytest.mark.parametrize("options", [{"warm_up": 2.0}, {"ramp": -0.1}, {"width": 0}])
def test_impossible_hyperparameters_are_refused_on_one_line(options):
    (name,) = options
    with pytest.raises(BenchError, match=f"^hyperparameter {name}=.*: give [^\n]*$"):
        PrototypeConformity(**options)
