"""Adversarial weight perturbation (Wu et al. 2020, https://arxiv.org/abs/2004.05884), around the step of any defense.

    v_l = awp * |w_l| * g_l / |g_l|,   g: gradient of the defense's loss at w         for every layer l
    w  <-  (step of the optimiser at w + v) - v

As in the authors' code (csdongxian/AWP): layers are the parameters that are called weight and have more than one axis;
images are crafted once, against w, and both losses are of these; the running statistics are those of the second; weight
decay acts on w + v.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.interfaces import Defense, Images, Labels, Step, TrainingContext, require_terms, without_autocast
from bench.system.randomness import untouched_randomness

_TINY = 1e-20


def perturbed_update(
    defense: Defense,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    labels: Labels,
    context: TrainingContext,
    awp: float,
    unite: Callable[[Sequence[Tensor]], None],
) -> Any:
    """What `defense.update` returns, at weights that are moved by `awp` times their length.

    `unite` makes gradients of this process's rows those of the whole batch, in place. The defense's `losses` are
    computed twice on a batch, from the same random states, buffers and tensors of `context.state`.
    """
    weights = [weight for name, weight in model.named_parameters() if _is_layer(name, weight)]
    crafted = _Crafted()
    gradients = _gradients(defense, model, weights, images, labels, replace(context, repeated=crafted.kept(context)))
    unite(gradients)
    with torch.no_grad():
        before = [weight.clone() for weight in weights]
        shifts = [
            (weight, awp * weight.norm() / (gradient.norm() + _TINY) * gradient)
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        for weight, shift in shifts:
            weight.add_(shift)

    @torch.no_grad()
    def take_off(*ignored: object) -> None:
        while shifts:
            weight, shift = shifts.pop()
            weight.sub_(shift)

    @contextmanager
    def view(shown: nn.Module) -> Iterator[nn.Module]:
        with _exchanged(weights, before), context.view(shown) as viewed:
            yield viewed

    # Directly after the step, so that what a defense does to its weights then is done to those that stay.
    hook = optimizer.register_step_post_hook(take_off)
    try:
        return defense.update(
            model, optimizer, images, labels, replace(context, view=view, repeated=crafted.again(context))
        )
    finally:
        hook.remove()
        take_off()


def _is_layer(name: str, weight: Tensor) -> bool:
    return weight.requires_grad and weight.dim() > 1 and "weight" in name


def _gradients(
    defense: Defense,
    model: nn.Module,
    weights: Sequence[Tensor],
    images: Images,
    labels: Labels,
    context: TrainingContext,
) -> list[Tensor]:
    """Those of the defense's loss; all that its computation moves is put back."""
    moved = [*model.buffers(), *(item for item in context.state.values() if isinstance(item, Tensor))]
    before, drawn = [tensor.clone() for tensor in moved], context.generator.get_state()
    with untouched_randomness():
        terms = defense.losses(model, images, labels, replace(context, record=lambda name, value: None))
        require_terms(defense, "losses", terms)
        with without_autocast(images):
            loss = torch.stack(list(terms.values())).sum()
            found = torch.autograd.grad(loss, list(weights), allow_unused=True, materialize_grads=True)
    context.generator.set_state(drawn)
    with torch.no_grad():
        for tensor, value in zip(moved, before, strict=True):
            tensor.copy_(value)
    return list(found)


class _Crafted:
    """The steps of a batch's ascents, in order, so that they are not computed a second time."""

    def __init__(self) -> None:
        self.ascents: list[list[Images]] = []

    def kept(self, context: TrainingContext) -> Callable[[Step], Step]:
        """The `repeated` of a context that computes the steps and keeps their results."""

        def repeated(step: Step) -> Step:
            advance, results = context.repeated(step), list[Images]()
            self.ascents.append(results)

            def keep(images: Images) -> Images:
                results.append(advance(images))
                return results[-1]

            return keep

        return repeated

    def again(self, context: TrainingContext) -> Callable[[Step], Step]:
        """The `repeated` of a context in which the same ascents have the same results; others are computed."""
        ascents = iter(self.ascents)

        def repeated(step: Step) -> Step:
            advance, results = context.repeated(step), iter(next(ascents, []))

            def recall(images: Images) -> Images:
                known = next(results, None)
                return advance(images) if known is None else known

            return recall

        return repeated


@contextmanager
def _exchanged(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """The weights with these values until exit."""
    here = [weight.data for weight in weights]
    for weight, value in zip(weights, values, strict=True):
        weight.data = value
    try:
        yield
    finally:
        for weight, value in zip(weights, here, strict=True):
            weight.data = value
