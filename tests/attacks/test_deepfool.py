"""DeepFool against the closed form of a linear model and against foolbox."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks.deepfool import DeepFool
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import ThreatModel
from tests.attacks.test_attacks import problem_of, survivors
from tests.support.goldens import attacked_network

CLASSES, SHAPE = 5, (3, 4, 4)


class Linear(nn.Module):
    """Logits W (x - 1/2) + b, in the images' precision."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(CLASSES, int(np.prod(SHAPE)), generator=generator, dtype=torch.float64)
        self.bias = 0.2 * torch.randn(CLASSES, generator=generator, dtype=torch.float64)

    def forward(self, images):
        return (images.flatten(1) - 0.5) @ self.weight.to(images.dtype).T + self.bias.to(images.dtype)


def pixels(count=24):
    """Eight-bit images near grey: their nearest boundary lies well inside [0, 1]."""
    return torch.randint(110, 146, (count, *SHAPE), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


def nearest(model, images, labels, norm):
    """Distance to the nearest boundary of a linear model, and the shortest perturbation that reaches it."""
    weight, flat = model.weight.numpy(), images.double().flatten(1).numpy() - 0.5
    logits = flat @ weight.T + model.bias.numpy()
    distances, steps = [], []
    for scores, label in zip(logits, labels.tolist(), strict=True):
        choices = []
        for rival in set(range(CLASSES)) - {label}:
            slope, gap = weight[rival] - weight[label], scores[label] - scores[rival]
            if norm == "linf":
                distance = gap / np.abs(slope).sum()
                choices.append((distance, distance * np.sign(slope)))
            else:
                distance = gap / np.sqrt((slope**2).sum())
                choices.append((distance, gap * slope / (slope**2).sum()))
        distance, step = min(choices, key=lambda choice: choice[0])
        distances.append(distance)
        steps.append(step)
    return np.array(distances), np.stack(steps)


@pytest.mark.parametrize("overshoot", [0.02, 0.5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_perturbation_of_a_linear_model_is_the_shortest_one_overshot(norm, overshoot):
    model, images = Linear(), pixels().double() / 255
    labels = model(images).argmax(1)
    assert len(labels.unique()) > 3
    distances, steps = nearest(model, images, labels, norm)
    problem = problem_of(model, images, labels, norm, "8/255")
    perturbed = DeepFool(overshoot=overshoot).perturb(problem)
    moved = (perturbed - images).flatten(1).numpy()
    # Each step is 1e-4 longer than the distance, as in the authors' code.
    longer = (1 + overshoot) * (1 + 1e-4 / distances)
    np.testing.assert_allclose(moved, longer[:, None] * steps, rtol=0, atol=1e-12)
    np.testing.assert_allclose(problem.threat.distance(perturbed, images), longer * distances, rtol=1e-9)
    assert (model(perturbed).argmax(1) != labels).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_harness_breaks_exactly_the_samples_whose_boundary_is_within_the_radius(norm):
    model, split = Linear(), Split(pixels(60), torch.zeros(60, dtype=torch.long))
    split = Split(split.pixels, model(split.images(slice(None))).argmax(1))
    distances, _ = nearest(model, split.images(slice(None)), split.labels, norm)
    epsilon = f"{np.sort(distances)[33:35].mean():.6f}"
    assert np.abs(distances - float(epsilon)).min() > 1e-5
    suite = Suite("test", 1, "", (AttackCell("DeepFool", "deepfool", norm, epsilon),), {})
    outcome = run_suite(Target(model, split), suite)
    record = outcome.attacks["DeepFool"]
    # More than half of its images lie beyond the radius, as they must.
    assert {one["severity"] for one in outcome.findings} == {"passed"}
    broken = distances < float(epsilon)
    assert 20 < broken.sum() < 40
    assert ((record.prediction != split.labels.numpy()) == broken).all()
    assert record.final_prediction is not None
    assert ((record.final_prediction != split.labels.numpy()) == broken).all()
    np.testing.assert_allclose(
        record.distance, np.minimum(1.02 * (distances + 1e-4), float(epsilon)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("candidates", "winner"), [(2, 1), (3, 2)])
def test_only_the_likeliest_classes_are_candidates(candidates, winner):
    # Class 1 is the runner-up by logit (gap 1, slope 1: distance 1); class 2 lies lower but nearer (gap 2, slope 8).
    class Steep(nn.Module):
        def forward(self, images):
            x, y = images.flatten(1).T
            return torch.stack([0 * x, x - 1, 8 * y - 2], dim=1)

    images, labels = torch.zeros(1, 1, 1, 2), torch.zeros(1, dtype=torch.long)
    perturbed = DeepFool(candidates=candidates, overshoot=0.0).perturb(
        problem_of(Steep(), images, labels, "l2", "8/255")
    )
    expected = [1.0, 0.0] if winner == 1 else [0.0, 0.2501]
    assert perturbed.flatten().tolist() == pytest.approx(expected)


def test_samples_that_are_wrong_already_stay_and_images_stay_in_the_box():
    # Logits (0, x - 2): out of reach, so the search ends at the face of the box after every step is taken.
    class Far(nn.Module):
        def forward(self, images):
            x = images.flatten(1).sum(1)
            return torch.stack([0 * x, x - 2], dim=1)

    images, labels = torch.full((2, 1, 1, 1), 0.25), torch.tensor([0, 1])
    perturbed = DeepFool(steps=5).perturb(problem_of(Far(), images, labels, "linf", "8/255"))
    assert perturbed.flatten().tolist() == [1.0, 0.25]


def test_a_model_without_a_gradient_moves_nothing():
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.5])

    images, labels = torch.rand(3, *SHAPE), torch.zeros(3, dtype=torch.long)
    for norm in ("linf", "l2"):
        assert torch.equal(DeepFool(steps=3).perturb(problem_of(Constant(), images, labels, norm, "8/255")), images)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("norm", "radii"), [("linf", ["1/255", "2/255", "4/255", "8/255"]), ("l2", ["0.05", "0.1", "0.2", "0.4"])]
)
def test_foolbox_finds_the_same_perturbations_and_leaves_the_same_survivors(norm, radii):
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = attacked_network()
    reference = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]()
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    lengths = [ThreatModel(norm, radius).radius for radius in radii]
    found, clipped, _ = reference(bounded, images, labels, epsilons=[None, *lengths])
    ours = DeepFool().perturb(problem_of(model, images, labels, norm, "8/255"))
    torch.testing.assert_close(ours, found[0], rtol=0, atol=1e-5)
    assert survivors(model, ours, labels) == survivors(model, found[0], labels) == [False] * 64
    counts = []
    for radius, theirs in zip(radii, clipped[1:], strict=True):
        kept = survivors(model, ThreatModel(norm, radius).project(ours, images), labels)
        assert kept == survivors(model, theirs, labels)
        counts.append(sum(kept))
    assert any(5 < count < 59 for count in counts)


def test_l1_is_refused_in_one_line():
    model, images = Linear(), pixels(2).double() / 255
    with pytest.raises(BenchError, match=r"deepfool .*linf and l2, not under l1.* fab"):
        DeepFool().perturb(problem_of(model, images, model(images).argmax(1), "l1", "8/255"))
