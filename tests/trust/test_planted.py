"""A planted fault of every general kind is caught by the check meant for it; sound models raise none."""

import pytest
import torch

from bench.catalogue.suites import load_suite
from bench.data.datasets import load_dataset
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import ThreatModel
from bench.trust.constancy import Witness
from bench.trust.probes import probe
from bench.trust.report import concluded
from tests.support.planted import PLANTED, Sound, closed_form

COUNT = 96
CAUGHT = {
    "gradients flipped": "finite-differences",
    "gradients zeroed in most pixels": "gradient-path",
    "gradients flipped for every other class": "masked-gradients",
    "shattered by a sine": "finite-differences",
    "locally flat": "finite-differences",
    "gradients of a sound network, answers of another": "finite-differences",
    "logits saturate": "gradients-margin",
    "another answer when gradients are asked for": "gradient-mode",
    "gradients cut in large batches": "batch-dependent",
    "batch statistics above 40 images": "batch-dependent",
    "duplicates in a batch count": "batch-dependent",
    "counts calls, then memorises": "stateful",
    "weights change after 30 calls": "stateful",
    "every tenth call is another model's": "not-deterministic",
    "a test image within the radius decides": "unknown-images",
    "half of the test labels leak": "unknown-images",
}
"""By fault: an error that its report must have. `python -m benchmarks.planted` looks at all that are planted."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    data = load_dataset("digits", tmp_path_factory.mktemp("data"))
    return Sound(closed_form(data), closed_form(data, seed=1), data)


def report(model, sound):
    """The trust report, after the suite `quick`."""
    target = Target(model, sound.data.test.take(COUNT))
    threat = ThreatModel("linf", "0.15")
    witness = Witness.call(target, threat, 32)
    outcome = run_suite(target, load_suite("quick").resolve(sound.data.epsilons, {}))
    witness.look("asked after the suite")
    return concluded(probe(target, threat, 32, witness, outcome, sound.data.train), [])


def errors(findings):
    return {one["name"] for one in findings if one["severity"] == "error"}


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_planted_fault_is_an_error_of_its_check(fault, sound):
    torch.manual_seed(0)
    assert CAUGHT[fault] in errors(report(PLANTED[fault].plant(sound), sound))


def test_noise_that_is_a_function_of_the_image_is_seen(sound):
    findings = report(PLANTED["noise that is a function of the image"].plant(sound), sound)
    assert "finite-differences" in {one["name"] for one in findings if one["severity"] in ("error", "warning")}


@pytest.mark.parametrize(
    "control", [name for name, fault in PLANTED.items() if fault.inside == "closed form" and fault.kind == "sound"]
)
def test_a_sound_model_raises_neither_errors_nor_warnings(control, sound):
    findings = report(PLANTED[control].plant(sound), sound)
    assert [one["name"] for one in findings if one["severity"] in ("error", "warning")] == []
    assert len(findings) > 25


def test_there_are_faults_of_every_general_kind():
    kinds = [fault.kind for fault in PLANTED.values()]
    assert len(kinds) - kinds.count("sound") >= 40
    named = {"masked", "cut", "noisy", "wrong", "stateful", "batch-dependent", "leaking", "mixed", "sound"}
    assert {kind: kinds.count(kind) >= 4 for kind in kinds} == dict.fromkeys(named, True)
