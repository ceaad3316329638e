"""A faster model of the same function to search on: BatchNorm folded into convolutions, channels last.

Folding rounds differently, so such a model finds and never judges: see `Target.search_model`.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.interfaces import Images, evaluation_mode

TOLERANCE = 1e-4
"""How far logits may move, relative to the largest one. Rounding moves those of a ResNet-18 by about 1e-6."""


@torch.no_grad()
def folded(model: nn.Module, images: Images) -> nn.Module | None:
    """A copy in eval mode whose BatchNorms are part of the convolutions before them, with the model's other methods.

    Pairs are read off one forward pass on `images` (a few of the images to attack), so any model that calls its
    layers as modules will do. Parameters of the copy take no gradient; later changes of the model do not reach it.

    Returns:
        The copy; None where there is nothing to fold, the model cannot be copied, or the copy does not make the same
        predictions with logits equal to `TOLERANCE`.
    """
    with evaluation_mode(model):
        try:
            copy = deepcopy(model)
        except (RuntimeError, TypeError):
            return None
        expected = model(images)
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, norm in _pairs(copy, images):
        replacements |= {convolution: fuse_conv_bn_eval(convolution, norm), norm: nn.Identity()}
    if not replacements:
        return None
    for parent in list(copy.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        found = copy(images)
    except (AttributeError, RuntimeError, TypeError):
        # The model reads an attribute of a layer that is gone, such as its running mean.
        return None
    close = (found - expected).abs().amax() <= TOLERANCE * expected.abs().amax()
    return copy if close and torch.equal(found.argmax(1), expected.argmax(1)) else None


def _pairs(model: nn.Module, images: Images) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions, each with the BatchNorm that is given exactly its output; both are called once per pass."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: list[nn.Module] = []

    def after_convolution(layer: nn.Conv2d, given: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(layer)
        # The version tells an output apart from the same tensor after an activation in place.
        outputs[id(output)] = (layer, output, output._version)

    def before_norm(layer: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        calls.append(layer)
        convolution, _, version = outputs.get(id(given[0]), (None, None, None))
        if convolution is not None and version == given[0]._version:
            pairs.append((convolution, layer))

    hooks = []
    for layer in model.modules():
        if _plain(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(after_convolution))
        elif _plain(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            hooks.append(layer.register_forward_pre_hook(before_norm))
    model(images)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if calls.count(pair[0]) == calls.count(pair[1]) == 1]


def _plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Exactly of this kind: no subclass, and nothing hooked to it that computes its weights."""
    return type(layer) is kind and not layer._forward_pre_hooks and not layer._forward_hooks
