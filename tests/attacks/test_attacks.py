"""Attacks against closed-form optima, published trajectories, torchattacks, foolbox, and arithmetic by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.attacks import ascend, cross_entropy, divergence, margin, random_start
from bench.attacks.cw import CW
from bench.attacks.fgsm import FGSM
from bench.attacks.pgd import PGD
from bench.catalogue.plugins import make_attack
from bench.errors import BenchError
from bench.interfaces import Draws, Problem, ThreatModel
from tests import GOLDENS

FOLDER = GOLDENS
with np.load(FOLDER / "at.npz") as stored:
    AT = dict(stored)
with np.load(FOLDER / "mart.npz") as stored:
    MART = dict(stored)
with np.load(FOLDER / "cw_margin.npz") as stored:
    CW_MARGIN = dict(stored)


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


@pytest.mark.parametrize(
    "attack", [PGD(steps=100), PGD(steps=100, random_start=False), CW(steps=100)], ids=["ce", "ce-from-clean", "cw"]
)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 6, 5)], ids=str)
@pytest.mark.parametrize(
    ("norm", "epsilon", "low", "high"),
    [
        ("linf", "8/255", 0.4, 0.6),
        ("linf", "0.1", 0.0, 1.0),
        ("linf", "0.3", 0.0, 1.0),
        ("l2", "0.05", 0.4, 0.6),
        ("l2", "0.3", 0.4, 0.6),
        ("l1", "0.05", 0.4, 0.6),
        ("l1", "0.3", 0.0, 1.0),
        ("l1", "2", 0.0, 1.0),
        ("l1", "5", 0.4, 0.6),
    ],
)
def test_the_optimum_of_a_linear_model_is_met_within_a_hundredth(attack, shape, norm, epsilon, low, high):
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


# -------------------------------------------------------------------------------- published figures


class TinyNetwork(nn.Module):
    """Linear, BatchNorm where the figures have one, tanh, linear; in float64. Keeps the images it was shown."""

    def __init__(self, golden):
        super().__init__()
        self.golden = {key: torch.from_numpy(values) for key, values in golden.items() if values.dtype.kind == "f"}
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        golden = self.golden
        if "input_mean" in golden:
            images = (images - golden["input_mean"].view(-1, 1, 1)) / golden["input_std"].view(-1, 1, 1)
        hidden = images.flatten(1) @ golden["param_W1"].T + golden["param_b1"]
        if "param_bn_weight" in golden:
            mean, variance = golden["param_bn_running_mean"], golden["param_bn_running_var"]
            weight, bias = golden["param_bn_weight"], golden["param_bn_bias"]
            hidden = functional.batch_norm(hidden, mean, variance, weight, bias, training=False, eps=1e-5)
        return hidden.tanh() @ golden["param_W2"].T + golden["param_b2"]


# AT's start is uniform and clipped (its attack 2 crafts in train mode, which is not done here), MART's is Gaussian
# and not clipped; both ascend cross-entropy.
PATHS = [*(("at", index) for index in (0, 1, 3, 4)), *(("mart", index) for index in (0, 1, 2))]


@pytest.mark.parametrize(("figures", "index"), PATHS)
def test_ascent_takes_the_published_path(figures, index):
    prefix = f"attack{index}_"
    arrays = {"at": AT, "mart": MART}[figures]
    golden = {key.removeprefix(prefix): values for key, values in arrays.items() if key.startswith(prefix)}
    images, labels = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    epsilon = float(golden["eps"])
    threat = ThreatModel("linf", repr(epsilon))
    if "noise_std_normal" in golden:
        start = images + 1e-3 * torch.from_numpy(golden["noise_std_normal"])
    else:
        start = random_start(images, threat, torch.from_numpy(golden["noise_uniform_pm_eps"] / epsilon + 1) / 2)
    network = TinyNetwork(golden)
    steps, step_size = int(golden["steps"]), float(golden["step"])
    last = ascend(lambda model, x: cross_entropy(model(x), labels), network, start, images, threat, steps, step_size)
    path = torch.stack([*network.seen, last]).numpy()
    np.testing.assert_allclose(path, golden["traj"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["cw_m10", "cw_m10_beyond_confidence", "cw_m100"])
def test_margin_equals_the_published_objective_and_gradient(case):
    logits = torch.from_numpy(CW_MARGIN[f"{case}/in/logits"]).double().requires_grad_()
    total = margin(logits, torch.from_numpy(CW_MARGIN[f"{case}/in/labels"]), 50.0).sum()
    total.backward()
    np.testing.assert_allclose(total.item(), CW_MARGIN[f"{case}/out64/cw_objective_maximised"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(logits.grad.numpy(), CW_MARGIN[f"{case}/out64/grad_logits"], rtol=0, atol=1e-12)


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


@pytest.fixture(scope="module")
def trained():
    """A small network fitted to random labels of 64 images of noise, so that it answers all ten classes."""
    # 64 images: a loss averaged over them has the gradient of their sum up to a power of two, so without rounding.
    images = random_images(64, (3, 8, 8))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        model = nn.Sequential(*features, nn.Flatten(), nn.Linear(144, 10))
        targets = torch.randint(0, 10, (64,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    return model.eval(), images


@pytest.fixture
def network(trained):
    """That network without gradients, its images, and the labels that it gives them."""
    model, images = copy.deepcopy(trained[0]), trained[1]
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        return model, images, model(images).argmax(1)


def survivors(model, perturbed, labels):
    with torch.no_grad():
        return (model(perturbed).argmax(1) == labels).tolist()


REFERENCES = [
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
def test_torchattacks_leaves_the_same_survivors(reference):
    # Survivors of torchattacks 3.5.1, made by tests/goldens/make_torchattacks.py: it cannot be installed beside
    # robustbench, whose files its wheel overwrites.
    norm, epsilon, attack, name, _, _ = reference
    stored = np.load(FOLDER / "torchattacks.npz")
    features = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(144, 10)).eval()
    model.load_state_dict({key: torch.from_numpy(stored[f"weight_{key}"]) for key in model.state_dict()})
    images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])
    ours = survivors(model, attack.perturb(problem_of(model, images, labels, norm, epsilon)), labels)
    assert 5 < sum(ours) < 59
    assert ours == stored[f"survives_{name}"].tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda case: case[4])
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


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=3), PGD(steps=3, restarts=3), CW(steps=3), CW(steps=3, restarts=2)], ids=repr
)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_samples_image_does_not_depend_on_its_batch(attack, norm, network):
    model, images, labels = network
    model, images = model.double(), images[:12].double()
    labels = labels[:12]
    epsilon = {"linf": "10/255", "l2": "0.35", "l1": "2"}[norm]
    whole = attack.perturb(problem_of(model, images, labels, norm, epsilon))
    for rows in ([0, 1, 2], [11, 4], [7]):
        part = attack.perturb(problem_of(model, images[rows], labels[rows], norm, epsilon, indices=rows))
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-9)


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
    ("name", "given", "message"),
    [
        ("pgd", {"steps": 0}, "steps=0 is below 1. Give 1 or more ascent steps."),
        ("cw", {"steps": -3}, "steps=-3 is below 1. Give 1 or more ascent steps."),
        ("pgd", {"restarts": 0}, "restarts=0 is below 1. Give 1 or more."),
        (
            "cw",
            {"restarts": 2, "random_start": False},
            "restarts=2 without random_start repeats one search. Set random_start=true.",
        ),
        (
            "pgd",
            {"step_size": "small"},
            "step size 'small' is not a length. Write 2/255, 0.01, eps/4 or 2.5*eps/20.",
        ),
        ("cw", {"confidence": -1.0}, "confidence -1.0 of cw is below 0. Give 0 or more logits, such as 50."),
        ("cw", {"confidence": "nan"}, "parameter confidence='nan' is not a number."),
        ("pgd", {"loss": "dlr"}, "parameter loss='dlr' is not one of cross-entropy, margin."),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_line(name, given, message):
    with pytest.raises(BenchError) as error:
        make_attack(name, given)
    assert str(error.value) == message


def test_published_budgets_are_the_defaults():
    assert (PGD().steps, PGD().step_size, PGD().random_start, PGD().loss) == (20, "eps/8", True, "cross-entropy")
    assert (CW().steps, CW().confidence, CW().step_size) == (30, 50.0, "eps/8")
