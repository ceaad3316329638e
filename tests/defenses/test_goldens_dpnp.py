"""DPNP against the clean parts of Adv-DPNP's stored figures: the predecessor's code is not published."""

import pytest
import torch

from bench.defenses.adv_dpnp import AdvDPNP
from bench.defenses.adv_dpnp import PrototypeClassifier as TheirClassifier
from bench.defenses.dpnp import DeepPrototypes, PrototypeClassifier
from tests.support.goldens import Pixels, assert_close, each_case, pixels, read, training_context

GOLDEN = {case: stored for case, stored in read("adv_dpnp").items() if "total" in stored}


def built(stored):
    """Defense and model of a case, with features for images; the figures' alignment is a sum over dimensions."""
    count, dimension = stored["prototypes"].shape
    weights = {"lambda_dpp": float(stored["lambda_dpp"]) * dimension, "lambda_dnp": float(stored["lambda_dnp"])}
    defense = DeepPrototypes(alpha=float(stored["alpha"]), **weights)
    model = defense.build(pixels(dimension), count).double()
    with torch.no_grad():
        model.prototypes.copy_(stored["prototypes"])
    return defense, model, stored["feat_clean"][:, :, None, None].clone().requires_grad_()


@each_case(GOLDEN)
def test_losses_and_gradients_are_the_clean_half_of_adv_dpnp(case):
    """Its clean terms are halved, ours are not; nothing else moves prototypes, and its divergence is none of ours."""
    stored = GOLDEN[case]
    defense, model, images = built(stored)
    terms = defense.losses(model, images, stored["labels"], training_context())
    assert_close(model(images), stored["logits_clean"], 1e-9)
    assert_close(terms["clean"], stored["ce_clean"].mean())
    assert_close(terms["alignment"], float(stored["lambda_dpp"]) / 2 * stored["sqdist_clean"].mean())
    assert_close(terms["repulsion"], float(stored["lambda_dnp"]) * stored["dnp"])
    sum(terms.values()).backward()
    clean = stored["grad_proto_ce_clean"] + stored["grad_proto_align_clean"]
    expected = 2 * clean + stored["grad_proto_dnp_both_ends"]
    assert_close(model.prototypes.grad, expected, 1e-9, 1e-9 * float(expected.abs().max()))


def test_it_is_adv_dpnp_whose_images_are_not_perturbed():
    """At radius 0 eq. 7 has the same value: two halves of one clean term, and no divergence."""
    stored = GOLDEN["m10_signed_features"]
    defense, model, images = built(stored)
    images = images.detach().sigmoid()
    ours = sum(defense.losses(model, images, stored["labels"], training_context()).values())
    theirs = TheirClassifier(Pixels(16), model.class_centres().clone(), defense.alpha).double()
    rival = AdvDPNP(alpha=defense.alpha, lambda_dpp=defense.lambda_dpp, lambda_dnp=defense.lambda_dnp)
    context = training_context(steps=0, epsilon=0)
    assert_close(ours, sum(rival.losses(theirs, images, stored["labels"], context).values()))


def test_every_epoch_begins_at_the_radius():
    defense = DeepPrototypes(alpha=7.0)
    model = defense.build(pixels(6), 3)
    before = model.class_centres().clone()
    defense.begin_epoch(model, training_context())
    assert_close(model.class_centres().norm(dim=1), torch.full((3,), 7.0), 1e-6)
    assert_close(torch.cosine_similarity(model.class_centres(), before), torch.ones(3), 1e-6)
    assert isinstance(model, PrototypeClassifier)


def test_the_adaptive_objective_by_hand():
    """f = (3, 4), c = (5, 0) and (0, 5), alpha 5: scores 3 and 4, and ||f - c_0||^2 = 4 + 16, of two dimensions 10."""
    defense = DeepPrototypes(alpha=5.0, lambda_dpp=0.4)
    model = defense.build(pixels(2), 2)
    with torch.no_grad():
        model.prototypes.copy_(5 * torch.eye(2))
    images = torch.tensor([3.0, 4.0])[None, :, None, None]
    objective = defense.adaptive_objective(model, images, torch.tensor([0]))
    assert objective(model, images).item() == pytest.approx(1.313262 + 0.2 * 10, rel=1e-5)
