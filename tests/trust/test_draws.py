"""Three planted random models, each told as what it is: noise that helps, noise that only masks, and no noise."""

import json

import pytest
import torch

from bench.face import evaluate
from bench.results.metrics import one_draw
from tests.support.random_models import NoisyLine, Rippled, normal_share

RADIUS = 8 / 255
COUNT = 8


def found(result):
    return {one["name"]: one for one in result.findings}


def faults(result):
    return {name for name, one in found(result).items() if one["severity"] in ("error", "warning")}


def evaluated(model, data, folder, search=8, suite=None, probes=COUNT):
    path = folder / f"draws{search}.json"
    cell = {"label": "PGD-10", "attack": "pgd", "parameters": {"steps": 10, "step_size": "eps/4"}}
    path.write_text(
        json.dumps({"name": "own", "version": 1, "draws": {"search": search, "verdict": 10}, "cells": [cell]})
    )
    name = type(model).__name__
    out = folder / f"{name}-{search}-{suite}.h5"
    return evaluate(
        model,
        data,
        suite or str(path),
        epsilon="8/255",
        quiet=True,
        batch_size=16,
        probes=probes,
        out=out,
        overwrite=True,
    )


def test_noise_that_helps_is_believed(tmp_path):
    # Without noise half a period on every pixel turns 64 sines against the label; with it, nothing but the slope moves.
    slope, lead = 5 / (64 * RADIUS), 20
    data = Rippled(slope, True).data(lead, COUNT)
    without = evaluated(Rippled(slope, False), data, tmp_path, suite="quick", probes=0)
    assert (without.attacks["PGD-20"].prediction != without.label).all()
    result = evaluated(Rippled(slope, True), data, tmp_path)
    known = normal_share(torch.tensor((lead - 5) / 32**0.5))
    assert one_draw(result)["PGD-10: one draw"].mean() == pytest.approx(float(known), abs=0.02)
    assert faults(result) == set()
    assert found(result)["own-draws"]["severity"] == found(result)["more-draws"]["severity"] == "passed"


def test_noise_that_only_masks_is_seen_through_and_too_few_draws_are_told(tmp_path):
    # The slope alone breaks every image. A draw's gradient is five parts sine to one part slope; 24 draws part them.
    slope, lead = 40 / (64 * RADIUS), 20
    data = Rippled(slope, True).data(lead, COUNT)
    many, one = (evaluated(Rippled(slope, True), data, tmp_path, search) for search in (24, 1))
    assert one_draw(many)["PGD-10: one draw"].mean() < 0.02
    assert faults(many) == set()
    assert one_draw(one)["PGD-10: one draw"].mean() > 0.3
    assert faults(one) == {"more-draws"}
    assert "on the mean of 2 draws instead of 1 leaves" in found(one)["more-draws"]["message"]


class Pretender(NoisyLine):
    """Declares itself random, and purifies nothing."""

    def __init__(self, weight, bias):
        super().__init__(weight, bias, 0.0)


class Sharer(NoisyLine):
    """One draw for all images of a batch."""

    def forward(self, images):
        lines = self.line(images + self.deviation * torch.randn_like(images[:1]))
        return torch.stack([torch.zeros_like(lines), lines], 1)


class Own(NoisyLine):
    """Noise of a generator of its own, which no key starts."""

    generator = torch.Generator().manual_seed(0)

    def forward(self, images):
        lines = self.line(images + self.deviation * torch.randn(images.shape, generator=self.generator))
        return torch.stack([torch.zeros_like(lines), lines], 1)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(51, 204, (16, 1, 4, 4), generator=generator, dtype=torch.uint8)
    weight = torch.randn(16, generator=generator)
    bias = -0.5 * float(weight.sum())
    labels = (NoisyLine(weight, bias, 0.0).line(pixels / 255) > 0).long()
    return weight, bias, (pixels, labels)


def test_a_purifier_that_is_the_identity_is_told_and_has_the_numbers_of_what_is_behind(data, tmp_path):
    weight, bias, images = data
    result = evaluated(Pretender(weight, bias), images, tmp_path, search=2, probes=8)
    exact = Pretender(weight, bias)
    lead = ((2 * images[1] - 1) * exact.line(images[0] / 255)).abs()
    stands = (lead > RADIUS * weight.abs().sum()).numpy()
    assert 0 < stands.sum() < 16
    assert (result.attacks["PGD-10"].right_draws == 10 * stands).all()
    assert faults(result) == set()
    assert found(result)["own-draws"]["severity"] == "note"
    assert "two in one batch are answered otherwise for 0, in two calls for 0" in found(result)["own-draws"]["message"]


def test_draws_that_a_batch_shares_and_draws_without_a_key_are_errors(data, tmp_path):
    weight, bias, images = data
    images = tuple(part[:6] for part in images)
    shared = evaluated(Sharer(weight, bias, 0.1), images, tmp_path, search=2, probes=4)
    assert found(shared)["own-draws"]["severity"] == "error"
    unkeyed = evaluated(Own(weight, bias, 0.1), images, tmp_path, search=2, probes=4)
    assert found(unkeyed)["not-deterministic"]["severity"] == "error"
