"""Random models whose accuracy is known: clean and under the best perturbation, in one draw and in the worst."""

import math

import torch
from torch import nn


def normal_share(values):
    """The standard normal distribution function."""
    return 0.5 * (1 + torch.erf(values / math.sqrt(2)))


class NoisyLine(nn.Module):
    """Logits (0, w x + b) of images with Gaussian noise on them: the line's value is normal, whatever the image."""

    randomised = True

    def __init__(self, weight, bias, deviation):
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias, self.deviation = bias, deviation

    def line(self, images):
        return images.flatten(1) @ self.weight + self.bias

    def forward(self, images):
        lines = self.line(images + self.deviation * torch.randn_like(images))
        return torch.stack([torch.zeros_like(lines), lines], 1)

    def reliability(self, images, labels, radius=0.0):
        """Per image: the probability that one draw is right, under the best perturbation inside the box."""
        lead = (2 * labels - 1) * self.line(images) - radius * self.weight.abs().sum()
        return normal_share(lead / (self.deviation * self.weight.norm()))


class Rippled(nn.Module):
    """Logits (0, g / 10): g = slope * sum of s_i (x_i - 1/2) + sum of sin(2 pi x_i / period + p_i), s_i = 1 or -1.

    Noise over a whole period makes of every sine a random number, of variance 1/2, that no perturbation moves; without
    noise a perturbation of half a period turns each sine as it likes. The gradient of a draw is mostly that of sines.
    """

    PERIOD = 16 / 255

    def __init__(self, slope, noise):
        super().__init__()
        self.slope, self.randomised = slope, noise
        self.register_buffer("signs", torch.tensor([1.0, -1.0]).repeat(32))
        self.register_buffer("phases", torch.rand(64, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        flat = images.flatten(1)
        phase = flat / self.PERIOD + self.phases + (torch.rand_like(flat) if self.randomised else 0.0)
        lines = self.slope * ((flat - 0.5) * self.signs).sum(1) + torch.sin(2 * math.pi * phase).sum(1)
        return torch.stack([torch.zeros_like(lines), lines], 1) / 10

    def data(self, lead, count):
        """8x8 images whose label leads by about `lead` without the sines, and their labels."""
        labels = torch.arange(count) % 2
        level = lead / (64 * self.slope) * (2 * labels - 1)
        pixels = (255 * (0.5 + level[:, None] * self.signs)).round().view(-1, 1, 8, 8)
        # Images of their own: a pair of pixels moves as far as another pair moves back.
        pixels[:, 0, 0, 0] += torch.arange(count)
        pixels[:, 0, 0, 2] -= torch.arange(count)
        return pixels.to(torch.uint8), labels
