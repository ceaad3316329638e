"""A faster model of the same function to search on: BatchNorm folded into convolutions, fewer products, channels last.

It rounds differently, so such a model finds and never judges: see `Target.search_model`. `folded` makes a copy for a
model that stays as it is, `FoldedView` looks at one whose weights change with every training step. On a CPU both
compute wide 3x3 convolutions by minimal filtering (`bench.models.winograd`), unless in bfloat16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.interfaces import Images, evaluation_mode, without_autocast
from bench.models import winograd
from bench.system.devices import full_float32

TOLERANCE = 1e-4
"""How far logits may move, relative to the largest one. Rounding moves those of a ResNet-18 by about 1e-5."""

Pairs: TypeAlias = list[tuple[nn.Conv2d, nn.BatchNorm2d]]
Forwards: TypeAlias = dict[nn.Module, Callable[[Tensor], Tensor]]


@torch.no_grad()
def folded(model: nn.Module, images: Images) -> nn.Module | None:
    """A copy in eval mode whose BatchNorms are part of the convolutions before them, with the model's other methods.

    Pairs are read off one forward pass on `images` (a few of the images to attack), so any model that calls its
    layers as modules will do. Parameters of the copy take no gradient; later changes of the model do not reach it.
    Both are compared in float32, whatever the caller has allowed: the rounding of TF32 alone exceeds the tolerance.

    Returns:
        The copy; None where there is nothing to fold, the model cannot be copied, or the copy does not make the same
        predictions with logits equal to `TOLERANCE`.
    """
    with full_float32(), without_autocast(images):
        return _folded_copy(model, images)


def _folded_copy(model: nn.Module, images: Images) -> nn.Module | None:
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
    for layer in _filterable(copy):
        layer.forward = _computed(layer, layer.weight, layer.bias)  # type: ignore[assignment, method-assign]
    try:
        found = copy(images)
    except (AttributeError, RuntimeError, TypeError):
        # The model reads an attribute of a layer that is gone, such as its running mean.
        return None
    return copy if _close(found, expected) and torch.equal(found.argmax(1), expected.argmax(1)) else None


class FoldedView:
    """A model in eval mode, with every BatchNorm folded into the convolution before it: for crafting in training.

    Pairs are found once, on a few images; their weights are folded at every entry. Layers keep their place and their
    attributes, only what they compute is exchanged until exit, so all of the model's methods can be used, and gradients
    reach weights as well. Any other model, and one without such pairs, is shown in eval mode as it is.
    """

    def __init__(self, model: nn.Module, images: Images, half: bool = False) -> None:
        self.model, self.images, self.half = model, images, half
        self._pairs: Pairs | None = None
        self._inside = False
        self.shown: dict[nn.Module, None] = {}
        """The models that were looked at, in order."""
        self.refused = False
        """True once pairs were found through which the model computes something else: it is shown as it is."""

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model, until exit."""
        self.shown[model] = None
        with evaluation_mode(model):
            # Inside, layers are exchanged already: a second exchange would undo the first one's at its exit.
            if model is not self.model or self._inside:
                yield model
                return
            forwards: Forwards = {layer: _computed(layer, layer.weight, layer.bias) for layer in _filterable(model)}
            for convolution, norm in self.pairs:
                forwards |= {convolution: _folded(convolution, norm, self.half), norm: _unchanged}
            self._inside = True
            try:
                with _exchanged(forwards):
                    yield model
            finally:
                self._inside = False

    @property
    def pairs(self) -> Pairs:
        """The pairs that are folded: none if the model does not compute the same through pairs that undo each other.

        Compared in float32, whatever the run computes in.
        """
        if self._pairs is None:
            with torch.no_grad(), full_float32(), without_autocast(self.images):
                expected, pairs = self.model(self.images), _pairs(self.model, self.images)
                # Tested with a factor and an offset, because at the first step most BatchNorms change nothing.
                forwards: Forwards = {}
                for convolution, norm in pairs:
                    forwards |= {convolution: partial(_disguised, convolution), norm: partial(_undisguised, norm)}
                with _exchanged(forwards):
                    self.refused = bool(pairs) and not _close(self.model(self.images), expected)
                    self._pairs = [] if self.refused else pairs
        return self._pairs


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d, half: bool) -> Callable[[Tensor], Tensor]:
    """The convolution with the scale and shift of the BatchNorm in its weights, and under autocast in bfloat16."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = (variance + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    shift = -mean if convolution.bias is None else convolution.bias - mean
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    bias = shift * scale + (0.0 if norm.bias is None else norm.bias)
    return _computed(convolution, weight, bias, half)


def _computed(
    convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None, half: bool = False
) -> Callable[[Tensor], Tensor]:
    """The convolution with these weights, by the fastest way there is for the inputs that come."""
    halves = (weight.bfloat16(), None if bias is None else bias.bfloat16()) if half else None
    # Transformed at the first call, if one comes that it is for: under autocast or on CUDA none does.
    filtered = cache(partial(winograd.convolution, weight, bias))
    suits = winograd.suits(convolution)

    def forward(inputs: Tensor) -> Tensor:
        if torch.is_autocast_enabled(inputs.device.type):
            return convolution._conv_forward(inputs, *(halves or (weight, bias)))
        if suits and inputs.device.type == "cpu" and inputs.dtype in (torch.float32, torch.float64):
            return filtered()(inputs)
        return convolution._conv_forward(inputs, weight, bias)

    return forward


def _filterable(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions for which there is a way with fewer products."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and _plain(layer, nn.Conv2d)]
    return [layer for layer in layers if winograd.suits(layer)]


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs


def _disguised(convolution: nn.Conv2d, inputs: Tensor) -> Tensor:
    return 2 * convolution._conv_forward(inputs, convolution.weight, convolution.bias) + 1


def _undisguised(norm: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    return nn.BatchNorm2d.forward(norm, (inputs - 1) / 2)


@contextmanager
def _exchanged(forwards: Forwards) -> Iterator[None]:
    """The layers, each computing what it is given here."""
    for layer, forward in forwards.items():
        layer.forward = forward
    try:
        yield
    finally:
        for layer in forwards:
            del layer.forward


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().amax() <= TOLERANCE * expected.abs().amax())


def _pairs(model: nn.Module, images: Images) -> Pairs:
    """Convolutions, each with the BatchNorm that is given exactly its output; both are called once per pass."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: Pairs = []
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
    hooked = layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer)
    return type(layer) is kind and not hooked
