"""DRP against values of https://github.com/NullConvergence/repulsive_proto, the apparent first author's code."""

import math

import pytest
import torch
from torch.nn import functional

from bench.defenses.drp import PrototypeRegressor, RepulsivePrototypes, cosine_distance, largest_deviation, repel
from bench.errors import BenchError
from tests.support.goldens import Pixels, assert_close, each_case, each_precision, leaf, pixels, read, training_context

GOLDEN = read("drp")


@each_precision(absolute=1e-12)
@each_case(GOLDEN, "m10")
def test_largest_deviation(case, precision):
    stored, dtype = GOLDEN[case], precision.dtype
    outputs = leaf(stored["output"], dtype)
    loss = largest_deviation(outputs, stored["prototypes"].to(dtype)[stored["labels"]])
    precision.close(loss, stored["loss_inf"])
    precision.close(torch.autograd.grad(loss, outputs)[0], stored["grad_output_inf"])


@each_precision(absolute=1e-12)
@each_case(GOLDEN, "m10")
def test_cosine_distance_of_the_transposed_batch(case, precision):
    """The stored cosines run along the batch axis; ours run along the features, so both arguments are transposed."""
    stored, dtype = GOLDEN[case], precision.dtype
    outputs = leaf(stored["output"], dtype)
    targets = stored["prototypes"].to(dtype)[stored["labels"]]
    loss = cosine_distance(outputs.T, targets.T)
    power_sum = sum(
        (1 - functional.cosine_similarity(o, t, dim=0)) ** 2 for o, t in zip(outputs.T, targets.T, strict=True)
    )
    for ours, reduction in ((loss, "mean"), (power_sum, "power_sum")):
        precision.close(ours, stored[f"loss_{reduction}"])
        gradient = torch.autograd.grad(ours, outputs, retain_graph=True)[0]
        precision.close(gradient, stored[f"grad_output_{reduction}"])


@each_precision(absolute=1e-12)
@each_case(GOLDEN, "m10")
def test_scores(case, precision):
    """The stored scores are <o / |o|, P_k>; ours are <o, P_k> / mean_j |P_j|^2."""
    stored, dtype = GOLDEN[case], precision.dtype
    outputs, prototypes = stored["output"].to(dtype), stored["prototypes"].to(dtype)
    model = PrototypeRegressor(Pixels(outputs.shape[1]), prototypes).to(dtype)
    scores = model.score(outputs)
    mean_square = sum(sum(entry**2 for entry in row) for row in stored["prototypes"].tolist()) / len(prototypes)
    for norm, order in (("inf", torch.inf), ("mean", 2), ("power_sum", 2)):
        length = outputs.norm(p=order, dim=1, keepdim=True)
        precision.close(scores * mean_square / length, stored[f"scores_{norm}"])
        assert torch.equal(scores.argmax(1), stored[f"prediction_{norm}"])


@each_case(GOLDEN, "generate")
def test_generated_prototypes(case):
    stored = GOLDEN[case]
    assert (float(stored["lr"]), float(stored["momentum"])) == (0.01, 0.9)
    assert_close(repel(stored["start"], int(stored["steps"]), "sum"), stored["result"])


def test_one_step_on_the_mean_moves_the_widest_coordinate_of_each_pair():
    start = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.0, -2.0]], dtype=torch.float64)
    # widest: pair 01 coordinate 0, pair 02 coordinate 1, pair 12 coordinate 1; a step of 0.01 / 3 each
    expected = start + 0.01 / 3 * torch.tensor([[-1.0, 1.0], [1.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
    assert_close(repel(start, 1, "mean"), expected)


def test_losses_by_hand():
    outputs = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    prototypes = torch.tensor([[1.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    model = PrototypeRegressor(Pixels(2), prototypes).double()
    images = outputs[:, :, None, None]
    inf = RepulsivePrototypes().losses(model, images, labels, training_context())
    assert list(inf) == ["clean"]
    assert_close(inf["clean"], torch.tensor((4 + 1e-6 + 2 - 1e-6) / 2))
    cosine = RepulsivePrototypes(loss="cosine").losses(model, images, labels, training_context())
    assert_close(cosine["clean"], torch.tensor((0.4 + 1 - 1 / math.sqrt(2)) / 2, dtype=torch.float64))
    # mean squared length (1 + 8) / 2 = 4.5; inner products 3, 14 and 0, 4
    assert_close(model(images), torch.tensor([[3, 14], [0, 4]], dtype=torch.float64) / 4.5)
    lead = RepulsivePrototypes().adaptive_objective(model, images, labels)
    assert_close(lead(model, images), torch.tensor([11.0, -4.0], dtype=torch.float64) / 4.5)


@pytest.mark.parametrize(
    ("classes", "dimension", "reduction", "steps"), [(10, 100, "sum", 100), (11, 100, "mean", 1000)]
)
def test_automatic_settings(classes, dimension, reduction, steps):
    automatic = RepulsivePrototypes().prototypes(classes)
    assert automatic.shape == (classes, dimension)
    given = RepulsivePrototypes(dimension=dimension, reduction=reduction, prototype_steps=steps)
    assert torch.equal(automatic, given.prototypes(classes))
    other = "mean" if reduction == "sum" else "sum"
    assert not torch.equal(automatic, RepulsivePrototypes(reduction=other).prototypes(classes))
    assert RepulsivePrototypes(prototype_steps=1).prototypes(100).shape == (100, 500)


def test_prototypes_depend_on_their_own_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = RepulsivePrototypes().prototypes(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    with torch.no_grad():
        assert torch.equal(RepulsivePrototypes().prototypes(4), first)
    assert not torch.equal(RepulsivePrototypes(prototype_seed=1).prototypes(4), first)


def test_prototypes_of_the_cosine_loss_have_length_1():
    lengths = RepulsivePrototypes(loss="cosine").prototypes(10).norm(dim=1)
    assert_close(lengths, torch.ones(10), 1e-6)


def test_prototypes_that_confuse_classes_are_refused():
    """Repeated ascent on the sum makes some prototypes far longer than others, which they then outscore."""
    defense = RepulsivePrototypes(dimension=6, reduction="sum", prototype_steps=300)
    start = 2 * torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) - 1
    spread = repel(start, 300, "sum")
    confused = sum(int((spread @ row).argmax()) != index for index, row in enumerate(spread))
    with pytest.raises(BenchError, match=f"{confused} of 20 prototypes .*dimension=6.*reduction=mean") as refused:
        defense.build(pixels(6), 20)
    assert confused > 0
    assert "\n" not in str(refused.value)


def test_prototypes_are_saved_and_only_the_network_is_trained():
    model = RepulsivePrototypes(dimension=20).build(pixels(5), 3)
    assert set(model.state_dict()) == {"prototypes", "output.weight", "output.bias"}
    assert [name for name, _ in model.named_parameters()] == ["output.weight", "output.bias"]
    assert model.output.weight.shape == (20, 5)
    assert torch.equal(model.output.weight, torch.eye(20, 5))
    assert torch.equal(model.class_centres(), RepulsivePrototypes(dimension=20).prototypes(3))


@pytest.mark.parametrize(("given", "in_force"), [(None, 5e-4), (5e-5, 5e-5), (0.0, 0.0)])
def test_weight_decay_is_the_runs_unless_given(given, in_force):
    defense = RepulsivePrototypes(weight_decay=given)
    model = defense.build(pixels(5), 3)
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=0.1, weight_decay=5e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [in_force]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
