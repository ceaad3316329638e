"""Every planted fault is caught by the check meant for it; sound models raise none."""

import dataclasses

import pytest
import torch
from torch import nn

from bench.data.datasets import load_dataset
from bench.engine.target import Target
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import ThreatModel
from bench.training.request import TrainingRequest
from bench.training.train import train
from bench.trust.probes import probe
from bench.trust.report import worst_of_each
from tests.support import solved
from tests.support.planted import Wrapped, straight_through


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_dataset("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sound(digits):
    return solved.network(digits.train)


@pytest.fixture(scope="module")
def test_split(digits):
    return digits.test.take(200)


class Stubborn(Wrapped):
    """Stays in training mode, whatever it is told."""

    def train(self, mode=True):
        self.training = True
        return self


class Restless(Wrapped):
    """Keeps a running mean in eval mode."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images):
        self.mean.lerp_(images.detach().mean(), 0.1)
        return self.model(images)


class Purifying(Wrapped):
    """Descends on its own entropy before it answers."""

    def forward(self, images):
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            confidence = self.model(leaf).logsumexp(1).sum()
            (direction,) = torch.autograd.grad(confidence, leaf)
        return self.model(images + 0.01 * direction.sign())


FAULTS = {
    "logits times 1000": ("gradients-cross-entropy", lambda model: Wrapped(model, after=lambda z: 1000 * z)),
    "gradients cut": ("gradients-margin", lambda model: Wrapped(model, before=torch.detach)),
    "input quantised": ("gradients-margin", lambda model: Wrapped(model, before=lambda x: (x * 16).round() / 16)),
    "quantised, straight through": (
        "finite-differences",
        lambda model: Wrapped(model, before=straight_through(lambda x: (x * 16).round() / 16)),
    ),
    "softmax": ("probabilities", lambda model: Wrapped(model, after=lambda z: z.softmax(1))),
    "noise": ("not-deterministic", lambda model: Wrapped(model, before=lambda x: x + 1e-4 * torch.randn_like(x))),
    "training mode": ("train-mode", Stubborn),
    "buffers that change": ("model-changed", Restless),
    "normalisation outside": ("normalisation", lambda model: Wrapped(model, before=lambda x: 0.22 * x + 0.45)),
    "optimisation inside": ("dynamic", Purifying),
    "NaN": ("non-finite-logits", lambda model: Wrapped(model, after=lambda z: z.sqrt())),
}


def fired(findings):
    return [one["name"] for one in worst_of_each(findings) if one["severity"] in ("warning", "error")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_its_check(fault, sound, test_split):
    name, plant = FAULTS[fault]
    findings = probe(Target(plant(sound).eval(), test_split), ThreatModel("linf", "0.15"), 32)
    assert name in fired(findings)


@pytest.mark.parametrize(
    ("make", "norm"), [*((solved.network, norm) for norm in ("linf", "l2", "l1")), (solved.linear, "linf")]
)
def test_a_sound_model_raises_nothing(make, norm, digits, test_split):
    epsilon = {"linf": "0.15", "l2": "0.5", "l1": "3"}[norm]
    findings = probe(Target(make(digits.train), test_split), ThreatModel(norm, epsilon), 64)
    assert fired(findings) == []
    assert len({one["name"] for one in findings}) == len(findings)


def test_nothing_fires_in_the_report_of_a_sound_model(tmp_path):
    (tmp_path / "sound.py").write_text(
        "from pathlib import Path\nfrom bench.data.datasets import load_dataset\nfrom tests.support import solved\n\n"
        "def network():\n    return solved.network(load_dataset('digits', Path('data')).train)\n"
    )
    request = EvaluationRequest(
        "linf", model=f"{tmp_path}/sound.py:network", dataset="digits", limit=150, out=tmp_path / "result.h5"
    )
    result, _ = evaluate(request)
    assert fired(result.findings) == []
    assert {one["severity"] for one in result.findings} <= {"passed", "note"}
    assert len(result.findings) >= 20


STATISTICS = {"near-chance", "loss-gap", "single-step", "monotone", "more-steps", "unbounded-attack", "random-search"}
"""What may fire for a model that hardly learned."""


@pytest.mark.parametrize("defense", ["at", "adv-dpnp"])
def test_no_check_of_the_model_itself_fires_for_a_defense(defense, tmp_path):
    request = TrainingRequest(defense, "digits", protocol={"epochs": 1}, limit_train=200, runs=tmp_path)
    run = train(request, quiet=True)
    result, _ = evaluate(EvaluationRequest("quick", checkpoint=run, limit=40, out=tmp_path / "result.h5"))
    assert set(fired(result.findings)) <= STATISTICS
    assert len(result.findings) >= 20


def test_the_model_and_its_random_state_are_left_alone(sound, test_split):
    before = {name: tensor.clone() for name, tensor in sound.state_dict().items()}
    state = torch.get_rng_state()
    modes = [module.training for module in sound.modules()]
    findings = [probe(Target(sound, test_split), ThreatModel("linf", "0.15"), 16) for _ in range(2)]
    assert findings[0] == findings[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in sound.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in sound.state_dict().items())


def test_finite_differences_know_the_slope_of_a_linear_model(test_split):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    findings = probe(Target(linear, test_split), ThreatModel("linf", "0.15"), 32)
    (finding,) = [one for one in findings if one["name"] == "finite-differences"]
    assert finding["value"] < 1e-3


def test_a_model_that_clamps_its_input_is_sound(sound, test_split):
    clamped = Wrapped(sound, before=lambda images: images.clamp(0, 1))
    assert fired(probe(Target(clamped, test_split), ThreatModel("linf", "0.15"), 32)) == []


def test_without_a_threat_model_only_the_contract_is_checked(sound, test_split):
    names = [one["name"] for one in probe(Target(sound, test_split), None, 16)]
    assert names == [
        *("train-mode", "non-finite-logits", "not-deterministic", "batch-dependent", "gradient-mode"),
        *("probabilities", "dynamic", "pixel-range", "normalisation", "stateful"),
    ]


def test_pixels_outside_their_range_are_noticed(sound, test_split):
    bright = dataclasses.replace(test_split, levels=8)
    assert "pixel-range" in fired(probe(Target(sound, bright), None, 16))
