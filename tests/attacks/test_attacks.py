"""Attacks against closed-form optima, torchattacks, foolbox, and arithmetic by hand; and what holds for all of them."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import cross_entropy, divergence, margin, random_start
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_dlr import APGDDLR
from bench.attacks.apgd_t import APGDT
from bench.attacks.cw import CW
from bench.attacks.deepfool import DeepFool
from bench.attacks.fab import FAB
from bench.attacks.fgsm import FGSM
from bench.attacks.mi_fgsm import MIFGSM
from bench.attacks.pgd import PGD
from bench.attacks.square import Square
from bench.catalogue.plugins import make_attack
from bench.errors import BenchError
from bench.interfaces import Draws, Problem, ThreatModel
from tests.support.goldens import assert_close, attacked_network, each_case, read

FSR, TORCHATTACKS = read("fsr"), read("torchattacks", "_")


def problem_of(model, images, labels, norm, epsilon, indices=None, objective=None):
    draws = Draws(0, f"test/{norm}", np.arange(len(images)) if indices is None else np.asarray(indices))
    return Problem(model, images, labels, ThreatModel(norm, epsilon), draws, objective)


def random_images(count, shape, seed=0, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------- closed-form optima


class Linear(nn.Module):
    """Two classes: a linear loss, up to a monotone function."""

    def __init__(self, shape, scale=0.1):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(scale * torch.randn(2, int(np.prod(shape)), generator=generator))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def largest_gain(slope, pixels, norm, epsilon):
    """Maximum of slope . d over the ball and the box (l2: over the ball), per image."""
    room = np.where(slope > 0, 1 - pixels, pixels)
    size = np.abs(slope)
    if norm == "linf":
        return (size * np.minimum(room, epsilon)).sum(1)
    if norm == "l2":
        return epsilon * np.sqrt((size**2).sum(1))
    gains = []
    for s, r in zip(size, room, strict=True):
        left, gain = epsilon, 0.0
        for coordinate in np.argsort(-s):
            moved = min(left, r[coordinate])
            left, gain = left - moved, gain + moved * s[coordinate]
        gains.append(gain)
    return np.array(gains)


def gains(model, images, labels, perturbed, norm, epsilon):
    """What an attack gained and what there was to gain, per image."""
    weight = model.weight.detach().double().numpy()
    slope = weight[1 - labels] - weight[labels]
    pixels = images.flatten(1).double().numpy()
    gained = (slope * (perturbed.flatten(1).double().numpy() - pixels)).sum(1)
    return gained, largest_gain(slope, pixels, norm, epsilon)


PLAIN, FROM_CLEAN, MARGIN = PGD(steps=100), PGD(steps=100, random_start=False), CW(steps=100)


@pytest.mark.parametrize(
    ("attack", "norm", "epsilon", "low", "high"),
    [
        (PLAIN, "linf", "8/255", 0.4, 0.6),
        (PLAIN, "linf", "0.1", 0.0, 1.0),
        (PLAIN, "linf", "0.3", 0.0, 1.0),
        (PLAIN, "l2", "0.05", 0.4, 0.6),
        (PLAIN, "l2", "0.3", 0.4, 0.6),
        (PLAIN, "l1", "0.05", 0.4, 0.6),
        (PLAIN, "l1", "0.3", 0.0, 1.0),
        (PLAIN, "l1", "2", 0.0, 1.0),
        (PLAIN, "l1", "5", 0.4, 0.6),
        *((attack, "linf", "0.3", 0.0, 1.0) for attack in (FROM_CLEAN, MARGIN)),
        *((attack, "l2", "0.3", 0.4, 0.6) for attack in (FROM_CLEAN, MARGIN)),
        *((attack, "l1", "2", 0.0, 1.0) for attack in (FROM_CLEAN, MARGIN)),
    ],
)
def test_the_optimum_of_a_linear_model_is_met_within_a_hundredth(attack, norm, epsilon, low, high):
    shape = (3, 6, 5)
    model, images, labels = Linear(shape), random_images(8, shape, low=low, high=high), torch.arange(8) % 2
    problem = problem_of(model, images, labels, norm, epsilon)
    perturbed = problem.threat.project(attack.perturb(problem), images)
    gained, most = gains(model, images, labels, perturbed, norm, problem.threat.radius)
    assert (gained >= 0.99 * most).all()
    assert (gained <= most * (1 + 1e-5)).all()


@pytest.mark.parametrize("epsilon", ["2/255", "0.3"])
def test_one_linf_step_is_the_optimum_of_a_linear_model(epsilon):
    shape = (3, 5, 7)
    model, images, labels = Linear(shape), random_images(8, shape), torch.arange(8) % 2
    problem = problem_of(model, images, labels, "linf", epsilon)
    gained, most = gains(model, images, labels, FGSM().perturb(problem), "linf", problem.threat.radius)
    np.testing.assert_allclose(gained, most, rtol=1e-5)


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=30), PGD(steps=30, loss="margin"), CW()], ids=repr)
def test_a_given_objective_is_ascended_instead_of_the_loss(attack):
    images, labels = random_images(4, (1, 4, 4)), torch.zeros(4, dtype=torch.long)

    def darkness(model, perturbed):
        return -perturbed.flatten(1).sum(1)

    problem = problem_of(Linear((1, 4, 4)), images, labels, "linf", "0.2", objective=darkness)
    torch.testing.assert_close(attack.perturb(problem), (images - 0.2).clamp(0, 1), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ losses


@each_case(FSR, "cw_")
def test_margin_equals_the_published_objective_and_gradient(case):
    logits = FSR[case]["in/logits"].double().requires_grad_()
    total = margin(logits, FSR[case]["in/labels"], 50.0).sum()
    total.backward()
    assert_close(total, FSR[case]["out64/cw_objective_maximised"])
    assert_close(logits.grad, FSR[case]["out64/grad_logits"], 0, 1e-12)


def test_losses_by_hand():
    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert margin(logits, labels).tolist() == [-1.0, 0.0]
    assert margin(logits, labels, 1.5).tolist() == [-2.5, 0.0]
    assert margin(logits, labels, 5.0).tolist() == [-6.0, -3.0]
    np.testing.assert_allclose(cross_entropy(logits, labels), -np.log(probabilities[[0, 1], [0, 2]]), rtol=1e-6)
    p, q = probabilities, probabilities[::-1]
    np.testing.assert_allclose(divergence(logits, logits.flip(0)), (p * np.log(p / q)).sum(1), rtol=1e-5)


def test_divergence_survives_probabilities_that_underflow():
    reference, other = torch.tensor([[0.0, -300.0]]), torch.tensor([[-1.0, 0.0]])
    expected = 1 + np.log1p(np.exp(-1.0))  # the reference has all its mass on class 0: -log softmax(other)[0]
    assert divergence(reference, other).item() == pytest.approx(expected, rel=1e-6)


# ----------------------------------------------------------------------------- reference libraries


@pytest.fixture
def network():
    return attacked_network()


def survivors(model, perturbed, labels):
    with torch.no_grad():
        return (model(perturbed).argmax(1) == labels).tolist()


REFERENCES = [
    ("linf", "10/255", MIFGSM(steps=10, step_size="1/255"), "MIFGSM", None, {}),
    ("linf", "10/255", FGSM(), "FGSM", "FGSM", {}),
    (
        "linf",
        "10/255",
        PGD(steps=10, step_size="3/255", random_start=False),
        "PGD",
        "LinfPGD",
        dict(abs_stepsize=3 / 255, steps=10, random_start=False),
    ),
    (
        "l2",
        "0.35",
        PGD(steps=10, step_size="eps/4", random_start=False),
        "PGDL2",
        "L2PGD",
        dict(abs_stepsize=0.0875, steps=10, random_start=False),
    ),
]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda case: case[3])
def test_torchattacks_leaves_the_same_survivors(reference, network):
    # Survivors of torchattacks 3.5.1, made by tests/goldens/make_torchattacks.py: it cannot be installed beside
    # robustbench, whose files its wheel overwrites.
    norm, epsilon, attack, name, _, _ = reference
    model, images, labels = network
    ours = survivors(model, attack.perturb(problem_of(model, images, labels, norm, epsilon)), labels)
    assert 5 < sum(ours) < 59
    assert ours == TORCHATTACKS["survives"][name].tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reference", REFERENCES[1:], ids=lambda case: case[4])
def test_foolbox_leaves_the_same_survivors(network, reference):
    foolbox = pytest.importorskip("foolbox")
    norm, epsilon, attack, _, name, options = reference
    model, images, labels = network
    problem = problem_of(model, images, labels, norm, epsilon)
    ours = survivors(model, attack.perturb(problem), labels)
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    reference_attack = getattr(foolbox.attacks, name)(**options)
    _, perturbed, _ = reference_attack(bounded, images, labels, epsilons=problem.threat.radius)
    assert 5 < sum(ours) < 59
    assert ours == survivors(model, perturbed, labels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epsilon", ["1.8", "2"])
def test_l1_ascent_leaves_no_more_survivors_than_foolbox(network, epsilon):
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = network
    problem = problem_of(model, images, labels, "l1", epsilon)
    attack = PGD(steps=20, step_size="eps/8", random_start=False)
    ours = survivors(model, problem.threat.project(attack.perturb(problem), images), labels)
    reference_attack = foolbox.attacks.L1PGD(rel_stepsize=1 / 8, steps=20, random_start=False)
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, perturbed, _ = reference_attack(bounded, images, labels, epsilons=problem.threat.radius)
    assert 5 < sum(ours) < 59
    assert sum(ours) <= sum(survivors(model, perturbed, labels))


# ------------------------------------------------------------------------- starts, restarts, batches


class Brightness(nn.Module):
    """Wrong above a mean of 0.52, surer of itself the darker the image; its gradient is zero everywhere."""

    def forward(self, images):
        mean = images.detach().flatten(1).mean(1) + 0 * images.flatten(1).sum(1)
        return torch.stack([0.52 - mean, mean - 0.52], 1)


def test_restarts_keep_the_first_success_and_else_the_last_image():
    images, labels = torch.full((40, 1, 3, 3), 0.5), torch.zeros(40, dtype=torch.long)
    problem = problem_of(Brightness(), images, labels, "linf", "0.1")
    # Nothing moves after the start, so each restart ends at its own draw.
    ends = [images + 0.1 * (2 * problem.draws.uniform(images, key=key) - 1) for key in range(3)]
    expected, first_key = [], []
    for sample in range(40):
        means = [end[sample].mean().item() for end in ends]
        wrong = [key for key in range(3) if means[key] > 0.52]
        first_key.append(wrong[0] if wrong else None)
        expected.append(ends[wrong[0] if wrong else 2][sample])
    assert {0, 1, 2, None} == set(first_key)
    got = PGD(steps=2, restarts=3).perturb(problem)
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-6)


SEARCHES = [FGSM(), PGD(steps=3, restarts=3), CW(steps=3, restarts=2), MIFGSM(steps=3)]
NEAREST, SQUARE = [DeepFool(steps=5), FAB(steps=6, targets=2, restarts=2)], Square(queries=12, restarts=2)
# These fill small batches up, so that not even rounding tells how many samples are left.
EXACT = [SQUARE, APGDCE(steps=10), APGDDLR(steps=10), APGDT(steps=10, targets=2)]
EVERY_NORM = [(attack, norm) for attack in (*SEARCHES, SQUARE) for norm in ("linf", "l2", "l1")]
OTHERS = [*((attack, "linf") for attack in (*NEAREST, *EXACT[1:])), (NEAREST[0], "l2")]


@pytest.mark.parametrize(("attack", "norm"), EVERY_NORM + OTHERS, ids=str)
def test_a_samples_image_does_not_depend_on_its_batch(attack, norm, network):
    model, images, labels = network[0], network[1][:12], network[2][:12]
    if attack not in EXACT:
        model, images = model.double(), images.double()
    epsilon = {"linf": "10/255", "l2": "0.35", "l1": "2"}[norm]
    whole = attack.perturb(problem_of(model, images, labels, norm, epsilon))
    for rows in ([0, 1, 2], [11, 4], [7]):
        part = attack.perturb(problem_of(model, images[rows], labels[rows], norm, epsilon, indices=rows))
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=0 if attack in EXACT else 1e-9)


@pytest.mark.parametrize(
    ("attack", "passes"), [(FGSM(), 1), (PGD(steps=4), 4), (CW(steps=4), 4), (PGD(steps=4, restarts=2), 10)], ids=repr
)
def test_every_forward_pass_shows_the_whole_batch_in_order(attack, passes, network):
    model, images, labels = network
    shown = []

    class Recorder(nn.Module):
        def forward(self, x):
            shown.append(x.detach())
            return model(x)

    problem = problem_of(Recorder(), images, labels, "linf", "1/255")
    state = torch.get_rng_state()
    attack.perturb(problem)
    assert len(shown) == passes
    for x in shown:
        assert x.shape == images.shape
        assert ((x - images).abs() <= 1 / 255 + 1e-6).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_are_allowed_and_where_they_should_be(norm):
    images = random_images(6, (3, 6, 6), low=0.4, high=0.6)
    threat = ThreatModel(norm, "0.2")
    uniform = random_images(6, (3, 6, 6), seed=1)
    start = random_start(images, threat, uniform)
    direction = 2 * uniform - 1
    if norm == "linf":
        torch.testing.assert_close(start, images + 0.2 * direction)
    else:
        size = direction.flatten(1).norm(p=int(norm[1]), dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(start, images + 0.2 * direction / size)
        torch.testing.assert_close(threat.distance(start, images), torch.full((6,), 0.2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=3), CW(steps=3)], ids=repr)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radius_zero_returns_the_clean_images(attack, norm, network):
    model, images, labels = network
    perturbed = attack.perturb(problem_of(model, images, labels, norm, "0"))
    torch.testing.assert_close(perturbed, images, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("pgd", {"steps": 0}, ("steps=0", "1 or more")),
        ("cw", {"steps": -3}, ("steps=-3", "1 or more")),
        ("pgd", {"restarts": 0}, ("restarts=0", "1 or more")),
        ("cw", {"restarts": 2, "random_start": False}, ("restarts=2", "random_start=true")),
        ("pgd", {"step_size": "small"}, ("'small'", "2/255", "eps/4")),
        ("cw", {"confidence": -1.0}, ("confidence -1.0", "cw", "0 or more")),
        ("cw", {"confidence": "nan"}, ("confidence='nan'", "number")),
        ("pgd", {"loss": "dlr"}, ("loss='dlr'", "cross-entropy, margin")),
        ("mi-fgsm", {"decay": -0.5}, ("decay -0.5", "mi-fgsm", "0 or more")),
        ("mi-fgsm", {"decay": "nan"}, ("decay='nan'", "number")),
        ("mi-fgsm", {"steps": 0}, ("steps=0", "1 or more")),
        ("mi-fgsm", {"restarts": 3}, ("restarts=3", "random_start=true")),
        ("deepfool", {"candidates": 1}, ("candidates=1", "deepfool", "2 or more")),
        ("deepfool", {"overshoot": -0.1}, ("overshoot -0.1", "deepfool", "0 or more")),
        ("deepfool", {"overshoot": "nan"}, ("overshoot='nan'", "number")),
        ("fmn", {"first_step": 0.0}, ("first_step 0.0", "fmn", "not above 0")),
        ("fmn", {"first_change": 1.0}, ("first_change 1.0", "fmn", "0.001..1")),
        ("ddn", {"first_norm": -1.0}, ("first_norm -1.0", "ddn", "not above 0")),
        ("ddn", {"change": 0.0}, ("change 0.0", "ddn", "between 0 and 1")),
        ("autoattack", {"version": "rand"}, ("version='rand'", "standard")),
        *(
            (name, {field: 0}, (f"{field}=0", name, "1 or more"))
            for name, fields in {
                "deepfool": ("steps",),
                "fmn": ("steps",),
                "ddn": ("steps",),
                "apgd-ce": ("steps", "restarts"),
                "apgd-dlr": ("steps", "restarts"),
                "apgd-t": ("steps", "restarts", "targets"),
                "fab": ("steps", "restarts", "targets"),
                "square": ("queries", "restarts"),
            }.items()
            for field in fields
        ),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_line(name, given, words):
    with pytest.raises(BenchError) as error:
        make_attack(name, given)
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_published_budgets_are_the_defaults():
    momentum = MIFGSM()
    assert (momentum.steps, momentum.step_size, momentum.decay, momentum.random_start) == (10, "eps/10", 1.0, False)
    assert (PGD().steps, PGD().step_size, PGD().random_start, PGD().loss) == (20, "eps/8", True, "cross-entropy")
    assert (CW().steps, CW().confidence, CW().step_size) == (30, 50.0, "eps/8")
