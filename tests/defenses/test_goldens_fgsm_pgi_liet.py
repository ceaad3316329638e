"""FGSM-PGI and LIET against figures of the authors' code (tests/goldens/NAME.md), and by hand."""

import math

import pytest
import torch

from bench.defenses.fgsm_pgi import PriorGuidedTraining
from bench.defenses.liet import LabelInformationElimination, random_targets, shared_divergence
from bench.interfaces import Placement, ThreatModel, TrainingContext
from bench.training.label_smoothing import smoothed_labels
from tests.support.goldens import (
    adaptive_value,
    assert_close,
    each_case,
    inject,
    part,
    read,
    same_gradients_and_buffers,
    tiny_classifier,
    tiny_state,
    training_context,
)

FGSM_PGI, LIET = read("fgsm_pgi"), read("liet")


def kept(shape=(6, 2, 2, 2)):
    """The tables of as many images, all 0, and the rows of a batch of all of them."""
    names = PriorGuidedTraining().tables(shape[1:])
    return {
        "state": {name: torch.zeros(shape, dtype=torch.float64) for name in names},
        "indices": torch.arange(shape[0]),
    }


@each_case(FGSM_PGI)
def test_three_epochs_of_fgsm_pgi_equal_the_official_ones(case):
    """Their uniform start is of numbers of their own: its signs are the first perturbations."""
    golden, tables = FGSM_PGI[case], kept()
    tables["state"]["perturbation"].copy_(golden["first"])
    defense, model, losses = PriorGuidedTraining(), tiny_classifier(tiny_state(golden)), []
    # Their factor f gives the label f, and each of two rivals (1 - f) / 2.
    share = (1 - float(golden["factor"])) * 3 / 2
    for epoch, (perturbation, momentum) in enumerate(zip(golden["perturbations"], golden["momenta"], strict=True)):
        model.zero_grad()
        context = training_context(golden["eps"], epoch=epoch + 1, epochs=110, **tables)
        with smoothed_labels(share, context, "PriorGuidedTraining") as context:
            terms = defense.losses(model, golden["x"], golden["y"], context)
        sum(terms.values()).backward()
        losses.append(sum(terms.values()).item())
        assert_close(tables["state"]["perturbation"], perturbation)
        assert_close(tables["state"]["momentum"], momentum)
    assert losses == pytest.approx(golden["losses"].tolist())
    assert_close(model.backbone.shown(training=True), golden["trained"])
    same_gradients_and_buffers(model, golden)


@pytest.mark.parametrize(("norm", "length"), [("linf", 0.5), ("l2", 0.25), ("l1", 0.125)])
def test_perturbations_of_fgsm_pgi_begin_anew_on_the_sphere(norm, length):
    """Of 4 pixels, at radius 0.5: each is +length or -length. Again after 40 epochs, from the epoch's generator."""
    tables = {name: torch.ones(50, *shape) for name, shape in PriorGuidedTraining().tables((1, 2, 2)).items()}

    def begun(epoch, seed):
        generator = torch.Generator().manual_seed(seed)
        context = TrainingContext(ThreatModel(norm, "0.5"), 1, 0.1, generator, epoch=epoch, epochs=110, state=tables)
        PriorGuidedTraining().begin_epoch(None, context)
        return tables["perturbation"].clone()

    first = begun(0, 0)
    assert_close(first.abs(), torch.full((50, 1, 2, 2), length), 1e-6)
    # Of 200 fair signs; 4 standard deviations.
    assert abs(first.sign().sum()) < 4 * math.sqrt(200)
    assert tables["momentum"].count_nonzero() == 0
    tables["momentum"].fill_(1)
    assert torch.equal(begun(39, 1), first)
    assert tables["momentum"].all()
    again = begun(40, 1)
    assert not torch.equal(again, first)
    assert torch.equal(begun(0, 0), first)


