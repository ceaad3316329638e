"""PCL against figures of the authors' code (its two losses, and whole steps of its training loop), and by hand."""

import pytest
import torch
from torch import nn

from bench.defenses import pcl
from bench.defenses.pcl import PrototypeConformity
from tests.support.goldens import Watched, each_case, each_precision, leaf, part, read, training_context

GOLDEN = read("pcl")


class OneLayer(Watched):
    """One rectified linear layer."""

    def __init__(self, pixels, size):
        super().__init__(size)
        self.body = nn.Linear(pixels, size)

    def features(self, images):
        return self.body(images.flatten(1)).relu()


def small_model(classes=3, size=4, width=5, **options):
    torch.manual_seed(0)
    defense = PrototypeConformity(width=width, **options)
    model = defense.build(lambda: OneLayer(12, size), classes).double()
    return defense, model, torch.optim.SGD(defense.parameter_groups(model), lr=0.1, momentum=0.9)


def context(epoch=0, epochs=1, **options):
    return training_context(step_size=4 / 255, steps=2, epoch=epoch, epochs=epochs, **options)


def images(count):
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_goldens_hold_losses_and_steps():
    steps = [case for case in GOLDEN if case.startswith("step")]
    assert len(steps) >= 2 and len(GOLDEN) - len(steps) >= 7


@each_precision(single=2e-5)
@each_case({case: figures for case, figures in GOLDEN.items() if not case.startswith("step")})
@pytest.mark.parametrize(("name", "loss"), [("prox", pcl.attraction), ("con", pcl.repulsion)])
def test_loss_and_gradients(case, precision, name, loss):
    given, figures = part(GOLDEN[case], "in/"), part(GOLDEN[case], f"out{precision.bits}/{name}_")
    features = leaf(given["feats"], precision.dtype)
    centres = leaf(given[f"{name}_centers"], precision.dtype)
    value = loss(features, centres, given["labels"])
    by_features, by_centres = torch.autograd.grad(value, (features, centres))
    precision.close(value, figures["loss"])
    precision.close(by_features, figures["grad_feats"])
    precision.close(by_centres, figures["grad_centers"])


@each_precision(single=2e-5)
@each_case(GOLDEN, "step")
def test_whole_steps_of_network_and_centres(case, precision, monkeypatch):
    given, figures = part(GOLDEN[case], "in/"), part(GOLDEN[case], f"out{precision.bits}/")
    rate, momentum, decay, attraction, attracting_rate, repulsion, repelling_rate = given["hparams"].tolist()
    classes, width = given["net.fcf.weight"].shape
    defense = PrototypeConformity(
        attraction, repulsion, attracting_rate, repelling_rate, warm_up=0.0, ramp=0.0, width=width
    )
    size, pixels = given["net.body.weight"].shape
    model = defense.build(lambda: OneLayer(pixels, size), classes)
    places = {
        **{f"net.body.{name}": f"backbone.body.{name}" for name in ("weight", "bias")},
        **{f"net.fc.{name}": f"wide.{name}" for name in ("weight", "bias")},
        **{f"net.fcf.{name}": f"head.{name}" for name in ("weight", "bias")},
        **{"prox_z_centers": "attracting.pooled", "prox_x_centers": "attracting.wide"},
        **{"con_z_centers": "repelling.pooled", "con_x_centers": "repelling.wide"},
    }
    model.load_state_dict({ours: given[theirs] for theirs, ours in places.items()})
    model.to(precision.dtype)
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=rate, momentum=momentum, weight_decay=decay)

    for step, labels in enumerate(given["labels"]):
        clean, perturbed = (given[name][step].to(precision.dtype) for name in ("clean", "adv"))
        monkeypatch.setattr(pcl, "craft", lambda *arguments, perturbed=perturbed, **options: perturbed)
        terms = defense.update(model, optimizer, clean, labels, context())
        names = ["cross_entropy", "wide_attraction", "pooled_attraction", "wide_repulsion", "pooled_repulsion"]
        signs = torch.tensor([1, 1, 1, 1, -1, -1])
        values = torch.stack([sum(terms.values()), *(terms[name] for name in names)])
        precision.close(values * signs, figures["loss_terms"][step])
    for theirs, ours in places.items():
        after = theirs.replace("net.", "net_after.") if theirs.startswith("net.") else f"{theirs}_after"
        precision.close(model.state_dict()[ours], figures[after])


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
    for name in ("backbone.body.weight", "wide.weight", "head.weight", "head.bias"):
        torch.testing.assert_close(model.state_dict()[name], plain.state_dict()[name], rtol=1e-12, atol=1e-12)


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
    assert [len(batch) for training, batch in model.backbone.seen if training] == [8]


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
