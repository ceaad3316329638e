"""A sample whose state repeats is not run on, and its verdicts are those of running it to the end."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine import search as trajectories
from bench.engine.run import run_suite
from bench.engine.target import Target


class Peak(nn.Module):
    """Logits (0, g) of the mean pixel t: g is -0.525 at 3/8, peaks between, and is 0.0375 at 1/2."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        mean = images.flatten(1).mean(1)
        score = 0.1 - torch.where(mean < 0.4375, 10 * (0.4375 - mean), mean - 0.4375)
        return torch.stack([torch.zeros_like(score), score], 1)


def outcome(model, split, cells, convention):
    return run_suite(Target(model, split), Suite("test", 1, "", tuple(cells), {}), convention=convention)


def test_of_two_images_in_turn_each_cell_is_judged_on_its_own_last_one():
    # Steps of 1/8 from 3/8 lead to 1/2 and back, exactly: odd iterates are misclassified, even ones are not.
    split = Split(torch.full((3, 1, 2, 2), 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), levels=8)
    cells = [
        AttackCell(f"PGD-{steps}", "pgd", "linf", "1/4", {"steps": steps, "step_size": "1/8", "random_start": False})
        for steps in (3, 8, 9, 10, 400, 401)
    ]
    model = Peak()
    records = outcome(model, split, cells, "final").attacks
    finals = {name: record.final_prediction.tolist() for name, record in records.items()}
    assert finals == {f"PGD-{steps}": [steps % 2] * 3 for steps in (3, 8, 9, 10, 400, 401)}
    assert all(record.prediction.tolist() == [1, 1, 1] for record in records.values())
    assert model.calls < 30


@pytest.mark.parametrize("convention", ["any", "final"])
def test_verdicts_equal_those_of_running_to_the_end(convention, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)).eval()
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        split = Split(pixels, model(pixels.float() / 255).argmax(1))
    cells = [
        AttackCell(f"{norm} {steps}x{restarts}", "pgd", norm, radius, {"steps": steps, "restarts": restarts})
        for norm, radius in (("linf", "0.015"), ("l2", "0.08"))
        for steps, restarts in ((9, 1), (40, 3), (61, 2))
    ]
    cells.append(AttackCell("loss", "pgd", "linf", "0.02", {"steps": 50}, measure_loss=True))
    steps = []
    original = trajectories.Trajectory.repeating
    monkeypatch.setattr(
        trajectories.Trajectory, "repeating", lambda walk, step: steps.append(1) or original(walk, step)
    )
    short = outcome(model, split, cells, convention).attacks
    taken = len(steps)
    monkeypatch.setattr(trajectories, "CHECK", 10**9)
    whole = outcome(model, split, cells, convention).attacks
    assert taken < 0.8 * (len(steps) - taken)
    for name, record in whole.items():
        for field in ("prediction", "final_prediction", "distance", "loss"):
            np.testing.assert_array_equal(
                getattr(short[name], field), getattr(record, field), err_msg=f"{name} {field}"
            )
    assert 0 < (whole["linf 61x2"].prediction != split.labels.numpy()).sum() < 40
