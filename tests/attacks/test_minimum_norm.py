"""FMN and DDN against closed forms and against foolbox; curves and unions of norms against closed forms."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks.ddn import DDN
from bench.attacks.fmn import FMN, into_ball
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.results.distances import nearest_found, optimality, right_at
from bench.results.file import EvaluationResult
from bench.results.metrics import worst_case
from tests.attacks.test_attacks import problem_of
from tests.support.goldens import attacked_network

CLASSES, SHAPE = 4, (3, 4, 4)
BLOCK = 12
NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 2 * BLOCK, "l2": (2 * BLOCK) ** 0.5, "l1": 1}
"""Of the gradient of a difference of two logits: 1 in one block of pixels, -1 in another."""


class Blocks(nn.Module):
    """The logit of a class is the sum of a block of pixels of its own: every boundary is as steep as every other."""

    def forward(self, images):
        # Steep, so that cross-entropy near a boundary is a matter of two classes only.
        return 100 * (images.flatten(1) - 0.5).view(-1, CLASSES, BLOCK).sum(2)


@pytest.fixture(scope="module")
def split():
    """Thirty images near grey, none nearer to a boundary than 0.1 in l1."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(110, 146, (80, *SHAPE), generator=generator, dtype=torch.uint8)
    logits = Blocks()(pixels / 255).topk(2, dim=1).values / 100
    pixels = pixels[logits[:, 0] - logits[:, 1] > 0.1][:30]
    assert len(pixels) == 30
    return Split(pixels, Blocks()(pixels / 255).argmax(1))


def gaps(split):
    """The lead of each label over the best rival: the distance to the boundary, times the dual norm of its gradient."""
    best = (Blocks()(split.images(slice(None)).double()) / 100).topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).numpy()


def result_of(split, *cells):
    outcome = run_suite(Target(Blocks(), split), Suite("test", 1, "", cells, {}))
    assert {one["severity"] for one in outcome.findings} == {"passed"}
    index = np.arange(len(split.labels))
    return EvaluationResult({}, {}, outcome.label, index, outcome.clean_prediction, outcome.attacks)


@pytest.fixture(scope="module")
def searched(split):
    """Every search in every norm that it knows, at a radius that holds every image."""
    names = {"fmn": NORMS, "ddn": ("l2",), "deepfool": ("linf", "l2")}
    steps = {"ddn": {"steps": 200}}
    widest = {"linf": "1", "l2": "7", "l1": "48"}
    cells = [
        AttackCell(f"{name} {norm}", name, norm, widest[norm], parameters=steps.get(name, {}))
        for name, norms in names.items()
        for norm in norms
    ]
    return result_of(split, *cells)


@pytest.mark.parametrize("label", ["fmn linf", "fmn l2", "fmn l1", "ddn l2", "deepfool l2"])
def test_distances_are_the_closed_form_within_a_hundredth(label, searched, split):
    record = searched.attacks[label]
    exact = gaps(split) / DUAL[record.norm]
    ratio = nearest_found(searched, [label]) / exact
    # DeepFool stretches what it finds by a fiftieth.
    stretched = 1.02 if label.startswith("deepfool") else 1.0
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.01 * stretched


@pytest.mark.parametrize("norm", NORMS)
def test_the_curve_is_the_closed_form_at_every_radius(norm, searched, split):
    exact = gaps(split) / DUAL[norm]
    for radius in np.linspace(0, 1.1 * exact.max(), 40):
        right = right_at(searched, [f"fmn {norm}"], radius)
        assert right[exact > radius * (1 + 1e-5)].all()
        assert not right[1.01 * exact <= radius].any()


def test_the_best_known_of_all_is_the_closed_form_and_the_best_attack_has_optimality_one(searched):
    assert optimality(searched, "fmn l2") == pytest.approx(1, abs=1e-3)
    assert optimality(searched, "fmn l1") == 1
    # Two hundredths farther everywhere: 0.02 of the best area, of what is left up to the farthest.
    best = nearest_found(searched, ["fmn l2"])
    expected = 1 - 0.02 * best.mean() / (best.max() - best.mean())
    assert optimality(searched, "deepfool l2") == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_search_at_a_radius_breaks_what_searches_of_that_radius_break(norm, split):
    """At the middle of all distances, where none is nearer than a hundredth: accuracy is that of the closed form."""
    exact = np.sort(gaps(split) / DUAL[norm])
    middle = 10 + np.argmax(np.diff(exact[10:20]))
    radius = f"{exact[middle : middle + 2].mean():.6f}"
    settings = {"steps": 100, "step_size": "eps/40"}
    cells = (AttackCell("fmn", "fmn", norm, radius), AttackCell("pgd", "pgd", norm, radius, parameters=settings))
    result = result_of(split, *cells)
    standing = gaps(split) / DUAL[norm] > float(radius)
    for label in ("fmn", "pgd"):
        assert (worst_case(result, [label]) == standing).all()


