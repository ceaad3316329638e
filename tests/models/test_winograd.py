"""Minimal filtering is the convolution that torch computes, forwards and backwards."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.models import winograd

SHAPES = [(1, 4, 4), (2, 8, 12), (3, 7, 5), (5, 1, 3), (9, 6, 6), (11, 16, 16), (40, 9, 4)]


def problem(shape, dtype, inputs=6, outputs=5, memory_format=torch.channels_last):
    count, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    images = normal(count, inputs, height, width).to(memory_format=memory_format)
    weight, bias = normal(outputs, inputs, 3, 3) / 9, normal(outputs)
    return [tensor.requires_grad_() for tensor in (images, weight, bias)]


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_in_float64(shape, memory_format):
    images, weight, bias = problem(shape, torch.float64, memory_format=memory_format)
    found = winograd.convolution(weight, bias)(images)
    expected = functional.conv2d(images, weight, bias, padding=1)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected) < 1e-13
    cotangent = torch.cos(torch.arange(expected.numel(), dtype=torch.float64)).view(expected.shape)
    for ours, theirs in zip(
        torch.autograd.grad(found, (images, weight, bias), cotangent),
        torch.autograd.grad(expected, (images, weight, bias), cotangent),
        strict=True,
    ):
        assert relative(ours, theirs) < 1e-13


def test_float32_rounds_a_few_times_as_coarsely_as_the_direct_sum():
    images, weight, bias = problem((4, 16, 16), torch.float32, 64, 64)
    exact = functional.conv2d(images.double(), weight.double(), bias.double(), padding=1)
    direct = relative(functional.conv2d(images, weight, bias, padding=1), exact)
    assert relative(winograd.convolution(weight, bias)(images), exact) < max(20 * direct, 1e-6) < 2e-5


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 7, 5)], ids=str)
def test_an_activation_in_place_may_follow(shape):
    """As in timm's networks once BatchNorm is folded away."""
    images, weight, bias = problem(shape, torch.float64)
    found = torch.relu_(winograd.convolution(weight, bias)(images))
    expected = torch.relu(functional.conv2d(images, weight, bias, padding=1))
    assert relative(found, expected) < 1e-13
    ours, theirs = (torch.autograd.grad(outputs.square().sum(), images)[0] for outputs in (found, expected))
    assert relative(ours, theirs) < 1e-13


def test_without_a_bias_and_without_gradients():
    images, weight, _ = problem((2, 8, 8), torch.float64)
    with torch.no_grad():
        found = winograd.convolution(weight, None)(images)
    assert not found.requires_grad
    assert relative(found, functional.conv2d(images, weight, padding=1)) < 1e-13


def operations(outputs, inputs):
    """Names of what torch computes for a gradient."""
    with torch.autograd.profiler.profile() as profile:
        torch.autograd.grad(outputs, inputs, retain_graph=True)
    return {event.name for event in profile.function_events}


def test_the_gradient_of_images_makes_none_of_weights():
    images, weight, bias = problem((2, 8, 8), torch.float64)
    found = winograd.convolution(weight, bias)(images).sum()
    assert "aten::convolution_backward" not in operations(found, images)
    assert "aten::convolution_backward" in operations(found, bias)


def test_only_wide_plain_3x3_convolutions_gain():
    assert winograd.suits(nn.Conv2d(64, 128, 3, padding=1))
    for layer in (
        nn.Conv2d(63, 128, 3, padding=1),
        nn.Conv2d(64, 63, 3, padding=1),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 5, padding=1),
    ):
        assert not winograd.suits(layer), layer
