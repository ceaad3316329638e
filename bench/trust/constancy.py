"""Constancy: a model answers as it did, at the start, between attacks and at the end, and as a copy that saw nothing.

A model that keeps something from one call to the next can look sound whenever it is looked at in one place only. So the
same images, clean and perturbed, are shown to it again and again, and at last, perturbed ones first, to another copy.
"""

import copy
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional

from bench.engine.memory import in_pieces
from bench.engine.observed import ModelView
from bench.engine.target import Target
from bench.interfaces import Draws, Images, Logits, ThreatModel
from bench.results.findings import Finding, finding

SAME = 1e-4
"""Share of the largest logit by which answers to the same images may differ: kernels on a GPU add in another order."""


def differing(found: Logits, expected: Logits, limit: float) -> Bool[Tensor, " batch"]:
    """Rows that differ by more than a share of the largest expected logit; NaN and infinity equal themselves."""
    largest = expected.where(torch.isfinite(expected), 0.0).abs().max().clamp_min(1e-30)
    same = (found - expected).abs() <= limit * largest
    same |= (found == expected) | (found.isnan() & expected.isnan())
    return ~same.all(1)


@dataclass
class Witness:
    """Images that a model is asked about again and again, and what it said first."""

    target: Target
    images: Images
    """Clean ones, then perturbed ones, as many."""
    first: Logits
    another: Callable[[], nn.Module] | None
    """Makes the model once more, as it was before anything was shown to it; None: it cannot be made."""
    changed: int = 0
    """Most images whose answer was another one at a look."""
    when: str = ""

    @classmethod
    def call(cls, target: Target, threat: ThreatModel | None, count: int) -> "Witness":
        """A witness of `count` images, as `Split.take` chooses, and of as many perturbed ones."""
        another = target.another
        if another is None:
            with suppress(Exception):  # what cannot be copied raises many kinds
                # Kept aside: nothing that the model is shown from here on reaches what is copied later.
                spare = copy.deepcopy(target.model)
                another = lambda: copy.deepcopy(spare)  # noqa: E731
        split = target.split.take(min(count, len(target.split)))
        clean, labels = split.images(slice(None)), split.labels
        size = target.room or max(1, len(clean))
        places = torch.split(torch.arange(len(clean)), size)
        perturbed = torch.cat(
            [_perturbed(target, clean[some], labels[some], threat or ThreatModel(), some) for some in places]
        )
        images = torch.cat([clean, perturbed])
        return cls(target, images, _asked(target, images), another)

    def look(self, when: str) -> None:
        """Ask again, and note how many answers changed."""
        self._compare(_asked(self.target, self.images), when)

    def last_look(self) -> Finding:
        """The finding: the model is asked once more, and a copy that saw nothing, of the perturbed images first."""
        self.look("they were asked for at the end")
        fresh = self.fresh()
        if fresh is not None:
            half = len(self.images) // 2
            answers = _asked(dataclasses.replace(self.target, model=fresh), self.images.roll(half, 0))
            self._compare(answers.roll(half, 0), "a copy that saw nothing before was asked")
        text = "answers to the same images stayed the same"
        if self.changed:
            text = f"{self.changed} of {len(self.images)} answers were others when {self.when}"
        return finding("stateful", "error" if self.changed else "passed", text, self.changed, 0)

    def fresh(self) -> nn.Module | None:
        """The model once more, with its weights and nothing else that it may have kept."""
        if self.another is None:
            return None
        try:
            model = self.another().to(self.images.device).eval()
            model.load_state_dict(self.target.model.state_dict())
        except Exception:  # a person's code: it may need what is no longer there
            return None
        return model

    def _compare(self, answers: Logits, when: str) -> None:
        changed = int(differing(answers, self.first, SAME).sum())
        if changed > self.changed:
            self.changed, self.when = changed, when


def _asked(target: Target, images: Images) -> Logits:
    """Logits, in as many pieces as memory asks for."""
    rows = np.arange(len(images))
    return torch.cat(
        in_pieces(rows, target, lambda piece: target.judge(images[torch.from_numpy(piece).to(images.device)]))
    )


def _perturbed(target: Target, clean: Images, labels: Tensor, threat: ThreatModel, places: Tensor) -> Images:
    """One step of full length up the loss; where there is no slope, a random corner of the ball."""
    leaf = clean.detach().requires_grad_()
    with torch.enable_grad():
        view = ModelView(target.model, cut=target.cut)
        loss = functional.cross_entropy(view(leaf), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    noise = 2 * Draws(target.seed, "witness", places.numpy()).uniform(clean, 0) - 1
    direction = torch.where(gradient.nan_to_num() == 0, noise, gradient.nan_to_num()).sign()
    share = {"linf": 1.0, "l2": clean[0].numel() ** -0.5, "l1": 1 / clean[0].numel()}[threat.norm]
    return threat.project(clean + threat.radius * share * direction, clean)
