"""Random models: closed forms of Gaussian noise in front of a line, and verdicts that depend on no batch."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.catalogue.suites import AttackCell, Suite
from bench.data.datasets import held_dataset
from bench.data.splits import Split
from bench.engine.drawn import Drawn, DrawnVerdicts, Expected
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.evaluation.cost import estimate
from bench.evaluation.request import EvaluationRequest
from bench.face import evaluate
from bench.interfaces import NO_CLASS
from bench.results.estimates import mean_estimate
from bench.results.file import content_digest, read_result
from bench.results.metrics import one_draw, robust_accuracy
from bench.system.blocks import PartStore
from tests.support.random_models import NoisyLine

RADIUS = 0.04
STEP = AttackCell("step", "fgsm", epsilon=str(RADIUS))


@pytest.fixture(scope="module")
def line():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, generator=generator)
    return NoisyLine(weight, -0.5 * float(weight.sum()), 0.1)


@pytest.fixture(scope="module")
def split():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(51, 204, (600, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.zeros(600, dtype=torch.int64))


def labelled(line, split):
    """The split with the labels that the line gives without noise."""
    return Split(split.pixels, (line.line(split.images(slice(None))) > 0).long())


def random_target(model, split, search, verdict, **options):
    return Target(Expected(model, search, 0), split, drawn=Drawn(model, verdict, 0), **options)


def test_accuracies_of_noise_before_a_line_are_the_closed_forms(line, split):
    split = labelled(line, split)
    outcome = run_suite(random_target(line, split, 2, 50), Suite("s", 1, "", (STEP,), {}))
    images, labels = split.images(slice(None)), split.labels
    # One step is the best perturbation of a line: all pixels are further from 0 and 1 than the radius.
    for radius, right, prediction in (
        (0.0, outcome.clean_right_draws, outcome.clean_prediction),
        (RADIUS, outcome.attacks["step"].right_draws, outcome.attacks["step"].prediction),
    ):
        known = line.reliability(images, labels, radius)
        assert (right / 50).mean() == pytest.approx(float(known.mean()), abs=0.01)
        assert (prediction == labels.numpy()).mean() == pytest.approx(float((known**50).mean()), abs=0.01)
        assert ((prediction == labels.numpy()) == (right == 50)).all()
    np.testing.assert_allclose(outcome.attacks["step"].distance, RADIUS, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_over_draws(line, split):
    image = split.images(slice(0, 1)).requires_grad_()
    label = torch.tensor([int(line.line(image) > 0)])
    loss = functional.cross_entropy(Expected(line, 40_000, 0)(image), label)
    (gradient,) = torch.autograd.grad(loss, image)
    lead = float((2 * label - 1) * line.line(image.detach()))
    # Cross-entropy of a lead m falls by 1 / (1 + exp(m)) for every unit of it.
    known = -(2 * label - 1) * line.weight / (1 + np.exp(lead))
    torch.testing.assert_close(gradient.flatten(), known, rtol=0.01, atol=0)


def test_the_interval_of_one_draw_holds_images_and_draws(line, split):
    # Repeated with other draws and images, the share of draws varies as the interval says: 19 of 20 times inside.
    split = labelled(line, split)
    known = line.reliability(split.images(slice(None)), split.labels)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        chosen = known.numpy()[rng.integers(0, len(known), 50)]
        low, high = mean_estimate((rng.binomial(5, chosen) / 5)[None]).interval(0.0, 1.0)
        held += low <= float(known.mean()) <= high
    assert held >= 0.92 * 400


class Noisy(nn.Module):
    """A small network behind noise, half of it torch's and half NumPy's."""

    randomised = True

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(16, 12, generator=generator))
        self.last = nn.Parameter(torch.randn(12, 3, generator=generator))

    def forward(self, images):
        noise = torch.randn_like(images) + torch.from_numpy(np.random.standard_normal(images.shape)).float()
        return torch.tanh((images + 0.1 * noise).flatten(1) @ self.first) @ self.last


def outcomes(split, parts=None, shards=1, **options):
    cells = (STEP, AttackCell("PGD l2", "pgd", "l2", "1", {"steps": 2}))
    suite = Suite("s", 1, "", cells, {})
    for number in range(shards):
        outcome = run_suite(random_target(Noisy(), split, 3, 4, **options), suite, parts=parts, shard=(number, shards))
    return [
        outcome.clean_right_draws.tolist(),
        *(
            (one.right_draws.tolist(), one.prediction.tolist(), one.distance.tolist())
            for one in outcome.attacks.values()
        ),
    ]


def test_verdicts_depend_on_no_batch_no_shard_and_no_neighbour(split, tmp_path):
    split = Split(split.pixels[:9], torch.arange(9) % 3)
    whole = outcomes(split)
    assert 0 < np.mean(whole[0]) < 4
    assert outcomes(split, batch_size=4) == whole
    assert outcomes(split, batch_size=8, room=3) == whole
    assert outcomes(split, PartStore(tmp_path / "r.h5", {}), 2, batch_size=8) == whole
    kept = split.chosen(np.array([4, 7]))
    assert outcomes(kept)[0] == [whole[0][4], whole[0][7]]


def test_a_random_state_is_left_as_it_was_and_changes_nothing(split):
    model, images = Expected(Noisy(), 2, 0), split.images(slice(0, 3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = model(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(model(images), first)
    assert not torch.equal(
        model(images[:1].repeat(2, 1, 1, 1) + torch.tensor([0.0, 1e-3]).view(2, 1, 1, 1))[1], first[0]
    )


def test_the_first_wrong_draw_is_the_prediction_and_no_class_is_no_success():
    named = torch.tensor([[1, 1, 1], [1, 2, 0], [1, NO_CLASS, 1]])
    labels = torch.tensor([1, 1, 1])
    clean, attacked = (DrawnVerdicts.of(named, labels, attacked) for attacked in (False, True))
    assert clean.prediction.tolist() == [1, 2, NO_CLASS] and clean.right.tolist() == [3, 1, 2]
    assert attacked.prediction.tolist() == [1, 2, 1] and attacked.right.tolist() == [3, 1, 3]


@pytest.mark.parametrize(("attack", "parameters"), [("square", {}), ("pgd", {"restarts": 2})])
def test_an_attack_without_one_last_image_is_refused(line, split, attack, parameters):
    cell = AttackCell("other", attack, epsilon="0.1", parameters=parameters)
    with pytest.raises(BenchError, match=r"other has not one last image.*restarts=1"):
        run_suite(random_target(line, split, 2, 2), Suite("s", 1, "", (cell,), {}))


# -------------------------------------------------------------------------------------------- an evaluation


@pytest.fixture(scope="module")
def written(line, split, tmp_path_factory):
    split = labelled(line, split)
    folder = tmp_path_factory.mktemp("r")
    suite = {
        "name": "own",
        "version": 1,
        "draws": {"search": 2, "verdict": 5},
        "cells": [{"label": "PGD-3", "attack": "pgd"}],
    }
    suite["cells"][0]["parameters"] = {"steps": 3, "step_size": "eps/2"}
    (folder / "own.json").write_text(json.dumps(suite))
    data = split.pixels[:30], split.labels[:30]
    options = {"epsilon": "0.04", "quiet": True}
    run = lambda out, **more: evaluate(line, data, str(folder / "own.json"), out=folder / out, **options, **more)  # noqa: E731
    return folder, data, run("r.h5", batch_size=16, probes=4), run("again.h5", batch_size=7, probes=0)


def test_a_file_holds_draws_budget_and_both_protocols(written):
    folder, _, result, again = written
    read = read_result(folder / "r.h5")
    assert content_digest(read) == content_digest(result)
    assert read.suite["draws"] == {"search": 2, "verdict": 5} and read.draws == 5
    assert read.run["randomised"] == "by the model"
    # Three steps and the last look, on two draws each, and the verdict.
    assert read.run["evaluation"]["passes"] == {"PGD-3": 2 * 4 + 5}
    record = read.attacks["PGD-3"]
    assert (again.attacks["PGD-3"].right_draws == record.right_draws).all()
    shares = one_draw(read)
    assert list(shares) == ["Clean: one draw", "Worst case: one draw", "PGD-3: one draw"]
    assert shares["PGD-3: one draw"].mean() == pytest.approx((record.right_draws / 5).mean())
    both = (record.right_draws == 5) & (read.clean_right_draws == 5)
    assert robust_accuracy(read, "PGD-3") == both.mean()
    assert (folder / "r.h5").read_bytes()[:14] == b"bench-result 3"


def test_right_draws_that_contradict_predictions_are_refused(written):
    result = written[2]
    record = result.attacks["PGD-3"]
    for forged in (record.right_draws + 1, np.full_like(record.right_draws, 5), None):
        changed = {"PGD-3": dataclasses.replace(record, right_draws=forged)}
        with pytest.raises(BenchError, match="PGD-3: right draws do not fit"):
            dataclasses.replace(result, attacks=changed)


def test_suites_and_models_that_do_not_fit_are_refused(written, line):
    folder, data, *_ = written
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for model, suite, options, message in (
        (line, "quick", {}, "NoisyLine is random, and suite quick asks it once. Choose eot"),
        (plain, "eot", {}, "suite eot is for random models: say `randomised = True`"),
        (line, "eot", {"search_precision": "bf16"}, "precision bf16 is not for random models"),
        (line, "eot", {"save_adversarials": True}, "leave out --convention and --save-adversarials"),
    ):
        with pytest.raises(BenchError, match=message):
            evaluate(model, data, suite, epsilon="0.04", quiet=True, out=folder / "no.h5", **options)
    for draws in ({"search": 0, "verdict": 1}, {"search": 2}, {"search": True, "verdict": 1}):
        (folder / "bad.json").write_text(json.dumps({"name": "b", "version": 1, "draws": draws, "cells": []}))
        with pytest.raises(BenchError, match="are not a search and a verdict of 1 to 10000 each"):
            evaluate(line, data, str(folder / "bad.json"), epsilon="0.04", quiet=True)


def test_the_cost_of_an_evaluation_counts_every_draw(written, line):
    folder, (pixels, labels), *_ = written
    dataset = held_dataset(pixels, labels, None)
    request = EvaluationRequest(
        str(folder / "own.json"), module=line, dataset=dataset.name, held=dataset, epsilons={"linf": "0.04"},
        out=folder / "none.h5",
    )  # fmt: skip
    ((name, gradients, seconds),) = estimate(request)
    # Every image is attacked to the end: three steps on two draws each.
    assert (name, gradients) == ("PGD-3", 30 * 3 * 2) and seconds > 0
