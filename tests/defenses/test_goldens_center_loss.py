"""Center loss against figures of the authors' layer, and its centres by hand."""

import pytest
import torch

from bench.defenses.center_loss import CenterLoss
from tests.support.goldens import assert_close, each_case, pixels, read, training_context

GOLDEN = read("center_loss")


def built(defense, features, centres):
    """The defense's model in float64 with given centres, and images that are the features."""
    model = defense.build(pixels(features.shape[1]), len(centres)).double()
    model.centres.copy_(centres)
    return model, features[:, :, None, None].clone().requires_grad_()


@each_case(GOLDEN)
def test_loss_gradient_and_centres_are_the_authors(case):
    stored = GOLDEN[case]
    defense = CenterLoss(weight=0.25, rate=0.5)
    model, images = built(defense, stored["features"], stored["centres"])
    term = defense.losses(model, images, stored["y"], training_context())["compactness"]
    term.backward()
    assert_close(term, 0.25 * stored["loss"])
    assert_close(images.grad.flatten(1), 0.25 * stored["grad"])
    assert torch.equal(model.centres, stored["centres"])
    model.move_centres(stored["features"], stored["y"], 0.5)
    assert_close(model.centres, stored["centres"] - 0.5 * stored["variation"])


def test_an_update_moves_centres_by_the_features_before_the_step():
    """Two images of class 0 at 3 and 6, its centre at 0: by 0.5 * (3 + 6) / (1 + 2); class 1 has no image and stays."""
    defense = CenterLoss()
    model, images = built(defense, torch.tensor([[3.0], [6.0]]).double(), torch.tensor([[0.0], [7.0]]))
    optimizer = torch.optim.SGD(defense.parameter_groups(model), lr=1.0)
    terms = defense.update(model, optimizer, images.detach(), torch.tensor([0, 0]), training_context())
    assert model.centres.tolist() == [[1.5], [7.0]]
    assert float(terms["compactness"]) == pytest.approx(0.003 / 2 * (9 + 36) / 2)
    assert not any(name == "centres" for name, _ in model.named_parameters())
    assert "centres" in model.state_dict()


def test_the_adaptive_objective_by_hand():
    """The layer starts at the identity: logits (3, 4); the centre of class 0 is 5 away."""
    defense = CenterLoss(weight=0.1)
    model, images = built(defense, torch.tensor([[3.0, 4.0]]), torch.zeros(2, 2))
    objective = defense.adaptive_objective(model, images, torch.tensor([0]))
    assert objective(model, images.detach().double()).item() == pytest.approx(1.313262 + 0.05 * 25, rel=1e-6)
