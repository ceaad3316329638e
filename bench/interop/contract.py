"""The contract that a model must keep for a number to mean anything, and which adapter would mend what does not.

It is RobustBench's: an nn.Module that maps NCHW float32 images in [0, 1] to logits, normalises inside, and answers the
same twice in eval mode.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError, cause, ran_out
from bench.interfaces import Images
from bench.interop.adapters import held

_HALVES = {torch.float16: "half", torch.bfloat16: "bfloat16"}


@torch.no_grad()
def check_contract(
    model: nn.Module, shown: Images, num_classes: int, attacked: bool = False, at_least: bool = False
) -> int:
    """The number of outputs of a model in eval mode, which is shown a batch of images, one of them, and two.

    Where it is to be `attacked`, it is shown images that ask for a gradient as well. With `at_least`, it may know more
    classes than `num_classes`, which is 1 + the largest label.

    Raises:
        BenchError: no number could mean anything: the model fails, or its outputs have the wrong shape.
    """
    for size in dict.fromkeys(min(size, len(shown)) for size in (len(shown), 1, 2)):
        images = shown[:size].clone()
        try:
            logits = model(images)
        except BenchError:
            raise
        except Exception as error:
            if size > 2 and ran_out(error):
                continue  # an evaluation goes on with half as many images
            shape = tuple(images.shape)
            raise BenchError(
                f"the model cannot classify images of shape {shape}: {cause(error)}{_mend_of(error, model)}"
            ) from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != size:
            returned = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise BenchError(
                f"the model returned {returned} for {size} image{'s' * (size > 1)}: it must return one row of logits "
                f"each, whatever the batch size.{_adapter_for(logits, size)}"
            )
        if not torch.equal(images, shown[:size]):
            raise BenchError(
                "the model changes its input in place: attacks would be judged on other images. Copy it first."
            )
        _require_classes(logits, num_classes, at_least)
    if attacked:
        _require_gradients(model, shown[:2])
    return int(logits.shape[1])


def _require_classes(logits: Tensor, num_classes: int, at_least: bool) -> None:
    outputs = logits.shape[1]
    if outputs < num_classes and at_least:
        raise BenchError(
            f"the model returns {outputs} classes; the dataset's labels go up to {num_classes - 1}, which takes "
            f"{num_classes} or more.{_adapter_for(logits, len(logits))}"
        )
    if outputs != num_classes and not at_least:
        subset = " --adapt classes=I,J,... names the output of each class of the dataset." * (outputs > num_classes)
        mend = subset or _adapter_for(logits, len(logits))
        raise BenchError(f"the model returns {outputs} classes; the dataset has {num_classes}.{mend}")


def _adapter_for(answer: Any, size: int) -> str:
    """The sentence that says which adapter makes logits of an output; empty where none does."""
    if isinstance(answer, Tensor):
        one_each = answer.numel() == size and answer.shape[:1] == (size,)
        return " If it is the logit of the second of two classes: --adapt binary." if one_each else ""
    found = held(answer)
    fitting = [
        name for name, value in found.items() if isinstance(value, Tensor) and value.ndim == 2 and len(value) == size
    ]
    if fitting:
        what = ", ".join(f"{name} {tuple(found[name].shape)}" for name in fitting[:4])
        return f" It holds {what}: --adapt output={fitting[0]} takes the first."
    return f" It holds {', '.join(list(found)[:8])}." if found else ""


def _mend_of(error: Exception, model: nn.Module) -> str:
    """The sentence that says which adapter may help a model that fails; empty where none is likely to."""
    for dtype, name in _HALVES.items():
        if any(parameter.dtype == dtype for parameter in model.parameters()):
            return f". It has weights in {str(dtype).removeprefix('torch.')}: --adapt {name}."
    text = str(error).lower()
    sized = "channel" not in text and any(word in text for word in ("size", "shape", "height", "width"))
    return ". If it is made for images of another size: --adapt resize=SIZE." if sized else ""


def _require_gradients(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that fails where gradients are asked for; one without any is for the trust report."""
    leaf = images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = model(leaf)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    except Exception as error:
        raise BenchError(
            f"the model cannot be differentiated: {cause(error)}. Attacks need gradients: keep forward in torch, and "
            "change nothing in place that a gradient needs."
        ) from error
