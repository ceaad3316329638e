"""What a training would be on a device: its precision, how steps are run, and how long the default one would take."""

import time

import torch
from torch.nn import functional

from bench.catalogue.names import DEFAULT_RECIPE
from bench.catalogue.recipes import load_recipe, protocol_for
from bench.models.backbones import make_backbone
from bench.models.folding import FoldedView
from bench.system.devices import bfloat16_slowness, training_arithmetic, training_precision
from bench.system.environment import describe_environment
from bench.system.randomness import seeded

FORWARD = 1.111e9
"""Operations of a forward pass of a ResNet-18 on an image of 32x32, of which a multiply-add counts two."""
IMAGES = 50_000


def forecast(device: torch.device) -> list[str]:
    """Lines for a person. The time is that of convolutions alone, measured on one of the network's."""
    precision = training_precision("auto", device)
    with seeded(0):
        backbone = str(load_recipe(DEFAULT_RECIPE).settings("cifar10")["backbone"])
        model = make_backbone(backbone, 3, (8, 8), "relu", True).to(device).eval()
        pairs = len(FoldedView(model, torch.rand(2, 3, 8, 8, device=device)).pairs)
    steps = "one CUDA graph, if three replays end as three steps do" if device.type == "cuda" else "run one by one"
    protocol = protocol_for("cifar10", {"linf": "8/255"}, 4, True, {})
    hours = default_operations() / convolution_speed(device, precision) / 3600
    time_taken = f"{60 * hours:.0f} minutes" if hours < 5 else f"{hours:.0f} hours"
    return [
        f"device: {describe_environment(device)['device']}; {_precisions(device)}",
        f"training: {precision}; steps {steps}; while crafting {pairs} BatchNorms of a ResNet-18 are folded",
        f"bench train --defense at, {protocol.epochs} epochs of CIFAR-10, ResNet-18: about {time_taken} at the speed "
        "of one convolution (--profile measures a step)",
    ]


def default_operations() -> float:
    """Of `bench train --defense at`: an ascent step is two forward passes' work, an update three."""
    protocol = protocol_for("cifar10", {"linf": "8/255"}, 4, True, {})
    return float(FORWARD * (2 * protocol.attack_steps + 3) * IMAGES * protocol.epochs)


def convolution_speed(device: torch.device, precision: str) -> float:
    """Operations per second of a 3x3 convolution of 64 channels, ReLU and the gradient in its input, at its fastest."""
    images, size = (128, 32) if device.type == "cuda" else (4, 32)
    half = precision == "bf16"
    kind = torch.bfloat16 if half else torch.float32
    inputs = torch.rand(images, 64, size, size, device=device, dtype=kind).to(memory_format=torch.channels_last)
    weight = torch.rand(64, 64, 3, 3, device=device, dtype=kind).to(memory_format=torch.channels_last)
    inputs.requires_grad_()

    def seconds() -> float:
        started = time.perf_counter()
        total = functional.conv2d(inputs, weight, padding=1).relu().sum()
        torch.autograd.grad(total, inputs)[0][0, 0, 0, 0].item()  # waits for the device
        return time.perf_counter() - started

    with training_arithmetic(precision):
        seconds()
        return 2 * 2 * 9 * 64 * 64 * size * size * images / min(seconds() for _ in range(5))


def _precisions(device: torch.device) -> str:
    if device.type == "cuda":
        tf32 = torch.cuda.get_device_capability(device) >= (8, 0)
        return ", ".join(["fp32", *["tf32"] * tf32, *["bf16"] * torch.cuda.is_bf16_supported()])
    return f"fp32, bf16 at {1 / bfloat16_slowness():.1f} times its speed"
