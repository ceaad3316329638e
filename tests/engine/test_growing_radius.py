"""The example with a growing radius: what each epoch is given, and how far its images move."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.interfaces import ThreatModel, TrainingContext
from tests import ROOT

EXAMPLE = ROOT / "examples" / "growing_radius.py"


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("growing_radius", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Seen(nn.Module):
    """A linear model that keeps the images it is trained on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.images = None

    def forward(self, images):
        self.images = images.detach()
        return self.linear(images.flatten(1))


@pytest.mark.parametrize(("epoch", "radius"), [(0, 0.0), (1, 0.05), (2, 0.1), (3, 0.15), (4, 0.2), (5, 0.2)])
def test_the_radius_grows_over_two_thirds_of_the_epochs(example, epoch, radius):
    torch.manual_seed(0)
    context = TrainingContext(ThreatModel("linf", "0.2"), 10, 0.05, torch.Generator().manual_seed(0), epochs=6)
    model, images = Seen(), torch.full((3, 1, 2, 2), 0.5)
    terms = example.GrowingRadius().losses(model, images, torch.tensor([0, 1, 0]), replace(context, epoch=epoch))
    # Ten steps of a quarter of the radius reach the border along a linear model's constant gradient.
    moved = (model.images - images).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, radius), rtol=1e-5, atol=1e-7)
    assert set(terms) == {"adversarial"}
