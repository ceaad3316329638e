"""A 3x3 convolution with a quarter of the products: minimal filtering F(4x4, 3x3).

Winograd 1980; Lavin & Gray 2016, https://arxiv.org/abs/1509.09308, section 4.3, whose matrices these are. A tile of 6x6
pixels gives 4x4 outputs by 36 products per pair of channels instead of 144, all of them as one batched matrix product.
The sums round about five times as coarsely as a direct convolution's, so what is computed here searches and never
judges. On CUDA, cuDNN chooses among such algorithms itself.

An attack's step on a ResNet-18 is 1.3 times as fast with it under AVX-512, twice under AVX2:
`benchmarks/minimal_filtering.py`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

OUTPUT, TILE = 4, 6
"""Side of what a tile gives, and of the tile."""
MINIMUM_CHANNELS = 64
"""With fewer, moving tiles costs more than their products save."""
TILES_AT_ONCE = 128
"""Large enough for a matrix product, small enough that tiles of 64 channels stay in a cache of 1 MiB."""

_PIXELS = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_FILTER = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
).div(24)
_OUTPUTS = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)

# Rows and columns at once.
_TO_POINTS, _TO_FILTERS, _TO_PIXELS = (torch.kron(matrix, matrix) for matrix in (_PIXELS, _FILTER, _OUTPUTS))

Convolution: TypeAlias = Callable[[Tensor], Tensor]


def suits(layer: nn.Conv2d) -> bool:
    """True if the layer is of the one form that this computes, and wide enough to gain by it."""
    form = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    wide = min(layer.in_channels, layer.out_channels) >= MINIMUM_CHANNELS
    return wide and form == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def convolution(weight: Tensor, bias: Tensor | None) -> Convolution:
    """The 3x3 convolution of stride 1, zero-padded by 1, with these weights as they are now.

    Args:
        weight: (outputs, inputs, 3, 3), of any floating type.
        bias: (outputs,), or None for 0.

    Returns:
        A function of images (n, inputs, height, width), to (n, outputs, height, width). Gradients reach the images,
        and where they ask for them, `weight` and `bias`.
    """
    with torch.no_grad():
        outputs, inputs = weight.shape[:2]
        flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
        transform = _TO_FILTERS.to(weight)
        filters = (transform @ flat).view(TILE * TILE, outputs, inputs).transpose(1, 2)
        # The gradient of a convolution is one with the filter turned by 180 degrees, from outputs to inputs.
        turned = (transform @ flat.flip(0)).view(TILE * TILE, outputs, inputs)
        offset = weight.new_zeros(outputs) if bias is None else bias.detach()

    def forward(images: Tensor) -> Tensor:
        asks = weight.requires_grad or (bias is not None and bias.requires_grad)
        share = None
        if asks and torch.is_grad_enabled():
            share = _Share.apply(images.detach(), weight, bias)  # type: ignore[no-untyped-call]
        found: Tensor = _Filtered.apply(images, share, filters, turned, offset)  # type: ignore[no-untyped-call]
        return found

    return forward


class _Filtered(Function):
    """The convolution, with a gradient for the images, and the gradient of the outputs for `share`."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, share: Tensor | None, filters: Tensor, turned: Tensor, offset: Tensor
    ) -> Tensor:
        ctx.save_for_backward(turned)
        return _filtered(images, filters, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (turned,), gradient = ctx.saved_tensors, gradients[0]
        wanted = ctx.needs_input_grad
        images = _filtered(gradient, turned, gradient.new_zeros(turned.shape[2])) if wanted[0] else None
        return images, gradient if wanted[1] else None, None, None, None


class _Share(Function):
    """A zero whose gradient goes on to weights: a node that is not run where only images ask for a gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return images.new_zeros(()).expand(len(images), len(weight), *images.shape[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        ones, wanted = [1, 1], (False, *ctx.needs_input_grad[1:])
        made: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            gradients[0], images, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, wanted
        )
        return made


def _filtered(images: Tensor, filters: Tensor, offset: Tensor) -> Tensor:
    """Some images at a time: tiles to the 36 points, there one product of matrices each, and back."""
    count, inputs, height, width = images.shape
    outputs, down, across = filters.shape[2], -(-height // OUTPUT), -(-width // OUTPUT)
    padding = (0, 0, 1, OUTPUT * across + 1 - width, 1, OUTPUT * down + 1 - height)
    to_points, to_pixels = _TO_POINTS.to(images), _TO_PIXELS.to(images)
    pixels = images.permute(0, 2, 3, 1)
    # A tensor of its own, no view: autograd lets no activation in place follow a view that was made in a function.
    whole = torch.empty(
        (count, outputs, height, width), dtype=images.dtype, device=images.device, memory_format=torch.channels_last
    )
    inside = whole.permute(0, 2, 3, 1)
    exact = (height, width) == (OUTPUT * down, OUTPUT * across)
    found = inside if exact else images.new_empty(count, OUTPUT * down, OUTPUT * across, outputs)
    at_once = max(1, TILES_AT_ONCE // (down * across))
    buffers: list[Tensor] = []
    for some, result in zip(torch.split(pixels, at_once), torch.split(found, at_once), strict=True):
        tiles = len(some) * down * across
        if not buffers or buffers[0].shape[1] != tiles:
            shapes = (36, tiles, inputs), (36, tiles, inputs), (36, tiles, outputs), (16, tiles, outputs)
            buffers = [images.new_empty(shape) for shape in shapes]
        cut, points, products, back = buffers
        windows = functional.pad(some, padding).unfold(1, TILE, OUTPUT).unfold(2, TILE, OUTPUT)
        cut.view(TILE, TILE, len(some), down, across, inputs).copy_(windows.permute(4, 5, 0, 1, 2, 3))
        torch.mm(to_points, cut.flatten(1), out=points.flatten(1))
        torch.bmm(points, filters, out=products)
        torch.mm(to_pixels, products.flatten(1), out=back.flatten(1))
        placed = back.view(OUTPUT, OUTPUT, len(some), down, across, outputs).permute(2, 3, 0, 4, 1, 5)
        torch.add(placed, offset, out=result.view(len(some), down, OUTPUT, across, OUTPUT, outputs))
    if not exact:
        inside.copy_(found[:, :height, :width])
    return whole
