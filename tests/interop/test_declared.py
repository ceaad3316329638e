"""What a model declares of itself: replaced gradients are exactly those, forward is what it was, records say so."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.errors import BenchError
from bench.face import evaluate
from bench.interop.declared import ReplacedGradients, declared_gradients, declares_randomness
from bench.interop.subjects import from_module

LEVELS = 51


class Levels(nn.Module):
    """Rounds images to some levels, by way of NumPy: without any gradient."""

    def __init__(self, replacement="identity"):
        super().__init__()
        self.backward_as = replacement

    def forward(self, images):
        return torch.from_numpy(np.round(images.numpy() * LEVELS)).float() / LEVELS


class Half(nn.Module):
    """A replacement with a gradient of its own."""

    def forward(self, images):
        return 0.5 * images


def behind(front):
    torch.manual_seed(0)
    return nn.Sequential(front, nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(("replacement", "factor"), [("identity", 1.0), (Half(), 0.5)])
def test_forward_is_the_models_own_and_the_gradient_that_of_the_replacement(replacement, factor):
    front = Levels(replacement)
    model = behind(front)
    replaced = ReplacedGradients(model)
    images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(replaced(images), expected)
    leaf = images.clone().requires_grad_()
    logits = replaced(leaf)
    assert torch.equal(logits, expected)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
    assert torch.equal(gradient.flatten(1), factor * model[2].weight[1].detach().expand(4, -1))
    assert not front._forward_hooks and not front._forward_pre_hooks


def test_what_cannot_be_declared_is_refused():
    with pytest.raises(BenchError, match=r"0: backward_as is 'nothing'. Give 'identity', or a module"):
        declared_gradients(behind(Levels("nothing")))
    with pytest.raises(BenchError, match="the whole model says backward_as"):
        declared_gradients(Levels())
    with pytest.raises(BenchError, match=r"Levels returns \(1, 1, 4, 4\), .* gradient \(1, 16\)"):
        ReplacedGradients(behind(Levels(nn.Flatten())))(torch.rand(1, 1, 4, 4).requires_grad_())


def test_a_module_anywhere_in_a_model_declares_it_random():
    model = behind(nn.Identity())
    assert not declares_randomness(model)
    model[0].randomised = True
    assert declares_randomness(model)


def test_attacks_pass_a_front_without_gradients_and_the_file_and_the_verdict_say_how(tmp_path):
    model = behind(Levels())
    images = (torch.randint(60, 190, (12, 1, 4, 4), generator=torch.Generator().manual_seed(2))).to(torch.uint8)
    with torch.no_grad():
        labels = model(images / 255).argmax(1)
    result = evaluate(model, (images, labels), "quick", epsilon="0.2", quiet=True, probes=0, out=tmp_path / "r.h5")
    # As on the linear model behind the front, whose rounding moves pixels by a hundredth at most.
    bare = evaluate(
        behind(nn.Identity()), (images, labels), "quick", epsilon="0.2", quiet=True, probes=0, out=tmp_path / "b.h5"
    )
    broken, known = (one.attacks["PGD-20"].prediction != one.label for one in (result, bare))
    assert broken.sum() >= known.sum() - 1 and known.sum() >= 6
    assert result.run["backward_as"] == {"0": "identity"}
    assert from_module(model, None, torch.device("cpu")).told == (
        "0: its gradient is that of identity, as the model says (BPDA).",
    )
    from bench.leaderboard.render.verdict import verdict

    assert "gradients that the model replaced for attacks (BPDA): 0 as identity" in verdict(result, 200)
