"""Single-step training against figures of the authors' code (tests/goldens/NAME.md), and by hand on linear models."""

import math

import pytest
import torch
from torch import nn

from bench.defenses.fgsm_rs import RandomStartTraining
from bench.defenses.gat import GuidedTraining
from bench.defenses.grad_align import GradientAlignment, cosine
from bench.defenses.n_fgsm import NoiseTraining
from bench.defenses.nuat import NuclearNormTraining, nuclear_norm
from bench.interfaces import Backbone, LinearClassifier, evaluation_mode
from bench.models.folding import FoldedView
from bench.training.label_smoothing import smoothed_labels
from tests.support.goldens import (
    adaptive_value,
    assert_close,
    each_case,
    inject,
    read,
    same_training_step,
    tiny_classifier,
    tiny_state,
    training_context,
)

FGSM_RS, N_FGSM, GRAD_ALIGN, GAT, NUAT = (read(name) for name in ("fgsm_rs", "n_fgsm", "grad_align", "gat", "nuat"))
each_guided = pytest.mark.parametrize("defense", [GuidedTraining(), NuclearNormTraining()], ids=["gat", "nuat"])


@each_case(FGSM_RS)
def test_a_step_of_fgsm_rs_equals_the_official_one(monkeypatch, case):
    same_training_step(RandomStartTraining(), FGSM_RS[case], monkeypatch)


@each_case(N_FGSM)
def test_a_step_of_n_fgsm_equals_the_official_one(monkeypatch, case):
    same_training_step(NoiseTraining(), N_FGSM[case], monkeypatch)


@each_case(GRAD_ALIGN)
def test_a_step_of_grad_align_equals_the_official_one(monkeypatch, case):
    same_training_step(GradientAlignment(), GRAD_ALIGN[case], monkeypatch, "misalignment")


@each_case(GAT)
def test_a_step_of_gat_equals_the_official_one(monkeypatch, case):
    batch = int(GAT[case]["turn"])
    same_training_step(GuidedTraining(), GAT[case], monkeypatch, "robust", batch=batch)


@each_case(NUAT)
def test_a_step_of_nuat_equals_the_official_one(monkeypatch, case):
    batch = int(NUAT[case]["turn"])
    same_training_step(NuclearNormTraining(), NUAT[case], monkeypatch, "robust", batch=batch, epoch=9, epochs=10)


