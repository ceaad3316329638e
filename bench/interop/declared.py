"""What a model declares of itself: that it is random, and what stands for the gradient of a part that has none.

    class Purifier(nn.Module):
        randomised = True            # draws from the generators of torch, NumPy or Python: suites `eot`
        backward_as = "identity"     # or a module that takes what this part takes: its gradient is used instead

Either may be said by the model or by any module in it. A replaced gradient is BPDA (Athalye et al. 2018,
https://arxiv.org/abs/1802.00420, section 4.1): forward stays what it is, to the bit.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import Images
from bench.interop.adapters import Around

IDENTITY = "identity"


def declares_randomness(model: nn.Module) -> bool:
    """True if the model, or a module in it, says `randomised = True`."""
    return any(getattr(module, "randomised", False) is True for module in model.modules())


def declared_gradients(model: nn.Module) -> dict[str, str]:
    """By name of each part that says `backward_as`: `identity`, or the class of the module that it names.

    Raises:
        BenchError: it is neither, or the whole model says it.
    """
    found = {}
    for name, part in model.named_modules():
        declared = getattr(part, "backward_as", None)
        if declared is None:
            continue
        if declared != IDENTITY and not isinstance(declared, nn.Module):
            raise BenchError(
                f"{name or 'the model'}: backward_as is {str(declared)[:40]!r}. Give {IDENTITY!r}, or a module that "
                "takes what this part takes and returns its shape."
            )
        if not name:
            raise BenchError("the whole model says backward_as: say it of the part in front that has no gradient.")
        found[name] = IDENTITY if declared == IDENTITY else type(declared).__name__
    return found


class ReplacedGradients(Around):
    """A model whose parts that declare `backward_as` have the gradient of what they name."""

    def forward(self, images: Images) -> Any:
        parts = [part for part in self.module.modules() if getattr(part, "backward_as", None) is not None]
        with ExitStack() as hooks:
            for part in parts:
                replaced = _Replaced(part)
                hooks.enter_context(part.register_forward_pre_hook(replaced.before))
                hooks.enter_context(part.register_forward_hook(replaced.after))
            return self.module(images)


class _Replaced:
    """One call of a part: it is given tensors without a gradient, and its output is given that of the replacement."""

    def __init__(self, part: nn.Module) -> None:
        self.replacement: Any = None if part.backward_as == IDENTITY else part.backward_as
        self.given: list[Tensor] = []

    def before(self, part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self.given.append(inputs[0])
        return tuple(one.detach() if isinstance(one, Tensor) else one for one in inputs)

    def after(self, part: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        given = self.given.pop()
        if not torch.is_grad_enabled():
            return output
        smooth = given if self.replacement is None else self.replacement(given)
        if smooth.shape != output.shape:
            raise BenchError(
                f"{type(part).__name__} returns {tuple(output.shape)}, and what stands for its gradient "
                f"{tuple(smooth.shape)}: backward_as must return the same shape."
            )
        result: Tensor = _WithGradientOf.apply(output.detach(), smooth)  # type: ignore[no-untyped-call]
        return result


class _WithGradientOf(torch.autograd.Function):
    """The first tensor, with the gradient of the second."""

    @staticmethod
    def forward(context: Any, output: Tensor, smooth: Tensor) -> Tensor:
        context.kind = smooth.dtype
        return output.view_as(output)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return None, gradient.to(context.kind)
