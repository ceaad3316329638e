"""How long the default training takes: its operations over the speed of a convolution, by hand."""

import pytest
import torch

from bench.training import forecast as module
from bench.training.forecast import convolution_speed, default_operations, forecast


def test_the_operations_of_the_default_training_are_those_of_23_forward_passes_an_image():
    assert default_operations() == pytest.approx(140.5e15, rel=1e-3)


def test_a_speed_is_operations_over_the_shortest_time(monkeypatch):
    """4 images of 32 x 32 x 64, 9 x 64 multiply-adds each, forwards and back: 604 million operations."""
    ticks = iter([0, 9, 10, 12, 20, 21, 30, 33, 40, 42, 50, 52])
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    assert convolution_speed(torch.device("cpu"), "fp32") == 2 * 2 * 4 * 32 * 32 * 64 * 9 * 64


@pytest.mark.parametrize(
    ("speed", "told"), [(140.5e12 / 0.6, "about 10 minutes"), (140.5e15 / 36e4, "about 100 hours")]
)
def test_the_time_is_told_in_minutes_or_hours(monkeypatch, speed, told):
    monkeypatch.setattr(module, "convolution_speed", lambda device, precision: speed)
    assert told in forecast(torch.device("cpu"))[2]
