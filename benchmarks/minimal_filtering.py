"""How much minimal filtering saves an attack on a ResNet-18 on this CPU: one interleaved run.

    python -m benchmarks.minimal_filtering [--images 32] [--rounds 9]

The same folded model with its 3x3 convolutions computed directly and by `bench.models.winograd`; a forward pass and
an attack's step (forward and gradient of the images), in CPU seconds of one thread, median of the rounds.
"""

import argparse
import time
from statistics import median
from unittest.mock import patch

import torch
from torch import nn

from bench.interfaces import LinearClassifier
from bench.models import winograd
from bench.models.backbones import make_backbone
from bench.models.folding import folded


def models(images):
    """The model folded twice: convolutions computed directly, and by minimal filtering."""
    model = LinearClassifier(make_backbone("resnet18", 3, (32, 32)), 10).eval()
    for layer in model.modules():
        # Statistics of a trained network, so that folding changes weights.
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    with patch.object(winograd, "suits", lambda layer: False):
        direct = folded(model, images[:4])
    return direct, folded(model, images[:4])


def forward(model, images):
    """Logits alone."""
    with torch.no_grad():
        model(images)


def step(model, images):
    """Logits, and the gradient of a loss."""
    model(images.clone().requires_grad_()).logsumexp(1).sum().backward()


def seconds(work, model, images):
    """CPU seconds."""
    started = time.process_time()
    work(model, images)
    return time.process_time() - started


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(chosen.images, 3, 32, 32)
    direct, filtered = models(images)
    for work in (forward, step):
        rounds = [[seconds(work, model, images) for model in (direct, filtered)] for _ in range(chosen.rounds)]
        before, after = (median(column) for column in zip(*rounds, strict=True))
        print(f"{work.__name__}: direct {before:.3f}, filtered {after:.3f}, {before / after:.2f} times as fast")  # noqa: T201


if __name__ == "__main__":
    main()
