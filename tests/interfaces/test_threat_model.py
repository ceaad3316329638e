"""Radii, lengths, distances and projections against NumPy, SciPy and arithmetic by hand; draws keyed by sample."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bench.catalogue.recipes import protocol_for
from bench.catalogue.suites import AttackCell, Suite
from bench.cli.eval import parse_radii
from bench.engine.observed import allowed, tolerance
from bench.errors import BenchError
from bench.interfaces import Draws, ThreatModel

SHAPE = (3, 4, 4)


def random_images(count, seed=0, low=0.0, high=1.0, shape=SHAPE):
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, (count, *shape)))


def nearest_in_l1_ball(point, radius):
    """Projection of a vector onto the l1 ball by sorting (Duchi et al. 2008, figure 1)."""
    if np.abs(point).sum() <= radius or radius == 0:
        return point * (radius > 0)
    ordered = np.sort(np.abs(point))[::-1]
    excess = np.cumsum(ordered) - radius
    last = np.flatnonzero(ordered * np.arange(1, len(point) + 1) > excess)[-1]
    return np.sign(point) * np.maximum(np.abs(point) - excess[last] / (last + 1), 0)


def nearest_by_optimisation(perturbed, clean, radius):
    """The same inside [0, 1], as a quadratic programme in the positive and negative parts of the difference."""
    size = len(clean)
    wanted = perturbed - clean
    found = minimize(
        lambda parts: ((parts[:size] - parts[size:] - wanted) ** 2).sum() / 2,
        np.zeros(2 * size),
        jac=lambda parts: np.concatenate([parts[:size] - parts[size:] - wanted, wanted - parts[:size] + parts[size:]]),
        bounds=[*zip(np.zeros(size), 1 - clean, strict=True), *zip(np.zeros(size), clean, strict=True)],
        constraints={
            "type": "ineq",
            "fun": lambda parts: radius - parts.sum(),
            "jac": lambda parts: -np.ones(2 * size),
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    return clean + found.x[:size] - found.x[size:]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("2/255", 2 / 255),
        ("0.01", 0.01),
        ("0", 0.0),
        ("eps", 0.3),
        ("eps/4", 0.075),
        ("0.1*eps", 0.03),
        ("0.1eps", 0.03),
        ("1/3*eps", 0.1),
        ("2.5*eps/20", 0.0375),
        ("2.5 * eps / 20", 0.0375),
    ],
)
def test_lengths(text, length):
    assert ThreatModel("linf", "0.3").length(text) == pytest.approx(length, rel=1e-15)


@pytest.mark.parametrize("text", ["", "eps/0", "1/0", "eps*2", "2.5.1*eps", "step", "nan", "inf", "-1/255", "-eps"])
def test_refused_lengths_are_one_line_that_shows_the_text_and_a_right_one(text):
    with pytest.raises(BenchError) as error:
        ThreatModel().length(text)
    assert repr(text) in str(error.value)
    assert "eps/4" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("norm", "epsilon", "words"),
    [
        ("l0", "1", ("'l0'", "linf, l2, l1")),
        *(("linf", text, (f"'{text}'", "8/255", "0.15")) for text in ("eight", "1e999999999", "8/0")),
        ("linf", "-1/255", ("-1/255", "0 or more", "8/255")),
    ],
)
def test_refused_threat_models(norm, epsilon, words):
    with pytest.raises(BenchError) as error:
        ThreatModel(norm, epsilon)
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("epsilon", ["8", "8.0", "255", "256", "1.5", "256/255"])
def test_a_radius_beyond_the_pixel_range_is_refused_where_a_person_gives_it(epsilon):
    words = [f"epsilon {epsilon} ", "[0, 1]", "8/255", *(["did you mean"] if epsilon in ("8", "8.0") else [])]
    for refuse in (
        lambda: ThreatModel("linf", epsilon).require_a_pixel_range(),
        lambda: parse_radii(("l2=0.5", epsilon)),
        lambda: parse_radii((f"linf={epsilon}",)),
        lambda: protocol_for("cifar10", {}, 4, True, {"epsilon": epsilon}),
        lambda: Suite("mine", 1, "", (AttackCell("A", "fgsm", epsilon=epsilon),), {}).resolve({"linf": "8/255"}, {}),
    ):
        with pytest.raises(BenchError) as error:
            refuse()
        assert [word for word in words if word not in str(error.value)] == []


def test_the_pixel_range_and_wide_radii_in_other_norms_may_be_given():
    assert parse_radii(("1", "l2=8", "l1=12")) == {"linf": "1", "l2": "8", "l1": "12"}
    for norm, epsilon, radius in (("linf", "255/255", 1), ("l2", "8", 8)):
        given = {"norm": norm, "epsilon": epsilon}
        assert protocol_for("cifar10", {}, 4, True, given).threat.radius == radius
    # What a suite makes of a radius that was given may be wider: figure 4 goes to four times it.
    (wide,) = Suite("mine", 1, "", (AttackCell("A", "fgsm", epsilon="4*eps"),), {}).resolve({}, {"linf": "0.3"}).cells
    assert wide.epsilon == "1.2"


def test_the_radius_is_the_fraction_and_the_text_is_kept():
    threat = ThreatModel("linf", "8/255")
    assert threat.radius == 8 / 255
    assert threat.epsilon == "8/255"


@pytest.mark.parametrize(
    ("epsilon", "factor", "expected"), [("8/255", 3.0, "8/85"), ("8/255", 0.5, "4/255"), ("0.15", 1.1, "33/200")]
)
def test_a_scaled_radius_is_exact(epsilon, factor, expected):
    assert ThreatModel("l2", epsilon).scaled(factor) == ThreatModel("l2", expected)


@pytest.mark.parametrize(("norm", "expected"), [("linf", [0.5, 0.0]), ("l2", [0.5 * 2**0.5, 0.0]), ("l1", [1.0, 0.0])])
def test_distances_by_hand(norm, expected):
    clean = torch.zeros(2, 1, 2, 2)
    perturbed = clean.clone()
    perturbed[0, 0] = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    distance = ThreatModel(norm, "1").distance(perturbed, clean)
    assert distance.dtype == torch.float64
    assert distance.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("epsilon", ["0", "8/255", "0.3", "2"])
def test_linf_projection_is_a_clip(epsilon):
    clean, perturbed = random_images(5), random_images(5, seed=1, low=-1, high=2)
    threat = ThreatModel("linf", epsilon)
    pixels = clean.numpy()
    expected = np.clip(np.clip(perturbed.numpy(), pixels - threat.radius, pixels + threat.radius), 0, 1)
    np.testing.assert_allclose(threat.project(perturbed, clean).numpy(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("epsilon", ["0", "0.5", "3", "100"])
def test_l2_projection_rescales_and_then_clips(epsilon):
    clean, perturbed = random_images(5), random_images(5, seed=1, low=-1, high=2)
    threat = ThreatModel("l2", epsilon)
    difference = (perturbed - clean).numpy()
    length = np.sqrt((difference**2).sum((1, 2, 3), keepdims=True))
    expected = np.clip(clean.numpy() + difference * np.minimum(1, threat.radius / length), 0, 1)
    np.testing.assert_allclose(threat.project(perturbed, clean).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("epsilon", ["0", "0.1", "2", "10", "100"])
def test_l1_projection_equals_the_one_by_sorting_where_the_box_is_out_of_reach(epsilon):
    # A point inside [0, 1] is moved towards the clean image, so never out of [0, 1].
    clean, perturbed = random_images(8), random_images(8, seed=1)
    threat = ThreatModel("l1", epsilon)
    pairs = zip(perturbed.flatten(1).numpy(), clean.flatten(1).numpy(), strict=True)
    expected = np.stack([c + nearest_in_l1_ball(p - c, threat.radius) for p, c in pairs])
    np.testing.assert_allclose(threat.project(perturbed, clean).flatten(1).numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("epsilon", ["0.05", "0.4", "1", "3"])
def test_l1_projection_inside_the_box_is_the_nearest_allowed_point(epsilon, seed):
    shape = (1, 2, 2)
    clean = random_images(4, seed=seed, shape=shape)
    perturbed = random_images(4, seed=seed + 100, low=-1, high=2, shape=shape)
    threat = ThreatModel("l1", epsilon)
    projected = threat.project(perturbed, clean)
    assert ((perturbed < 0) | (perturbed > 1)).any()
    for got, p, c in zip(*(images.flatten(1).numpy() for images in (projected, perturbed, clean)), strict=True):
        np.testing.assert_allclose(got, nearest_by_optimisation(p, c, threat.radius), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projections_are_allowed_and_leave_allowed_images_alone(norm, dtype):
    clean = random_images(6, shape=(3, 16, 16)).to(dtype)
    perturbed = random_images(6, seed=1, low=-1, high=2, shape=(3, 16, 16)).to(dtype)
    threat = ThreatModel(norm, {"linf": "8/255", "l2": "0.5", "l1": "12"}[norm])
    projected = threat.project(perturbed, clean)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (threat.distance(projected, clean) <= threat.radius * (1 + 1e-6)).all()
    inside = clean + 0.9 * (projected - clean)
    torch.testing.assert_close(threat.project(inside, clean), inside, rtol=0, atol=1e-7)


def test_many_roundings_of_a_projected_image_are_no_fault():
    threat, generator = ThreatModel("l1", "2000/255"), torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (64, 3, 32, 32), generator=generator) / 255
    images = (clean + 0.01 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    images = threat.project(images, clean)
    excess = threat.distance(images, clean) - threat.radius
    assert 1e-5 < excess.max() < tolerance("l1", threat.radius, 3072)
    assert allowed(images, clean, threat).all()
    assert not allowed(clean + (images - clean) * (1 + 3e-5), clean, threat).any()


def test_tolerances_by_hand():
    assert tolerance("linf", 8 / 255, 3072) == pytest.approx(1e-6 * (1 + 8 / 255) + 2**-25)
    assert tolerance("l2", 0.5, 100) == pytest.approx(1.5e-6 + 10 * 2**-25)
    assert tolerance("l1", 2.0, 100) == pytest.approx(3e-6 + 100 * 2**-25)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_samples_draws_depend_on_no_other_sample(kind):
    indices = np.array([7, 2, 9, 4, 0])
    like = torch.zeros(5, *SHAPE)
    together = getattr(Draws(3, "pgd/linf", indices), kind)(like, key=1)
    for rows in ([0], [3, 1], [4, 2, 0]):
        apart = getattr(Draws(3, "pgd/linf", indices[rows]), kind)(like[rows], key=1)
        assert torch.equal(apart, together[rows])


def test_draws_differ_by_seed_stream_key_and_sample_and_have_the_right_spread():
    like = torch.zeros(2, 3, 64, 64, dtype=torch.float64)
    draws = Draws(0, "pgd/linf", np.array([0, 1]))
    first = draws.uniform(like)
    others = [Draws(1, "pgd/linf", draws.indices).uniform(like), Draws(0, "cw/linf", draws.indices).uniform(like)]
    for other in [*others, draws.uniform(like, key=1), first.flip(0)]:
        assert (other != first).double().mean() > 0.99
    # 24,576 numbers: five standard errors.
    assert first.min() >= 0
    assert first.max() < 1
    assert first.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 24576) ** 0.5)
    normal = draws.normal(like)
    assert normal.mean().item() == pytest.approx(0, abs=5 / 24576**0.5)
    assert normal.std().item() == pytest.approx(1, abs=5 / (2 * 24576) ** 0.5)
    assert normal.dtype == first.dtype == torch.float64


def test_draws_leave_the_process_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Draws(0, "pgd/linf", np.arange(3)).uniform(torch.zeros(3, *SHAPE))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
