"""Images that break on the way: the step of an inner maximum at which each was first misclassified."""

import dataclasses

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces.attacks import fooled
from bench.interfaces.defenses import TrainingContext
from bench.interfaces.tensors import Images, Labels, Step


class BreakingSteps:
    """Notes at which step of an ascent each image is first misclassified; the ascent itself stays as it is.

        breaking = BreakingSteps(context, view, labels, start)
        perturbed = craft(objective, view, start, images, breaking.context)
        steps = breaking.steps(perturbed)

    For that, `view` classifies every image on the way once more, in float32. Of soft labels the largest class counts.
    """

    def __init__(self, context: TrainingContext, view: nn.Module, labels: Labels, start: Images) -> None:
        self._unnoted, self._view = context, view
        self._labels = labels.argmax(1) if labels.is_floating_point() else labels
        self._first = torch.full_like(self._labels, context.steps + 1)
        self._latest, self._taken = start, 0
        self._look()

    @property
    def context(self) -> TrainingContext:
        """The context to give to one ascent from the start."""
        return dataclasses.replace(self._unnoted, repeated=self._repeated)

    def steps(self, perturbed: Images) -> Int64[Tensor, " batch"]:
        """For each image how many steps it took: 0, the start was misclassified; one more than all, none was.

        `perturbed` is what the ascent returned.

        Raises:
            BenchError: it was another ascent that was noted, or none.
        """
        self._follow(perturbed)
        if self._taken != self._unnoted.steps:
            raise BenchError(
                f"BreakingSteps noted {self._taken} of {self._unnoted.steps} steps: give its start and its context to "
                "one ascent, and what that returns to steps()."
            )
        return self._first

    def _repeated(self, step: Step) -> Step:
        # Around a step that may be left out, not in it.
        advance = self._unnoted.repeated(step)

        def noted(images: Images) -> Images:
            self._follow(images)
            return advance(images)

        return noted

    def _follow(self, images: Images) -> None:
        # Each step is shown what it is given: the first one may be run before steps are repeated.
        if images is not self._latest:
            self._latest, self._taken = images, self._taken + 1
            self._look()

    def _look(self) -> None:
        with torch.no_grad(), self._unnoted.rounding(half=False):
            broken = fooled(self._latest, self._view(self._latest), self._labels)
        self._first = torch.where(broken, self._first.clamp(max=self._taken), self._first)
