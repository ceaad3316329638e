"""Hyperspherical prototypes against figures of the authors' code, and against the regular simplex."""

import pytest
import torch

from bench.defenses.hyperspherical_prototypes import HypersphericalPrototypes, SphericalClassifier, simplex, spread
from bench.errors import BenchError
from tests.support.goldens import Pixels, assert_close, each_case, pixels, read, training_context

GOLDEN = read("hyperspherical_prototypes")


def cosines(points):
    """The cosines of different rows; each pair twice."""
    product = points @ points.T
    return product[~torch.eye(len(points), dtype=torch.bool)]


@each_case(GOLDEN, "spread")
def test_the_descent_is_the_authors(case):
    stored = GOLDEN[case]
    assert_close(spread(stored["start"], int(stored["steps"])), stored["result"], 1e-9)


def test_loss_gradient_and_prediction_are_the_authors():
    stored = GOLDEN["loss"]
    count = len(stored["y"])
    model = SphericalClassifier(Pixels(4), stored["prototypes"], 3.0).double()
    with torch.no_grad():
        model.output.bias.zero_()
    images = stored["output"][:, :, None, None].clone().requires_grad_()
    defense = HypersphericalPrototypes(weight=2.0)
    loss = defense.losses(model, images, stored["y"], training_context())["clean"]
    loss.backward()
    # Theirs is a sum.
    assert_close(loss, 2 * stored["loss"] / count)
    assert_close(images.grad.flatten(1), 2 * stored["grad"] / count)
    assert_close(model(images), 3 * stored["predict"])


@pytest.mark.parametrize(("classes", "dimension"), [(2, 2), (3, 2), (4, 9), (11, 10), (101, 100)])
def test_up_to_dimension_plus_1_classes_are_a_regular_simplex(classes, dimension):
    model = HypersphericalPrototypes(dimension=dimension).build(pixels(5), classes)
    found = model.class_centres()
    assert found.shape == (classes, dimension)
    assert_close(found.norm(dim=1), torch.ones(classes), 0, 1e-6)
    assert_close(cosines(found), torch.full((classes * (classes - 1),), -1 / (classes - 1)), 0, 1e-6)


def test_the_descent_goes_to_the_simplex():
    """With a constant rate it ends in a neighbourhood as wide as the last step, 0.1 / 4 * 2 cosines at most."""
    start = torch.nn.functional.normalize(
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    rough, fine = spread(start, 200), spread(spread(start, 200), 400, rate=0.001)
    assert -1 / 3 - 1e-12 <= cosines(rough).max() <= -1 / 3 + 0.05
    assert -1 / 3 - 1e-12 <= cosines(fine).max() <= -1 / 3 + 2e-3
    assert_close(cosines(simplex(start)), torch.full((12,), -1 / 3, dtype=torch.float64), 0, 1e-12)


def test_more_classes_than_that_are_spread_from_a_seed_of_their_own():
    defense = HypersphericalPrototypes(dimension=3, prototype_steps=200)
    torch.manual_seed(1)
    first = defense.build(pixels(4), 8).class_centres()
    torch.manual_seed(2)
    with torch.no_grad():
        assert torch.equal(defense.build(pixels(4), 8).class_centres(), first)
    other = HypersphericalPrototypes(dimension=3, prototype_steps=200, prototype_seed=1)
    assert not torch.equal(other.build(pixels(4), 8).class_centres(), first)
    # Eight points on a sphere are 74.86 degrees apart at best (Tammes' problem, a square antiprism): cosine 0.2612.
    assert 0.2611 < cosines(first).max() < 0.45


def test_prototypes_that_coincide_are_refused():
    """Of sixty points on a circle two are 6 degrees apart or less: cosine 0.9945."""
    with pytest.raises(
        BenchError, match=r"two of 60 prototypes have a cosine of \d\.\d+ .*prototype_seed=0"
    ) as refused:
        HypersphericalPrototypes(dimension=2, prototype_steps=1).build(pixels(4), 60)
    assert "\n" not in str(refused.value)


def test_only_the_network_is_trained():
    model = HypersphericalPrototypes(dimension=6).build(pixels(5), 3)
    assert [name for name, _ in model.named_parameters()] == ["output.weight", "output.bias"]
    assert set(model.state_dict()) == {"prototypes", "output.weight", "output.bias"}


def test_the_adaptive_objective_is_the_lead_of_the_strongest_rival():
    """At cosines of 1 and -1 a lead is 30 in logits: nothing is cut off."""
    logits, images = torch.tensor([[1.0, 4.0, 2.0], [15.0, -15.0, -15.0]]), torch.zeros(2, 1, 1, 1)
    objective = HypersphericalPrototypes().adaptive_objective(None, images, torch.tensor([0, 0]))
    assert (objective(lambda images: logits, images) + 30).tolist() == [3.0, -30.0]