class Upwards(torch.nn.Module):
    """Two logits, the second of which is the sum of the pixels, for a class 0: cross-entropy grows with each pixel."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().flatten().tolist())
        score = self.slope * images.flatten(1).sum(1, keepdim=True)
        return torch.cat([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("follow", [False, True])
def test_perturbations_of_fgsm_pgi_move_with_the_image_if_asked_to(follow):
    """One row of two pixels, mirrored: 0.1 on the left of the training image is on the right of the batch's."""
    tables = kept((3, 1, 1, 2))
    tables["state"]["perturbation"][2] = torch.tensor([0.1, 0.0])
    tables["indices"] = torch.tensor([2])
    model, images = Upwards(), torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    images[..., 0] = 0.95
    context = training_context(0.2, epoch=1, placement=Placement(mirrored=torch.tensor([True])), **tables)
    PriorGuidedTraining(follow=follow).losses(model, images, torch.tensor([0]), context)
    assert_close(model.seen, [[0.95, 0.6] if follow else [1.05, 0.5], [1.0, 0.7]])
    # Both pixels rose by what [0, 1] leaves of the radius; the table says so in the coordinates of its image.
    assert_close(tables["state"]["perturbation"][2].flatten(), [0.2, 0.05] if follow else [0.05, 0.2])
    assert tables["state"]["perturbation"][:2].count_nonzero() == 0
    # Of two equal gradients, each half of their sum.
    assert_close(tables["state"]["momentum"][2].flatten(), [0.5, 0.5])


@each_case(LIET)
def test_a_step_of_liet_equals_the_official_one(monkeypatch, case):
    golden, defense = LIET[case], LabelInformationElimination(noise=2.0 if case.startswith("wide") else 1.0)
    of_classes, *of_images = part(golden, "shares_").values()
    inject(monkeypatch, "rand", of_classes, golden["chances"], golden["noise"], golden["scalars"], *of_images)
    model = tiny_classifier(tiny_state(golden))
    state = defense.state(model, torch.optim.SGD(model.parameters()))
    context = training_context(golden["eps"], epoch=int(golden["epoch"]), epochs=10, state=state)
    terms = defense.losses(model, golden["x"], golden["y"], context)
    sum(terms.values()).backward()
    assert_close(state["marks"].of_class, golden["directions"])
    assert_close(model.backbone.shown(training=False), golden["crafted"])
    assert_close(model.backbone.shown(training=True), golden["trained"])
    assert_close(terms["alike"], golden["term"])
    assert_close(sum(terms.values()), golden["loss"])
    same_gradients_and_buffers(model, golden)


def test_marks_of_liet_are_made_every_few_batches_and_saved_never():
    golden, defense, looks = LIET["bn"], LabelInformationElimination(every=2), []
    model = tiny_classifier(tiny_state(golden))
    state = defense.state(model, torch.optim.SGD(model.parameters()))
    for batch in range(5):
        context = training_context(golden["eps"], batch=batch, batches_per_epoch=5, epochs=10, state=state)
        defense.losses(model, golden["x"], golden["y"], context)
        looks.append(sum(not training for training, _ in model.backbone.seen))
    assert looks == [1, 1, 2, 2, 3]
    assert state["marks"].state_dict() == {}


def test_targets_of_liet_give_the_rest_to_the_others():
    uniform = torch.tensor([[0.9, 0.2, 0.6], [0.5, 0.5, 0.7]])
    assert_close(random_targets(torch.tensor([0, 2]), uniform, 0.4), [[0.6, 0.1, 0.3], [0.2, 0.2, 0.6]], 1e-6)


def test_the_shared_divergence_by_hand():
    """Certain of two classes: log 2. (1, 0) and (1/2, 1/2): m = (3/4, 1/4)."""
    certain, even = torch.tensor([[300.0, 0.0]], requires_grad=True), torch.zeros(1, 2)
    assert shared_divergence(certain, -certain).item() == pytest.approx(math.log(2))
    expected = (math.log(4 / 3) + math.log(2 / 3) / 2 + math.log(2) / 2) / 2
    assert shared_divergence(certain, even).item() == pytest.approx(expected)
    shared_divergence(certain, even).sum().backward()
    assert certain.grad.isfinite().all()


def test_there_are_no_adaptive_objectives():
    assert adaptive_value(PriorGuidedTraining()) is None
    assert adaptive_value(LabelInformationElimination()) is None
