"""Projected gradient ascent on the images: the mechanism of most attacks and of every inner maximum."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import (
    Images,
    Labels,
    Logits,
    Objective,
    PerExample,
    Problem,
    State,
    Step,
    ThreatModel,
    TrainingContext,
    without_autocast,
)

Pixels: TypeAlias = Float[Tensor, "batch pixels"]
Loss: TypeAlias = Callable[[Logits, Labels], PerExample]

LARGEST = 1e15
"""Squares of a million entries of this size add up in float32; with an infinite length, a step would have none."""

GREEDY = 0.1
"""Share of an l1 step that goes to the best coordinates. All of it meets the optimum of a linear model soonest, but
moves so few pixels at a time that it is a weaker attack on a network; without any, a linear model takes thousands
of steps. At 0.1 both are met."""


def ascend(
    objective: Objective,
    model: nn.Module,
    start: Images,
    images: Images,
    threat: ThreatModel,
    steps: int,
    step_size: float,
    repeated: Callable[[Step], Step] = lambda step: step,
) -> Images:
    """The last of `steps` iterates x <- project(x + step_size * steepest direction), from `start`.

    The projection is applied after each step only, so a start outside [0, 1] sees its first gradient there. `repeated`
    may exchange the step for one that computes the same.
    """

    def step(perturbed: Images) -> Images:
        gradient = input_gradient(objective, model, perturbed)
        return threat.project(steepest_step(gradient, perturbed, threat.norm, step_size), images)

    perturbed, advance = start, repeated(step)
    for _ in range(steps):
        perturbed = advance(perturbed)
    return perturbed


def craft(
    objective: Objective,
    view: nn.Module,
    start: Images,
    images: Images,
    context: TrainingContext,
    flat_start: bool = True,
) -> Images:
    """The training run's inner maximum: `ascend` with the context's threat model, steps and step size.

    A bfloat16 run takes the first step in float32 if `flat_start`: the objective may be at its optimum close to the
    start, as a divergence from the clean prediction is at the clean image. The difference of two nearby predictions
    then drowns in rounding, and where it rounds to 0 the image would never move. Cross-entropy needs no such step.
    """
    first = min(int(flat_start), context.steps)
    perturbed = ascend(objective, view, start, images, context.threat, first, context.step_size)
    rest = context.steps - first
    with context.rounding(half=True):
        return ascend(objective, view, perturbed, images, context.threat, rest, context.step_size, context.repeated)


def begin_ascent(problem: Problem, restart: int, from_noise: bool) -> State:
    """The first state of a projected ascent: the clean images, or the random start of this restart."""
    images = problem.images
    if from_noise:
        images = random_start(images, problem.threat, problem.draws.uniform(images, key=restart))
    return {"images": images}


def ascent_step(problem: Problem, state: State, loss: Loss, step_size: str) -> State:
    """One step of `ascend` on the problem's objective or, without one, on `loss` of logits and labels."""
    gradient = attack_gradient(problem, state["images"], loss)
    return {"images": attack_step(problem, state["images"], gradient, step_size)}


def attack_gradient(problem: Problem, images: Images, loss: Loss) -> Images:
    """Gradient of the problem's objective or, without one, of `loss`, in what is `usable` of it."""
    objective = problem.objective or (lambda model, images: loss(model(images), problem.labels))
    return usable(input_gradient(objective, problem.model, images))


def attack_step(problem: Problem, images: Images, direction: Images, step_size: str) -> Images:
    """Images that the threat model allows, a step of length `step_size` along `direction` away."""
    threat = problem.threat
    return threat.project(steepest_step(direction, images, threat.norm, threat.length(step_size)), problem.images)


def usable(gradient: Tensor) -> Tensor:
    """A gradient to follow: 0 where it is NaN or infinite, and no entry beyond `LARGEST`.

    An attack goes on with the rest, while training does not: a gradient that is not finite must stop it.
    """
    return gradient.nan_to_num(0.0, 0.0, 0.0).clamp_(-LARGEST, LARGEST)