class SpreadOrAlone(nn.Module):
    """Class 0, a rival that many pixels bring nearer by a little, and one that a single pixel brings nearer by much."""

    slopes: ClassVar = torch.zeros(2, 48)
    slopes[0, :24], slopes[1, 30] = 1.0, 4.0

    def forward(self, images):
        behind = (images.flatten(1) - 0.5) @ self.slopes.to(images.dtype).T - torch.tensor([0.5, 0.6]).to(images.dtype)
        return 10 * torch.cat([0 * behind[:, :1], behind], dim=1)


def test_the_union_of_norms_is_the_closed_form(split):
    """Under linf the spread rival is nearer, under l1 the other, under l2 either: norms break different images."""
    images = split.images(slice(None)).double()
    gap = -SpreadOrAlone()(images)[:, 1:].numpy() / 10
    order = {"linf": 1, "l2": 2, "l1": np.inf}
    dual = {norm: np.linalg.norm(SpreadOrAlone.slopes.numpy(), order[norm], axis=1) for norm in NORMS}
    distance = {norm: (gap / dual[norm]).min(1) for norm in NORMS}
    radii = {norm: f"{np.quantile(distance[norm], 0.3):.6f}" for norm in NORMS}
    settings = {"steps": 100, "step_size": "eps/40"}
    cells = tuple(AttackCell(norm, "pgd", norm, radii[norm], parameters=settings) for norm in NORMS)
    target = Target(SpreadOrAlone(), Split(split.pixels, torch.zeros_like(split.labels)))
    outcome = run_suite(target, Suite("test", 1, "", cells, {}))
    result = EvaluationResult({}, {}, outcome.label, np.arange(30), outcome.clean_prediction, outcome.attacks)
    standing = {norm: distance[norm] > float(radii[norm]) for norm in NORMS}
    clear = {norm: np.abs(distance[norm] / float(radii[norm]) - 1) > 0.01 for norm in NORMS}
    for norm in NORMS:
        assert (worst_case(result, [norm]) == standing[norm])[clear[norm]].all()
    every = np.logical_and.reduce([*clear.values()])
    union = np.logical_and.reduce([*standing.values()])
    assert (worst_case(result) == union)[every].all()
    assert every.sum() > 20
    assert union[every].sum() < min(one[every].sum() for one in standing.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("attack", "norm", "reference"),
    [(FMN, "linf", "LInfFMNAttack"), (FMN, "l1", "L1FMNAttack"), (DDN, "l2", "DDNAttack")],
)
def test_foolbox_finds_the_same_distances(attack, norm, reference):
    """Under l1, of those images that it finds anything for: ours goes on where the published search comes to rest."""
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = attacked_network()
    model, images, labels = model.double(), images[:32].double(), labels[:32]
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    expected, _, _ = getattr(foolbox.attacks, reference)(steps=60)(bounded, images, labels, epsilons=None)
    problem = problem_of(model, images, labels, norm, "1")
    found = attack(steps=60).perturb(problem)
    assert (model(found).argmax(1) != labels).all()
    broken = model(expected).argmax(1) != labels
    assert broken.sum() > 15
    distances = [problem.threat.distance(one, images)[broken] for one in (found, expected)]
    torch.testing.assert_close(*distances, rtol=1e-3, atol=0)


def test_a_ball_takes_in_the_nearest_point():
    points = torch.tensor([3.0, -1.0, 0.0]).view(1, 1, 1, 3)

    def inside(norm, radius):
        return into_ball(points, torch.tensor([radius]), norm).flatten().tolist()

    assert inside("linf", 2.0) == [2, -1, 0]
    assert inside("l2", 10**0.5 / 2) == pytest.approx([1.5, -0.5, 0])
    assert inside("l1", 2.0) == [2, 0, 0]
    assert inside("l1", 3.0) == [2.5, -0.5, 0]
    for norm in NORMS:
        assert inside(norm, 4.0) == [3, -1, 0]
        assert inside(norm, 0.0) == [0, 0, 0]


def test_ddn_knows_l2_alone_and_without_a_gradient_nothing_moves():
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.5])

    images, labels = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.zeros(2, dtype=torch.long)
    for attack, norm in ((FMN(steps=3), "linf"), (FMN(steps=3), "l1"), (DDN(steps=3), "l2")):
        assert torch.equal(attack.perturb(problem_of(Constant(), images, labels, norm, "1")), images)
    with pytest.raises(BenchError, match=r"ddn works under l2, not under linf\. Use fmn"):
        DDN().perturb(problem_of(Constant(), images, labels, "linf", "1"))