class Ramp(nn.Module):
    """Logits 0 and the sum of the pixels times slope: for class 0, cross-entropy grows with each. Keeps its images."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().flatten())
        score = self.slope * images.flatten(1).sum(1, keepdim=True)
        return torch.cat([torch.zeros_like(score), score], 1)


def shown(defense, monkeypatch, pixels, uniform):
    """All that a model is shown of one image of class 0, with radius 0.1 and these numbers for noise."""
    model, images = Ramp(), torch.tensor(pixels, dtype=torch.float64)[None, None, None]
    inject(monkeypatch, "rand", torch.tensor(uniform, dtype=torch.float64).view_as(images))
    # Steps and step size of the protocol change nothing.
    defense.losses(model, images, torch.tensor([0]), training_context(0.1, 0.025, 10))
    return torch.stack(model.seen)


def test_perturbed_pixels_by_hand(monkeypatch):
    """The start, then a step upwards; of grad-align the image, a step upwards, and another image in the ball."""
    found = shown(RandomStartTraining(), monkeypatch, [0.5, 0.5, 0.0], [0.25, 0.9, 0.1])
    assert_close(found, [[0.45, 0.58, 0.0], [0.575, 0.6, 0.1]])
    # Further from the image than any that is evaluated.
    found = shown(NoiseTraining(), monkeypatch, [0.5, 0.5, 0.95], [0.25, 0.9, 0.9])
    assert_close(found, [[0.4, 0.66, 1.0], [0.5, 0.76, 1.0]])
    found = shown(GradientAlignment(), monkeypatch, [0.5, 0.95], [0.25, 0.9])
    assert_close(found, [[0.5, 0.95], [0.6, 1.0], [0.45, 1.0]])


@each_guided
def test_every_second_step_of_an_epoch_is_guided_away_from_the_clean_image(monkeypatch, defense):
    """Cross-entropy goes up; guidance, from a start below the image, down.

    At slope 20, image 0.1 and start 0.05: p = (0.12, 0.88), q = (0.27, 0.73), and q_1 (1 - 40 (p_1 - q_1) (1 - q_1)) is
    below 0; the nuclear norm of one image has slope -4.5 per logit there, cross-entropy q_1.
    """
    images = torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64)
    for batch, expected in enumerate([0.15, 0.0, 0.15, 0.0]):
        inject(monkeypatch, "rand", torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64))
        model = Ramp(20.0)
        context = training_context(0.1, 0.025, 10, batch=batch, epoch=8, epochs=10)
        defense.losses(model, images, torch.tensor([0]), context)
        assert_close(torch.cat(model.seen), [0.1, 0.05, expected, 0.1])


@pytest.mark.parametrize(
    ("defense", "weights"),
    [
        (GuidedTraining(), {0: 10.0, 85: 10.0, 86: 40.0, 99: 40.0}),
        (NuclearNormTraining(), {45: 2.25, 90: 4.5, 99: 4.5}),
    ],
    ids=["gat", "nuat"],
)
def test_the_weight_follows_the_epochs_of_the_authors(monkeypatch, defense, weights):
    def robust(epoch):
        inject(monkeypatch, "rand", torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64))
        context = training_context(0.1, epoch=epoch, epochs=100)
        images = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
        return defense.losses(Ramp(), images, torch.tensor([0, 0]), context)["robust"].item()

    # Images move from 0.5 to 0.6: two equal changes of 0.1 have the norm sqrt(2) * 0.1, of two images.
    q, p = (1 / (1 + math.exp(-value)) for value in (0.6, 0.5))
    change = 2 * (q - p) ** 2 if isinstance(defense, GuidedTraining) else math.sqrt(2) * 0.1 / 2
    assert {epoch: robust(epoch) for epoch in weights} == pytest.approx(
        {epoch: weight * change for epoch, weight in weights.items()}
    )
    assert isinstance(defense, GuidedTraining) or robust(0) == 0


def test_the_nuclear_norm_by_hand():
    """Of n equal rows of length 5: sqrt(n) * 5; of 3 and 4 on a diagonal: 7. What is not finite shows."""
    zeros = torch.zeros(9, 2)
    assert nuclear_norm(zeros + torch.tensor([3.0, 4.0]), zeros).item() == pytest.approx(15, rel=1e-6)
    assert nuclear_norm(torch.diag(torch.tensor([3.0, -4.0])), torch.zeros(2, 2)).item() == pytest.approx(7, rel=1e-6)
    for bad in (math.nan, math.inf):
        assert not nuclear_norm(torch.full((2, 2), bad), torch.zeros(2, 2)).isfinite()
    equal = torch.ones(3, 2, requires_grad=True)
    nuclear_norm(equal, torch.ones(3, 2)).backward()
    assert equal.grad.isfinite().all()


def test_the_cosine_of_gradients_by_hand():
    """Whatever their lengths; one without direction counts as aligned, and moves nothing."""
    first = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [1.0, 2.0]])[:, None, None]
    second = torch.tensor([[0.0, 2.0], [1e-18, 0.0], [1.0, 1.0], [1e-30, 0.0]])[:, None, None].requires_grad_()
    found = cosine(first, second)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.6, 1.0, 1.0]))
    found.sum().backward()
    # d cos / d(second) of (1, 0) and (0, 2): (1, 0) / 2.
    torch.testing.assert_close(second.grad[0, 0, 0], torch.tensor([0.5, 0.0]))
    assert second.grad[2:].count_nonzero() == 0


def test_a_linear_model_of_two_classes_has_aligned_gradients(monkeypatch):
    inject(monkeypatch, "rand", torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    images = torch.full((4, 1, 2, 2), 0.5, dtype=torch.float64)
    terms = GradientAlignment().losses(Ramp(), images, torch.tensor([0, 1, 0, 1]), training_context(0.1))
    assert abs(terms["misalignment"].item()) < 1e-12


class Wide(Backbone):
    """A convolution that is filtered while crafting, with a BatchNorm that is folded into it."""

    feature_dim = map_channels = 64

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1), nn.Tanh(), nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Tanh()
        )

    def feature_map(self, images):
        return self.layers(images)


def test_gradients_are_differentiated_through_layers_that_crafting_computes_otherwise():
    gradients = []
    for folds in (True, False):
        torch.manual_seed(0)
        model = LinearClassifier(Wide(), 3).double().train()
        images = torch.rand(4, 1, 5, 5, dtype=torch.float64)
        view = FoldedView(model, images) if folds else evaluation_mode
        terms = GradientAlignment(100.0).losses(model, images, torch.arange(4) % 3, training_context(0.3, view=view))
        assert terms["misalignment"] > 0.01
        assert not folds or len(view.pairs) == 1
        terms["misalignment"].backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) >= 5
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_gradients_are_of_hard_labels_where_the_loss_is_smoothed(monkeypatch):
    golden, terms = GRAD_ALIGN["plain"], []
    for share in (0.0, 0.4):
        inject(monkeypatch, "rand", golden["noise"])
        with smoothed_labels(share, training_context(0.15), "GradientAlignment") as context:
            model = tiny_classifier(tiny_state(golden))
            terms.append(GradientAlignment().losses(model, golden["x"], golden["y"], context))
    assert terms[0]["misalignment"].item() == terms[1]["misalignment"].item() == pytest.approx(golden["term"].item())
    assert terms[0]["adversarial"] != terms[1]["adversarial"]


def test_the_adaptive_objectives_by_hand():
    """CE = log 4 for class 1; p = (1/2, 1/2) and q = (3/4, 1/4); the logits move by (log 3, 0)."""
    assert adaptive_value(GuidedTraining()) == pytest.approx(math.log(4) + 10 * 2 / 16, rel=1e-6)
    assert adaptive_value(NuclearNormTraining()) == pytest.approx(math.log(4) + 4.5 * math.log(3), rel=1e-6)
    assert [adaptive_value(one()) for one in (RandomStartTraining, NoiseTraining, GradientAlignment)] == [None] * 3