def check_search(steps: int, step_size: str, random_start: bool, restarts: int) -> None:
    """Refuse parameters of an iterative attack that cannot work.

    Raises:
        BenchError: no step, no restart, restarts that would all be the same, or a step size that is not a length.
    """
    if steps < 1:
        raise BenchError(f"steps={steps} is below 1. Give 1 or more ascent steps.")
    if restarts < 1:
        raise BenchError(f"restarts={restarts} is below 1. Give 1 or more.")
    if restarts > 1 and not random_start:
        raise BenchError(f"restarts={restarts} without random_start repeats one search. Set random_start=true.")
    ThreatModel().length(step_size)


def input_gradient(objective: Objective, model: nn.Module, images: Images) -> Images:
    """Gradient of the summed objective with respect to the images alone; no parameter gradient is computed."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        total = objective(model, leaf).sum()
        with without_autocast(images):
            (gradient,) = torch.autograd.grad(total, leaf)
    return gradient


def steepest_step(gradient: Images, images: Images, norm: str, step_size: float) -> Images:
    """Images moved by a step of length `step_size` in `norm` along the gradient; a zero gradient moves nothing.

    linf, l2: the step that a linear objective gains most from. l1: `GREEDY` of the step does so, and goes to the
    coordinates of largest gradient, each up to the room it has left in [0, 1]; the rest is the gradient, rescaled.
    Where the gradient is not finite, the images are not either.
    """
    if norm == "linf":
        # The sign of NaN is 0, which would hide it.
        return images + step_size * (gradient.sign() + 0 * gradient)
    flat = gradient.flatten(1)
    length = torch.linalg.vector_norm(flat, ord=2 if norm == "l2" else 1, dim=1, keepdim=True)
    step = step_size * flat / length.clamp_min(torch.finfo(flat.dtype).tiny)
    if norm == "l1":
        step = (1 - GREEDY) * step + _greedy_step(flat, images.flatten(1), GREEDY * step_size)
    return images + step.view_as(images)


def _greedy_step(gradient: Pixels, pixels: Pixels, length: float) -> Pixels:
    """The step of l1 length `length` that stays in [0, 1] and that a linear objective gains most from."""
    room = torch.where(gradient > 0, 1.0 - pixels, torch.where(gradient < 0, pixels, 0.0)).clamp_min(0.0)
    order = gradient.abs().argsort(dim=1, descending=True, stable=True)
    ordered_room = room.gather(1, order)
    spent_before = ordered_room.cumsum(1) - ordered_room
    ordered_step = torch.minimum((length - spent_before).clamp_min(0.0), ordered_room)
    return torch.zeros_like(gradient).scatter(1, order, ordered_step) * gradient.sign()


def random_start(images: Images, threat: ThreatModel, uniform: Tensor) -> Images:
    """A random allowed image each, made of numbers in [0, 1) of the images' shape.

    linf: uniform in the box around the image. l2, l1: a random direction at full radius. Then clipped to [0, 1].
    """
    direction = 2 * uniform - 1
    if threat.norm == "linf":
        return (images + threat.radius * direction).clamp(0.0, 1.0)
    order = 2.0 if threat.norm == "l2" else 1.0
    length = torch.linalg.vector_norm(direction.flatten(1), ord=order, dim=1).clamp_min(1e-12)
    return threat.project(images + threat.radius * direction / length.view(-1, 1, 1, 1), images)


def uniform_start(images: Images, context: TrainingContext) -> Images:
    """A random allowed image each, from the run's generator."""
    return random_start(images, context.threat, context.noise(torch.rand, images))


def gaussian_start(images: Images, context: TrainingContext, deviation: float = 1e-3) -> Images:
    """Images plus Gaussian noise, not clipped (TRADES; a KL objective has no gradient at zero noise)."""
    return images + deviation * context.noise(torch.randn, images)
