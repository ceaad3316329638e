"""Ascent on the parameters of a transformation: what attacks share that move or recolour pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.attacks._ascent import usable
from bench.attacks._objectives import margin
from bench.interfaces import PerExample, Problem, fooled

CONFIDENCE = 1e6
"""The lead of a rival that no search reaches: it goes on past the boundary."""


def ascend_parameters(problem: Problem, steps: int, step_size: str, penalty: Callable[[Tensor], PerExample]) -> Tensor:
    """Parameters of the problem's transformation: each image's first that fool the model, else the last ones.

    Ascended is the problem's objective or, without one, the margin, less a penalty; by steps of one sign each.
    """
    transformation, threat = problem.threat.transformation, problem.threat
    assert transformation is not None
    images, labels, length = problem.images, problem.labels, threat.length(step_size)
    # A random start: where neither neighbour differs on one side, a flow of 0 has no slope, though it is no optimum.
    like = images.new_zeros(transformation.shape(images))
    parameters = threat.radius * (2 * problem.draws.uniform(like) - 1)
    kept, done = parameters, torch.zeros_like(labels, dtype=torch.bool)
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            moved = transformation.apply(images, leaf)
            logits = problem.model(moved)
            value = (
                margin(logits, labels, CONFIDENCE)
                if problem.objective is None
                else problem.objective(problem.model, moved)
            )
            (gradient,) = torch.autograd.grad((value - penalty(leaf)).sum(), leaf)
        kept = torch.where(_column(done, parameters), kept, parameters)
        done = done | fooled(moved.detach(), logits.detach(), labels)
        if step < steps:
            parameters = transformation.limit(parameters + length * usable(gradient).sign(), threat.radius)
    return kept


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
