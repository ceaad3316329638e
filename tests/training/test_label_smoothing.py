"""Label smoothing is the published formula in the loss, and nothing in the attack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional

from bench.attacks import craft, cross_entropy, uniform_start
from bench.catalogue.plugins import names
from bench.errors import BenchError
from bench.interfaces import Defense, ThreatModel, TrainingContext
from bench.models.checkpoints import build_model
from bench.training.averages import Averages
from bench.training.label_smoothing import smoothed_labels
from bench.training.request import TrainingRequest
from bench.training.train import prepare_run

SHARE = 0.4
WITHOUT, WITH = {"drp", "oc"}, {"adv-dpnp", "at", "mart", "st", "trades"}
"""Some defenses that train on no cross-entropy, and some that do."""


def context_of():
    return TrainingContext(ThreatModel("linf", "0.1"), 3, 0.04, torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Keeps(Defense):
    """Cross-entropy on images crafted with it, in train mode and not as `crafting` shows the model."""

    paper: ClassVar[str] = "none"
    kept: ClassVar[list[Any]] = []
    own: float = 0.0

    def losses(self, model: Any, images: Any, labels: Any, context: Any) -> dict[str, Any]:
        def objective(view: Any, x: Any) -> Any:
            return cross_entropy(view(x), labels)

        with context.crafting(model) as view:
            shown = craft(objective, view, uniform_start(images, context), images, context)
        bare = craft(objective, model, uniform_start(images, context), images, context, flat_start=False)
        self.kept.append((shown, bare))
        return {"loss": functional.cross_entropy(model(shown), labels, label_smoothing=self.own)}


def step(share, defense):
    """Terms, the perturbed images, and the model, of one step."""
    torch.manual_seed(0)
    model = build_model(defense, "cnn-small", {"image_shape": [1, 8, 8], "num_classes": 3})
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    with smoothed_labels(share, context_of(), "Keeps") as context:
        terms = defense.losses(model, images, labels, context)
    return terms, Keeps.kept.pop(), model, labels


def test_the_loss_is_the_formula_and_the_images_are_those_of_hard_labels():
    _, hard, _, _ = step(0.0, Keeps())
    terms, smoothed, model, labels = step(SHARE, Keeps())
    assert all(torch.equal(found, expected) for found, expected in zip(smoothed, hard, strict=True))
    losses = -model(smoothed[0]).log_softmax(1)
    own = losses.gather(1, labels[:, None]).squeeze(1)
    expected = ((1 - SHARE) * own + SHARE * losses.mean(1)).mean()
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_smoothing_of_a_defenses_own_is_left():
    with pytest.raises(BenchError, match=r"Keeps trains on no cross-entropy, so --label-smoothing 0\.4"):
        step(SHARE, Keeps(own=0.1))
    context = context_of()
    with smoothed_labels(0.0, context, "Keeps") as same:
        assert same is context


@pytest.mark.parametrize("name", names("defense"))
def test_every_defense_with_a_cross_entropy_is_smoothed_and_the_others_refuse(name):
    def terms(share):
        given = {"batch_size": 8, "attack_steps": 1, "label_smoothing": share}
        request = TrainingRequest(name, "digits", "cnn-small", protocol=given, limit_train=8, runs=Path("none"))
        run = prepare_run(request, quiet=True, trial=True)
        context = run.context(0, Averages())
        run.model.train()
        run.defense.begin_epoch(run.model, context)
        (step,) = run.steps(context)
        return run.step(*step)

    try:
        smoothed = terms(SHARE)
    except BenchError as refused:
        assert "trains on no cross-entropy" in str(refused) and name not in WITH
        return
    hard = terms(0.0)
    assert name not in WITHOUT and all(torch.isfinite(term) for term in smoothed.values())
    assert any(not torch.equal(smoothed[term], hard[term]) for term in hard)


def test_clean_cross_entropy_of_a_defense_by_hand():
    request = TrainingRequest("st", "digits", protocol={"label_smoothing": 0.3}, limit_train=8, runs=Path("none"))
    run = prepare_run(request, quiet=True)
    images, labels = run.train_split.images(slice(0, 8)), run.train_split.labels[:8]
    losses = -run.model(images).log_softmax(1).detach()
    expected = 0.7 * losses[torch.arange(8), labels].mean() + 0.3 * losses.mean()
    terms = run.step(images, labels, run.context(0, Averages()))
    assert float(terms["clean"].detach()) == pytest.approx(float(expected), rel=1e-6)
