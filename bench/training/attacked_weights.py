"""A check that crafting attacks the weights that are trained, and no others.

Crafting looks at a model in eval mode, for the sake of BatchNorm and dropout. A model that computes with other weights
in eval mode, such as averaged ones, would be attacked where it is not trained, and nothing would show it.
"""

from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import Images, evaluation_mode
from bench.system.randomness import untouched_randomness
from bench.training.stray_state import hidden, parts

_UNUSABLE = (AttributeError, RuntimeError, TypeError, ValueError)
"""Errors of a model that cannot be copied, or not be called like this."""


def require_trained_weights(model: nn.Module, images: Images, trained: Iterable[Tensor]) -> None:
    """Refuse a model that computes with other weights in eval mode than the trained ones that it has as it is.

    It is one that `TrainingContext.crafting` was given, in its training mode and after a step, and is left as crafting
    leaves it; `trained` are the weights that optimisers update. A weight that no output depends on (a head for a loss
    of its own) is none of this function's business, and neither are frozen weights that both modes use.
    """
    ids = {id(parameter) for parameter in trained}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ids]
    images = images if len(images) > 1 else torch.cat([images, images])  # BatchNorm cannot normalise one
    with untouched_randomness():
        suspects = _suspects(model, images, names)
        if not suspects:
            return
        try:
            reached = _reached(model, images)
            used = [name for name in names if name in reached]
            ignored = _ignored(model, images, [name for name in suspects if name in used])
            foreign = _foreign(model, images, reached) if ignored else []
        except _UNUSABLE:  # it cannot be copied, or not be run on few images
            used, ignored, foreign = names, suspects, []
    if ignored and (foreign or set(used) == set(ignored)):
        raise _refusal(model, ignored, foreign)


def _suspects(model: nn.Module, images: Images, names: Collection[str]) -> list[str]:
    """Of these parameters those that eval mode changes, or that its output does not lead back to."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in names}
    with evaluation_mode(model), torch.enable_grad():
        changed = torch.stack([(parameters[name] != before[name]).any() for name in names]).tolist() if names else []
        try:
            used = _leaves(_tensors(model(images)))
        except _UNUSABLE:
            return []  # it takes something else than images, and crafting used another method
    return [name for name, moved in zip(names, changed, strict=True) if moved or id(parameters[name]) not in used]


def _reached(model: nn.Module, images: Images) -> list[str]:
    """Parameters, frozen ones too, that the output of the model as it is, in its own modes, leads back to."""
    copy = _copy(model)
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad():
        used = _leaves(_tensors(copy(images)))
    if used & {id(parameter) for parameter in model.parameters()}:
        raise RuntimeError("a method of the copy is bound to the model")
    return [name for name, parameter in copy.named_parameters() if id(parameter) in used]


def _ignored(model: nn.Module, images: Images, suspects: list[str]) -> list[str]:
    """Of these parameters those that the output does not depend on in eval mode."""
    if not suspects or not _depends(model, images, suspects, evaluated=True):
        return suspects
    return [name for name in suspects if not _depends(model, images, [name], evaluated=True)]


def _foreign(model: nn.Module, images: Images, reached: Collection[str]) -> list[str]:
    """Tensors anywhere in the model that its output depends on in eval mode alone; statistics of BatchNorm are none.

    A `reached` parameter is none either: in train mode BatchNorm takes a bias before it out again, but for rounding.
    """
    statistics = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
    return [
        name
        for name, tensor in _all_tensors(model)
        if name not in statistics and name not in reached and tensor.is_floating_point()
        if _depends(model, images, [name], evaluated=True) and not _depends(model, images, [name], evaluated=False)
    ]


def _depends(model: nn.Module, images: Images, names: Collection[str], evaluated: bool) -> bool:
    """True if the output is another one when these tensors are, in eval mode or as the model is."""
    outputs = []
    for change in (False, True):
        copy = _copy(model)
        generator = torch.Generator().manual_seed(0)
        for name, tensor in _all_tensors(copy) if change else ():
            if name in names:
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.data.add_((1 + tensor.data.abs()) * noise)
        with torch.no_grad(), untouched_randomness():
            torch.manual_seed(0)
            outputs.append(_tensors((copy.eval() if evaluated else copy)(images)))
    return any(not torch.equal(before, after) for before, after in zip(*outputs, strict=True))


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, and tensors in attributes, with their names; each once."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for place, value in hidden(model):
        for name, part in parts(place, value, {id(module) for module in model.modules()}):
            inner = part.named_parameters(prefix=name) if isinstance(part, nn.Module) else [(name, part)]
            for inner_name, tensor in inner:
                if isinstance(tensor, Tensor) and id(tensor) not in known:
                    known.add(id(tensor))
                    yield inner_name, tensor


def _copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing; features that a forward pass left behind are copied without their graph."""
    memo = {id(tensor): tensor.detach().clone() for _, tensor in _all_tensors(model) if not tensor.is_leaf}
    return deepcopy(model, memo)


def _tensors(output: object) -> list[Tensor]:
    """Tensors of an output, in order."""
    return [part for _, part in parts("", output) if isinstance(part, Tensor)]


def _leaves(outputs: Iterable[Tensor]) -> set[int]:
    """Ids of the tensors that a gradient of the outputs would be added to."""
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        following = [inner for inner, _ in node.next_functions if inner is not None and inner not in seen]
        seen.update(following)
        waiting.extend(following)
    return found


def _refusal(model: nn.Module, ignored: list[str], foreign: list[str]) -> BenchError:
    part, _, rest = ignored[0].partition(".")
    live = f"model.{part}" if rest and all(name.startswith(f"{part}.") for name in ignored) else "model.net"
    return BenchError(
        f"crafting would not attack the trained {_counted(ignored)}: in eval mode {type(model).__name__} computes with "
        f"{_counted(foreign) if foreign else 'other weights'} instead. Craft against the part that is trained, as "
        f"context.crafting({live}) does, and keep averaged weights out of it."
    )


def _counted(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
